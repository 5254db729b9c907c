"""Writes events as JSON lines, to a file or a pipe."""

from __future__ import annotations

import threading
from typing import IO

from gluepy.core.events import Event, TaskOutput, encode


class EventLines:
    """Writes every stored event as its line of `events.jsonl`, each at once, to the binary `file`.

    An event is written once, in order, however often it comes: what a slow reader made the sink miss can be handed in
    again. `seq` is the last one written. A reader that goes away (`| head`) is no error: the rest is dropped.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.seq = 0
        self._file = file
        self._gone = False
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Write `event`, unless it is live only or was written before."""
        with self._lock:  # a write that blocks may be overtaken by whoever hands the rest in
            if event.seq <= self.seq or self._gone or isinstance(event, TaskOutput):
                return
            try:
                self._file.write(encode(event))
                self._file.flush()
            except BrokenPipeError:
                self._gone = True
            self.seq = event.seq
