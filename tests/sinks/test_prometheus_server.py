"""A real Prometheus scrapes what gluepy tells, with the configuration, alerts and dashboard of the documentation."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import start_http_server

from gluepy.conf.schema import Settings
from gluepy.sinks import prometheus
from gluepy.sinks.prometheus import Metrics
from gluepy.testing.sinks import SinkContractDAG, run, script

DOCS = Path(__file__).parents[2] / "docs/observability"
DAG = SinkContractDAG.label
PROGRAMS = ("prometheus", "prometheus-node-exporter", "promtool")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def programs() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        why = f"no {', '.join(missing)}: apt-get install prometheus prometheus-node-exporter"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)


@contextmanager
def program(*words: str) -> Iterator[None]:
    """A server, which is stopped at the end."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Server:
    """A Prometheus. `query` waits until an expression has a result."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        """What it finds now. Raises `HTTPError` for an expression that it does not understand."""
        return list(self.get(f"query?{urllib.parse.urlencode({'query': expression})}")["result"])

    def until(self, expression: str, within_s: float = 120.0) -> list[Any]:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            try:
                if found := self.query(expression):
                    return found
            except OSError:  # it is starting
                pass
            time.sleep(0.1)
        raise TimeoutError(f"{expression} has no result")


@pytest.fixture
def server(programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """One that scrapes this process and a node exporter, with the files of the documentation."""
    monkeypatch.setattr(prometheus, "metrics", Metrics())
    node, port = free_port(), free_port()
    (tmp_path / "textfiles").mkdir()
    with ExitStack() as stack:
        scraped, thread = start_http_server(0, "127.0.0.1", registry=prometheus.metrics.registry)
        stack.callback(thread.join)
        stack.callback(scraped.server_close)
        stack.callback(scraped.shutdown)
        config = (DOCS / "prometheus.yml").read_text()
        for old, new in (("15s", "1s"), ("localhost:8000", f"127.0.0.1:{scraped.server_port}"), ("9100", str(node))):
            assert old in config
            config = config.replace(old, new)
        (tmp_path / "prometheus.yml").write_text(config)
        shutil.copy(DOCS / "gluepy.rules.yml", tmp_path)
        stack.enter_context(
            program(
                "prometheus-node-exporter",
                "--collector.disable-defaults",
                "--collector.textfile",
                f"--collector.textfile.directory={tmp_path / 'textfiles'}",
                f"--web.listen-address=127.0.0.1:{node}",
            )
        )
        stack.enter_context(
            program(
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            )
        )
        yield Server(port)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_real_prometheus_scrapes_runs_and_textfiles_and_knows_what_the_dashboard_asks(
    server: Server, settings: Settings, tmp_path: Path
) -> None:
    named = settings.replaced(
        SINKS=[prometheus.Prometheus(tmp_path / "textfiles")],
    )
    result = await run(named, script())
    (runs,) = server.until(f'gluepy_runs_total{{dag="{DAG}"}}')
    assert (runs["metric"]["status"], runs["value"][1]) == (result.status, "1")
    (last,) = server.until(f'gluepy_last_run_tasks{{dag="{DAG}", job="node", status="failed"}}')
    assert last["value"][1] == "1"
    dashboard = json.loads((DOCS / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "1m").replace("$dag", ".*")
            server.query(expression)  # raises for what is no expression, or asks for what there is not
            for name in (word for word in expression.replace("(", " ").replace("{", " ").split() if "gluepy_" in word):
                if not name.startswith("gluepy_last_success"):
                    assert server.until(name), f"{panel['title']}: there is no {name}"
    rules = server.get("rules")["groups"]
    assert [rule["health"] for group in rules for rule in group["rules"]] in (["ok"] * 3, ["unknown"] * 3)


def test_rules_and_configuration_of_the_documentation_are_well_formed(programs: None) -> None:
    done = subprocess.run(["promtool", "check", "config", DOCS / "prometheus.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 rules found" in done.stdout
