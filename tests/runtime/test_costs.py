"""Where attempts of process tasks ran and what they have cost is in their events, however they ended."""

from __future__ import annotations

import sys

import pytest
from spenders import SPENT_MB, SPENT_S, Dies, Fails, Grows, Spends, Stays, StaysTooLong
from steps import Go, Notes, Step, dag_of

from gluepy import parallel
from gluepy.core.events import TaskCancelled, TaskFailed, TaskFinished, TaskRetrying
from gluepy.testing import VirtualClock, events_of, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="worker processes are tested on Linux")
Ended = TaskFinished | TaskFailed | TaskRetrying | TaskCancelled


def assert_cost(event: Ended, notes: Notes) -> None:
    assert event.worker is not None
    assert event.worker.startswith("process-")
    assert event.pid == notes.pids(event.task)[event.attempt - 1]
    assert event.cpu_s is not None
    assert SPENT_S <= event.cpu_s < 10
    assert event.peak_rss_mb is not None
    assert SPENT_MB <= event.peak_rss_mb < 400


@pytest.mark.slow
async def test_attempts_that_end_by_themselves_or_die_tell_what_they_have_cost(go: Go, notes: Notes) -> None:
    tasks = (Spends(id="ends"), Fails(id="fails"), Dies(id="dies"), Grows(id="grows"))
    result = await go(parallel(*tasks), on_failure="continue", concurrency=4)
    ends = [event for event in events_of(result) if isinstance(event, Ended)]
    assert {(event.task, getattr(event, "reason", "")) for event in ends} == {
        ("ends", ""),
        ("fails", "exception"),
        ("dies", "lost"),
        ("grows", "memory"),
    }
    for event in ends:
        assert_cost(event, notes)


async def test_attempts_that_are_stopped_at_their_deadline_tell_what_they_have_cost(go: Go, notes: Notes) -> None:
    clock = VirtualClock()
    async with (
        go.runtime(clock=clock) as runtime,
        runtime.stream_dag(dag_of(StaysTooLong(id="stays")), check=False) as run,
    ):
        for attempt in (1, 2):
            await until(lambda attempt=attempt: len(notes.pids("stays")) == attempt)  # type: ignore[misc]
            await clock.advance(2)
        result = await run.result()
    retrying, failed = (event for event in events_of(result) if isinstance(event, Ended))
    for event in (retrying, failed):
        assert getattr(event, "reason", "") == "timeout"
        assert_cost(event, notes)
    assert retrying.pid != failed.pid


async def test_cancelled_attempts_tell_what_they_have_cost_and_those_that_never_began_nothing(
    go: Go, notes: Notes
) -> None:
    dag = dag_of(Stays(id="stays"), Step(id="never"))
    async with go.runtime() as runtime, runtime.stream_dag(dag, check=False) as run:
        await until(lambda: notes.of("begin") == ["stays"])
        run.cancel()
        result = await run.result()
    stays, never = (event for event in events_of(result) if isinstance(event, TaskCancelled))
    assert_cost(stays, notes)
    assert (never.task, never.worker, never.pid, never.cpu_s, never.peak_rss_mb) == ("never", None, None, None, None)
