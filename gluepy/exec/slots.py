"""Slots: the long-lived tasks in which attempts run, one at a time in each."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import anyio

from gluepy.exec.port import Attempt, Emission, Executor, Outcome, Relay, Stopped
from gluepy.loop import Signal


class Turn(Protocol):
    """The lock that an engine holds while it takes a turn. Not reentrant: a signal handler or a finalizer that
    interrupts the thread that holds it must find it taken."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> object: ...

    def acquire(self, blocking: bool = True) -> bool:
        """Take it, waiting for it if `blocking`. False if it was not free."""
        ...

    def release(self) -> None:
        """Give it back."""
        ...


class Slot:
    """One of them, and what it is at."""

    __slots__ = (
        "abandoned",
        "attempt",
        "awake",
        "began",
        "cost",
        "ending",
        "executor",
        "late",
        "lingering",
        "node",
        "released",
        "scope",
        "stopped",
    )

    scope: anyio.CancelScope
    executor: Executor

    def __init__(self, awake: Signal) -> None:
        self.attempt: Attempt | None = None
        self.ending: Attempt | None = None  # how it ended is stored, but not yet acted on
        self.lingering: Attempt | None = None  # the run has gone on without it, and its call has not returned
        self.node = -1
        self.began = 0.0
        self.late = self.abandoned = self.released = False
        self.stopped = False  # whether its call was cancelled, or is about to be
        self.cost: Stopped | None = None
        self.awake = awake  # what it waits for when there is no work

    def begin(self, node: int, executor: Executor, attempt: Attempt, now: float) -> None:
        """Take `attempt` up."""
        self.node, self.executor, self.attempt, self.began = node, executor, attempt, now
        self.late = self.abandoned = self.released = False
        self.cost = None


class Ears(Protocol):
    """The engine, as a `Call` knows it."""

    def hear(self, slot: Slot, attempt: Attempt, emission: Emission) -> None:
        """Take in what was told of the attempt."""
        ...

    def proceed(self, slot: Slot, attempt: Attempt, outcome: Outcome, take: Callable[[Attempt, Relay], None]) -> bool:
        """Answer `Relay.proceed`."""
        ...


class Call(Relay):
    """The `emit` of one attempt."""

    __slots__ = ("_attempt", "_engine", "_slot")

    def __init__(self, engine: Ears, slot: Slot, attempt: Attempt) -> None:
        self._engine, self._slot, self._attempt = engine, slot, attempt

    def __call__(self, emission: Emission) -> None:
        """Tell the engine."""
        self._engine.hear(self._slot, self._attempt, emission)

    def proceed(self, outcome: Outcome, take: Callable[[Attempt, Relay], None]) -> bool:
        """Have the engine take its next step."""
        return self._engine.proceed(self._slot, self._attempt, outcome, take)
