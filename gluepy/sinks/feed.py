"""Live subscriptions to a run's events: in order, none lost however slow the reader, memory bounded.

A subscription buffers what happens, so many events and so many bytes. When its buffer is full it falls behind and reads
what it missed from the log later on. Output lines are not in the log: they alone are dropped, and counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import anyio

from gluepy.core.events import Event, TaskOutput

BUFFER = 10_000  # events
ROOM = 16 << 20  # bytes of the log, and characters of output
_CHUNK, _CHUNK_ROOM = 1_000, 4 << 20  # what is read from the log at a time


class Replay(Protocol):
    """Stored events, read again (`gluepy.runs.log.LogReader`). `offset` is the byte of the log that comes next."""

    offset: int

    def events(self, at_most: int = 0) -> Iterable[Event]:
        """What has been stored since the last call, `at_most` so many."""
        ...


class Feed:
    """Where the engine publishes what it has stored. `replay` reads stored events from a byte of the log on (None:
    they are stored nowhere, and buffers are not bounded)."""

    def __init__(self, replay: Callable[[int], Replay] | None) -> None:
        self.replay = replay
        self.dropped = 0
        self._subscriptions: list[Subscription] = []
        self._closed = False

    @property
    def live(self) -> bool:
        """Whether somebody subscribes."""
        return bool(self._subscriptions)

    def subscribe(self, buffer: int = BUFFER, *, since: int | None = None) -> Subscription:
        """A subscription to what is published from now on, or to what is stored from the byte `since` of the log on."""
        subscription = Subscription(self, buffer)
        if since is not None and self.replay is not None:
            subscription.read_from(self.replay(since))
        if self._closed:
            subscription.close()
        else:
            self._subscriptions.append(subscription)
        return subscription

    def publish(self, event: Event, offset: int, size: int) -> None:
        """Hand on `event`, whose line begins at byte `offset` of the log and has `size` bytes."""
        for subscription in self._subscriptions:
            subscription.push(event, offset, size)

    def output(self, event: TaskOutput) -> None:
        """Hand on a line of output."""
        for subscription in self._subscriptions:
            if not subscription.push_output(event):
                self.dropped += 1

    def lose(self) -> None:
        """There was no room for a line of output on its way here."""
        for subscription in self._subscriptions:
            subscription.dropped += 1
            self.dropped += 1

    def close(self) -> None:
        """Nothing more is published; subscriptions end after what they have."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()
        self._subscriptions.clear()

    def leave(self, subscription: Subscription) -> None:
        """End one subscription."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        subscription.close()


class Subscription:
    """An async iterator over events; `take` gives many at once. For one reader."""

    def __init__(self, feed: Feed, buffer: int) -> None:
        self._feed, self._size = feed, buffer
        self._buffer: deque[Event] = deque()
        self._room = ROOM  # left in the buffer
        self._taken: deque[Event] = deque()  # what `__anext__` has taken, and not given yet
        self._behind: Replay | None = None
        self._read = 0  # the last event that was read from the log, where it may be before it is published
        self._closed = False
        self._news: anyio.Event | None = None
        self.dropped = 0

    def push(self, event: Event, offset: int, size: int) -> None:
        """Take `event`, or fall behind and find it in the log later."""
        if event.seq <= self._read:
            return
        if self._behind is None:
            fits = len(self._buffer) < self._size and (size <= self._room or not self._buffer)
            if fits or self._feed.replay is None:
                self._buffer.append(event)
                self._room -= size
            else:
                self._behind = self._feed.replay(offset)
        self._wake()

    def push_output(self, event: TaskOutput) -> bool:
        """Take a line of output, or drop it and return False."""
        if self._behind is not None or len(self._buffer) >= self._size or len(event.line) > self._room:
            self.dropped += 1
            return False
        self._buffer.append(event)
        self._room -= len(event.line)
        self._wake()
        return True

    def read_from(self, replay: Replay) -> None:
        """Begin with what `replay` reads, as one does that has fallen behind."""
        self._behind = replay

    def close(self) -> None:
        """Nothing more comes."""
        self._closed = True
        self._wake()

    async def take(self) -> list[Event]:
        """All that is there now, waiting for something first; empty at the end."""
        if self._taken:
            rest = list(self._taken)
            self._taken.clear()
            return rest
        while True:
            if not self._buffer and self._behind is not None:
                enough = self._behind.offset + _CHUNK_ROOM
                for event in self._behind.events(_CHUNK):
                    self._buffer.append(event)
                    if self._behind.offset >= enough:
                        break
                else:
                    if len(self._buffer) < _CHUNK:
                        self._behind = None  # caught up: everything in the log has been read
                if self._buffer:
                    self._read = self._buffer[-1].seq
            if self._buffer:
                events = list(self._buffer)
                self._buffer.clear()
                self._room = ROOM
                return events
            if self._closed:
                return []
            self._news = anyio.Event()
            await self._news.wait()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        if not self._taken:
            self._taken.extend(await self.take())
            if not self._taken:
                raise StopAsyncIteration
        return self._taken.popleft()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None
