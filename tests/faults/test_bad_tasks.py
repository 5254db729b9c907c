"""Whatever a task does, its attempt ends, its run tells how, and the tasks beside it do not notice."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import bad_tasks as b
import psutil
import pytest
from bad_tasks import POOLS, DiesOnce, LoopTakes, ProcessTakes, Takes, chosen

from gluepy import DAG, Task, each, parallel
from gluepy.conf.schema import Settings
from gluepy.core.events import TaskFailed, TaskOutput, TaskRetrying
from gluepy.errors import RunError
from gluepy.exec.executors.processes import WorkerLost
from gluepy.runtime import RunResult, Runtime
from gluepy.testing import events_of, until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="worker processes are tested on Linux"),
]
EVERY_POOL = pytest.mark.parametrize("pool", POOLS)
Run = Callable[..., Any]


class Beside(Task):
    """Runs at the same time, in the same place."""

    def run(self) -> None:
        print("beside")


class LoopBeside(Beside):
    async def run(self) -> None:  # type: ignore[override]
        print("beside")


def dag_of(*tasks: Any) -> type[DAG]:
    return cast("type[DAG]", type("Bad", (DAG,), {"tasks": tasks}))


@pytest.fixture
def run(settings: Settings) -> Run:
    """Runs tasks side by side, gives the result and the lines of output; `check=True` raises."""

    async def run(*tasks: Any, check: bool = False, **options: Any) -> tuple[RunResult, list[TaskOutput]]:
        async with Runtime(settings) as runtime:
            streaming = runtime.stream_dag(dag_of(parallel(*tasks)), check=check, **{"capture": True, **options})
            async with streaming as run:
                lines = [event async for event in run if isinstance(event, TaskOutput)]
                return await run.result(), lines

    return run


def failure(result: RunResult, task: str = "bad") -> TaskFailed:
    (event,) = (event for event in events_of(result) if isinstance(event, TaskFailed) and event.task == task)
    return event


RAISED = {
    b.raises_what_cannot_be_pickled: ("bad_tasks.Unpicklable", "it holds a lock"),
    b.raises_what_cannot_be_unpickled: ("bad_tasks.PicklesOneWay", "prices has no currency"),
    b.raises_what_unpickles_as_something_else: ("bad_tasks.Changeling", "me"),
    b.raises_what_cannot_speak: ("bad_tasks.Speechless", "(its message could not be formatted)"),
    b.raises_a_long_story: ("ValueError", "x" * 10_000),
    b.raises_half_a_character: ("ValueError", "half ? of an emoji"),
    b.raises_a_group: ("ExceptionGroup", "two things (2 sub-exceptions)"),
    b.raises_a_circle_of_causes: ("ValueError", "one"),
    b.recurses_for_ever: ("RecursionError", "maximum recursion depth exceeded"),
    b.raises_stop_iteration: ("StopIteration", "3"),
    b.exits: ("SystemExit", "run() called sys.exit('enough')"),
    b.exits_with_0: ("SystemExit", "run() called sys.exit(0)"),
    b.measures_text: ("TypeError", "metric 'loss' is 'low', which is text; give a number"),
}
PLAIN_ONLY = {  # on the event loop these mean something else: they are not the task's alone
    b.raises_cancelled: ("asyncio.exceptions.CancelledError", "by itself"),
    b.raises_keyboard_interrupt: ("KeyboardInterrupt", ""),
    b.raises_something_weird: ("bad_tasks.Weird", "not an Exception"),
}
CASES = [
    (pool, misdeed) for pool in POOLS for misdeed in RAISED if (pool, misdeed) != ("loop", b.raises_stop_iteration)
]
CASES += [(pool, misdeed) for pool in ("thread", "process") for misdeed in PLAIN_ONLY]


@pytest.mark.parametrize("pool", POOLS)
async def test_whatever_is_raised_fails_its_task_alone(run: Run, pool: str) -> None:
    misdeeds = [misdeed for place, misdeed in CASES if place == pool]
    tasks = [chosen(pool, misdeed)(id=misdeed.__name__) for misdeed in misdeeds]
    beside = LoopBeside if pool == "loop" else Beside
    result, lines = await run(*tasks, beside, on_failure="continue", pool=pool if pool != "loop" else None)
    assert result.tasks[beside.label].status == "finished"
    assert [line.line for line in lines if line.task == beside.label] == ["beside"]
    for misdeed in misdeeds:
        event = failure(result, misdeed.__name__)
        expected = {**RAISED, **PLAIN_ONLY}[misdeed]
        assert (event.error_type, event.error_message) == expected
        assert event.reason == "exception"
        assert event.error_stack
        log = (result.path / (event.log or "")).read_text()
        assert event.error_stack in log
        assert len(event.error_stack) < 110_000


async def test_exception_that_cannot_travel_is_told_without_its_object(run: Run) -> None:
    result, _ = await run(chosen("process", b.raises_what_cannot_be_unpickled)(id="bad"))
    error = result.tasks["bad"].error
    assert error is not None
    assert error.__cause__ is None
    assert "raise PicklesOneWay" in error.stack


async def test_group_of_errors_is_told_with_all_its_parts(run: Run) -> None:
    result, _ = await run(chosen("process", b.raises_a_group)(id="bad"))
    stack = failure(result).error_stack or ""
    assert "ValueError: one" in stack
    assert "KeyError: 'other'" in stack


async def test_errors_of_bad_tasks_are_raised_in_one_group(run: Run) -> None:
    misdeeds = [misdeed for place, misdeed in CASES if place == "thread"]
    tasks = [chosen("thread", misdeed)(id=misdeed.__name__) for misdeed in misdeeds]
    with pytest.raises(RunError) as caught:
        await run(*tasks, on_failure="continue", check=True)
    assert len(caught.value.exceptions) == len(misdeeds)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio has none that a task could raise
async def test_stray_cancellation_in_a_loop_task_is_a_failure(run: Run) -> None:
    result, _ = await run(chosen("loop", b.raises_cancelled)(id="bad"), LoopBeside, on_failure="continue")
    assert failure(result).error_type == "asyncio.exceptions.CancelledError"
    assert result.tasks["loopbeside"].status == "finished"


async def test_what_is_no_exception_fails_the_task_on_the_loop_too(run: Run) -> None:
    result, _ = await run(chosen("loop", b.raises_something_weird)(id="bad"), LoopBeside, on_failure="continue")
    assert failure(result).error_type.endswith("Weird")
    assert result.tasks["loopbeside"].status == "finished"


# Deaths


DEATHS = {
    b.leaves_at_once: "exited with code 3 (os._exit)",
    b.leaves_at_once_with_0: "exited with code 0 (os._exit)",
    b.segfaults: "killed by SIGSEGV",
    b.kills_itself: "killed by SIGKILL",
    b.aborts: "killed by SIGABRT",
}


async def test_worker_that_dies_is_told_as_lost_and_takes_nobody_with_it(run: Run) -> None:
    tasks = [chosen("process", misdeed)(id=misdeed.__name__) for misdeed in DEATHS]
    result, lines = await run(*tasks, Beside, on_failure="continue", pool="process")
    for misdeed, told in DEATHS.items():
        event = failure(result, misdeed.__name__)
        assert event.reason == "lost"
        assert told in event.error_message
        assert event.pid not in (None, os.getpid())
        error = result.tasks[misdeed.__name__].error
        assert error is not None
        assert isinstance(error.__cause__, WorkerLost)
    assert result.tasks["beside"].status == "finished"
    assert [line.line for line in lines if line.task == "beside"] == ["beside"]
    stderr = "\n".join(line.line for line in lines if line.task == "segfaults")
    assert "string_at" in stderr  # where it crashed


async def test_lost_worker_is_tried_again_when_the_task_has_retries(run: Run) -> None:
    result, _ = await run(DiesOnce(id="bad"))
    assert (result.status, result.tasks["bad"].attempts) == ("finished", 2)
    (event,) = (event for event in events_of(result) if isinstance(event, TaskRetrying))
    assert event.reason == "lost"


# Output


@EVERY_POOL
async def test_line_of_3_mb_is_cut_and_says_so_and_the_next_one_is_whole(run: Run, pool: str) -> None:
    result, lines = await run(chosen(pool, b.prints_a_long_line)(id="bad"))
    assert result.status == "finished"
    first, second = (line.line for line in lines)
    assert first.startswith("x" * 30_000)
    assert first.endswith("x" * 30_000)
    assert len(first) < 70_000
    assert re.search("left out|cut", first[30_000:])
    assert second == "after"
    assert (result.path / "logs" / "bad.1.log").stat().st_size < 80_000


@EVERY_POOL
async def test_line_without_an_end_is_cut_and_told_too(run: Run, pool: str) -> None:
    result, lines = await run(chosen(pool, b.prints_without_an_end)(id="bad"))
    assert result.status == "finished"
    (line,) = (line.line for line in lines)
    assert line.startswith("y" * 30_000)
    assert len(line) < 70_000


async def test_writing_to_descriptor_1_harms_nobody_and_is_captured_from_a_process(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    result, lines = await run(
        chosen("process", b.writes_to_descriptor_1)(id="bad"),
        chosen("thread", b.writes_to_descriptor_1)(id="thread"),
    )
    assert result.status == "finished"
    assert [(line.task, line.stream) for line in lines] == [("bad", "stdout")] * 2
    assert "binary" in lines[0].line
    assert lines[1].line == "{}"
    assert "binary" in capfd.readouterr().out


async def test_task_that_closes_stdout_closes_it_for_nobody(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result, lines = await run((chosen("thread", b.closes_stdout)(id="bad"), Beside))
    assert result.status == "finished"
    assert [line.line for line in lines] == ["beside"]
    print("the driver goes on")
    assert capsys.readouterr().out == "the driver goes on\n"


async def test_process_that_closes_its_stdout_ends_well_and_its_worker_is_replaced(run: Run) -> None:
    result, lines = await run((chosen("process", b.closes_stdout)(id="bad"), Beside), pool="process", concurrency=1)
    assert result.status == "finished"
    assert [line.line for line in lines if line.task == "beside"] == ["beside"]


@EVERY_POOL
async def test_what_a_terminal_takes_for_orders_is_kept_as_it_is(run: Run, pool: str) -> None:
    _, lines = await run(chosen(pool, b.says_what_a_terminal_takes_for_orders)(id="bad"))
    assert [line.line for line in lines] == ["\x1b[2J[bold]\x07"]


# What is left behind


async def test_child_that_a_process_leaves_behind_is_killed_with_its_worker(run: Run, settings: Settings) -> None:
    result, _ = await run(chosen("process", b.leaves_a_child)(id="bad"))
    assert result.status == "finished"
    child = int((Path(settings.storage_root) / "child").read_text())
    await until(lambda: not psutil.pid_exists(child), 120)


@pytest.mark.parametrize("pool", ["thread", "process"])
async def test_thread_that_goes_on_telling_after_the_end_is_not_heard(run: Run, settings: Settings, pool: str) -> None:
    os.makedirs(settings.storage_root)
    bad = chosen(pool, b.leaves_a_thread_that_goes_on_telling)(id="bad")
    result, _ = await run((bad, Beside), concurrency=1, pool=pool)
    (Path(settings.storage_root) / "stop").touch()
    events = [(type(event).__name__, getattr(event, "task", "")) for event in events_of(result)]
    after = events[events.index(("TaskFinished", "bad")) + 1 :]
    assert after == [("TaskStarted", "beside"), ("TaskFinished", "beside"), ("RunFinished", "")]


async def test_folder_that_a_process_changes_is_changed_for_nobody_else(run: Run, settings: Settings) -> None:
    result, _ = await run((chosen("process", b.changes_the_folder)(id="bad"), ProcessTakes(value="x")), concurrency=1)
    assert result.status == "finished"
    assert (Path(result.files) / "length").read_text() == "1"


# Parameters and ids


@pytest.mark.parametrize("kind", [Takes, LoopTakes, ProcessTakes])
async def test_parameter_of_1_mb_arrives_whole(run: Run, kind: type[Task]) -> None:
    value = "größe" * 200_000
    result, _ = await run(kind(value=value, id="big"))
    assert result.status == "finished"
    assert (Path(result.files) / "length").read_text() == str(len(value))


@pytest.mark.slow
async def test_parameter_of_1_mb_may_even_make_an_id(run: Run) -> None:
    result, _ = await run(each(ProcessTakes, value=["x" * 1_000_000, ["y"] * 300_000]))
    assert result.status == "finished"
    assert all(len(path.name) < 80 for path in (result.path / "logs").iterdir())
    first = json.loads((result.path / "events.jsonl").read_text().splitlines()[1])
    assert len(first["task"]) > 600_000


DEPARTMENTS = [
    "CNTRL/STORE SUP",
    "MEAT-PCKGD",
    "../..",
    "[red]x[/red]",
    "größe 🎉",
    "a b\tc\n",
    "",
    "null",
    "CON",
    "%s{0}",
]


@pytest.mark.parametrize("kind", [Takes, LoopTakes, ProcessTakes])
async def test_ids_of_any_characters_run_are_logged_apart_and_told_as_they_are(run: Run, kind: type[Task]) -> None:
    result, _ = await run(each(kind, value=DEPARTMENTS))
    label = kind.label
    ids = [f'{label}[value="null"]' if value == "null" else f"{label}[value={value}]" for value in DEPARTMENTS]
    assert list(result.tasks) == ids
    assert result.status == "finished"
    events = [json.loads(line) for line in (result.path / "events.jsonl").read_text().splitlines()]
    assert {event["task"] for event in events if event["event"] == "task.finished"} == set(ids)
    assert {path.parent for path in result.path.rglob("*.log")} <= {result.path / "logs"}
