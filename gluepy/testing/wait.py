"""Waiting without guessing how long: `until`, `settle`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import anyio
import anyio.lowlevel

_CALM = 5  # turns of an event loop
_settling: set[asyncio.Task[object] | None] = set()  # they wait for one another


async def until(condition: Callable[[], object], within_s: float = 120.0) -> None:
    """Return once `condition()` is true; look again every few milliseconds. Raises `TimeoutError` after `within_s`."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:g} s")
        await anyio.sleep(0.005)


async def settle() -> None:
    """Return when every other task of the event loop waits for something. Work in threads and processes is not seen."""
    try:
        here = asyncio.current_task()
    except RuntimeError:  # it is not asyncio
        await anyio.wait_all_tasks_blocked()
        return
    _settling.add(here)
    try:
        calm = 0  # what a callback has set off shows only in the turns after it
        while calm < _CALM:
            await anyio.lowlevel.checkpoint()
            calm = calm + 1 if all(map(_waits, asyncio.all_tasks())) else 0
    finally:
        _settling.discard(here)


def _waits(task: asyncio.Task[object]) -> bool:
    # As `anyio.wait_all_tasks_blocked` looks at it, which however looks again only after 0.1 s.
    waits_for = getattr(task, "_fut_waiter", None)
    return task in _settling or (waits_for is not None and not waits_for.done())
