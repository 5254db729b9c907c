"""What tasks print and log lands in their own log files and reaches live subscribers; of others, nothing does."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from pools import (
    Chatters,
    LoopChatters,
    LoopSpeaks,
    PrintsInPieces,
    ProcessBreaks,
    ProcessChatters,
    ProcessSpeaks,
    Speaks,
    ThreadsOfItsOwn,
)
from steps import Go, Step, dag_of, no_file_longer_than

from gluepy import Retry, Task, each
from gluepy.core.events import RunFinished, TaskFailed, TaskFinished, TaskOutput, encode
from gluepy.exec.executors.lines import LINE_LENGTH
from gluepy.runtime import RunResult
from gluepy.testing import events_of

SPEAKERS = pytest.mark.parametrize("kind", [Speaks, LoopSpeaks, ProcessSpeaks])
CHATTERERS = pytest.mark.parametrize("kind", [Chatters, LoopChatters, ProcessChatters])


@contextmanager
def logging_of_a_fresh_program() -> Iterator[logging.Logger]:
    """Pytest's own handlers are away meanwhile; afterwards there is nothing that was not there before."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        yield root
        assert root.handlers == []
        assert root.level == logging.WARNING
    finally:
        root.handlers = handlers
        root.setLevel(logging.WARNING)


async def lines_of(go: Go, *tasks: Any, **options: Any) -> tuple[RunResult, list[TaskOutput]]:
    """The result, and the lines that a live subscriber got."""
    async with go.runtime() as runtime:
        streaming = runtime.stream_dag(dag_of(*tasks), check=False, **{"capture": True, **options})
        async with streaming as run:
            lines = [event async for event in run if isinstance(event, TaskOutput)]
            return await run.result(), lines


