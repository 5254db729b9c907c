"""Slots: the long-lived tasks in which attempts run, one at a time in each."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import anyio

from gluepy.exec.continuation import Continuation
from gluepy.exec.port import Attempt, Emission, Executor, Outcome, Stopped
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


class Slot:
    """A slot and the attempt that it is running."""

    __slots__ = (
        "abandoned",
        "attempt",
        "awake",
        "began",
        "cost",
        "ending",
        "executor",
        "handle",
        "late",
        "lingering",
        "next_step",
        "node",
        "on_emission",
        "released",
        "scope",
        "stopped",
    )

    scope: anyio.CancelScope
    executor: Executor
    handle: AttemptHandle  # of the attempt, or of the latest; set only while holding the turn

    def __init__(self, awake: Signal, on_emission: OnEmission, next_step: NextStep) -> None:
        self.attempt: Attempt | None = None
        self.ending: Attempt | None = None  # how it ended is stored, but not yet acted on
        self.lingering: Attempt | None = None  # the run has gone on without it, and its call has not returned
        self.node = -1
        self.began = 0.0
        self.late = self.abandoned = self.released = False
        self.stopped = False  # whether its call was cancelled, or is about to be
        self.cost: Stopped | None = None
        self.awake = awake  # what it waits for when there is no work
        self.on_emission, self.next_step = on_emission, next_step  # the engine's

    def begin(self, node: int, executor: Executor, attempt: Attempt, now: float) -> None:
        """Take `attempt` up."""
        self.node, self.executor, self.attempt, self.began = node, executor, attempt, now
        self.handle = AttemptHandle(self, attempt)
        self.late = self.abandoned = self.released = False
        self.cost = None


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
