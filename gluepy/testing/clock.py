"""Time that a test moves: `VirtualClock`."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import anyio.lowlevel

from gluepy.testing.wait import settle

WALL = 1_767_225_600.0  # 2026-01-01T00:00:00Z


class VirtualClock:
    """A `gluepy.clock.Clock` that stands still until a test moves it: `Runtime(settings, clock=clock)`.

    By hand, `await clock.advance(60)` moves it on by a minute, from one awaited moment to the next, so that what
    waits wakes at the right time and in the right order. By itself, inside `async with clock.autojump():`, it jumps to
    the next awaited moment whenever every task of the event loop waits. While a function finds the values of an `each`
    it stands still. Other work in threads and processes looks like waiting: with such tasks move it by hand.

    `wall` may be set, as somebody may set the clock of a machine; `now` only ever grows.
    """

    def __init__(self, *, wall: float = WALL) -> None:
        self._now = 0.0
        self._offset = wall
        self._sleepers: dict[anyio.Event, float] = {}
        self._slept = anyio.Event()
        self._at_work = 0
        self._rested = anyio.Event()

    def now(self) -> float:
        """Virtual seconds since the clock was made."""
        return self._now

    def wall(self) -> float:
        """Virtual seconds since 1970."""
        return self._offset + self._now

    def set_wall(self, wall: float) -> None:
        """Set the time of day; `now()` is not touched."""
        self._offset = wall - self._now

    async def sleep_until(self, when: float) -> None:
        """Return once the clock has been moved to `when`, or beyond."""
        if when <= self._now:
            await anyio.lowlevel.checkpoint()
            return
        woken = anyio.Event()
        self._sleepers[woken] = when
        self._slept.set()
        try:
            await woken.wait()
        finally:
            del self._sleepers[woken]

    @contextmanager
    def working(self) -> Iterator[None]:
        """While the block runs, `autojump` does not jump: somebody works whom the event loop does not see."""
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1
            if not self._at_work:
                self._rested.set()

    async def advance(self, seconds: float) -> None:
        """Move on by `seconds`, and return when everything that this woke waits again."""
        end = self._now + seconds
        await settle()
        while (moment := self._next()) <= end:
            self._jump(moment)
            await settle()
        self._now = end

    @asynccontextmanager
    async def autojump(self) -> AsyncIterator[VirtualClock]:
        """While the block runs, jump to the next awaited moment whenever every task of the event loop waits."""
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_jumping)
            try:
                yield self
            except Exception as error:
                failure = error  # the task group would wrap it
            finally:
                tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _keep_jumping(self) -> None:
        while True:
            await settle()
            if self._at_work:
                self._rested = anyio.Event()
                await self._rested.wait()
                continue
            moment = self._next()
            if moment < math.inf:
                self._jump(moment)
            else:
                self._slept = anyio.Event()
                await self._slept.wait()

    def _next(self) -> float:
        return min((when for woken, when in self._sleepers.items() if not woken.is_set()), default=math.inf)

    def _jump(self, moment: float) -> None:
        self._now = max(self._now, moment)
        for woken, when in self._sleepers.items():
            if when <= self._now:
                woken.set()
