"""Each line that an attempt prints or logs is in its log once, as the program has configured it, wherever it runs."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import loguru
import pytest
import structlog
from loggers import SAID, Intercepts, LoopSays, ProcessSays, Says, set_up
from pools import (
    ConfiguresInRun,
    Draws,
    LoopConfiguresInRun,
    LoopDraws,
    Misspells,
    ProcessConfiguresInRun,
    ProcessDraws,
    ProcessMisspells,
    ProcessStructured,
    Structured,
    ThreadsOfItsOwn,
    configure_structlog,
)
from steps import Go, dag_of
from test_capture import lines_of, logging_of_a_fresh_program

from gluepy import Task, each, run_dag_sync
from gluepy.core.events import TaskOutput
from gluepy.exec.executors.following import following_threads
from gluepy.runtime import RunResult

POOLS = pytest.mark.parametrize("kind", [Says, LoopSays, ProcessSays])


def log_of(result: RunResult, task: str) -> list[str]:
    (log,) = (result.path / "logs").glob(f"{task}*")
    return log.read_text().splitlines()


@POOLS
@pytest.mark.filterwarnings("always:warned")
async def test_each_library_is_in_the_log_once(
    go: Go, kind: type[Task], capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    with logging_of_a_fresh_program(), set_up(sys.stderr):
        result, live = await lines_of(go, each(kind, n=[1, 2]))
    for number in (1, 2):
        lines = log_of(result, f"{kind.label}-n-{number}")
        for said in SAID:
            if "warned" in said and kind is not ProcessSays:
                continue  # pytest takes warnings of its own process away
            wanted = said.format(number)
            assert sum(wanted in line for line in lines) == 1, wanted
        assert not any("hidden" in line for line in lines)
        other = 3 - number
        assert not any(f"{word} {other}" in line for line in lines for word in ("loguru", "own", "held", "end", "bar"))
        shown = [event.line for event in live if f"n={number}]" in event.task and not event.line.endswith("\r")]
        assert sorted(shown) == sorted(lines)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("kind", [ConfiguresInRun, LoopConfiguresInRun, ProcessConfiguresInRun])
async def test_logging_that_is_configured_inside_run_counts(go: Go, kind: type[Task]) -> None:
    with logging_of_a_fresh_program() as root:
        result, _ = await lines_of(go, kind)
        for handler in root.handlers[:]:
            root.removeHandler(handler)
        root.setLevel(logging.WARNING)
    assert log_of(result, kind.label) == ["MINE WARNING warning", "OTHER debug"]


MODULE = """
import logging
from gluepy import Task
logging.basicConfig(format="MINE %(levelname)s %(message)s", level=logging.INFO)
class Tells(Task):
    n: int
    pool = "process"
    def run(self):
        logging.getLogger("a").info("once %s", self.n)
        logging.getLogger("a").debug("never")
"""


async def test_logging_that_is_configured_at_the_top_of_a_module_counts_in_worker_processes(
    go: Go, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tells_at_top.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    with logging_of_a_fresh_program() as root:
        import tells_at_top  # type: ignore[import-not-found]

        tasks = [tells_at_top.Tells(n=number) for number in range(3)]
        result, _ = await lines_of(go, *tasks, concurrency=1)
        root.handlers.clear()
        root.setLevel(logging.WARNING)
    for number in range(3):
        assert log_of(result, f"tells-n-{number}") == [f"MINE INFO once {number}"]


QUEUES = """
import logging, logging.handlers, queue, sys, time
from gluepy import Task
from loguru import logger
class Slow(logging.StreamHandler):
    def emit(self, record):
        time.sleep(0.005)
        super().emit(record)
def slow(message):
    time.sleep(0.005)
    sys.stderr.write(message)
records = queue.Queue()
printer = Slow(sys.stderr)
printer.setFormatter(logging.Formatter("QUEUED %(message)s"))
logging.handlers.QueueListener(records, printer).start()
logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[logging.handlers.QueueHandler(records)])
logger.remove()
logger.add(slow, format="LOGURU {message}", enqueue=True)
class Queues(Task):
    pool = "process"
    def run(self):
        for number in range(30):
            logging.getLogger("a").info(number)
            logger.info(number)
