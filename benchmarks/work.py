"""What the tasks of the workloads do, for gluepy, floors and peers alike."""

from __future__ import annotations

import itertools
import time

CPU_S = 0.5
_calls = itertools.count()


def nothing(*_: object) -> None:
    """Do nothing but be counted."""
    next(_calls)


async def nothing_async(*_: object) -> None:
    """Do nothing, on the event loop, but be counted."""
    next(_calls)


def calls() -> int:
    """How many calls of `nothing` and `nothing_async` this process has seen since the last time it was asked."""
    global _calls
    seen, _calls = next(_calls), itertools.count()
    return seen


def burn(*_: object) -> None:
    """Compute for half a second of CPU time."""
    until = time.thread_time() + CPU_S
    while time.thread_time() < until:
        pass
