"""Waiting without guessing how long: `until`, `settle`."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
import anyio.lowlevel


async def until(condition: Callable[[], object], within_s: float = 20.0) -> None:
    """Return once `condition()` is true; look again every few milliseconds. Raises `TimeoutError` after `within_s`."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:g} s")
        await anyio.sleep(0.005)


async def settle() -> None:
    """Return when every other task of the event loop waits for something. Work in threads and processes is not seen."""
    for _ in range(20):  # on asyncio the look below is repeated only after 0.1 s, and this mostly saves the second one
        await anyio.lowlevel.checkpoint()
    await anyio.wait_all_tasks_blocked()
