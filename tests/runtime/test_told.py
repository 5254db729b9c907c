"""What a task tells that cannot be taken as it is: metrics that are no numbers, and what `run()` returns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import anyio
import pytest
from odd_tasks import KINDS, Measures, Returns, ReturnsWork
from steps import Go, LoopStep, statuses

from gluepy import Task, each
from gluepy.core.events import TaskFinished, TaskMetric
from gluepy.runs.log import LogReader
from gluepy.testing import events_of, task_run


def log_of(result: Any, task: str) -> str:
    (file,) = Path(result.path, "logs").glob(f"{task}*.log")
    return file.read_text()


@pytest.mark.parametrize("kind", KINDS)
async def test_metric_that_is_not_finite_is_recorded_as_null_and_told_in_the_log(go: Go, kind: str) -> None:
    result = await go(KINDS[kind][Measures](), capture=True)
    assert result.status == "finished"
    metrics = {event.name: event.value for event in events_of(result) if isinstance(event, TaskMetric)}
    assert metrics == {"loss": None, "gain": None, "rate": 0.5}
    log = log_of(result, "measures")
    assert "a metric that is not finite is recorded as null" in log
    assert log.count("warning") == 2
    events = Path(result.path, "events.jsonl")
    assert b'"name":"loss","value":null' in await anyio.Path(events).read_bytes()
    assert LogReader(events).bad == 0


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("0.5", "metric 'loss' is '0.5', which is text; give a number"),
        (b"1", "metric 'loss' is b'1', which is text"),
        (None, "metric 'loss' must be a number: "),
        ([1], "metric 'loss' must be a number: "),
        (1j, "metric 'loss' must be a number: "),
    ],
)
def test_metric_of_what_is_no_number_names_it(folder: Path, value: Any, told: str) -> None:
    with task_run(folder) as run, pytest.raises(TypeError) as caught:
        Measures().metric("loss", value)
    assert str(caught.value).startswith(told)
    with task_run(folder) as run:
        Measures().run()
    assert run.metrics["rate"] == 0.5
    assert math.isnan(run.metrics["loss"])
    assert [line["log_level"] for line in run.logs] == ["warning"] * 2


@pytest.mark.parametrize("kind", KINDS)
async def test_value_that_run_returns_is_told_and_fails_nothing(go: Go, kind: str) -> None:
    result = await go(each(KINDS[kind][Returns], n=[1, 2]), capture=True)
    assert result.status == "finished"
    warnings = [event.warning for event in events_of(result) if isinstance(event, TaskFinished)]
    told = "run() returned a value (dict), which is not used; write it to a file"
    assert sorted(warnings, key=str) == [None, told]  # once for a class
    assert told in log_of(result, "returns-n-1")
    assert told in log_of(result, "returns-n-2")


@pytest.mark.parametrize("kind", ["thread", "process"])
async def test_work_that_nobody_awaits_fails_the_task(go: Go, kind: str) -> None:
    result = await go(each(KINDS[kind][ReturnsWork], n=[1, 2]))
    assert set(statuses(result).values()) == {"failed"}
    errors = {task.error.message for task in result.tasks.values() if task.error}
    assert errors == {
        "run() returned a coroutine object, whose work is not done; write async def run, or a plain loop",
        "run() returned a generator object, whose work is not done; write async def run, or a plain loop",
    }


async def test_run_that_returns_none_tells_nothing(go: Go) -> None:
    result = await go(LoopStep(id="a"))
    assert [event.warning for event in events_of(result) if isinstance(event, TaskFinished)] == [None]
    assert issubclass(LoopStep, Task)
