"""What executors emit while attempts run, recorded in order: `Emissions`."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable
from typing import assert_never

from gluepy.core import events as e
from gluepy.core.scheduler import Scheduler
from gluepy.exec import forks
from gluepy.exec.journal import Journal
from gluepy.exec.port import (
    Abandoned,
    Attempt,
    Begun,
    Dataset,
    Emission,
    Metric,
    Output,
    Progress,
    Queued,
    Released,
    Stopped,
)
from gluepy.exec.slots import Slot, Turn
from gluepy.exec.timeouts import Timeouts
from gluepy.loop import Doorbell
from gluepy.runs.log import LogBroken

_Recorded = Progress | Metric | Dataset | Queued | Begun | Abandoned | Released | Stopped


class Emissions:
    """Takes emissions from any thread, and records them in the order in which they came.

    `on_broken` is called, in the event loop, if one cannot be written.
    """

    def __init__(
        self,
        journal: Journal,
        scheduler: Scheduler,
        timeouts: Timeouts,
        turn: Turn,
        doorbell: Doorbell,
        on_broken: Callable[[LogBroken], None],
    ) -> None:
        self._journal, self._scheduler, self._timeouts = journal, scheduler, timeouts
        self._turn, self._doorbell, self._on_broken = turn, doorbell, on_broken
        self._pid = os.getpid()
        # Those that no turn has recorded yet. Any thread appends, only the holder of the turn takes away.
        self._waiting: deque[tuple[Slot, Attempt, _Recorded]] = deque()

    def take(self, slot: Slot, attempt: Attempt, emission: Emission) -> None:
        """What the executor emits while the attempt runs, and, of an abandoned one, when it has really ended.

        May be called from any thread at any moment. A signal handler, a finalizer that the garbage collector runs, or a
        logging handler may call it between any two instructions of a turn that its own thread is taking, or while its
        thread holds a lock that the thread with the turn is waiting for. So this never waits for a turn, and all it
        does to the event loop is ring the doorbell.
        """
        if isinstance(emission, Output):
            if slot.attempt is attempt:
                self._journal.output(attempt.task, attempt.number, emission.stream, emission.line)
            return
        if os.getpid() != self._pid:
            raise forks.ForkedCopy(
                f"{type(emission).__name__.lower()} was told", "fork by os.fork or multiprocessing, while the task runs"
            )
        self._waiting.append((slot, attempt, emission))
        if self._turn.acquire(blocking=False):
            try:
                self.record()
            finally:
                self._turn.release()
        else:
            self._doorbell.ring(self._record_in_turn)

    def record(self) -> None:
        """Record those that have come. Only in a turn."""
        while self._waiting:
            self._journal.tick()
            try:
                self._record(*self._waiting.popleft())
                if not self._waiting:
                    self._journal.flush()
            except LogBroken as error:
                self._doorbell.ring(self._on_broken, error)

    def _record_in_turn(self) -> None:
        with self._turn:
            self.record()

    def _record(self, slot: Slot, attempt: Attempt, emission: _Recorded) -> None:
        journal, scheduler = self._journal, self._scheduler
        if isinstance(emission, Released):
            if attempt is slot.attempt or attempt is slot.stored:
                slot.released = True
            scheduler.release(scheduler.graph.index[attempt.task], attempt.number)
            self._timeouts.wake_at(-math.inf)
            return
        if slot.attempt is not attempt or journal.is_closed:
            return  # the attempt has ended already
        match emission:
            case Metric():
                header = journal.header("info")
                self._put(e.TaskMetric(*header, attempt.task, attempt.number, emission.name, emission.value))
            case Progress():
                header = journal.header("info")
                self._put(e.TaskProgress(*header, attempt.task, attempt.number, emission.done, emission.total))
            case Dataset():
                kind = e.DatasetWritten if emission.written else e.DatasetRead
                self._put(
                    kind(
                        *journal.header("info"),
                        attempt.task,
                        attempt.number,
                        emission.dataset,
                        emission.url,
                        emission.bytes,
                        emission.fingerprint,
                        emission.rows,
                        emission.columns,
                    )
                )
            case Queued():
                self._timeouts.suspend(slot.node)
            case Begun():
                slot.began = journal.now
                if not slot.timed_out:
                    self._timeouts.begin(slot.node, attempt, journal.now)
            case Abandoned():
                slot.abandoned = True
            case Stopped():
                slot.ran_at = emission
            case _:
                assert_never(emission)

    def _put(self, event: e.TaskEvent) -> None:
        self._journal.store(event)
        self._scheduler.observe(event, self._journal.now)
