"""A file that grows, looked at by one on behalf of all who wait for it.

Nothing goes on while nobody waits. One of those who wait leads: it looks again and again, and tells the others. When
it goes away, another one leads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import anyio
import anyio.to_thread

POLL_S = 0.2
_IDLE = 32  # of those that nobody waits for, how many are kept


class Polled:
    """What grows. `users` is how many look at it now. `over` is True once nothing more is to come, `is_behind` while
    there is more to be read at once."""

    def __init__(self, threads: anyio.CapacityLimiter) -> None:
        self.users = 0
        self.over = self.is_behind = False
        self._threads = threads
        self._lock = anyio.Lock()  # around what is done in threads
        self._looks = 0
        self._leads = False
        self._news = anyio.Event()

    def _read(self) -> None:
        """Take in what is there now. Called in a thread, one call at a time."""
        raise NotImplementedError

    def rest(self) -> None:
        """Nobody looks at it any more: keep nothing that can be read again."""

    def _mark(self) -> object:
        """How far it has come."""
        raise NotImplementedError

    async def look(self) -> None:
        """Take in what is there now. Those who ask at the same time share one reading. Raises what reading does."""
        begun = self._looks
        async with self._lock:
            if self._looks > begun:  # one has begun after this was called, and is through
                return
            self._looks += 1
            before = (self._mark(), self.over)
            try:
                await anyio.to_thread.run_sync(self._read, limiter=self._threads)
            finally:
                if (self._mark(), self.over) != before:
                    self._wake()

    async def news(self, within_s: float) -> None:
        """Return when there is more, or nothing is to come any more, or after `within_s` seconds."""
        seen = self._mark()
        with anyio.move_on_after(within_s):
            while self._mark() == seen and not self.over:
                if self._leads:
                    await self._news.wait()
                    continue
                self._leads = True
                try:
                    while self._mark() == seen and not self.over:
                        await anyio.sleep(0 if self.is_behind else POLL_S)
                        await self.look()
                finally:  # also of one that is cancelled, which the others must hear to take its place
                    self._leads = False
                    self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()


T = TypeVar("T", bound=Polled)


class Pool(Generic[T]):
    """What is looked at, each made once. The last few that nobody looks at any more are kept."""

    def __init__(self) -> None:
        self._made: OrderedDict[Hashable, T] = OrderedDict()

    @contextmanager
    def use(self, key: Hashable, make: Callable[[], T]) -> Iterator[T]:
        """The one with this `key`, for as long as the block lasts."""
        polled = self._made.get(key)
        if polled is None:
            polled = self._made[key] = make()
        self._made.move_to_end(key)
        polled.users += 1
        try:
            yield polled
        finally:
            polled.users -= 1
            if not polled.users:
                polled.rest()
            idle = [key for key, each in self._made.items() if not each.users]
            for key in idle[: max(0, len(idle) - _IDLE)]:
                del self._made[key]
