"""What a task holds is freed when its attempt has ended, without the garbage collector and whoever keeps the error."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Generator, Iterator

import anyio.lowlevel
import pytest
from holders import HELD, Holds, LoopHolds, ProcessHolds, still_there
from steps import Go

from gluepy import parallel
from gluepy.core.events import TaskMetric
from gluepy.errors import RunError, TaskError
from gluepy.runtime import RunResult
from gluepy.testing import events_of
from gluepy.traces import clear_frames

POOLS = [
    pytest.param(Holds, id="thread"),
    pytest.param(LoopHolds, id="loop"),
    pytest.param(
        ProcessHolds, id="process", marks=pytest.mark.skipif(sys.platform == "win32", reason="no process tasks there")
    ),
]
FAILURES = ["fails", "fails-by-another", "misses-an-attribute", "fails-in-a-group", "exits"]


@pytest.fixture(autouse=True)
def _nothing_is_collected() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()
    HELD.clear()


def left(result: RunResult) -> list[float | None]:
    """How many blocks of earlier attempts each attempt has found."""
    return [event.value for event in events_of(result) if isinstance(event, TaskMetric) and event.name == "left"]


def pids(result: RunResult) -> set[float | None]:
    return {event.value for event in events_of(result) if isinstance(event, TaskMetric) and event.name == "pid"}


@pytest.mark.parametrize("holds", POOLS)
@pytest.mark.parametrize("capture", [False, True], ids=["", "captured"])
async def test_what_a_finished_task_holds_is_gone_when_the_next_begins(
    go: Go, holds: type[Holds], capture: bool
) -> None:
    result = await go(*(holds(id=f"t{number}") for number in range(4)), concurrency=1, capture=capture)
    assert result.status == "finished"
    assert left(result) == [0, 0, 0, 0]
    assert len(pids(result)) == 1
    assert still_there() == []


@pytest.mark.parametrize("holds", POOLS)
async def test_what_a_failed_attempt_holds_is_gone_when_the_next_begins_while_its_error_is_kept(
    go: Go, holds: type[Holds]
) -> None:
    failing = (holds(id=how, how=how) for how in FAILURES)
    with pytest.raises(RunError) as caught:
        await go(parallel(*failing), concurrency=1, on_failure="continue", check=True)
    result = caught.value.result
    assert isinstance(result, RunResult)
    assert result.tasks["fails"].attempts == 2
    assert left(result) == [0] * 2 * len(FAILURES)
    assert still_there() == []
    assert len(pids(result)) == 1
    for error in caught.value.exceptions:
        assert isinstance(error, TaskError)
        if holds is not ProcessHolds:
            assert error.__cause__ is not None
            assert "_end" in [frame.name for frame in traceback.extract_tb(error.__cause__.__traceback__)]


async def test_a_coroutine_that_goes_on_is_left_alone_by_whoever_fails_with_the_error_that_it_has_kept() -> None:
    kept: list[BaseException] = []
    ended = []

    class Ready:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def reader() -> None:
        try:
            raise ConnectionError("lost")
        except ConnectionError as error:
            kept.append(error)
            await Ready()  # it connects again
            ended.append("well")

    coroutine = reader()
    coroutine.send(None)
    with pytest.raises(ConnectionError) as caught:
        raise kept[0]
    clear_frames(caught.value)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert ended == ["well"]
    await anyio.lowlevel.checkpoint()
