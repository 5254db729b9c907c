"""Tasks that report something from a signal handler, from a finalizer that the garbage collector runs, or from a
logging handler. Each of these may run between any two instructions, in a thread that holds any lock.

`tells_between_steps` reports something at every instruction, by means of `sys.settrace`.
"""

from __future__ import annotations

import gc
import itertools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import pytest
from log_rules import check_log
from steps import PATIENCE_S, Go, LoopStep, Step, dag_of, statuses

import gluepy.sinks.feed
from gluepy import Task, parallel
from gluepy.core import events as e
from gluepy.core.state import STATUS, State
from gluepy.runtime import RunResult
from gluepy.testing import events_of, until

PACKAGE = str(Path(gluepy.sinks.feed.__file__).parents[1])
LOOPS = tuple(f"/{name}" for name in ("asyncio/locks.py", "anyio/_backends/", "trio/_sync.py", "threading.py"))


TRACES = pytest.mark.skipif(
    sys.version_info[:2] == (3, 12), reason="CPython 3.12 crashes (seen in 3.12.1) when threads trace each instruction"
)


@contextmanager
def tells_between_steps(tell: Callable[[], object]) -> Iterator[None]:
    """While the block runs, call `tell` in all threads that begin meanwhile, and in this one, before every instruction
    of gluepy, and line of what it waits with, once each."""
    told: set[tuple[object, int]] = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if event == "call":
            frame.f_trace_opcodes = code.co_filename.startswith(PACKAGE)
            return trace if frame.f_trace_opcodes or any(part in code.co_filename for part in LOOPS) else None
        if (code, frame.f_lasti) not in told:
            told.add((code, frame.f_lasti))
            tell()
        return trace

    before = sys.gettrace()
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        threading.settrace(before)


class Teller(Task):
    """Runs as long as the others, and notes what it tells."""

    told: ClassVar[list[int]]
    numbers: ClassVar[Iterator[int]]
    others: ClassVar[int]
    begun: ClassVar[bool]

    async def run(self) -> None:
        Teller.begun = True
        await until(lambda: not self.others, PATIENCE_S)
        await anyio.lowlevel.checkpoint()
        Teller.begun = False

    @classmethod
    def beside(cls, *tasks: Any) -> Any:
        Teller.told, Teller.numbers, Teller.begun, Teller.others = [], itertools.count(), False, 1
        return parallel(cls, (Begun, *tasks, Over))

    def tell(self) -> None:
        if self.begun:
            number = next(self.numbers)  # it may itself be interrupted
            self.told.append(number)
            self.metric("told", number)


class Begun(Task):
    async def run(self) -> None:
        await until(lambda: Teller.begun, PATIENCE_S)


class Over(Task):
    async def run(self) -> None:
        Teller.others = 0


class Tells(Teller):
    """The same, with what it is told to do meanwhile: `tell` is called again and again."""

    meanwhile: ClassVar[Callable[[Callable[[], None]], Any]]

    async def run(self) -> None:
        with type(self).meanwhile(self.tell):
            await super().run()


def check(result: RunResult, told: list[e.Event]) -> None:
    """The log is whole, says what the result says, and was told whole; nothing that was told is lost."""
    events = events_of(result)
    assert check_log(events) == statuses(result)
    state = State.from_events(events)
    assert {task: STATUS[state.status[node]] for task, node in state.graph.index.items()} == statuses(result)
    stored = [e.encode(event) for event in told if not isinstance(event, e.TaskOutput)]
    assert b"".join(stored) == (result.path / "events.jsonl").read_bytes()
    values = [event.value for event in events if isinstance(event, e.TaskMetric) and event.value is not None]
    assert sorted(values) == sorted(Teller.told)


async def watched(go: Go, *tasks: Any, **options: Any) -> tuple[RunResult, list[e.Event]]:
    with anyio.fail_after(PATIENCE_S):
        async with go.runtime() as runtime, runtime.stream_dag(dag_of(*tasks), check=False, **options) as run:
            told = [event async for event in run]
            return await run.result(), told


@pytest.fixture
def tells() -> Iterator[type[Tells]]:
    yield Tells
    Teller.begun = False


@TRACES
async def test_what_is_told_between_any_two_steps_is_recorded_once(go: Go, tells: type[Tells]) -> None:
    tells.meanwhile = staticmethod(tells_between_steps)
    tasks = parallel(*(kind(id=f"{kind.label}{number}") for number in range(4) for kind in (Step, LoopStep)))
    result, told = await watched(go, tells.beside(tasks, Step, LoopStep))
    assert len(Teller.told) > 1000
    check(result, told)


@contextmanager
def alarms(tell: Callable[[], object], every_s: float = 0.0005) -> Iterator[None]:
    """While the block runs, a signal handler calls `tell` again and again."""
    goes_on = True

    def handle(*_: object) -> None:
        tell()
        if goes_on:
            signal.setitimer(signal.ITIMER_REAL, every_s)  # not before: it would interrupt itself without end

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, every_s)
    try:
        yield
    finally:
        goes_on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Collected:
    """Garbage that tells something when the collector comes by."""

    def __init__(self, tell: Callable[[], object]) -> None:
        self.tell, self.itself = tell, self

    def __del__(self) -> None:
        self.tell()


