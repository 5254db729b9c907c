"""Deadlines stop the work, wherever it runs; a thread, which cannot be stopped, is told and keeps its slot."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import anyio
import psutil
import pytest
from steps import WAITERS, Go, Notes, ProcessWaits, Step, ThreadWaits, Waits, dag_of, statuses

from gluepy import Retry, Task, parallel
from gluepy.conf.schema import Settings
from gluepy.core.events import RunFailed, TaskFailed, TaskRetrying
from gluepy.core.scheduler import GRACE_S
from gluepy.errors import RunError
from gluepy.exec.port import FINISHED, Abandoned, Attempt, Begun, Emit, Executor, Outcome, Queued, Released
from gluepy.runtime import Runtime, RunTimedOutError
from gluepy.testing import HELD, ScriptedExecutor, VirtualClock, assert_events, events_of, settle, until
from gluepy.testing import Step as Ends

STUBBORN = Ends(held=True, stubborn=True)


class Slow(Step):
    timeout_s = 5


class LoopLate(Waits):
    timeout_s = 0.05


class ThreadLate(ThreadWaits):
    timeout_s = 0.05


class ProcessLate(ProcessWaits):
    timeout_s = 0.5


def failure(result: Any, task: str) -> TaskFailed:
    return next(event for event in events_of(result) if isinstance(event, TaskFailed) and event.task == task)


async def test_task_on_the_loop_is_cancelled_at_its_deadline(go: Go, notes: Notes) -> None:
    result = await go(LoopLate(id="late"))
    assert statuses(result) == {"late": "failed"}
    assert notes.of("stopped") == ["late"]
    event = failure(result, "late")
    assert (event.reason, event.error_type, event.abandoned) == ("timeout", "TimeoutError", False)
    assert event.error_message == "it took longer than its timeout_s of 0.05 s"
    assert isinstance(result.tasks["late"].error, Exception)
    assert isinstance(result.tasks["late"].error.__cause__, TimeoutError)


async def test_process_is_killed_at_its_deadline(go: Go, notes: Notes) -> None:
    result = await go(ProcessLate(id="late"))
    assert failure(result, "late").reason == "timeout"
    assert not [pid for pid in notes.pids("late") if psutil.pid_exists(pid)]


async def test_thread_is_left_behind_at_its_deadline_and_this_is_told(go: Go, notes: Notes) -> None:
    began = time.monotonic()
    result = await go(ThreadLate(id="late"))
    assert time.monotonic() - began < 5  # neither the run nor the runtime's exit waits for it
    event = failure(result, "late")
    assert (event.reason, event.abandoned) == ("timeout", True)
    assert notes.of("end") == []
    (go.settings.runs_root.parent / "data" / "go").touch()
    await until(lambda: notes.of("end") == ["late"])


@pytest.mark.parametrize("pool", ["loop", "thread"])
async def test_task_that_holds_up_the_clock_and_ends_well_too_late_has_failed(go: Go, pool: str) -> None:
    class Blocks(Task):
        label = "late"
        timeout_s = 0.02

        async def run(self) -> None:
            time.sleep(0.1)  # noqa: ASYNC251  # nobody can interrupt it

    class Holds(Task):
        label = "late"
        timeout_s = 0.02

        def run(self) -> None:
            deadline = time.monotonic() + 0.1
            while time.monotonic() < deadline:
                pass

    result = await go(Blocks if pool == "loop" else Holds)
    assert failure(result, "late").reason == "timeout"


async def test_timeout_is_a_failure_that_the_retry_policy_answers(go: Go) -> None:
    class Again(Slow):
        retries = Retry(attempts=2, wait_s=10, jitter=0)

    clock = VirtualClock()
    executor = ScriptedExecutor({"slow": [HELD, Ends()]}, clock=clock)
    async with clock.autojump():
        result = await go(Again(id="slow"), executor=executor, clock=clock)
    assert (result.status, result.tasks["slow"].attempts, result.duration_s) == ("finished", 2, 15)
    (event,) = (event for event in events_of(result) if isinstance(event, TaskRetrying))
    assert (event.reason, event.delay_s, event.duration_s) == ("timeout", 10, 5)


async def test_each_attempt_has_a_deadline_of_its_own(go: Go) -> None:
    class Again(Slow):
        retries = Retry(attempts=3, wait_s=0)

    clock = VirtualClock()
    executor = ScriptedExecutor({"slow": [HELD, Ends(lasts_s=6), Ends(lasts_s=4)]}, clock=clock)
    async with clock.autojump():
        result = await go(Again(id="slow"), executor=executor, clock=clock)
    assert (result.status, result.tasks["slow"].attempts, result.duration_s) == ("finished", 3, 14)


async def test_abandoned_work_holds_its_slot_until_it_has_really_ended(go: Go) -> None:
    clock = VirtualClock()
    executor = ScriptedExecutor({"slow": STUBBORN}, clock=clock)
    dag = dag_of(parallel((Slow(id="slow"), Step(id="z")), Step(id="next")))
    runtime = go.runtime(executor=executor, clock=clock)
    async with runtime, runtime.stream_dag(dag, check=False, concurrency=1, on_failure="continue") as run:
        await executor.wait_for("slow")
        await clock.advance(6)
        assert_events(events_of(run), "task.failed slow")
        assert executor.started == [("slow", 1)]
        executor.release("slow")
        await executor.wait_for("next")
        assert clock.now() == 6
        result = await run.result()
    assert statuses(result) == {"slow": "failed", "z": "blocked", "next": "finished"}


async def test_abandoned_work_holds_its_named_limits_too(go: Go) -> None:
    class Train(Slow):
        uses: ClassVar = {"gpu": 1}

    clock = VirtualClock()
    executor = ScriptedExecutor({"first": STUBBORN}, clock=clock)
    go.settings = go.settings.replaced(LIMITS={"gpu": 1})
    dag = dag_of(parallel((Train(id="first"), Step(id="z")), Train(id="second")))
    runtime = go.runtime(executor=executor, clock=clock)
    async with runtime, runtime.stream_dag(dag, check=False, concurrency=8, on_failure="continue") as run:
        await executor.wait_for("first")
        await clock.advance(6)
        assert executor.started == [("first", 1)]
        executor.release("first")
        result = await run.result()
    assert statuses(result) == {"first": "failed", "z": "blocked", "second": "finished"}


async def test_retry_of_abandoned_work_waits_for_its_end_and_no_longer(go: Go) -> None:
    class Again(Slow):
        retries = Retry(attempts=2, wait_s=0)

    clock = VirtualClock()
    executor = ScriptedExecutor({"slow": [STUBBORN, Ends()]}, clock=clock)
    runtime = go.runtime(executor=executor, clock=clock)
    async with runtime, runtime.stream_dag(dag_of(Again(id="slow")), check=False, concurrency=1) as run:
        await executor.wait_for("slow")
        await clock.advance(7)
        assert len(executor.started) == 1
        executor.release("slow")
        await executor.wait_for("slow", 2)
        assert clock.now() == 7
        result = await run.result()
    assert result.status == "finished"


async def test_retry_of_abandoned_work_waits_at_most_the_grace_time(go: Go) -> None:
    class Again(Slow):
        retries = Retry(attempts=2, wait_s=0)

    clock = VirtualClock()
    executor = ScriptedExecutor({"slow": [STUBBORN, Ends()]}, clock=clock)
    runtime = go.runtime(executor=executor, clock=clock)
    async with runtime, runtime.stream_dag(dag_of(Again(id="slow")), check=False, concurrency=1) as run:
        await executor.wait_for("slow")
        await clock.advance(5 + GRACE_S - 0.1)
        assert len(executor.started) == 1
        await clock.advance(0.2)
        await settle()
        assert len(executor.started) == 2
        result = await run.result()
    assert result.status == "finished"


async def test_work_that_is_left_behind_and_ends_while_its_call_is_stopped_frees_its_slot_at_once(go: Go) -> None:
    class EndsJustThen(ScriptedExecutor):
        async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
            try:
                return await super().run(attempt, emit)
            except anyio.get_cancelled_exc_class():
                emit(Abandoned())
                emit(Released())
                raise

    clock = VirtualClock()
    executor = EndsJustThen({"slow": HELD}, clock=clock)
    dag = dag_of(parallel((Slow(id="slow"), Step(id="z")), Step(id="next")))
    async with clock.autojump(), go.runtime(executor=executor, clock=clock) as runtime:
        result = await runtime.run_dag(dag, check=False, concurrency=1, on_failure="continue")
    assert statuses(result) == {"slow": "failed", "z": "blocked", "next": "finished"}
    assert result.duration_s == 5


async def test_run_does_not_wait_for_ever_for_a_slot_that_abandoned_work_holds(go: Go) -> None:
    clock = VirtualClock()
    executor = ScriptedExecutor({"slow": STUBBORN}, clock=clock)
    dag = dag_of(parallel((Slow(id="slow"), Step(id="z")), Step(id="next")))
    async with clock.autojump(), go.runtime(executor=executor, clock=clock) as runtime:
        result = await runtime.run_dag(dag, check=False, concurrency=1, on_failure="continue")
    assert statuses(result) == {"slow": "failed", "z": "blocked", "next": "blocked"}
    assert result.duration_s == 5 + GRACE_S


# The whole run


async def test_run_beyond_its_timeout_stops_what_runs_and_has_failed(go: Go) -> None:
    clock = VirtualClock()
    executor = ScriptedExecutor({"a": Ends(lasts_s=10), "b": HELD}, clock=clock)
    async with clock.autojump():
        tasks = (Step(id="a"), Step(id="b"), Step(id="c"))
        result = await go(*tasks, executor=executor, clock=clock, timeout_s=30)
    assert (result.status, result.duration_s) == ("failed", 30)
    assert statuses(result) == {"a": "finished", "b": "cancelled", "c": "cancelled"}
    (ended,) = (event for event in events_of(result) if isinstance(event, RunFailed))
    assert (ended.reason, ended.failed) == ("timeout", [])


async def test_run_beyond_its_timeout_raises_for_that(go: Go) -> None:
    with pytest.raises(RunError) as caught:
        await go(Waits, timeout_s=0.05, check=True)
    (error,) = caught.value.exceptions
    assert isinstance(error, RunTimedOutError)
    assert error.timeout_s == 0.05


async def test_run_that_ends_in_time_hears_nothing_of_its_timeout(go: Go) -> None:
    with anyio.fail_after(120):
        result = await go(Step(id="a"), timeout_s=3600)
    assert result.status == "finished"


@pytest.mark.parametrize("pool", WAITERS)
async def test_run_beyond_its_timeout_leaves_nothing_running(
    go: Go, notes: Notes, pool: str, started: Callable[[], list[psutil.Process]]
) -> None:
    result = await go(WAITERS[pool](id="wait"), timeout_s=0.05 if pool != "process" else 0.5)
    assert statuses(result) == {"wait": "cancelled"}
    if pool == "thread":
        (go.settings.runs_root.parent / "data" / "go").touch()
        await until(lambda: notes.of("end") == ["wait"])
    else:
        assert notes.of("end") == []
        assert not started()


class Deaf(Executor):
    """Does not hear that it is to stop."""

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        if attempt.task == "late":
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                pass
        return FINISHED


async def test_end_that_a_stop_overtakes_is_not_lost_while_it_is_made_durable(settings: Settings) -> None:
    durable = settings.replaced(EVENT_SYNC="commit")
    with anyio.fail_after(120):
        async with Runtime(durable, executor=Deaf()) as runtime:
            result = await runtime.run_dag(dag_of(LoopLate(id="late"), Waits(id="next")), check=False)
    assert statuses(result) == {"late": "failed", "next": "blocked"}
    assert failure(result, "late").reason == "timeout"


class HasAQueue(Executor):
    """Attempts wait for an hour in its queue, then they take `work_s`."""

    def __init__(self, clock: VirtualClock, work_s: float) -> None:
        self._clock, self._work_s = clock, work_s

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        emit(Queued())
        await self._clock.sleep_until(self._clock.now() + 3600)
        emit(Begun())
        await self._clock.sleep_until(self._clock.now() + self._work_s)
        return FINISHED


@pytest.mark.parametrize(("work_s", "ended"), [(4, "finished"), (6, "failed")])
async def test_a_time_out_counts_from_when_an_attempt_leaves_its_executors_queue(
    go: Go, work_s: float, ended: str
) -> None:
    clock = VirtualClock()
    async with clock.autojump():
        result = await go(Slow, executor=HasAQueue(clock, work_s), clock=clock)
    assert statuses(result) == {"slow": ended}
    assert result.tasks["slow"].duration_s == min(work_s, 5)
    assert result.duration_s == 3600 + min(work_s, 5)
