"""The thread that has logs flushed: one for all runs of a `Runtime`; a few on a disk that takes its time, where those
that come at once share what the disk has to do.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from gluepy.loop import Doorbell

_BATCH_S = 0.02  # how long written events may wait for company before they are flushed
_SLOW_S = 1e-3  # a disk that takes longer than that
_HELPERS = 7  # at most


_Order = Callable[[], None] | None  # None: end


class Flushable(Protocol):
    """What has been written to, and can be flushed."""

    def flush_now(self, tell: Callable[..., None]) -> None:
        """In a thread of the flusher's: have it on disk, and have what came of it told in the event loop by `tell`."""
        ...


class Flusher:
    """Made in the event loop in which those are told whose logs are flushed; `doorbell` is one that leads there."""

    def __init__(self, doorbell: Doorbell | None = None) -> None:
        self._doorbell = Doorbell() if doorbell is None else doorbell
        self.signal = self._doorbell.signal
        # Not a `threading.Condition`: its lock is not reentrant, and the collector may run in the thread, inside a
        # wait, a finalizer that records a metric, whose line then asks for a flush.
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._at_once: queue.SimpleQueue[_Order] = queue.SimpleQueue()  # for helpers, once there are some
        # Logs that may wait for company. While `_timed` the thread will look at them without being woken: it takes that
        # back first, and looks then, so who finds it true has added to what is looked at.
        self._waiting: deque[Flushable] = deque()
        self._timed = False
        self._logs = self._helpers = 0
        self._is_served = self._is_ended = False
        self._took_s = 0.0  # the latest flush

    def begin(self) -> None:
        """A log is opened. In the event loop only, as `leave` and `end`."""
        self._logs += 1
        if not self._is_served:
            self._is_served = True
            _start(self._serve)

    def leave(self) -> None:
        """A log is closed, and has been flushed."""
        self._logs -= 1
        self._end_threads()

    def ask(self, log: Flushable) -> None:
        """Have `log` flushed soon, with what is written meanwhile. From any thread at any moment."""
        self._waiting.append(log)
        if not self._timed:
            self._timed = True
            self._orders.put(_nothing)

    def ask_at_once(self, log: Flushable) -> None:
        """Have `log` flushed. In the event loop only."""
        orders = self._at_once if self._helpers else self._orders
        if self._took_s > _SLOW_S and self._helpers < _HELPERS and not orders.empty():
            self._helpers, orders = self._helpers + 1, self._at_once
            _start(self._help)
        orders.put(partial(self._flush, log))

    def call(self, work: Callable[[], None]) -> None:
        """Have `work()` called in the thread: what may have to wait for a flush."""
        self._orders.put(work)

    def end(self) -> None:
        """End the threads when they have done what they were asked for, and the last log is closed."""
        self._is_ended = True
        self._end_threads()

    def _end_threads(self) -> None:
        if self._is_ended and not self._logs and self._is_served:
            self._orders.put(None)
            for _ in range(self._helpers):
                self._at_once.put(None)
            self._is_served, self._helpers = False, 0

    def _flush(self, log: Flushable) -> None:
        began = time.monotonic()
        log.flush_now(self._doorbell.ring)
        self._took_s = time.monotonic() - began

    def _help(self) -> None:
        while (order := self._at_once.get()) is not None:
            order()

    def _serve(self) -> None:
        due = math.inf
        while True:
            if due == math.inf and self._timed:
                due = time.monotonic() + _BATCH_S
            left = due - time.monotonic()
            if left > 0:
                try:
                    order = self._orders.get(timeout=None if left == math.inf else left)
                except queue.Empty:
                    continue
                if order is None:
                    return
                order()
            else:
                due, self._timed = math.inf, False
                for log in {self._waiting.popleft(): None for _ in range(len(self._waiting))}:
                    self._flush(log)


def _start(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="gluepy-log", daemon=True).start()


def _nothing() -> None:
    """Only wakes the thread."""