@contextmanager
def collections(tell: Callable[[], object], threshold: int) -> Iterator[None]:
    """While the block runs, the collector runs all the time, and what it collects calls `tell`."""
    before, goes_on = gc.get_threshold(), True

    def again() -> None:
        tell()
        if goes_on:
            Collected(again)

    Collected(again)
    gc.set_threshold(threshold, 1, 1)
    try:
        yield
    finally:
        goes_on = False
        gc.set_threshold(*before)
        gc.collect()


class Quick(Task):
    n: int

    async def run(self) -> None:
        """Nothing."""


@pytest.mark.parametrize("meanwhile", [alarms, partial(collections, threshold=37), partial(collections, threshold=61)])
async def test_a_run_of_many_tasks_is_recorded_whole_while_signals_and_the_collector_tell_things(
    go: Go, tells: type[Tells], meanwhile: Any
) -> None:
    tells.meanwhile = staticmethod(meanwhile)
    result, told = await watched(go, tells.beside(parallel(*(Quick(n=n) for n in range(1000)))))
    assert Teller.told
    check(result, told)


@pytest.mark.parametrize("kind", [Step, LoopStep])
async def test_what_is_told_by_who_has_the_turn_already_is_recorded_before_its_attempt_ends(
    go: Go, kind: type[Task]
) -> None:
    async with go.runtime() as runtime:
        assert runtime._shared is not None
        turn = runtime._shared.turn

        class InATurn(kind):  # type: ignore[misc, valid-type]
            def tell(self) -> None:
                with turn:
                    self.metric("first", 1)
                    self.progress(1, 2)
                    self.metric("second", 2)

            if kind is Step:

                def run(self) -> None:
                    self.tell()

            else:

                async def run(self) -> None:  # type: ignore[misc]
                    self.tell()

        with anyio.fail_after(PATIENCE_S):
            result = await runtime.run_dag(dag_of(InATurn, kind))
    kinds = [type(event) for event in events_of(result) if getattr(event, "task", "") == "inaturn"]
    assert kinds == [e.TaskStarted, e.TaskMetric, e.TaskProgress, e.TaskMetric, e.TaskFinished]


async def test_a_subscriber_is_woken_by_what_is_told_just_before_it_waits(
    go: Go, monkeypatch: pytest.MonkeyPatch, tells: type[Tells]
) -> None:
    """The collector may run inside of `Event.wait`, when that has seen that nothing has come and does not wait yet."""
    tell: list[Callable[[], None]] = []

    class Event:
        def __init__(self) -> None:
            self._event = real()
            self.set = self._event.set

        async def wait(self) -> None:
            if not self._event.is_set():
                if tell:
                    tell[0]()
                if self._event.is_set():
                    await anyio.sleep_forever()  # nobody sets it again
            await self._event.wait()

    @contextmanager
    def meanwhile(tells: Callable[[], None]) -> Iterator[None]:
        tell.append(tells)
        yield

    class Anyio:
        pass

    real = anyio.Event
    Anyio.Event = Event  # type: ignore[attr-defined]
    monkeypatch.setattr(gluepy.sinks.feed, "anyio", Anyio)
    tells.meanwhile = staticmethod(meanwhile)
    result, told = await watched(go, tells.beside(LoopStep(id="a"), Step(id="b"), LoopStep(id="c")))
    assert Teller.told
    check(result, told)


@TRACES
async def test_a_run_may_be_cancelled_between_any_two_steps(go: Go, tells: type[Tells]) -> None:
    for step in range(1, 9999, 137):
        tells.meanwhile = staticmethod(lambda _: tells_between_steps(cancel))
        left = step

        async with go.runtime() as runtime:
            dag = dag_of(tells.beside(*(kind(id=f"{kind.label}{n}") for n in range(9) for kind in (Step, LoopStep))))
            with anyio.fail_after(PATIENCE_S):
                async with runtime.stream_dag(dag, check=False) as run:

                    def cancel() -> None:
                        nonlocal left
                        left -= 1
                        if not left:
                            run.cancel()

                    told = [event async for event in run]
        check_log(told)
        assert b"".join(map(e.encode, told)) == (run.path / "events.jsonl").read_bytes()
        if isinstance(told[-1], e.RunFinished):  # there are not so many steps, or it came too late
            break
        assert isinstance(told[-1], e.RunCancelled)
    assert step > 1000


class InWorker(Task):
    """Tells a lot, with a signal handler that does the same."""

    pool = "process"

    def run(self) -> None:
        alarms: list[float] = []

        def tell(*_: object) -> None:
            alarms.append(len(alarms))
            self.metric("alarm", 1)
            if len(alarms) < 50:
                signal.setitimer(signal.ITIMER_REAL, 0.0002)

        signal.signal(signal.SIGALRM, tell)
        signal.setitimer(signal.ITIMER_REAL, 0.0002)
        number = 0
        while len(alarms) < 50:
            number += 1
            self.metric("number", number)
        self.metric("alarms", len(alarms))


async def test_a_worker_process_sends_what_a_signal_handler_tells_while_it_sends(go: Go) -> None:
    with anyio.fail_after(PATIENCE_S):
        result = await go(InWorker)
    assert result.status == "finished"
    metrics = [event for event in events_of(result) if isinstance(event, e.TaskMetric)]
    numbers = [event.value for event in metrics if event.name == "number"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert sum(event.name == "alarm" for event in metrics) == metrics[-1].value == 50
