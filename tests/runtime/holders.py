"""Tasks that hold something, and look whether what earlier ones in the same process held is gone."""

from __future__ import annotations

import gc
import os
import weakref
from typing import Any

import anyio.lowlevel

from gluepy import Retry, Task, current_task

HELD: list[weakref.ref[Any]] = []  # by earlier attempts, in this process


class Block:
    """What a task holds. It knows its task, as a model does that calls back."""

    def __init__(self, task: Any = None) -> None:
        self.task = task


def still_there() -> list[Any]:
    return [held for each in HELD if (held := each()) is not None]


def hold(task: Holds) -> None:
    """Let `task` hold a block, and tell how many are left of earlier attempts. Nothing is collected meanwhile."""
    gc.disable()
    current_task().metric("left", len(still_there()))
    current_task().metric("pid", os.getpid())
    block = Block(task)
    task.__dict__["block"] = block
    HELD.append(weakref.ref(block))


class Holds(Task):
    """Holds a block, and ends as it is told."""

    retries = Retry(attempts=2, wait_s=0)
    how: str = "well"

    def run(self) -> None:
        hold(self)
        _end(self, self.how)


class LoopHolds(Holds):
    async def run(self) -> None:  # type: ignore[override]
        hold(self)
        await anyio.lowlevel.checkpoint()
        await self._end()

    async def _end(self) -> None:
        _end(self, self.how)


class ProcessHolds(Holds):
    pool = "process"


def _end(task: Any, how: str) -> None:
    also = Block()  # a local variable of a frame that the error's traceback has
    HELD.append(weakref.ref(also))
    if how == "fails":
        raise ValueError(how)
    if how == "fails-by-another":
        try:
            _end(task, "fails")
        except ValueError as error:
            task.error = error  # a cycle: the error has the frame, which has the task
            raise RuntimeError(how) from None
    if how == "misses-an-attribute":
        print(task.not_there)
    if how == "fails-in-a-group":
        try:
            _end(task, "fails")
        except ValueError as error:
            raise ExceptionGroup(how, [error]) from None
    if how == "exits":
        raise SystemExit(3)
