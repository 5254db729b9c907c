"""The thread that has logs flushed: one for all runs of a `Runtime`."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

from gluepy.loop import Doorbell

_BATCH_S = 0.02  # how long written events may wait for company before they are flushed


class Flushable(Protocol):
    """What has been written to, and can be flushed."""

    def flush_now(self, tell: Callable[..., None]) -> None:
        """In the flusher's thread: have it on disk, and have what came of it told in the event loop by `tell`."""
        ...


class Flusher:
    """Made in the event loop in which those are told whose logs are flushed; `doorbell` is one that leads there."""

    def __init__(self, doorbell: Doorbell | None = None) -> None:
        self._doorbell = Doorbell() if doorbell is None else doorbell
        self.signal = self._doorbell.signal
        # Not a `threading.Condition`: its lock is not reentrant, and the collector may run in the thread, inside a
        # wait, a finalizer that records a metric, whose line then asks for a flush.
        self._queue: queue.SimpleQueue[tuple[Flushable, bool] | int | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, if it does not run. In the event loop only."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="gluepy-log", daemon=True)
            self._thread.start()

    def ask(self, log: Flushable, at_once: bool) -> None:
        """Have `log` flushed: soon, with what is written meanwhile, or `at_once`. From any thread at any moment."""
        self._queue.put((log, at_once))

    def close_file(self, file: int) -> None:
        """Close a descriptor that may be being flushed."""
        self._queue.put(file)

    def end(self) -> None:
        """End the thread when it has done what it was asked for."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread = None

    def _serve(self) -> None:
        waiting: dict[Flushable, None] = {}
        due = math.inf
        while True:
            left = due - time.monotonic()
            if left > 0:
                try:
                    order = self._queue.get(timeout=None if due == math.inf else left)
                except queue.Empty:
                    continue
                if order is None:
                    return
                if isinstance(order, int):
                    os.close(order)
                    continue
                log, at_once = order
                if not at_once:
                    if not waiting:
                        due = time.monotonic() + _BATCH_S
                    waiting[log] = None
                    continue
                waiting.pop(log, None)
                if not waiting:
                    due = math.inf
                log.flush_now(self._doorbell.ring)
            else:
                for log in waiting:
                    log.flush_now(self._doorbell.ring)
                waiting.clear()
                due = math.inf
