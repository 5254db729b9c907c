"""Slots: the long-lived tasks in which attempts run, one at a time in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import anyio

from gluepy.core.graph import Spec
from gluepy.exec.continuation import Continuation
from gluepy.exec.port import Attempt, Emission, Executor, Outcome, RanAt
from gluepy.loop import Signal

OnEmission = Callable[["Slot", Attempt, Emission], None]
NextStep = Callable[["Slot", Attempt, Outcome], tuple[Attempt, Continuation] | None]


class Turn(Protocol):
    """The lock that an engine holds while it takes a turn. Not reentrant: a signal handler or a finalizer that
    interrupts the thread that holds it must find it taken."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> object: ...

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it, waiting for it if `blocking`, at most `timeout` seconds (-1: for ever). False if it was not free."""
        ...

    def release(self) -> None:
        """Give it back."""
        ...


class Place(NamedTuple):
    """Where the attempts of a spec run: by which executor, in which pool. `target` is the class or function to run;
    `is_here` whether the executor is that of this process, which runs what an `each` asks."""

    spec: Spec
    target: Any
    executor: Executor
    pool: str
    is_here: bool


def places(specs: Sequence[Spec], targets: Sequence[Any], executor: Executor, here: Executor, pool: str) -> list[Place]:
    """The place of each of `specs`, which run `targets`, by `executor`; `pool` is for a `def run` that names none."""

    def executor_of(spec: Spec) -> Executor:
        return here if spec.expands and not executor.asks(spec) else executor

    return [
        Place(spec, target, executor_of(spec), spec.pool or pool, executor_of(spec) is here)
        for spec, target in zip(specs, targets, strict=True)
    ]


class Slot:
    """A slot and the attempt that it is running. Its fields change only in a turn, but for `awake` and `scope`."""

    __slots__ = (
        "abandoned",
        "attempt",
        "awake",
        "began",
        "handle",
        "lingering",
        "next_step",
        "node",
        "on_emission",
        "place",
        "ran_at",
        "released",
        "scope",
        "stopped",
        "stored",
        "timed_out",
    )

    scope: anyio.CancelScope  # around the calls; cancelled by the engine alone
    place: Place  # of the attempt, or of the latest
    handle: AttemptHandle  # of the attempt, or of the latest

    def __init__(self, awake: Signal, on_emission: OnEmission, next_step: NextStep) -> None:
        self.attempt: Attempt | None = None  # under way; None once its end is stored
        self.stored: Attempt | None = None  # its end is stored, and not yet acted on: only while `attempt` is None
        self.lingering: Attempt | None = None  # the run has gone on without it, and its call has not returned
        self.node = -1  # of the attempt, or of the latest
        self.began = 0.0
        self.timed_out = False  # the attempt's deadline has come
        self.abandoned = False  # its call ends, and its code goes on
        self.released = False  # the code of an abandoned attempt has ended
        self.stopped = False  # its call was cancelled, or is about to be: no other attempt begins before it has ended
        self.ran_at: RanAt | None = None  # where the attempt was stopped
        self.awake = awake  # what it waits for when there is no work
        self.on_emission, self.next_step = on_emission, next_step  # the engine's

    def begin(self, node: int, place: Place, attempt: Attempt, now: float) -> None:
        """Take `attempt` up."""
        self.node, self.place, self.attempt, self.began = node, place, attempt, now
        self.handle = AttemptHandle(self, attempt)
        self.timed_out = self.abandoned = self.released = False
        self.ran_at = None


class AttemptHandle(Continuation):
    """The `emit` of one attempt in a slot."""

    __slots__ = ("_attempt", "_slot")

    def __init__(self, slot: Slot, attempt: Attempt) -> None:
        self._claim = [True]
        self._slot, self._attempt = slot, attempt

    def __call__(self, emission: Emission) -> None:
        """Report to the engine. From any thread, at any moment."""
        self._slot.on_emission(self._slot, self._attempt, emission)

    def next(self, outcome: Outcome, /) -> tuple[Attempt, Continuation] | None:
        """The slot's next attempt, if it is for the same place."""
        return self._slot.next_step(self._slot, self._attempt, outcome)

    def abandon(self) -> Continuation | None:
        """Give up the slot's current attempt, which may be a later one than this."""
        return Continuation.abandon(self._slot.handle)