"""


def test_what_threads_of_libraries_print_is_waited_for_in_worker_processes(folder: Path) -> None:
    (folder / "queues.py").write_text(QUEUES)
    (folder / "queues_dag.py").write_text(
        "from gluepy import DAG\nfrom queues import Queues\nclass QueuesDAG(DAG): tasks = (Queues,)\n"
    )
    program = "import gluepy; gluepy.run_dag_sync('queues_dag.py', run_id='one', capture=True)"
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
    lines = (folder / ".gluepy" / "runs" / "one" / "logs" / "queues.1.log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{word} {number}" for number in range(30) for word in ("QUEUED", "LOGURU"))


class LogsOnce(Task):
    def run(self) -> None:
        logging.getLogger("a").warning("logged")


@contextmanager
def root_handler(handler: logging.Handler) -> Iterator[None]:
    with logging_of_a_fresh_program() as root:
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)


async def test_what_handlers_write_elsewhere_is_in_the_log_too_as_they_format_it(go: Go) -> None:
    kept = io.StringIO()
    handler = logging.StreamHandler(kept)
    handler.setFormatter(logging.Formatter("FILE %(message)s"))
    with root_handler(handler):
        result, _ = await lines_of(go, LogsOnce)
    assert kept.getvalue() == "FILE logged\n"
    assert log_of(result, "logsonce") == ["FILE logged"]


async def test_what_a_handler_prints_by_another_library_is_in_the_log_once(go: Go) -> None:
    with set_up(sys.stderr), root_handler(Intercepts()):
        result, _ = await lines_of(go, LogsOnce)
    assert log_of(result, "logsonce") == ["LOGURU WARNING logged"]


@pytest.mark.parametrize("kind", [Structured, ProcessStructured])
async def test_self_log_goes_through_the_processors_of_the_program(go: Go, kind: type[Task]) -> None:
    go.settings = go.settings.replaced(REDACT=[])
    if kind is Structured:
        configure_structlog()
    try:
        result, _ = await lines_of(go, kind)
    finally:
        structlog.reset_defaults()
    (line,) = log_of(result, kind.label)
    bound = {"run_id": result.run_id, "task": kind.label, "attempt": 1}
    assert json.loads(line) == {"event": "told", "token": "masked by the program", **bound}


class FailsInJson(Task):
    def run(self) -> None:
        raise ValueError("no\nluck")


@pytest.mark.parametrize("kind", [Misspells, ProcessMisspells])
@pytest.mark.parametrize("handlers", [[], [logging.NullHandler()]], ids=["none", "elsewhere"])
async def test_mistake_in_a_log_call_is_told_in_the_log_and_fails_no_task(
    go: Go, kind: type[Task], handlers: list[logging.Handler]
) -> None:
    with logging_of_a_fresh_program() as root:
        root.handlers.extend(handlers)
        result, _ = await lines_of(go, kind)
        root.handlers.clear()
    lines = log_of(result, kind.label)
    assert "--- Logging error ---" in lines
    assert "TypeError: not enough arguments for format string" in lines
    assert any("afterwards" in line for line in lines)


async def test_failure_is_told_as_json_when_the_settings_say_so(go: Go) -> None:
    go.settings = go.settings.replaced(LOG_FORMAT="json")
    result, _ = await lines_of(go, FailsInJson)
    (line,) = log_of(result, "failsinjson")
    told = json.loads(line)
    assert (told["event"], told["level"], told["attempt"]) == ("failsinjson failed", "error", 1)
    assert (told["error.type"], told["error.message"]) == ("ValueError", "no\nluck")
    assert told["error.stack"].startswith("Traceback")


async def test_logging_is_json_too_when_the_settings_say_so(go: Go) -> None:
    go.settings = go.settings.replaced(LOG_FORMAT="json")
    with logging_of_a_fresh_program():
        result, _ = await lines_of(go, LogsOnce)
    (line,) = log_of(result, "logsonce")
    told = json.loads(line)
    assert told.pop("timestamp").endswith("Z")
    bound = {"run_id": result.run_id, "task": "logsonce", "attempt": 1}
    assert told == {"event": "logged", "level": "warning", "logger": "a", **bound}


@pytest.mark.parametrize("kind", [Draws, LoopDraws, ProcessDraws])
async def test_progress_bar_is_shown_while_it_is_drawn_and_is_one_line_of_the_log(go: Go, kind: type[Task]) -> None:
    async with go.runtime() as runtime, runtime.stream_dag(dag_of(kind), capture=True) as run:
        lines = []
        async for event in run:
            if isinstance(event, TaskOutput):
                lines.append(event.line)
                (go.settings.folder / "data" / "seen").touch()
        result = await run.result()
    assert lines[0].endswith(" drawn\r")
    assert lines[-1] == "all drawn"
    assert all(line.endswith("\r") for line in lines[:-1])
    assert log_of(result, kind.label) == ["all drawn"]


async def test_threads_that_a_task_starts_are_its_own_where_threads_are_followed(go: Go) -> None:
    with following_threads():
        result, _ = await lines_of(go, ThreadsOfItsOwn)
    assert log_of(result, "threadsofitsown") == ["in context", "out of context"]


async def test_traceback_of_a_thread_that_a_task_starts_is_in_its_log(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # not pytest's

    class Starts(Task):
        def run(self) -> None:
            thread = threading.Thread(target=int, args=("no number",))
            thread.start()
            thread.join()

    with following_threads():
        result, _ = await lines_of(go, Starts)
    assert log_of(result, "starts")[-1] == "ValueError: invalid literal for int() with base 10: 'no number'"


async def test_thread_that_serves_many_tasks_prints_for_the_one_that_asked(go: Go) -> None:
    with ThreadPoolExecutor(1) as pool:

        class Asks(Task):
            word: str

            def run(self) -> None:
                for _ in range(20):
                    pool.submit(print, self.word).result()

        with following_threads():
            result, _ = await lines_of(go, each(Asks, word=["a", "b", "c"]))
    for word in "abc":
        assert log_of(result, f"asks-word-{word}") == [word] * 20


async def test_logging_is_as_before_when_the_run_is_over(go: Go) -> None:
    with logging_of_a_fresh_program() as root, set_up(sys.stderr):
        before = logging.lastResort, vars(root).copy(), vars(sys.stderr).copy()
        await lines_of(go, Says(n=1), LogsOnce)
        assert (logging.lastResort, vars(root), vars(sys.stderr)) == before
        loguru.logger.info("after the run")


def test_program_that_logs_everything_gets_its_own_lines_alone(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # asyncio's own loop tells of itself
    caplog.set_level(logging.DEBUG)

    class Debugs(Task):
        async def run(self) -> None:
            logging.getLogger("a").debug("debugged")

    run_dag_sync(dag_of(Debugs))
    assert [(record.name, record.message) for record in caplog.records] == [("a", "debugged")]


def test_import_of_gluepy_leaves_logging_alone() -> None:
    program = "import logging, gluepy; print(logging.root.handlers, logging.root.level, logging.lastResort.level)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[] 30 30\n"
