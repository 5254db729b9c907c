"""The turns of engines, with a test at their door (`Turns`, `taking_turns`) or a check at their end (`Validated`)."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

from steps import Go

from gluepy.exec.engine import Engine
from gluepy.exec.slots import Turn
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


class Validated(Engine):
    """An engine whose invariants are checked at the end of every turn that it takes."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._turn = _ValidatedTurn(self, self._turn)
        self._emissions._turn = self._turn


class _ValidatedTurn:
    def __init__(self, engine: Engine, turn: Turn) -> None:
        self._engine, self._turn = engine, turn

    def __enter__(self) -> None:
        self._turn.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if exc_type is None:
                self._engine.validate()
        finally:
            self._turn.__exit__(exc_type, exc, traceback)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return self._turn.acquire(blocking, timeout)

    def release(self) -> None:
        self._turn.release()


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
