"""What a command imports: no more than it needs, since that is most of the time that a short one takes.

A module that is new here makes every command slower. Where it is worth that, add it to the list.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ONE_TASK = """
from gluepy import DAG, Task

class Hello(Task):
    def run(self): print("hello")

class One(DAG):
    tasks = (Hello,)
"""
HELP = """
gluepy gluepy.cli gluepy.cli.app gluepy.cli.console gluepy.cli.group gluepy.cli.invocation gluepy.cli.exiting
gluepy.cli.text gluepy.conf
gluepy.conf.context gluepy.conf.places gluepy.conf.plugins gluepy.conf.project gluepy.errors gluepy.extension
gluepy.traces gluepy.version
"""
RUN = f"""{HELP}
gluepy.cli.guard gluepy.cli.interrupts gluepy.cli.estimate gluepy.cli.plan gluepy.cli.progress
gluepy.cli.running gluepy.cli.story
gluepy.clock gluepy.conf.code gluepy.conf.contextfiles gluepy.conf.dags gluepy.conf.parameters gluepy.conf.schema
gluepy.conf.secrets gluepy.conf.sources gluepy.core
gluepy.core.events
gluepy.core.forecast gluepy.core.graph gluepy.core.policy gluepy.core.resume gluepy.core.scheduler
gluepy.core.selection gluepy.core.identity gluepy.core.spans gluepy.core.state gluepy.tracing gluepy.runtime.tracing
gluepy.exec gluepy.exec.boundary gluepy.exec.continuation gluepy.exec.dag gluepy.exec.emissions
gluepy.exec.endings gluepy.exec.engine gluepy.exec.executors
gluepy.exec.executors.capture gluepy.exec.executors.following gluepy.exec.executors.lines
gluepy.exec.executors.local gluepy.exec.executors.logs gluepy.exec.executors.streams gluepy.exec.executors.threads
gluepy.exec.forks gluepy.exec.graph_level gluepy.exec.journal
gluepy.exec.opening gluepy.exec.parameters gluepy.exec.port gluepy.exec.scope gluepy.exec.slots gluepy.exec.task
gluepy.exec.timeouts gluepy.exec.values
gluepy.loop gluepy.redact gluepy.report gluepy.report.failures gluepy.runs gluepy.runs.durations gluepy.runs.flusher
gluepy.runs.lock gluepy.runs.log gluepy.runs.record gluepy.runtime gluepy.runtime.checks gluepy.runtime.descriptors
gluepy.runtime.kept gluepy.runtime.options gluepy.runtime.requests
gluepy.runtime.results gluepy.runtime.session gluepy.sinks gluepy.sinks.consume gluepy.sinks.feed
gluepy.sinks.lines gluepy.sinks.port
"""
TYPER = {"typer", "click", "typing_extensions", "annotated_doc", "shellingham"}  # what it is made of varies
SLOW = {"email", "statistics", "sqlite3", "multiprocessing", "concurrent.futures.process", "importlib.metadata", "yaml"}
REPORT = (
    "import json, sys\n"
    "from gluepy.cli import main\n"
    "try:\n    main()\n"
    "finally:\n    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
)


def imported(folder: Path, *words: str) -> set[str]:
    ran = subprocess.run(
        [sys.executable, "-c", REPORT, *words], cwd=folder, capture_output=True, text=True, timeout=240, check=True
    )
    return set(json.loads(ran.stderr.splitlines()[-1]))


def packages(modules: set[str]) -> set[str]:
    """The installed packages among them, by the first part of their names."""
    names = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    return {name for name in names if not name.startswith("_")} - {"gluepy"}


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] == "gluepy"}


def test_help_imports_typer_and_what_finds_a_projects_commands(tmp_path: Path) -> None:
    modules = imported(tmp_path, "--help")
    assert ours(modules) == set(HELP.split())
    assert packages(modules) <= TYPER
    finds_installed_commands = {"importlib.metadata", "email"}
    assert not modules & (SLOW - finds_installed_commands | {"asyncio", "ssl"})


def test_a_run_of_one_task_imports_neither_pydantic_nor_structlog_nor_rich(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(ONE_TASK)
    modules = imported(tmp_path, "run", "one.py", "--quiet")
    assert ours(modules) == set(RUN.split())
    assert packages(modules) <= TYPER | {
        "anyio",
        "cython_runtime",
        "idna",
        "msgspec",
        "one",
        "sniffio",
        "uvloop",
    }
    assert not modules & SLOW


UVLOOP = """
import asyncio, sys

def new_event_loop():
    print("uvloop's", file=sys.stderr)
    return asyncio.SelectorEventLoop()
"""


@pytest.mark.parametrize("words", [("-m", "gluepy", "run", "one.py", "--quiet"), ("script.py",)])
def test_uvloop_is_used_where_it_is_installed(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "one.py").write_text(ONE_TASK)
    (tmp_path / "script.py").write_text("import gluepy\ngluepy.run_dag_sync('one.py')")
    (tmp_path / "installed").mkdir()
    for installed in ("", UVLOOP):  # one that only tells that it is there: the real one is not in every environment
        if installed:
            (tmp_path / "installed" / "uvloop.py").write_text(installed)
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
        ran = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
        assert ("uvloop's" in ran.stderr) == bool(installed)
