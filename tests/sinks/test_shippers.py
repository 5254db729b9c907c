"""A log shipper reads records, by the configuration of the documentation: each event once, whatever happens to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gluepy import DAG, Task, each, parallel
from gluepy.conf.schema import Settings
from gluepy.runtime import Runtime

pytestmark = pytest.mark.slow

CONFIGURATION = Path(__file__).parents[2] / "docs/observability/rsyslog.conf"


class Prints(Task):
    def run(self) -> None:
        print("größe ☃")
        print("and\n  more of it")


class Wide(Task):
    text: str

    def run(self) -> None: ...


class Fails(Task):
    def run(self) -> None:
        if not (self.storage / "mended").exists():
            raise ValueError("mend it")


class ShippedDAG(DAG):
    tasks = (Prints, parallel(Fails, each(Wide, text=["x" * 20_000, "y" * 20_000])))  # a long run.started


class Shipper:
    """rsyslog. `events` are the lines that it has shipped."""

    def __init__(self, folder: Path, runs: Path) -> None:
        text = CONFIGURATION.read_text()
        for old, new in (
            ("/var/lib/gluepy-rsyslog", folder / "state"),
            ("/srv/shop/.gluepy/runs", runs),
            ("/var/log", folder),
        ):
            assert old in text
            text = text.replace(old, str(new))
        (folder / "state").mkdir(parents=True)
        self.folder = folder
        (folder / "rsyslog.conf").write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["rsyslogd", "-n", "-f", str(self.folder / "rsyslog.conf"), "-i", str(self.folder / "pid")]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def events(self) -> list[str]:
        return self._lines("gluepy.jsonl")

    def output(self) -> list[Any]:
        return [json.loads(line) for line in self._lines("gluepy-tasks.jsonl")]

    def until(self, number: int, within_s: float = 60.0) -> list[str]:
        """The events, once there are so many; fewer, if they do not come."""
        deadline = time.monotonic() + within_s
        while len(self.events()) < number and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.events()

    def _lines(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text("utf-8").splitlines() if file.exists() else []


@pytest.fixture
def shipper(tmp_path: Path, settings: Settings) -> Iterator[Shipper]:
    if shutil.which("rsyslogd") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no rsyslogd: apt-get install rsyslog")
    shipper = Shipper(tmp_path / "shipper", settings.runs_root)
    settings.runs_root.mkdir(parents=True)
    shipper.start()
    yield shipper
    shipper.stop()


def recorded(settings: Settings) -> list[str]:
    """The lines of all records, by run and in order."""
    files = sorted(settings.runs_root.glob("*/events.jsonl"))
    return [line for file in files for line in file.read_text("utf-8").splitlines()]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_each_event_of_each_run_is_shipped_once_also_after_resumes_restarts_and_prune(
    settings: Settings, shipper: Shipper
) -> None:
    async with Runtime(settings) as runtime:
        first = await runtime.run_dag(ShippedDAG, check=False, capture=True)
        assert shipper.until(len(recorded(settings))) == recorded(settings)
        shipper.stop()  # what happens meanwhile is shipped later
        (settings.folder / "data/mended").touch()
        await runtime.resume_run(first.run_id, capture=True)
        shipper.start()
        assert shipper.until(len(recorded(settings))) == recorded(settings)
        before = recorded(settings)
        shutil.rmtree(first.path)
        await runtime.run_dag(ShippedDAG)
    assert shipper.until(len(before) + len(recorded(settings))) == [*before, *recorded(settings)]


async def test_output_of_tasks_is_shipped_with_its_file_and_indented_lines_belong_to_the_one_before(
    settings: Settings, shipper: Shipper
) -> None:
    async with Runtime(settings) as runtime:
        result = await runtime.run_dag(ShippedDAG, check=False, capture=True)
    deadline = time.monotonic() + 60
    log = str(result.path / "logs/prints.1.log")
    while time.monotonic() < deadline and len([each for each in shipper.output() if each["file"] == log]) < 2:
        time.sleep(0.02)  # noqa: ASYNC251  # nothing else is in the loop
    lines = [each["line"] for each in shipper.output() if each["file"] == log]
    assert [line.replace("\\n", "\n") for line in lines] == ["größe ☃", "and\n  more of it"]


@pytest.mark.parametrize("name", ["fluent-bit.yaml", "collector.yaml", "prometheus.yml"])
def test_other_configurations_are_well_formed(name: str) -> None:
    assert yaml.safe_load((CONFIGURATION.parent / name).read_text())
