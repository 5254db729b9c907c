"""Runs that Luigi schedules: with its own scheduler, and with a luigid."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import psutil
import pytest
from step_flows import comparable, is_alive, pids, run, statuses

from gluepy.conf.sources import load_settings
from gluepy.core import events as e
from gluepy.errors import DagError
from gluepy.exec.executors.luigi import LuigiExecutor
from gluepy.exec.steps import StepFolder
from gluepy.runtime import Runtime
from gluepy.runtime.collect import collect_run
from gluepy.testing import events_of
from gluepy.testing.wait import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Luigi forks its workers"),
]
if not os.environ.get("CI"):
    pytest.importorskip("luigi", reason="pip install 'gluepy[luigi]'")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def luigid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("luigid")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from luigi.cmdline import luigid; luigid()"
    command = [sys.executable, "-c", code, "--address", "127.0.0.1", "--port", str(port)]
    with (folder / "out").open("w") as out:
        server = subprocess.Popen(
            [*command, "--state-path", str(folder / "state")], stdout=out, stderr=out, start_new_session=True
        )
    anyio.run(until, lambda: _listens(port))
    yield f"http://127.0.0.1:{port}"
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("dag", ["train", "flaky", "dynamic"])
async def test_run_is_recorded_as_a_local_one(project: Path, dag: str) -> None:
    here = await run(project, dag, on_failure="continue")
    there = await run(project, dag, LuigiExecutor(2))
    assert statuses(there) == statuses(here)
    assert comparable(there) == comparable(here)


async def test_failure_is_that_of_the_task_and_a_resumed_run_mends_it(project: Path) -> None:
    engine = LuigiExecutor(2)
    result = await run(project, "broken", engine)
    (failed,) = (event for event in events_of(result) if isinstance(event, e.TaskFailed))
    assert (failed.error_type, failed.error_message) == ("ValueError", "it is broken")
    assert statuses(result)["join"] == "blocked"
    (project / "data/mended").touch()
    async with Runtime(load_settings(project, {}), executor=engine) as runtime:
        again = await runtime.resume_run(result.run_id)
    assert again.status == "finished"
    assert again.tasks["load"].attempts == 1


async def test_runs_on_a_luigid_two_at_once(project: Path, luigid: str) -> None:
    results = []

    async def one() -> None:
        results.append(await run(project, "train", LuigiExecutor(2, luigid)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one)
        tasks.start_soon(one)
    assert [result.status for result in results] == ["finished", "finished"]


async def test_cancelled_run_leaves_no_process(project: Path, started: Callable[[], list[psutil.Process]]) -> None:
    async with (
        Runtime(load_settings(project, {}), executor=LuigiExecutor(2)) as runtime,
        runtime.stream_dag("sleeping", check=False) as stream,
    ):
        await until(lambda: len(pids(f"{project}/data/runs/{stream.id}")) == 2)
        mine = {each.pid for each in started()}
        stream.cancel()
        result = await stream.result()
    assert result.status == "cancelled"
    assert not [pid for pid in pids(result.files) if is_alive(pid)]
    await until(lambda: not any(map(is_alive, mine)))  # guards end when what they guard has
    assert isinstance(StepFolder(result.files).events("sleeping", 1)[-1], e.TaskCancelled)


async def test_step_that_is_killed_is_tried_again(project: Path) -> None:
    async with (
        Runtime(load_settings(project, {}), executor=LuigiExecutor(2)) as runtime,
        runtime.stream_dag("dying") as stream,
    ):
        files = Path(f"{project}/data/runs/{stream.id}")
        await until(lambda: (files / "died").exists() and (files / "died").read_text())
        (event,) = StepFolder(str(files)).events("diesonce", 1)
        assert isinstance(event, e.TaskStarted)
        os.kill(event.pid, signal.SIGKILL)
        result = await stream.result()
    assert result.status == "finished"
    (retrying,) = (event for event in events_of(result) if isinstance(event, e.TaskRetrying))
    assert retrying.reason == "lost"


async def test_what_luigi_cannot_do_is_said_first(project: Path) -> None:
    with pytest.raises(DagError, match="LuigiExecutor has no trigger"):
        await run(project, "failing", LuigiExecutor(1))


MINE = """
import luigi
from gluepy.luigi import to_luigi

Train = to_luigi("train", params={"word": "hi"})

class Mine(luigi.Task):
    def requires(self):
        return Train(run_id="nightly")

    def output(self):
        return luigi.LocalTarget("mine.txt")

    def run(self):
        with self.output().open("w") as file:
            file.write("made")
"""


def test_dag_is_a_dependency_of_a_task_of_luigis(project: Path) -> None:
    (project / "mine.py").write_text(MINE, "utf-8")
    command = [sys.executable, "-m", "luigi", "--module", "mine", "Mine", "--local-scheduler"]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert (project / "mine.txt").exists(), done.stderr
    assert (project / "data/runs/nightly/eu.txt").read_text() == "hi"
    assert collect_run(load_settings(project, {}), "nightly").status == "finished"
