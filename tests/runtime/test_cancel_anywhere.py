"""A run may be cancelled at any moment, in any way: it ends well, nothing runs on, and a resume of it ends as the run
would have.

The moments of a run are the writes to its log, the calls of its executor and their returns, and the wake-ups of its
clock. Each test runs a random DAG undisturbed, counts them, and then runs it again for each of them.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from log_rules import check_log, started_in
from random_dags import LIMITS, RandomDag
from turns import Validated

from gluepy.conf.schema import Settings
from gluepy.core.events import Event, RunCancelled, TaskStarted
from gluepy.core.state import STATUS, State
from gluepy.exec.engine import Engine
from gluepy.exec.executors.local import LocalExecutor
from gluepy.exec.port import Attempt, Emit, Outcome
from gluepy.loop import Doorbell
from gluepy.runs.log import FileLog
from gluepy.runtime import Runtime, session
from gluepy.testing import ScriptedExecutor, VirtualClock, events_of, settle

DAGS = int(os.environ.get("GLUEPY_CANCELLED_DAGS", "2"))
EXHAUSTIVE = int(os.environ.get("GLUEPY_CANCELLED_DAGS_EXHAUSTIVE", "50"))
WAYS = ("run.cancel()", "scope.cancel()", "task.cancel()")


class Moments:
    """Counts the moments of a run, and at the one number `at` calls `then`: at once, or, where only the engine's own
    code runs, `soon`, as another task would. That code also runs in the threads of tasks."""

    def __init__(self) -> None:
        self.count = self.at = 0
        self.then: Callable[[], object] = lambda: None
        self.soon: Callable[[], object] = lambda: None

    def pass_by(self, inside: bool = False) -> None:
        self.count += 1
        if self.count == self.at:
            if threading.get_ident() != self.thread:
                self.doorbell.ring(self.soon)
            else:
                (self.soon if inside else self.then)()

    def begin(self, at: int) -> None:
        """Count from 1 again."""
        self.count, self.at = 0, at
        self.doorbell, self.thread = Doorbell(), threading.get_ident()


class Scripted(ScriptedExecutor):
    """Says when it is called and when it returns."""

    def __init__(self, moments: Moments, script: Any, clock: VirtualClock) -> None:
        super().__init__(script, clock=clock)
        self.moments = moments

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        self.moments.pass_by()
        outcome = await super().run(attempt, emit)
        self.moments.pass_by()
        return outcome


class Local(LocalExecutor):
    """The same, with real tasks. Those in threads go on without a call."""

    continues = True

    def __init__(self, moments: Moments) -> None:
        super().__init__()
        self.moments = moments
        self.running: list[tuple[str, int]] = []

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        key = (attempt.task, attempt.number)
        self.running.append(key)
        try:
            self.moments.pass_by()
            outcome = await super().run(attempt, emit)
            self.moments.pass_by()
        finally:
            self.running.remove(key)
        return outcome


class Clock(VirtualClock):
    """Says when somebody has woken up."""

    def __init__(self, moments: Moments) -> None:
        super().__init__()
        self.moments = moments

    async def sleep_until(self, when: float) -> None:
        await super().sleep_until(when)
        self.moments.pass_by()


class Bench:
    """Runs one DAG again and again, each time cancelled at another moment."""

    def __init__(self, settings: Settings, seed: int, real: bool) -> None:
        self.settings = settings.replaced(LIMITS=LIMITS, EVENT_SYNC="none")
        self.random, self.real = RandomDag(seed, in_haste=real), real
        self.moments = Moments()
        self.engines: list[Engine] = []
        self.runs = 0
        self.expected: dict[str, str] = {}
        self.end = ""

    async def open(self, stack: AsyncExitStack) -> tuple[Runtime, Scripted | Local]:
        if self.real:
            local = Local(self.moments)
            return await stack.enter_async_context(Runtime(self.settings, executor=local)), local
        clock = Clock(self.moments)
        await stack.enter_async_context(clock.autojump())
        executor = Scripted(self.moments, self.random.script, clock)
        return await stack.enter_async_context(Runtime(self.settings, executor=executor, clock=clock)), executor

    async def undisturbed(self) -> int:
        """Run to the end; returns the number of moments."""
        self.moments.begin(0)
        async with AsyncExitStack() as stack:
            runtime, _ = await self.open(stack)
            result = await runtime.run_dag(self.random.dag, check=False, **self.random.options)
        self.expected = {task: each.status for task, each in result.tasks.items()}
        self.end = result.status
        assert self.expected.items() >= check_log(events_of(result)).items()
        return self.moments.count

    async def disturbed(self, way: str, at: int) -> None:
        """Cancel a run at that moment, look at what is left, and resume it."""
        self.runs += 1
        run_id = f"run{self.runs}"
        self.moments.begin(at)
        async with AsyncExitStack() as stack:
            runtime, executor = await self.open(stack)
            match way:
                case "run.cancel()":
                    passed = await self.by_run(runtime, run_id)
                case "scope.cancel()":
                    passed = await self.by_scope(runtime, run_id)
                case _:
                    passed = await self.by_task(runtime, run_id)
            self.moments.at = 0
            assert executor.running == []
            events = events_of(self.settings.runs_root / run_id)
            await settle()
            self.check(events, passed)
            if at % 2:
                await self.resume(runtime, run_id, events)
        assert events_of(self.settings.runs_root / run_id)[: len(events)] == events
        if not at % 2:
            async with AsyncExitStack() as stack:
                runtime, _ = await self.open(stack)
                await self.resume(runtime, run_id, events)

    async def by_run(self, runtime: Runtime, run_id: str) -> bool:
        """`run.cancel()`: from then on nothing is begun, the run ends as cancelled, and nothing is raised."""
        now = anyio.Event()
        begun: list[int] = []

        def starts() -> int:
            return sum(isinstance(event, TaskStarted) for event in events_of(self.settings.runs_root / run_id))

        async with runtime.stream_dag(self.random.dag, check=False, run_id=run_id, **self.random.options) as run:

            def cancel() -> None:
                run.cancel()
                begun.append(starts())

            async def cancel_soon() -> None:
                await now.wait()
                cancel()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel_soon)
                self.moments.then, self.moments.soon = cancel, now.set
                result = await run.result()
                tasks.cancel_scope.cancel()
        assert result.status in ("cancelled", self.end)
        assert begun in ([], [starts()]), "an attempt was begun after the run was cancelled"
        return result.status != "cancelled"

    async def by_scope(self, runtime: Runtime, run_id: str) -> bool:
        passed = False
        with anyio.CancelScope() as scope:
            self.moments.then = self.moments.soon = scope.cancel
            await runtime.run_dag(self.random.dag, check=False, run_id=run_id, **self.random.options)
            passed = True
        assert passed or scope.cancelled_caught
        return passed

    async def by_task(self, runtime: Runtime, run_id: str) -> bool:
        """As `asyncio.timeout` and web servers do it."""
        options = self.random.options
        task = asyncio.create_task(runtime.run_dag(self.random.dag, check=False, run_id=run_id, **options))
        self.moments.then = self.moments.soon = task.cancel
        await asyncio.wait([task])
        return not task.cancelled()

    def check(self, events: list[Event], passed: bool) -> None:
        """The log is whole, each task has ended, the live state is the fold, and no limit is taken."""
        engine = self.engines[-1]
        ended = check_log(events)
        state = State.from_events(events)
        assert {task: STATUS[state.status[node]] for task, node in state.graph.index.items()} == ended
        assert facts(engine.state) == facts(state)
        if isinstance(events[-1], RunCancelled):
            assert not passed, "the cancellation did not pass"
        else:  # it came too late
            assert ended == self.expected
        limits = engine._scheduler._limits
        if not any("abandoned" in repr(event) and getattr(event, "abandoned", False) for event in events):
            assert limits.free == limits.capacity

    async def resume(self, runtime: Runtime, run_id: str, events: list[Event]) -> None:
        before = State.from_events(events)
        finished = {task for task, node in before.graph.index.items() if STATUS[before.status[node]] == "finished"}
        result = await runtime.resume_run(run_id, check=False)
        assert {task: each.status for task, each in result.tasks.items()} == self.expected
        assert result.status == self.end
        events = events_of(result)
        assert check_log(events) == self.expected
        if not self.random.may_fail:  # else a finished task may come after one that runs again
            assert not finished & set(started_in(events, 2))


def facts(state: State) -> dict[str, Any]:
    """All that a state knows, comparable."""
    return {
        **{name: value for name, value in vars(state).items() if name != "graph"},
        "ids": state.graph.ids,
        "dependencies": [tuple(nodes) for nodes in state.graph.dependencies],
    }


@pytest.fixture
def moments_are_heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Bench], None]]:
    """Have a bench hear of the writes to logs, and know the engines."""

    def listen(bench: Bench) -> None:
        append = FileLog.append

        def heard(self: FileLog, line: bytes) -> None:
            append(self, line)
            bench.moments.pass_by(inside=True)

        class Known(Validated):
            def __init__(self, **arguments: Any) -> None:
                super().__init__(**arguments)
                bench.engines.append(self)

        monkeypatch.setattr(FileLog, "append", heard)
        monkeypatch.setattr(session, "Engine", Known)

    yield listen


async def cancel_anywhere(bench: Bench, backend: str) -> int:
    moments = await bench.undisturbed()
    for way in WAYS if backend == "asyncio" else WAYS[:2]:
        for at in range(1, moments + 1):
            try:
                await bench.disturbed(way, at)
            except BaseException as error:
                error.add_note(f"{way} at moment {at} of {moments}")
                raise
    return moments


@pytest.mark.parametrize("real", [False, True], ids=["scripted", "real"])
@pytest.mark.parametrize("seed", range(DAGS))
async def test_run_cancelled_at_any_moment_ends_well_and_can_be_resumed(
    settings: Settings, seed: int, real: bool, moments_are_heard: Callable[[Bench], None], anyio_backend: str
) -> None:
    bench = Bench(settings, seed, real)
    moments_are_heard(bench)
    assert await cancel_anywhere(bench, anyio_backend) >= 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("real", [False, True], ids=["scripted", "real"])
@pytest.mark.parametrize("seed", range(DAGS, EXHAUSTIVE))
async def test_many_runs_cancelled_at_any_moment_end_well_and_can_be_resumed(
    settings: Settings, seed: int, real: bool, moments_are_heard: Callable[[Bench], None], anyio_backend: str
) -> None:
    bench = Bench(settings, seed, real)
    moments_are_heard(bench)
    assert await cancel_anywhere(bench, anyio_backend) >= 2
