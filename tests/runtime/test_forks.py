"""Processes that a task forks: what they tell reaches the attempt, and none of them acts for the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from forking_tasks import (
    LATE,
    SAID,
    WAYS,
    Anew,
    Awaits,
    AwaitsInATaskOfItsOwn,
    Floods,
    Fork,
    FromAThread,
    Handlers,
    Late,
    LoopFork,
    LoopReturns,
    Methods,
    ProcessAnew,
    ProcessFork,
    ProcessHandlers,
    ProcessMethods,
    ProcessReturns,
    Returns,
)
from steps import Go, dag_of

from gluepy import Task
from gluepy.core.events import Event, TaskFinished, TaskMetric, TaskProgress
from gluepy.runs.log import LogReader
from gluepy.runtime import RunResult
from gluepy.testing import task_run

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="there is no fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


class After(Task):
    def run(self) -> None:
        self.metric("after", 1)


async def ran(go: Go, *tasks: Any) -> tuple[RunResult, Sequence[Event]]:
    """The result of the tasks with one after them; and the log, in which nothing is missing or double."""
    async with go.runtime() as runtime:
        result = await runtime.run_dag(dag_of(*tasks, After), check=False, capture=True)
    reader = LogReader(result.path / "events.jsonl", ended=True)
    events = list(reader.events())
    assert not reader.gaps and not reader.bad
    lines = (result.path / "events.jsonl").read_bytes().splitlines()
    assert len(lines) == len(events)
    return result, events


def metrics_of(events: Sequence[Event]) -> dict[str, float | None]:
    return {event.name: event.value for event in events if isinstance(event, TaskMetric)}


def log_of(result: RunResult) -> str:
    return "".join(file.read_text() for file in sorted((result.path / "logs").iterdir()))


@pytest.mark.parametrize(
    ("kind", "way"),
    [*((Fork, way) for way in WAYS), (LoopFork, "by_executor"), (LoopFork, "by_fork"), (ProcessFork, "by_executor")],
)
async def test_what_forked_processes_tell_is_recorded_before_the_end_of_their_task(go: Go, kind: Any, way: str) -> None:
    result, events = await ran(go, kind(way=way))
    assert result.status == "finished", result.tasks
    (end,) = [n for n, event in enumerate(events) if isinstance(event, TaskFinished) and "fork" in event.task]
    assert metrics_of(events[:end]) == {f"loss-{number}": number for number in range(4)}
    assert sorted(event.done for event in events if isinstance(event, TaskProgress)) == [0, 1, 2, 3]
    lines = Counter(line for line in log_of(result).splitlines() if line.startswith("printed"))
    assert lines == {f"printed {number}": 1 for number in range(4)}
    assert all(log_of(result).count(f"number={number}") == 1 for number in range(4))


@pytest.mark.parametrize("kind", [Methods, ProcessMethods])
async def test_a_forked_pool_may_call_methods_of_the_task(go: Go, kind: type[Task]) -> None:
    result, events = await ran(go, kind)
    assert result.status == "finished", result.tasks
    assert metrics_of(events) == {**{f"loss-{number}": number for number in range(4)}, "after": 1}


async def test_a_process_that_a_thread_of_the_task_forks_tells_too(go: Go) -> None:
    result, events = await ran(go, FromAThread)
    assert result.status == "finished", result.tasks
    assert metrics_of(events) == {"loss-1": 1, "after": 1}


@pytest.mark.parametrize("kind", [Anew, ProcessAnew])
async def test_a_process_that_was_started_anew_is_told_what_to_do_instead(go: Go, kind: type[Task]) -> None:
    result, _ = await ran(go, kind)
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]  # the one process that spawn leaves
    (error,) = [task.error for task in result.tasks.values() if task.error]
    assert error.type.endswith("NoRunContext")
    assert "return the value" in error.message
    assert "get_context('fork')" in error.message


@pytest.mark.parametrize(
    ("kind", "way", "status"),
    [
        (Returns, "return", 0),
        (Returns, "raise", 1),
        (Returns, "exit", 3),
        (LoopReturns, "return", 0),
        (LoopReturns, "raise", 1),
        (ProcessReturns, "raise", 1),
        (ProcessReturns, "exit", 3),
    ],
)
async def test_a_forked_copy_ends_where_its_run_ends(go: Go, kind: Any, way: str, status: int) -> None:
    result, events = await ran(go, kind(way=way))
    assert result.status == "finished", result.tasks
    assert metrics_of(events) == {"in the child": 1, "status": status, "after": 1}
    text = log_of(result)
    assert text.count(f"child of {way}") == 1
    assert ("ValueError: the child's own" in text) == (way == "raise")
    assert "boundary.py" not in text


@pytest.mark.parametrize("kind", [Awaits, AwaitsInATaskOfItsOwn])
async def test_a_forked_copy_does_not_come_back_to_the_event_loop(
    go: Go, kind: type[Task], capfd: pytest.CaptureFixture[str]
) -> None:
    result, events = await ran(go, kind)
    assert result.status == "finished", result.tasks
    assert metrics_of(events) == {"status": 1, "after": 1}


@pytest.mark.parametrize("kind", [Handlers, ProcessHandlers])
async def test_a_forked_copy_has_pythons_own_handler_of_an_interrupt(go: Go, kind: type[Task]) -> None:
    _, events = await ran(go, kind)
    assert metrics_of(events) == {"status": 0, "after": 1}


async def test_what_comes_after_the_end_of_the_attempt_is_refused(go: Go) -> None:
    _, events = await ran(go, Late)
    os.write(LATE[1], b"!")
    assert b"metric could not be told" in os.read(SAID[0], 1000)
    os.wait()  # noqa: ASYNC222 - it has said its last words
    assert metrics_of(events) == {"after": 1}


async def test_nothing_is_lost_of_much_that_is_told_at_once(go: Go) -> None:
    result, events = await ran(go, Floods)
    assert result.status == "finished", result.tasks
    told = [event.value for event in events if isinstance(event, TaskMetric) and event.name == "number"]
    assert told == list(range(2_000))
    assert log_of(result).splitlines() == ["ä" * 60_000, "no newline"]


def test_in_a_test_of_a_task_forked_processes_tell_too(tmp_path: Path) -> None:
    with task_run(tmp_path) as run:
        Fork(way="by_executor").run()
    assert run.metrics == {f"loss-{number}": number for number in range(4)}
    assert len(run.progress) == 4


async def test_forked_processes_do_not_hold_the_signal_handlers_of_the_event_loop(go: Go) -> None:
    import anyio

    class Dies(Task):
        def run(self) -> None:
            child = os.fork()
            if not child:
                signal.pause()
                os._exit(5)
            os.kill(child, signal.SIGTERM)
            self.metric("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    if sys.platform != "win32":
        with anyio.open_signal_receiver(signal.SIGTERM):
            _, events = await ran(go, Dies)
        assert metrics_of(events)["status"] == -signal.SIGTERM


IMPORTING = """
import os, signal, sys, threading
from gluepy import DAG, Task, parallel, run_dag_sync

