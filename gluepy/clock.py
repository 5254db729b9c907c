"""Time, as a thing that is handed in. `SystemClock` is the real one; tests hand in a virtual one."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Protocol

import anyio
import anyio.lowlevel


class Clock(Protocol):
    """What the engine knows about time."""

    def now(self) -> float:
        """Monotonic seconds; only differences mean something."""
        ...

    def wall(self) -> float:
        """Seconds since 1970 in UTC."""
        ...

    async def sleep_until(self, when: float) -> None:
        """Return once `now()` is at least `when`; for infinity, never."""
        ...

    def working(self) -> AbstractContextManager[object]:
        """A block during which code that is no task of the event loop is at work: a clock that jumps waits for it."""
        ...


class SystemClock:
    """The machine's clocks."""

    now = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
    working = staticmethod(nullcontext)

    async def sleep_until(self, when: float) -> None:
        """Sleep; event loops wake up a little early at times, so look again."""
        if when == math.inf:
            await anyio.sleep_forever()
        left = when - self.now()
        if left <= 0:
            await anyio.lowlevel.checkpoint()  # else one who never sleeps long would keep the event loop
        while left > 0:
            await anyio.sleep(left)
            left = when - self.now()


def rfc3339(wall: float) -> str:
    """`wall` (seconds since 1970) as RFC 3339 in UTC with microseconds and a Z."""
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_rfc3339(text: str) -> float:
    """Seconds since 1970 of a timestamp written by `rfc3339`."""
    return datetime.fromisoformat(text).timestamp()


def seconds_of(timestamp: str) -> float | None:
    """Seconds since 1970 of what should be a timestamp; None for anything else, as damaged logs have it."""
    try:
        return parse_rfc3339(timestamp)
    except (ValueError, OverflowError, OSError):
        return None
