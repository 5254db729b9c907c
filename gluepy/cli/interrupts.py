"""Ctrl-C and SIGTERM: the first cancels the run, the second kills at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Self

from gluepy.cli.progress import View, show_cursor
from gluepy.exec import forks


class Interrupts:
    """While the block runs, SIGINT and SIGTERM are taken over. `received` is the first that came; `killed` says what to
    tell, of a run's id, when the second has come.

    These are plain signal handlers, not tasks that wait for signals: Python calls them in the main thread between two
    instructions, also while a task holds the event loop and nothing else would be heard. Processes that tasks fork do
    not have them: a signal that is sent to such a one is its own.
    """

    def __init__(self, view: View, killed: Callable[[str], str]) -> None:
        self.received: signal.Signals | None = None
        self._killed, self._last_words = killed, b""
        self._view = view
        self._cancel: Callable[[], None] | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # a background job of a shell ignores SIGINT
                    self._before[number] = signal.signal(number, self._handle)
            forks.in_copies(self._put_back)
        return self

    def __exit__(self, *exc: object) -> None:
        if threading.current_thread() is threading.main_thread():
            forks.not_in_copies(self._put_back)
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def cancels(self, run_id: str, cancel: Callable[[], None]) -> None:
        """From now on the first signal calls `cancel`, which must be safe in a signal handler."""
        self._cancel, self._last_words = cancel, f"{self._killed(run_id)}\n".encode(errors="replace")

    @property
    def exit_code(self) -> int:
        """The exit code that tells of the signal; 0 while none has come."""
        return 128 + self.received if self.received is not None else 0

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if os.getpid() != self._pid:  # forked by a library that Python does not know of
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.received is not None:
            with suppress(OSError):
                show_cursor()
                os.write(2, self._last_words)
            os._exit(128 + number)  # worker processes have guards that die with this process
        self.received = signal.Signals(number)
        if self._cancel is None:
            raise KeyboardInterrupt  # nothing runs yet
        again = "press Ctrl-C again to kill" if number == signal.SIGINT else "another signal kills"
        self._view.notice(f"cancelling… {again}")
        self._cancel()
