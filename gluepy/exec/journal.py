"""What the engine writes: the events of one moment in one write, and then to those who watch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from gluepy.clock import Clock, rfc3339
from gluepy.core import events as e
from gluepy.exec.port import RunInfo
from gluepy.runs.log import EventLog, LogBroken
from gluepy.sinks.feed import ROOM, Feed

Header = tuple[int, int, str, str, str, str]


class Journal:
    """The events of one session of a run, on their way to its log and its subscribers.

    `now` is the present moment by the monotonic clock, `timestamp` the same by the other one: all that is stored before
    the next `tick` has it. `publish` is called when there is something to `hand_on`, which the event loop must do. All
    but `tell` and `hand_on` is for whoever has the turn.
    """

    def __init__(
        self, run: RunInfo, session: int, seq: int, log: EventLog, feed: Feed, clock: Clock, publish: Callable[[], None]
    ) -> None:
        self.run_id, self.dag = run.run_id, run.dag
        self.session, self.seq = session, seq
        self.now, self.timestamp = 0.0, ""
        self._clock, self._second, self._prefix = clock, -1, ""
        self._log, self._size = log, log.size
        self._lines: list[bytes] = []  # stored, and written with the next `flush`
        self._feed, self._publish, self._asked = feed, publish, False
        self._stored: list[tuple[e.Event, int, int]] = []  # with the byte of the log at which its line begins, its size
        self._news: deque[tuple[e.Event, int, int]] = deque()  # what is written, and what was told, as it came
        self._untold = 0  # characters of output among the news, roughly: threads do not wait for each other to count
        self._lost: deque[None] = deque()  # lines of output that there was no room for
        self._published = seq
        self._broken: LogBroken | None = None  # why nothing more can be stored

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
        line = e.encode(event)
        self._lines.append(line)
        self.seq = event.seq
        if self._feed.live:
            self._stored.append((event, self._size, len(line)))
        self._size += len(line)

    def tell(self, task: str, attempt: int, stream: str, line: str) -> None:
        """Take a line of output, for subscribers only. Never waits for a turn: whoever prints may hold locks, such as
        those of logging, that the holder of the turn may come to want."""
        if self._untold > ROOM:  # something keeps the event loop to itself
            self._lost.append(None)
            return
        self._untold += len(line)
        header = (0, self.session, rfc3339(self._clock.wall()), "info", self.run_id, self.dag)
        self._news.append((e.TaskOutput(*header, task, attempt, stream, line), -1, len(line)))
        self._ask()

    def flush(self) -> None:
        """Write what was stored, in one write, and have it published. Comes before every effect: before an executor
        sees an attempt, before anybody hears that something has ended, before the loop goes on to something else.
        Raises `LogBroken`."""
        lines = self._lines
        if lines:
            self._lines = []
            try:
                self._log.append(b"".join(lines) if len(lines) > 1 else lines[0])
            except LogBroken as error:
                self._broken = error
                self._stored.clear()
                raise
            if self._stored:
                self._news.extend(self._stored)
                self._stored.clear()
                self._ask()

    def hand_on(self) -> None:
        """Publish, in order, what was written and told."""
        self._asked = False  # first: whoever finds it set has added to the news that are looked at now
        while self._news:
            event, offset, size = self._news.popleft()
            if isinstance(event, e.TaskOutput):
                self._feed.output(msgspec.structs.replace(event, seq=self._published))
            else:
                self._published = event.seq
                self._feed.publish(event, offset, size)
        self._untold = 0
        while self._lost:
            self._lost.pop()
            self._feed.lose()

    def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            self._publish()

    def close(self) -> None:
        """Nothing more can be stored."""
        self._broken = self._broken or LogBroken("the log", "the run has stopped")
