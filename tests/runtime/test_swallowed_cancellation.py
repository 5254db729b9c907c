"""Tasks on the event loop that catch their cancellation and go on: they are named, and the run goes on without them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import anyio
import pytest
import structlog
from log_rules import check_log
from steps import PATIENCE_S, Go, LoopStep, Notes, dag_of, note, statuses

from gluepy import Retry, Task, parallel
from gluepy.conf.schema import Settings
from gluepy.core import events as e
from gluepy.runtime import Runtime
from gluepy.testing import events_of, until

Warnings = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _short_of_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gluepy.core.scheduler.GRACE_S", 0.1)


class Swallows(Task):
    ends: ClassVar[bool]

    async def run(self) -> None:
        note(self.storage, "begin")
        while not self.ends:
            try:
                await anyio.sleep(0.01)
            except BaseException:
                pass
        note(self.storage, "end")


class SwallowsInTime(Swallows):
    timeout_s = 0.05


@pytest.fixture(params=["batch", "commit"])
def go(settings: Settings, request: pytest.FixtureRequest) -> Go:
    Swallows.ends = False
    return Go(settings.replaced(EVENT_SYNC=request.param))


async def test_a_task_that_swallows_its_time_out_fails_and_the_run_goes_on_without_it(go: Go, notes: Notes) -> None:
    with structlog.testing.capture_logs() as logs, anyio.fail_after(PATIENCE_S):
        async with go.runtime() as runtime:
            dag = dag_of(parallel((SwallowsInTime, LoopStep(id="after")), LoopStep(id="beside")))
            async with runtime.stream_dag(dag, check=False) as run:
                told = [event async for event in run]
                assert isinstance(told[-1], e.RunFailed), "subscribers hear of the end"
                assert not run.ended
                assert notes.of("end") == ["beside"]
                Swallows.ends = True
                result = await run.result()
    assert statuses(result) == {"swallowsintime": "failed", "after": "blocked", "beside": "finished"}
    failed = next(event for event in told if isinstance(event, e.TaskFailed))
    assert (failed.reason, failed.abandoned) == ("timeout", True)
    assert "swallows its cancellation" in failed.error_message
    warnings = [line for line in logs if line.get("task") == "swallowsintime"]
    assert [(line["log_level"], line["attempt"]) for line in warnings] == [("warning", 1)]
    check_log(events_of(result))
    assert notes.of("end") == ["beside", "swallowsintime"]


async def by_cancel(runtime: Runtime, dag: Any, begun: Callable[[], Awaitable[None]]) -> list[e.Event]:
    async with runtime.stream_dag(dag, check=False) as run:
        await begun()
        run.cancel()
        told = [event async for event in run]
        Swallows.ends = True
        return told


async def by_scope(runtime: Runtime, dag: Any, begun: Callable[[], Awaitable[None]]) -> list[e.Event]:
    told: list[e.Event] = []

    async def sink(event: e.Event) -> None:
        told.append(event)
        Swallows.ends = isinstance(event, e.RunCancelled)

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: runtime.run_dag(dag, sinks=[sink]))
            await begun()
            scope.cancel()
    assert scope.cancelled_caught
    return told


@pytest.mark.parametrize("cancelled", [by_cancel, by_scope])
async def test_a_run_with_a_task_that_swallows_its_cancellation_is_recorded_as_cancelled(
    go: Go, notes: Notes, cancelled: Any
) -> None:
    async def begun() -> None:
        await until(lambda: notes.of("begin"))

    with structlog.testing.capture_logs() as logs, anyio.fail_after(PATIENCE_S):
        async with go.runtime(concurrency=1) as runtime:
            told = await cancelled(runtime, dag_of(Swallows, LoopStep), begun)
            assert statuses(await runtime.run_dag(dag_of(LoopStep))) == {"loopstep": "finished"}, "its slot is free"
    assert isinstance(told[-1], e.RunCancelled)
    assert [event.abandoned for event in told if isinstance(event, e.TaskCancelled)] == [True, False]
    assert [line["task"] for line in logs if line["log_level"] == "warning"] == ["swallows"]
    assert notes.of("end") == ["swallows", "loopstep"]


async def test_a_retry_waits_for_the_attempt_that_swallows_its_time_out_but_not_for_ever(go: Go, notes: Notes) -> None:
    class Tries(SwallowsInTime):
        retries = Retry(attempts=2, wait_s=0, jitter=0)

        async def run(self) -> None:
            if notes.of("begin"):
                Swallows.ends = True
            await super().run()

    with anyio.fail_after(PATIENCE_S):
        result = await go(Tries, LoopStep)
    assert statuses(result) == {"tries": "finished", "loopstep": "finished"}
    assert result.tasks["tries"].attempts == 2
    check_log(events_of(result))


async def test_a_task_that_ends_within_the_time_that_it_is_given_is_not_named(go: Go) -> None:
    class CleansUp(Task):
        timeout_s = 0.02

        async def run(self) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.02)

    with structlog.testing.capture_logs() as logs:
        result = await go(CleansUp)
    failed = next(event for event in events_of(result) if isinstance(event, e.TaskFailed))
    assert (failed.reason, failed.abandoned, logs) == ("timeout", False, [])
