"""What the engine writes: the events of one moment in one write, and then to those who watch."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from gluepy.clock import Clock, rfc3339
from gluepy.core import events as e
from gluepy.exec.port import RunInfo
from gluepy.loop import Doorbell
from gluepy.runs.log import EventLog, LogBroken
from gluepy.sinks.feed import ROOM, Feed

Header = tuple[int, int, str, str, str, str]
Traced = TypeVar("Traced", bound=e.Header)


class Journal:
    """The events of one session of a run, on their way to its log and its subscribers.

    `now` is the present moment by the monotonic clock, `timestamp` the same by the other one: all that is stored before
    the next `tick` has it. `seq` is that of the last event. Without a `log` they are for subscribers only. All but
    `output` is for the holder of the turn, and `publish_pending` for the event loop, which `doorbell` reaches.
    """

    def __init__(
        self, run: RunInfo, session: int, seq: int, log: EventLog | None, feed: Feed, clock: Clock, doorbell: Doorbell
    ) -> None:
        self.run_id, self.dag = run.run_id, run.dag
        self.session, self.seq = session, seq
        self.now, self.timestamp = 0.0, ""
        self._clock, self._second, self._prefix = clock, -1, ""
        self._log, self._size = log, 0 if log is None else log.size
        self._lines: list[bytes] = []  # stored, and written with the next `flush`
        self._feed, self._doorbell = feed, doorbell
        self._stored: list[tuple[e.Event, int, int]] = []  # with the byte of the log at which its line begins, its size
        self._pending: deque[tuple[e.Event, int, int]] = deque()  # written events and lines of output, in order
        self._is_rung = False  # whether `publish_pending` is about to be called; what is pending then, it publishes
        self._pending_chars = 0  # of output, roughly: threads do not wait for each other to count
        self._dropped: deque[None] = deque()  # lines of output that there was no room for
        self._published = seq
        self._broken: LogBroken | None = None  # why nothing more can be stored

    @property
    def commits(self) -> bool:
        """Whether the end of an attempt has to be on disk before anything follows from it."""
        return self._log is not None and self._log.sync == "commit"

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can be stored."""
        return self._broken is not None

    @property
    def is_flushed(self) -> bool:
        """Whether all that was stored is written, or cannot be."""
        return not self._lines or self._broken is not None

    def tick(self) -> float:
        """Begin a new moment, and return it."""
        self.now, wall = self._clock.now(), self._clock.wall()
        second = int(wall)
        if second != self._second:
            self._second = second
            self._prefix = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        self.timestamp = "%s%06dZ" % (self._prefix, (wall - second) * 1e6)  # noqa: UP031  # half of an f-string's time
        return self.now

    def header(self, level: str, ahead: int = 0) -> Header:
        """The header of the event that is stored next, or of the one `ahead` after it."""
        return self.seq + 1 + ahead, self.session, self.timestamp, level, self.run_id, self.dag

    def store(self, event: e.Event) -> None:
        """Take `event`, to be written with the next `flush`. Raises `LogBroken` once a write has failed, or the journal
        is closed."""
        if self._broken is not None:
            raise LogBroken(*self._broken.args)
        self.seq = event.seq
        if self._log is None:
            if self._feed.live:
                self._stored.append((event, 0, 0))
            return
        line = e.encode(event)
        self._lines.append(line)
        if self._feed.live:
            self._stored.append((event, self._size, len(line)))
        self._size += len(line)

    def output(self, task: str, attempt: int, stream: str, line: str) -> None:
        """Take a line of output, for subscribers only. Never waits for a turn: a thread that prints may hold locks, as
        of logging, that the holder of the turn may come to want."""
        if not self._feed.live:
            return
        if self._pending_chars > ROOM:  # something blocks the event loop
            self._dropped.append(None)
            return
        self._pending_chars += len(line)
        header = (0, self.session, rfc3339(self._clock.wall()), "info", self.run_id, self.dag)
        self._pending.append((self._output(e.TaskOutput(*header, task, attempt, stream, line)), -1, len(line)))
        self._publish_soon()

    def _output(self, event: e.TaskOutput) -> e.TaskOutput:
        return event

    def flush(self) -> None:
        """Write what was stored, in one write, and have it published. Comes before every effect: before an executor
        sees an attempt, before anybody hears that something has ended, before the loop goes on to something else.
        Raises `LogBroken`."""
        lines = self._lines
        if lines:
            assert self._log is not None
            self._lines = []
            try:
                self._log.append(b"".join(lines) if len(lines) > 1 else lines[0])
            except LogBroken as error:
                self._broken = error
                self._stored.clear()
                raise
        if self._stored:
            self._pending.extend(self._stored)
            self._stored.clear()
            self._publish_soon()

    async def durable(self) -> None:
        """Return when all that is written is on disk, as far as EVENT_SYNC asks for it. Raises `LogBroken`."""
        if self._log is not None:
            await self._log.durable()

    def publish_pending(self) -> int | None:
        """Publish, in order, what was written and printed. Returns how many lines of output were dropped so far, if any
        were."""
        self._is_rung = False  # first: a thread that finds it true has added to what is published now
        while self._pending:
            event, offset, size = self._pending.popleft()
            if isinstance(event, e.TaskOutput):
                self._feed.output(msgspec.structs.replace(event, seq=self._published))
            else:
                self._published = event.seq
                self._feed.publish(event, offset, size)
        self._pending_chars = 0
        while self._dropped:
            self._dropped.pop()
            self._feed.lose()
        return self._feed.dropped or None

    def _publish_soon(self) -> None:
        # Never at once: the garbage collector may have interrupted a subscriber inside `Event.wait`, after it has
        # looked at the flag and before it is among those who wait; it would not be woken.
        if not self._is_rung:
            self._is_rung = True
            self._doorbell.ring(self.publish_pending)

    def end(self) -> None:
        """Publish the rest, and let subscribers know that nothing follows."""
        self.publish_pending()
        self._feed.close()

    def close(self) -> None:
        """Nothing more can be stored."""
        self._broken = self._broken or LogBroken("the log", "the run has stopped")


class TracedJournal(Journal):
    """A journal of a run that is in a trace: each event says of which span it tells. A class of its own, so that it
    costs nothing where a run is in none."""

    def __init__(
        self, run: RunInfo, session: int, seq: int, log: EventLog | None, feed: Feed, clock: Clock, doorbell: Doorbell
    ) -> None:
        super().__init__(run, session, seq, log, feed, clock, doorbell)
        assert run.trace is not None
        self._trace = run.trace

    def store(self, event: e.Event) -> None:
        """Take `event`, as the base does, with its ids."""
        super().store(self._traced(event))

    def _output(self, event: e.TaskOutput) -> e.TaskOutput:
        return self._traced(event)

    def _traced(self, event: Traced) -> Traced:
        trace = self._trace
        span = trace.span_of(event.task, event.attempt) if isinstance(event, e.TaskHeader) else trace.span_id
        return msgspec.structs.replace(event, trace_id=trace.trace_id, span_id=span)
