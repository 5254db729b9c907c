"""The turns of the engines of a runtime, with a test at their door: `Turns`, `taking_turns`."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from steps import Go

from gluepy.runtime import Runtime


class Turns:
    """The lock that is held for every turn. `coming` is called by whoever is about to take one, `left` by whoever has
    had one."""

    def __init__(self) -> None:
        self.coming: Callable[[], object] = lambda: None
        self.left: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.coming()
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if blocking and timeout < 0:
            self.coming()
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()
        self.left()


@asynccontextmanager
async def taking_turns(go: Go, turns: Turns, **arguments: Any) -> AsyncIterator[Runtime]:
    """A runtime that takes these turns."""
    async with go.runtime(**arguments) as runtime:
        assert runtime._shared is not None
        runtime._shared = replace(runtime._shared, turn=turns)
        yield runtime


def in_worker_thread() -> bool:
    """Whether a thread that runs tasks calls."""
    return threading.current_thread().name.startswith("gluepy-thread")
