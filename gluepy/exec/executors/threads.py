"""Long-lived worker threads: started when none is idle, fed by a queue, heard by one batched wake-up of the loop."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Generic, Self, TypeVar

from gluepy.loop import Doorbell, Signal, signals

T = TypeVar("T")


class Job(Generic[T]):
    """Work for a thread. Whoever pops `claim`, the thread that starts it or the loop that takes it back, has it."""

    __slots__ = ("abandoned", "claim", "context", "done", "error", "result", "work")

    def __init__(self, work: Callable[[], T], done: Signal) -> None:
        self.work = work
        self.done = done
        self.context = contextvars.copy_context()
        self.claim = [True]
        self.result: T | None = None
        self.error: BaseException | None = None
        self.abandoned: Callable[[], None] | None = None


class Threads:
    """A pool without a size: the caller bounds how much it hands in. `async with` is its lifetime.

    A thread cannot be stopped: work that is cancelled goes on, its thread is given up, and neither leaving the pool
    nor the interpreter's exit waits for it.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Job[object] | None] = queue.SimpleQueue()
        self.ids: set[int] = set()  # of its threads, as the kernel has them
        self._threads = 0
        self._busy = 0
        self._doorbell: Doorbell | None = None
        self._signal: Callable[[], Signal] | None = None

    async def __aenter__(self) -> Self:
        self._doorbell, self._signal = Doorbell(), signals()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for _ in range(self._threads):
            self._queue.put(None)
        self._threads = 0

    def ring(self, call: Callable[..., object], *args: object) -> None:
        """From a worker thread: have `call(*args)` called in the loop, before what the thread returns arrives."""
        assert self._doorbell is not None
        self._doorbell.ring(call, *args)

    async def run(self, work: Callable[[], T], abandon: Callable[[], None], release: Callable[[], None]) -> T:
        """What `work()` returns or raises, called in a thread with a copy of the present context.

        When the call is cancelled before a thread has begun, the work never begins. Else `abandon()` is called, the
        cancellation passes, and `release()` is called when the work has ended.
        """
        assert self._signal is not None
        job: Job[T] = Job(work, self._signal())
        self._busy += 1
        if self._busy > self._threads:
            self._threads += 1
            threading.Thread(target=self._serve, name=f"gluepy-thread-{self._threads}", daemon=True).start()
        self._queue.put(job)  # type: ignore[arg-type]
        try:
            await job.done.wait()
        except BaseException:
            if self._take_back(job):
                self._busy -= 1
            elif not job.done.is_set:
                job.abandoned = release
                abandon()
            raise
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]

    def _take_back(self, job: Job[T]) -> bool:
        try:
            job.claim.pop()
        except IndexError:
            return False
        return True

    def _serve(self) -> None:
        here = threading.get_native_id()
        self.ids.add(here)
        try:
            self._work()
        finally:
            self.ids.discard(here)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                job.claim.pop()
            except IndexError:
                continue
            try:
                job.result = job.context.run(job.work)
            except BaseException as error:
                job.error = error
            self.ring(self._ended, job)
            del job

    def _ended(self, job: Job[object]) -> None:
        self._busy -= 1
        job.done.set()
        if job.abandoned is not None:
            job.abandoned()
