"""How other threads reach the event loop, on asyncio and on trio alike."""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import current_token

T = TypeVar("T")


def run_loop(main: Callable[..., Awaitable[T]], *args: object) -> T:
    """`anyio.run`, on uvloop where that is installed. What asyncio logs of a new event loop is left out: a program that
    logs everything did not make this one."""
    logger = logging.getLogger("asyncio")

    def is_others(record: logging.LogRecord) -> bool:
        if not record.getMessage().startswith("Using selector"):
            return True
        logger.removeFilter(is_others)
        return False

    closed = None in (sys.__stdin__, sys.__stdout__, sys.__stderr__)  # uvloop aborts if it gets their descriptors
    uvloop = not closed and find_spec("uvloop") is not None
    logger.addFilter(is_others)
    try:
        return anyio.run(main, *args, backend_options={"use_uvloop": uvloop})
    finally:
        logger.removeFilter(is_others)


class Signal:
    """One task waits for it, once; another sets it, in the same event loop. `signals()` makes them."""

    __slots__ = ("_event", "_future", "is_set")

    def __init__(self, future: Any, event: anyio.Event | None) -> None:
        self._future, self._event = future, event
        self.is_set = False  # whatever became of the wait: the future of a cancelled one is done before it is set

    async def wait(self) -> None:
        """Return once it is set. Cancelling is as with any wait."""
        if self._event is not None:
            await self._event.wait()
        else:
            await self._future

    def set(self) -> None:
        """Let the waiting task go on. Idempotent."""
        self.is_set = True
        if self._event is not None:
            self._event.set()
        elif not self._future.done():
            self._future.set_result(None)


def signals() -> Callable[[], Signal]:
    """What makes signals for the running event loop. On asyncio a signal is a future: it costs a tenth of an
    `anyio.Event`, which has to find out the loop each time."""
    future = getattr(current_token().native_token, "create_future", None)
    if future is None:
        return lambda: Signal(None, anyio.Event())
    return lambda: Signal(future(), None)


class Watch:
    """Calls `on_readable` when a descriptor can be read: on asyncio always, on trio while a task waits in `until`.

    On asyncio the descriptor stays registered between waits, which costs no system calls and no turns of the loop.
    """

    def __init__(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        self._descriptor, self._on_readable = descriptor, on_readable
        native: Any = current_token().native_token
        self._loop = native if hasattr(native, "add_reader") else None
        if self._loop is not None:
            self._loop.add_reader(descriptor, on_readable)

    async def until(self, signal: Signal) -> None:
        """Return when `on_readable` has set the signal."""
        if self._loop is not None:
            await signal.wait()
            return
        while not signal.is_set:
            await anyio.wait_readable(self._descriptor)
            self._on_readable()

    def close(self) -> None:
        """Watch no longer. Idempotent."""
        if self._loop is not None:
            self._loop.remove_reader(self._descriptor)
            self._loop = None


class Doorbell:
    """Runs calls from other threads in the event loop's thread, in order, many for one wake-up of the loop.

    Made inside the event loop that it serves; the calls see the context variables of that moment. `signal` makes a
    `Signal` of that event loop.
    """

    def __init__(self) -> None:
        self.signal = signals()
        native: Any = current_token().native_token
        # asyncio's loop and trio's token name the same thing differently; anyio has no call that does not wait
        self._soon: Callable[..., Any] = getattr(native, "call_soon_threadsafe", None) or native.run_sync_soon
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._rung = False
        self._context, self._thread = contextvars.copy_context(), threading.get_ident()

    def is_here(self) -> bool:
        """Whether the calling thread is the event loop's."""
        return threading.get_ident() == self._thread

    def call(self, call: Callable[..., object], *args: Any) -> None:
        """Call it in the event loop's thread: at once if that is the calling one, else as `ring` does."""
        if self.is_here():
            call(*args)
        else:
            self.ring(call, *args)

    def ring(self, call: Callable[..., object], *args: Any) -> None:
        """Have the event loop call `call(*args)` between two steps of its tasks.

        From any thread at any moment: a signal handler or a finalizer may interrupt `ring` and call it again. Calls
        that come after the end of the loop are dropped.
        """
        self._calls.append((call, args))
        if not self._rung:
            self._rung = True
            try:
                self._soon(self._answer)
            except RuntimeError:  # the loop is closed: asyncio says RuntimeError, trio its child RunFinishedError
                self._calls.clear()

    def _answer(self) -> None:
        self._rung = False
        calls = self._calls
        try:
            while calls:
                call, args = calls.popleft()
                self._context.run(call, *args)
        finally:
            if calls:  # one of them raised
                self.ring(lambda: None)
