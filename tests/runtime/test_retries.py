"""Attempts, back-off and what is worth another attempt; on a virtual clock, so that minutes cost nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from steps import Go, Step, dag_of

from gluepy import Retry, Task, each, parallel
from gluepy.clock import parse_rfc3339
from gluepy.core.events import Event, TaskFailed, TaskRetrying, TaskStarted
from gluepy.runtime import RunResult
from gluepy.testing import HELD, ScriptedExecutor, VirtualClock, events_of, failed, outline, settle, until
from gluepy.testing import Step as Ends


class Fetch(Step):
    retries = Retry(attempts=5, wait_s=10, factor=3, max_wait_s=60, jitter=0)


async def run(go: Go, task: Any, ends: Any, **options: Any) -> tuple[RunResult, list[Event], VirtualClock]:
    clock = VirtualClock()
    executor = ScriptedExecutor({"fetch": ends}, clock=clock)
    async with clock.autojump():
        result = await go(task, executor=executor, clock=clock, **options)
    return result, events_of(result), clock


def starts(events: Sequence[Event]) -> list[float]:
    """When the attempts started, in seconds after the first."""
    times = [parse_rfc3339(event.timestamp) for event in events if isinstance(event, TaskStarted)]
    return [round(time - times[0], 3) for time in times]


async def test_attempts_wait_longer_and_longer_up_to_the_most(go: Go) -> None:
    result, events, _ = await run(go, Fetch, failed())
    assert [event.delay_s for event in events if isinstance(event, TaskRetrying)] == [10, 30, 60, 60]
    assert starts(events) == [0, 10, 40, 100, 160]
    assert (result.status, result.tasks["fetch"].attempts) == ("failed", 5)
    assert outline(events)[-3:] == ["task.started fetch #5", "task.failed fetch #5", "run.failed"]


async def test_first_success_ends_the_attempts(go: Go) -> None:
    result, events, _ = await run(go, Fetch, [failed(), failed(), Ends(lasts_s=5)])
    assert (result.status, result.tasks["fetch"].attempts) == ("finished", 3)
    assert result.tasks["fetch"].duration_s == 5
    assert result.tasks["fetch"].error is None
    assert starts(events) == [0, 10, 40]


async def test_number_of_retries_stands_for_that_many_more_attempts(go: Go) -> None:
    class Twice(Step):
        label = "fetch"
        retries = 2

    result, events, _ = await run(go, Twice, failed())
    assert result.tasks["fetch"].attempts == 3
    assert {event.max_attempts for event in events if isinstance(event, TaskStarted | TaskFailed)} == {3}


async def test_without_retries_the_first_failure_is_the_last(go: Go) -> None:
    result, events, _ = await run(go, Step(id="fetch"), failed())
    assert result.tasks["fetch"].attempts == 1
    assert not any(isinstance(event, TaskRetrying) for event in events)


async def test_jitter_spreads_the_wait_by_its_share_and_the_same_way_for_the_same_run(go: Go) -> None:
    class Jittery(Step):
        label = "fetch"
        retries = Retry(attempts=6, wait_s=100, factor=1, max_wait_s=1000, jitter=0.5)

    _, events, _ = await run(go, Jittery, failed(), run_id="one")
    waits = [event.delay_s for event in events if isinstance(event, TaskRetrying)]
    assert all(50 <= wait <= 150 for wait in waits)
    assert len(set(waits)) == len(waits)
    go.settings = go.settings.replaced(RUNS_ROOT="again")
    _, events, _ = await run(go, Jittery, failed(), run_id="one")
    assert [event.delay_s for event in events if isinstance(event, TaskRetrying)] == waits
    _, events, _ = await run(go, Jittery, failed(), run_id="two")
    assert [event.delay_s for event in events if isinstance(event, TaskRetrying)] != waits


async def test_failure_that_is_not_worth_it_is_not_tried_again(go: Go) -> None:
    result, _, _ = await run(go, Fetch, [failed(), failed(retryable=False), Ends()])
    assert (result.status, result.tasks["fetch"].attempts) == ("failed", 2)


@pytest.mark.parametrize("pool", ["loop", "thread"])
@pytest.mark.parametrize(
    ("error", "attempts"), [(ConnectionError, 3), (ConnectionResetError, 3), (ValueError, 1), (OSError, 1)]
)
async def test_errors_named_by_the_policy_and_their_kinds_are_tried_again(
    go: Go, pool: str, error: type[Exception], attempts: int
) -> None:
    class Plain(Task):
        label = "fetch"
        retries = Retry(attempts=3, wait_s=0, on=(ConnectionError,))

        def run(self) -> Any:
            raise error

    class Async(Plain):
        label = "fetch"

        async def run(self) -> None:
            raise error

    result = await go(Async if pool == "loop" else Plain)
    assert result.tasks["fetch"].attempts == attempts


async def test_lost_workers_and_own_failures_have_budgets_of_their_own(go: Go) -> None:
    class Thrice(Step):
        label = "fetch"
        retries = Retry(attempts=3, wait_s=1)

    lost = failed(reason="lost")
    result, _, _ = await run(go, Thrice, [failed(), lost, failed(), lost, Ends()])
    assert (result.status, result.tasks["fetch"].attempts) == ("finished", 5)
    result, _, _ = await run(go, Thrice, [failed(), lost, failed(), lost, failed(), Ends()])
    assert (result.status, result.tasks["fetch"].attempts) == ("failed", 5)


async def test_attempt_that_is_followed_by_another_is_never_told_as_the_last(go: Go) -> None:
    class Twice(Step):
        label = "fetch"
        retries = Retry(attempts=2, wait_s=1)

    lost = failed(reason="lost")
    result, _, _ = await run(go, Twice, [lost, failed(), lost])
    told = [(e.attempt, e.max_attempts) for e in events_of(result) if isinstance(e, (TaskRetrying, TaskFailed))]
    assert told == [(1, 2), (2, 3), (3, 3)]


async def test_other_tasks_run_while_one_waits_for_its_next_attempt(go: Go) -> None:
    clock = VirtualClock()
    executor = ScriptedExecutor({"fetch": [failed(), Ends()], "b": HELD}, clock=clock)
    async with go.runtime(executor=executor, clock=clock) as runtime:
        tasks = dag_of(parallel((Fetch, Step(id="after")), (Step(id="a"), Step(id="b"))))
        async with runtime.stream_dag(tasks, concurrency=1) as run:
            await executor.wait_for("b")
            assert executor.started == [("fetch", 1), ("a", 1), ("b", 1)]
            await clock.advance(10)
            assert ("fetch", 2) not in executor.started  # it is due, and the only slot is taken
            executor.release("b")
            await executor.wait_for("fetch", 2)
            result = await run.result()
    assert result.status == "finished"


async def test_wall_clock_that_jumps_by_a_day_does_not_change_the_wait(go: Go) -> None:
    clock = VirtualClock()
    executor = ScriptedExecutor({"fetch": [failed(), Ends()]}, clock=clock)
    async with go.runtime(executor=executor, clock=clock) as runtime, runtime.stream_dag(dag_of(Fetch)) as run:
        await until(lambda: any(isinstance(event, TaskRetrying) for event in events_of(run)))
        clock.set_wall(clock.wall() - 86_400)
        await clock.advance(9.9)
        assert len(executor.started) == 1
        await clock.advance(0.2)
        await settle()
        assert len(executor.started) == 2
        assert (await run.result()).status == "finished"


async def test_thousand_hours_of_waiting_cost_no_time(go: Go) -> None:
    class Patient(Step):
        label = "fetch"
        retries = Retry(attempts=11, wait_s=360_000, factor=1, max_wait_s=360_000, jitter=0)

    began = time.monotonic()
    result, _, clock = await run(go, Patient, failed())
    assert clock.now() == 3_600_000
    assert result.tasks["fetch"].attempts == 11
    assert time.monotonic() - began < 5


async def test_asking_an_each_is_tried_again_only_for_what_its_task_names(go: Go) -> None:
    class Region(Task):
        region: str
        retries = Retry(attempts=3, wait_s=0, on=(ConnectionError,))

        def run(self) -> None:
            pass

    def ask(error: Exception) -> list[str]:
        raise error

    result = await go(parallel(each(Region, region=lambda: ask(ConnectionResetError()))))
    assert result.tasks["each-region"].attempts == 3
    result = await go(parallel(each(Region, region=lambda: ask(LookupError()))))
    assert result.tasks["each-region"].attempts == 1
