"""The pool of worker processes."""

from __future__ import annotations

import marshal
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from heapq import heappop, heappush
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel
import anyio.to_thread

from gluepy.errors import ExecutorBroken, GluepyError, OptionError
from gluepy.exec.executors import worker as worker_main
from gluepy.exec.executors.cgroup import OomKills
from gluepy.exec.executors.processes.conversation import Conversation
from gluepy.exec.executors.processes.ending import Ended
from gluepy.exec.executors.processes.process import WHO
from gluepy.exec.executors.processes.results import (
    EntryFailed,
    OnKilled,
    OnLine,
    OnMessage,
    Reply,
    WorkerCall,
    WorkerLost,
    size,
)
from gluepy.loop import signals

LONG_S = 0.01  # a call that takes longer has its memory watched


def importing_main() -> bool:
    """Whether this process is a worker (ours or multiprocessing's) that is just importing the driver's main script.

    Nothing must be started then: the script has no main guard, and each start would start the next.
    """
    process = sys.modules.get("multiprocessing.process")
    return process is not None and bool(getattr(process.current_process(), "_inheriting", False))


class WorkerPool:
    """Worker processes, started as calls need them and used again, the last one first.

        async with WorkerPool() as pool:
            reply = await pool.call("module:function", ("key", shared), payload, on_line=…, on_message=…)

    How many calls run at once is the callers' business; each has a worker of its own. Workers that nobody used for
    `idle_s` are stopped. Leaving the pool kills all workers with all their descendants and returns when they are gone.
    One that is not at a call, or in which a call has left something behind, first exits as any program does (exit
    handlers and finalizers run, its threads are waited for), for at most `leave_s`. Whatever kills a worker waits at
    most `grace_s` for it to disappear: only a process that the kernel does not let die takes longer, and that one is
    left to its guard. `oom_kills` is where evidence of the out-of-memory killer is looked for.

    Raises `ExecutorBroken` where worker processes cannot be had, and `OptionError` in a worker that is just importing
    a main script without a main guard.
    """

    def __init__(
        self, *, idle_s: float = 60.0, grace_s: float = 5.0, leave_s: float = 5.0, oom_kills: OomKills | None = None
    ) -> None:
        self.idle_s, self.grace_s, self.leave_s = idle_s, grace_s, leave_s
        self._oom = oom_kills or OomKills()
        self._open = False
        self._idle: deque[Conversation] = deque()
        self._workers: set[Conversation] = set()
        self._calls_begin: anyio.Event | None = None  # set when one does, while nobody looks for long calls
        self._free_numbers: list[int] = []
        self._numbered = 0

    async def __aenter__(self) -> Self:
        if sys.platform == "win32":
            raise ExecutorBroken(WHO, "they need Linux or macOS", "use pool 'thread' on Windows, or run it in WSL")
        if importing_main():
            raise OptionError(
                WHO,
                "this process is a worker that is importing the main script, so it must not start any",
                'put what the script runs under `if __name__ == "__main__":`',
            )
        self._limiter, self._signal = anyio.CapacityLimiter(4), signals()
        async with AsyncExitStack() as stack:
            await anyio.to_thread.run_sync(self._oom.open, limiter=self._limiter)
            stack.callback(self._oom.close)
            stack.push_async_callback(self._kill_all)
            self._group = group = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(group.cancel_scope.cancel)
            group.start_soon(self._retire)
            if sys.platform == "linux":
                group.start_soon(self._watch)
            self._stack = stack.pop_all()
        self._open = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        await self._stack.aclose()  # without the error: a task group would wrap it

    async def call(
        self,
        entry: str,
        shared: tuple[str, bytes],
        payload: bytes,
        *,
        on_line: OnLine,
        on_message: OnMessage,
        on_killed: OnKilled | None = None,
        memory_mb: int | None = None,
        main: bool = False,
    ) -> Reply:
        """Run `entry` ("module:function") in a worker process, as `function(shared, payload, send)`, to its end.

        `shared` is a key and bytes; a worker gets the bytes once and keeps those of the last few keys, so equal keys
        must mean equal bytes. `send` takes bytes, from any thread of the worker, while the function runs; later, and
        in processes that it forked, it does nothing. `on_message` gets them in order, `on_line` gets `stdout` or
        `stderr` and a line, without its newline; one of more than `LINE_LENGTH` characters loses its middle, and says
        so. Both are called in the event loop, and for the last time before `call` returns or raises, with all that was
        printed until then. An exception that one of them raises ends the call and its worker.

        The worker has the driver's `sys.path`, `sys.argv`, working directory and environment; `main` also imports the
        driver's main script there as multiprocessing does, for functions and classes that live in it. With
        `memory_mb`, the worker and all its descendants are watched, and killed when their memory exceeds it: what is
        their own or shared, not mapped files, nor what earlier calls have left in the worker.

        Raises `EntryFailed` when the function raises (`SystemExit` and `KeyboardInterrupt` too), `WorkerLost` when the
        worker dies, `ExecutorBroken` when none can be started. Cancellation kills the worker and all its descendants
        before it goes through; `on_killed` is then told what the call has cost, if its worker had begun.
        """
        return await self.make(WorkerCall(entry, shared, payload, on_line, on_message, on_killed, memory_mb, main))

    async def make(self, call: WorkerCall) -> Reply:
        """`call`, and those that its `then` has it followed by. Returns what the last of them has."""
        if not self._open:
            raise ExecutorBroken(WHO, "the pool is not open", "make calls inside `async with WorkerPool()`")
        await anyio.lowlevel.checkpoint_if_cancelled()
        while True:
            worker, as_it_was = await self._take() or self._new(), False
            after: WorkerCall | None = None
            try:
                if not worker.is_up:
                    await worker.start(self._limiter)
                kind, reply, left = await worker.exchange(call)
                as_it_was, after = not left, worker.call
                break
            except Ended as ended:
                await self._remove_or_dismiss(worker)
                if not worker.was_gone:
                    raise self._lost(worker, ended) from None
                call = worker.call
            except anyio.get_cancelled_exc_class():
                await self._remove(worker)
                if worker.process.pid and worker.call.on_killed is not None:
                    worker.call.on_killed(worker.used())
                raise
            finally:
                if as_it_was and self._open:
                    self._idle.append(worker)
                elif after is not None and self._open:
                    await self._leave(worker, after)
                else:
                    await self._remove(worker)
        if kind == worker_main.FAILED:
            raise EntryFailed(worker.call.entry, *marshal.loads(reply.body))  # noqa: S302 - written by our own worker
        return reply

    async def _take(self) -> Conversation | None:
        while self._idle:
            worker = self._idle.pop()
            if worker.is_ready():
                return worker
            await self._remove_or_dismiss(worker)
        return None

    def _new(self) -> Conversation:
        if self._free_numbers:
            number = heappop(self._free_numbers)
        else:
            self._numbered += 1
            number = self._numbered
        worker = Conversation(number, self.grace_s, self._signal, self._oom, self._call_begins)
        self._workers.add(worker)
        return worker

    async def _remove_or_dismiss(self, worker: Conversation) -> None:
        if worker.is_spoilt():
            self._dismiss(worker)
        else:
            await self._remove(worker)

    def _dismiss(self, worker: Conversation) -> None:
        """Let `worker`, which is at no call, leave in order; nobody waits for that."""
        worker.is_leaving = True
        self._group.start_soon(self._leave, worker)

    async def _leave(self, worker: Conversation, after: WorkerCall | None = None) -> None:
        """Let `worker` exit as any program does, and forget it. What it prints meanwhile is that of `after`."""
        worker.is_leaving = True
        await self._end(worker, lambda: worker.leave(self.leave_s, after))

    async def _remove(self, worker: Conversation) -> None:
        """Kill `worker` with its descendants, hand over what they printed to the end, and forget it."""
        if worker.unreaped or not worker.is_leaving:
            await self._end(worker, worker.kill)

    async def _end(self, worker: Conversation, end: Callable[[], Awaitable[None]]) -> None:
        if worker in self._workers:
            try:
                await end()
            finally:
                worker.unreaped = not worker.gone.is_set()
            self._workers.discard(worker)
            heappush(self._free_numbers, worker.number)

    async def _retire(self) -> None:
        """Remove workers that nobody used for `idle_s`, and such as were not seen to their end."""
        while True:
            for worker in [worker for worker in self._workers if worker.unreaped]:
                worker.mute()
                await self._remove(worker)
            now = time.monotonic()
            while self._idle and self._idle[0].idle_since + self.idle_s <= now:
                self._dismiss(self._idle.popleft())
            next_s = self._idle[0].idle_since + self.idle_s - now if self._idle else self.idle_s
            await anyio.sleep(min(max(next_s, 0.01), 3600.0))

    def _call_begins(self) -> None:
        if self._calls_begin is not None:
            self._calls_begin.set()

    async def _watch(self) -> None:
        """Have the memory watched of calls that are not over at once."""
        looks = 0
        while True:
            since = time.monotonic() - LONG_S
            unwatched = [worker.watch(since) for worker in self._workers]
            looks = 0 if any(unwatched) else looks + 1
            if looks * LONG_S > 1:
                self._calls_begin = anyio.Event()
                await self._calls_begin.wait()
                self._calls_begin, looks = None, 0
            await anyio.sleep(LONG_S)

    async def _kill_all(self) -> None:
        idle, self._idle = set(self._idle), deque()
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for worker in list(self._workers):
                    if worker in idle:
                        group.start_soon(self._leave, worker)
                    elif worker.unreaped:
                        group.start_soon(self._remove, worker)
                    else:  # its call is still there, gets to know, and removes it
                        worker.process.order(worker_main.KILL)
                        group.start_soon(worker.gone.wait)

    def _lost(self, worker: Conversation, ended: Ended) -> GluepyError:
        if not self._open:
            return ExecutorBroken(WHO, "the pool was closed while a call was running")
        if not worker.process.pid:
            why = f"a worker process did not start ({ended.words()[0]})"
            last = worker.last_words.strip()
            return ExecutorBroken(
                WHO,
                f"{why}: {last}" if last else why,
                f"try `{sys.executable} -P {worker_main.__file__}` by hand; it should fail only for want of arguments",
            )
        description, hint = ended.words()
        used, memory_mb = worker.used(), worker.call.memory_mb
        over = ended.kind == worker_main.OVER
        oom = self._oom.count() > worker.oom_kills and not over and (ended.signal == signal.SIGKILL or not ended.kind)
        if over:
            description = f"killed at {size(ended.tree_mb)}, more than its memory_mb = {memory_mb}"
            hint = "raise memory_mb, or let the task hold less at a time"
        elif used.peak_rss_mb is not None:
            description += f", peak RSS {size(used.peak_rss_mb)}"
        if oom:
            description += " (cgroup reports an OOM kill)"
            hint = "run fewer of them at once, or let the task hold less at a time"
        return WorkerLost(
            worker.process.name,
            worker.process.pid,
            ended.exit_code,
            ended.signal,
            description,
            hint,
            peak_rss_mb=used.peak_rss_mb,
            memory_mb=memory_mb,
            oom=oom,
            killed_for_memory=over,
            cpu_s=used.cpu_s,
        )
