"""How many runs a `Runtime` has open at once: as many as the limit of open files allows. The others wait."""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")

OF_RUN = 1  # its log; what is opened now and then is closed before another run's turn
_RESERVE = 256  # for what tasks, workers and the program open; half of what is left, if that is less
_PATIENCE_S = 60.0  # how long a run waits for others than runs of this Runtime to close some
_LOOK_S = 0.05


class Descriptors:
    """The descriptors of one process that the runs of a `Runtime` may have, in the order in which they asked."""

    def __init__(self) -> None:
        self._free = _allowed()
        self._holders = 0
        self._waiting: deque[tuple[int, anyio.Event]] = deque()

    async def take(self, count: int) -> None:
        """Wait until `count` of them are free. One that needs more than there are waits until it is alone."""
        if not self._waiting and self._fits(count):
            self._hold(count)
            return
        waiting = count, anyio.Event()
        self._waiting.append(waiting)
        try:
            await waiting[1].wait()
        except BaseException:
            if waiting[1].is_set():
                self.give(count)
            else:
                self._waiting.remove(waiting)
                self._admit()
            raise

    def give(self, count: int) -> None:
        """Give `count` back."""
        self._free += count
        self._holders -= 1
        self._admit()

    def _fits(self, count: int) -> bool:
        return count <= self._free or not self._holders

    def _hold(self, count: int) -> None:
        self._free -= count
        self._holders += 1

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            count, admitted = self._waiting.popleft()
            self._hold(count)
            admitted.set()


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """What `call()` returns; called again while it fails for want of a descriptor, for a minute at most."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return await call()
        except Exception as error:
            if not _is_for_want_of_descriptors(error) or time.monotonic() > end:
                raise
        await anyio.sleep(_LOOK_S)


def _is_for_want_of_descriptors(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__ or error.__context__
    return False


def _allowed() -> float:
    """How many descriptors runs may have, by the limit as it is now and what is open now."""
    if sys.platform == "win32":
        return math.inf
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    try:
        used = len(os.listdir("/dev/fd"))
    except OSError:
        used = 0
    left = max(0, limit - used)
    return left - min(_RESERVE, left // 2)
