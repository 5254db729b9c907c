"""How other threads reach the event loop, on asyncio and on trio alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from anyio.lowlevel import current_token


class Doorbell:
    """Runs calls from other threads in the event loop's thread, in order, many for one wake-up of the loop.

    Made inside the event loop that it serves.
    """

    def __init__(self) -> None:
        native: Any = current_token().native_token
        # asyncio's loop and trio's token name the same thing differently; anyio has no call that does not wait
        self._soon: Callable[..., Any] = getattr(native, "call_soon_threadsafe", None) or native.run_sync_soon
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._rung = False

    def ring(self, call: Callable[..., object], *args: Any) -> None:
        """Have `call(*args)` called soon. From any thread; what comes after the loop's end is dropped."""
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
        while calls:
            call, args = calls.popleft()
            call(*args)