midway, asked, forked = threading.Event(), threading.Event(), threading.Event()

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "structlog.dev":
            midway.set()
            asked.wait(240)
            forked.wait(1)  # if the fork does not wait for the import, it is there at once

class Logs(Task):
    def run(self):
        self.log.info("imported")

class Forks(Task):
    def run(self):
        midway.wait(240)
        os.register_at_fork(before=asked.set, after_in_parent=forked.set)
        child = os.fork()
        if not child:
            signal.alarm(20)
            self.log.info("said by the copy")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

class D(DAG):
    tasks = parallel(Logs, Forks)

assert "structlog" not in sys.modules
sys.meta_path.insert(0, Slow())
run_dag_sync(D, concurrency=2)
"""


def test_a_process_that_is_forked_while_another_thread_imports_what_it_needs_does_not_hang(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", IMPORTING], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    assert "said by the copy" in run.stdout


WRITING = """
import io, os, signal, sys, threading
import structlog
from gluepy import DAG, Task, parallel, run_dag_sync

writing, forked = threading.Event(), threading.Event()

class Slow(io.StringIO):
    def write(self, text):
        if "slow" in text:
            writing.set()
            forked.wait(240)
        return sys.stdout.write(text)

structlog.configure(logger_factory=structlog.PrintLoggerFactory(Slow()), cache_logger_on_first_use=False)

class Logs(Task):
    def run(self):
        self.log.info("slow")

class Forks(Task):
    def run(self):
        writing.wait(240)
        child = os.fork()
        if not child:
            signal.alarm(20)
            self.log.info("said by the copy")
            sys.stdout.flush()
            os._exit(0)
        forked.set()
        assert os.waitpid(child, 0)[1] == 0

class D(DAG):
    tasks = parallel(Logs, Forks)

run_dag_sync(D, concurrency=2)
"""


def test_a_process_that_is_forked_while_another_thread_writes_a_line_does_not_hang(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", WRITING], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    assert "said by the copy" in run.stdout


IN_C = """
import ctypes, os, sys
import anyio
from gluepy import DAG, Task, run_dag

class ForksInC(Task):
    def run(self):
        child = ctypes.PyDLL(None).fork()  # Python does not notice, so none of its hooks run
        if not child:
            try:
                self.metric("told", 1)
            except Exception as error:
                os._exit(7 if "forked process" in str(error) else 8)
            os._exit(9)
        self.metric("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

class D(DAG):
    tasks = (ForksInC,)

async def main():
    await run_dag(D, run_id="forks")

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_process_forked_behind_pythons_back_is_refused(backend: str, tmp_path: Path) -> None:
    # In a process with as few threads as can be: the copy has none of them, and the locks that they held.
    run = subprocess.run(
        [sys.executable, "-c", IN_C, backend], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    events = list(LogReader(tmp_path / ".gluepy/runs/forks/events.jsonl", ended=True).events())
    assert metrics_of(events) == {"status": 7}