@SPEAKERS
async def test_every_stream_reaches_subscribers_and_the_log_file(
    go: Go, kind: type[Task], capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_of_a_fresh_program():
        result, lines = await lines_of(go, kind(word="größe"))
    (log,) = (result.path / "logs").iterdir()
    assert log.read_text().splitlines() == [line.line for line in lines]
    of: dict[str, list[str]] = {}
    for line in lines:
        of.setdefault(line.stream, []).append(line.line)
    out = ["out größe", "half größe and half", "bytes größe ☃"]
    out += ["descriptor größe", "child größe"] if kind is ProcessSpeaks else []
    assert [line for line in of["stdout"] if "elsewhere" not in line] == out
    assert "err größe" in of["stderr"]
    told = "\n".join(line.line for line in lines)
    for part in (
        "structlog",
        "word=größe",
        "rows: 3 of größe",
        "elsewhere",
        "logging größe",
        "caught",
        "KeyError: 'größe'",
    ):
        assert part in told, part
    assert ("from the loop" in told) == (kind is LoopSpeaks)
    assert capsys.readouterr().out == ""


async def test_log_lines_do_not_repeat_what_the_file_is_named_after(go: Go) -> None:
    _, lines = await lines_of(go, Speaks(word="x"))
    (line,) = (line.line for line in lines if "structlog" in line.line)
    assert "run_id" not in line
    assert line.rstrip().endswith("structlog word=x")


class LogsAnAttempt(Task):
    """Logs values by names that its logger has bound, one of them equal."""

    def run(self) -> None:
        self.log.warning("structlog", attempt=1, task="another")


async def test_what_a_task_logs_by_the_names_that_its_logger_binds_is_in_its_log(go: Go) -> None:
    _, lines = await lines_of(go, LogsAnAttempt)
    (line,) = (line.line for line in lines if "structlog" in line.line)
    assert line.rstrip().endswith("structlog attempt=1 task=another")


async def test_processes_that_a_process_task_forks_do_not_mix_their_lines(go: Go) -> None:
    _, lines = await lines_of(go, PrintsInPieces)
    text = "\n".join(line.line for line in lines)
    assert text.count("before the fork") == 1
    assert "first whole" in text
    assert "second whole" in text


async def test_log_lines_are_json_when_the_settings_say_so(go: Go) -> None:
    go.settings = go.settings.replaced(LOG_FORMAT="json")
    result, lines = await lines_of(go, Speaks(word="x", id="speaks"))
    found = [json.loads(line.line) for line in lines if line.stream == "log" and line.line.startswith("{")]
    entry = next(entry for entry in found if entry["event"] == "structlog")
    assert (entry["word"], entry["task"], entry["attempt"], entry["level"]) == ("x", "speaks", 1, "info")
    assert entry["run_id"] == result.run_id
    caught = next(entry for entry in found if entry["event"] == "caught")
    assert caught["exception"][0]["exc_type"] == "KeyError"


@CHATTERERS
async def test_tasks_side_by_side_do_not_mix_their_lines(go: Go, kind: type[Task]) -> None:
    result, _ = await lines_of(go, each(kind, word=["a", "b", "c"]))
    logs = {path.read_text() for path in (result.path / "logs").iterdir()}
    assert logs == {"".join(f"{word} {number}\n" for number in range(200)) for word in "abc"}


async def test_runs_side_by_side_do_not_mix_their_lines(go: Go) -> None:
    async with go.runtime() as runtime:
        first = runtime.stream_dag(dag_of(LoopChatters(word="a")), capture=True)
        second = runtime.stream_dag(dag_of(LoopChatters(word="b")), capture=True)
        async with first as one, second as other:
            results = {"a": await one.result(), "b": await other.result()}
    for word, result in results.items():
        (log,) = (result.path / "logs").iterdir()
        assert {line.split()[0] for line in log.read_text().splitlines()} == {word}


async def test_thread_of_the_users_own_is_captured_when_it_takes_the_context_along(
    go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    _, lines = await lines_of(go, ThreadsOfItsOwn)
    assert [line.line for line in lines] == ["in context"]
    assert capsys.readouterr().out == "out of context\n"


async def test_each_attempt_has_a_log_of_its_own(go: Go) -> None:
    class Twice(Task):
        retries = Retry(attempts=2, wait_s=0)

        def run(self) -> None:
            marker = self.path / "marker"
            print("second" if marker.exists() else "first")
            if not marker.exists():
                marker.touch()
                raise ConnectionError("not yet")

    result, lines = await lines_of(go, Twice)
    assert {(line.attempt, line.line) for line in lines if line.stream == "stdout"} == {(1, "first"), (2, "second")}
    assert (result.path / "logs" / "twice.2.log").read_text() == "second\n"
    first = (result.path / "logs" / "twice.1.log").read_text()
    assert first.startswith("first\n")
    assert first.rstrip().endswith("ConnectionError: not yet")


async def test_attempts_that_follow_each_other_in_one_worker_have_logs_of_their_own(go: Go) -> None:
    words = ("one", "two", "three")
    result, _ = await lines_of(go, *(ProcessChatters(word=word) for word in words), ProcessBreaks, concurrency=1)
    for word in words:
        (log,) = (result.path / "logs").glob(f"*{word}*")
        assert log.read_text().splitlines() == [f"{word} {number}" for number in range(200)]
    told = (result.path / "logs" / "processbreaks.1.log").read_text()
    assert told.startswith("about to break\nTraceback")
    assert told.endswith("ValueError: broken\n")
    assert len({event.pid for event in events_of(result) if isinstance(event, TaskFinished | TaskFailed)}) == 1


async def test_what_the_driver_prints_during_a_run_stays_its_own(go: Go, capsys: pytest.CaptureFixture[str]) -> None:
    async with go.runtime() as runtime, runtime.stream_dag(dag_of(Chatters(word="x")), capture=True) as run:
        print("from the driver")
        await run.result()
    assert capsys.readouterr().out == "from the driver\n"


async def test_streams_and_logging_are_as_before_when_the_run_is_over(go: Go) -> None:
    before = sys.stdout, sys.stderr
    await lines_of(go, Chatters(word="x"))
    assert (sys.stdout, sys.stderr) == before


async def test_without_capture_output_goes_where_it_went(go: Go, capfd: pytest.CaptureFixture[str]) -> None:
    result, lines = await lines_of(go, ProcessChatters(word="p"), Chatters(word="t"), capture=False)
    assert lines == []
    assert not (result.path / "logs").exists()
    out = capfd.readouterr().out.splitlines()
    assert out == [f"{word} {number}" for word in "pt" for number in range(200)]


async def test_without_capture_self_log_goes_where_the_program_has_structlog_write(go: Go) -> None:
    class Logs(Task):
        def run(self) -> None:
            self.log.info("rows", count=3)

    with structlog.testing.capture_logs() as logs:
        result = await go(Logs)
    assert [(line["event"], line["count"], line["task"], line["attempt"]) for line in logs] == [("rows", 3, "logs", 1)]
    assert logs[0]["run_id"] == result.run_id


async def test_program_that_logs_to_a_file_of_its_own_goes_on_and_attempts_are_captured_too(
    go: Go, folder: Path
) -> None:
    with logging_of_a_fresh_program() as root, closing(logging.FileHandler(folder / "app.log")) as handler:
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        _, lines = await lines_of(go, Speaks(word="x"))
        root.removeHandler(handler)
        root.setLevel(logging.WARNING)
    assert "logging x" in (folder / "app.log").read_text()
    assert sum("logging x" in line.line for line in lines) == 1


async def test_program_that_logs_to_stderr_is_captured_once(go: Go) -> None:
    with logging_of_a_fresh_program() as root:
        handler = logging.StreamHandler(sys.stderr)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        _, lines = await lines_of(go, Speaks(word="x"))
        root.removeHandler(handler)
        root.setLevel(logging.WARNING)
    assert [line.stream for line in lines if "logging x" in line.line] == ["stderr"]
    assert handler.stream is sys.stderr


@pytest.mark.parametrize("pool", ["thread", "process"])
async def test_endless_line_is_cut_and_says_so(go: Go, pool: Any) -> None:
    result, lines = await lines_of(go, Endless(id="endless"), pool=pool)
    assert result.status == "finished"
    (first, second) = (line.line for line in lines)
    assert len(first) < LINE_LENGTH + 100
    assert first.startswith("x" * 1000)
    assert "left out" in first or "cut" in first
    assert second == "after"


class Endless(Task):
    def run(self) -> None:
        for _ in range(48):
            print("x" * 65_536, end="")
        print()
        print("after")


@CHATTERERS
async def test_log_file_that_is_cut_short_is_told_once(
    go: Go, kind: type[Task], capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"fits": "a", "lacks-a-byte": "b" * 40, "lacks-more": "c" * 60}
    size = len("".join(f"{words['lacks-a-byte']} {number}\n" for number in range(200))) - 1
    with no_file_longer_than(size):
        result = await go(*(kind(word=word, id=id) for id, word in words.items()), capture=True)
    assert result.status == "finished"
    files = {id: result.path / "logs" / f"{id}.1.log" for id in words}
    sizes = {id: file.stat().st_size for id, file in files.items()}
    assert sizes["fits"] < size == sizes["lacks-a-byte"] == sizes["lacks-more"]
    first, second = capsys.readouterr().out.splitlines()
    for line, id in ((first, "lacks-a-byte"), (second, "lacks-more")):
        assert "the log file of a task is cut short" in line
        assert "File too large" in line
        assert str(files[id]) in line


async def test_lines_that_a_subscriber_is_too_slow_for_are_counted(go: Go) -> None:
    class Floods(Task):
        def run(self) -> None:
            for number in range(30_000):
                print(number)

    async with go.runtime() as runtime, runtime.stream_dag(dag_of(Floods, Step), capture=True) as run:
        result = await run.result()  # nobody reads meanwhile
        seen = [event async for event in run]
    kept = sum(isinstance(event, TaskOutput) for event in seen)
    (ended,) = (event for event in events_of(result) if isinstance(event, RunFinished))
    assert ended.output_dropped == 30_000 - kept
    assert ended.output_dropped > 0
    stored = [encode(event) for event in seen if not isinstance(event, TaskOutput)]
    assert b"".join(stored) == (result.path / "events.jsonl").read_bytes()
    assert len((result.path / "logs" / "floods.1.log").read_text().splitlines()) == 30_000


async def test_output_is_never_in_the_event_log(go: Go) -> None:
    result, lines = await lines_of(go, Chatters(word="x"))
    assert len(lines) == 200
    assert b"task.output" not in (result.path / "events.jsonl").read_bytes()


class AsksItsStream(Task):
    """Asks what only the stream itself has."""

    def run(self) -> None:
        stream: Any = sys.stdout
        print(stream.strange)


async def test_captured_stream_has_what_the_original_has(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "strange", "and so on", raising=False)
    _, lines = await lines_of(go, AsksItsStream, capture=True)
    assert [event.line for event in lines] == ["and so on"]
