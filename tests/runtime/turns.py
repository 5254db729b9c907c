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
        self._lock = threading.RLock()
        self._holder, self._depth = 0, 0

    def __enter__(self) -> None:
        if self._holder != threading.get_ident():
            self.coming()
        self._lock.acquire()
        self._holder = threading.get_ident()
        self._depth += 1

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        over = not self._depth
        if over:
            self._holder = 0
        self._lock.release()
        if over:
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
