"""LocalExecutor: attempts on the event loop, in threads, in worker processes of this machine."""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio
import msgspec

from gluepy.exec.boundary import execute, execute_async, failed, run_scope
from gluepy.exec.executors.capture import AttemptOutput
from gluepy.exec.executors.threads import Threads
from gluepy.exec.port import Abandoned, Attempt, Emission, Emit, Executor, Outcome, Output, Released, RunInfo
from gluepy.exec.scope import RunScope, Scope, enter_scope

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus

    from gluepy.exec.executors.processes import WorkerPool

_KNOWN_RUNS = 64


class LocalExecutor(Executor):
    """Runs attempts on this machine: `async def run` on the event loop, `def run` in a thread or a worker process.

    `inline` runs everything in the event loop's own thread instead, so that `breakpoint()` works (`debug`).
    """

    def __init__(self, *, inline: bool = False) -> None:
        self._inline = inline
        self._scopes: dict[str, RunScope] = {}
        self._messages: dict[str, tuple[str, bytes]] = {}
        self._sessions = 0
        self._threads = Threads()
        self._tasks: TaskGroup | None = None
        self._pool: WorkerPool | None = None
        self._pool_wanted = anyio.Lock()
        self._closing = anyio.Event()
        self._thread = 0

    async def __aenter__(self) -> Self:
        self._thread = threading.get_ident()
        await self._threads.__aenter__()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._closing.set()
        assert self._tasks is not None
        await self._tasks.__aexit__(None, None, None)
        await self._threads.__aexit__(None, None, None)
        return None

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        """Carry out `attempt` where its `pool` says."""
        scope = self._scope(attempt.run)
        send = self._from_any_thread(emit)
        output = None
        if attempt.run.capture and not self._inline:
            record = attempt.run.record
            output = AttemptOutput(Path(record, attempt.log) if record else None, send)
        try:
            if attempt.pool == "loop":
                inner = Scope(scope, attempt, send, output)
                outcome = await _InContext(execute_async(attempt, inner), inner)
            elif self._inline:
                outcome = execute(attempt, Scope(scope, attempt, send, None))
            elif attempt.pool == "process":
                outcome = await self._in_process(attempt, emit, output)
            else:
                inner = Scope(scope, attempt, self._from_worker_thread(emit), output)
                outcome = await self._threads.run(
                    lambda: execute(attempt, inner), lambda: emit(Abandoned()), lambda: emit(Released())
                )
            if output is not None and outcome.status == "failed":
                output.write("log", outcome.error_stack or f"{outcome.error_type}: {outcome.error_message}")
            return outcome
        finally:
            if output is not None:
                output.close()

    async def _in_process(self, attempt: Attempt, emit: Emit, output: AttemptOutput | None) -> Outcome:
        from gluepy.exec.executors import remote  # and `processes`: only runs with process tasks pay for them
        from gluepy.exec.executors.processes import EntryFailed, WorkerLost

        pool = await self._worker_pool()
        run = attempt.run
        shared = self._messages.get(run.run_id)
        if shared is None:
            self._sessions += 1
            shared = self._messages[run.run_id] = (f"{run.run_id}:{self._sessions}", remote.run_message_of(run))

        def on_line(stream: str, line: str) -> None:
            if output is not None:
                output.line(stream, line)
            else:
                print(line, file=sys.stdout if stream == "stdout" else sys.stderr)

        def on_message(data: bytes) -> None:
            emission = remote.emission_of(data)
            if output is not None and isinstance(emission, Output):
                output.line(emission.stream, emission.line)
            else:
                emit(emission)

        try:
            reply = await pool.call(
                "gluepy.exec.executors.remote:run_message",
                shared,
                remote.attempt_message(attempt),
                on_line=on_line,
                on_message=on_message,
                memory_mb=attempt.spec.memory_mb,
                main=attempt.spec.cls.startswith("__main__:"),
            )
        except WorkerLost as lost:
            return Outcome(
                status="failed",
                reason="memory" if lost.killed_for_memory else "lost",
                error_type="MemoryLimit" if lost.killed_for_memory else "WorkerLost",
                error_message=f"{lost.description}" + (f"; {lost.mend}" if lost.mend else ""),
                exception=lost,
                worker=lost.worker,
                pid=lost.pid,
                peak_rss_mb=lost.peak_rss_mb,
            )
        except EntryFailed as error:
            if error.phase == "prepare":
                return Outcome(
                    status="failed", reason="exception", error_type="ImportFailed", error_message=error.summary
                )
            return failed(attempt, error)
        return msgspec.structs.replace(
            remote.outcome_of(reply.body),
            worker=reply.worker,
            pid=reply.pid,
            cpu_s=reply.cpu_s,
            peak_rss_mb=reply.peak_rss_mb,
        )

    async def _worker_pool(self) -> WorkerPool:
        async with self._pool_wanted:
            if self._pool is None:
                assert self._tasks is not None
                self._pool = await self._tasks.start(self._own_pool)
            return self._pool

    async def _own_pool(self, *, task_status: TaskStatus[WorkerPool]) -> None:
        # The pool has a task group, which one task must enter and leave; whichever attempt comes first cannot.
        from gluepy.exec.executors.processes import WorkerPool

        async with WorkerPool() as pool:
            task_status.started(pool)
            await self._closing.wait()

    def _scope(self, run: RunInfo) -> RunScope:
        scope = self._scopes.get(run.run_id)
        if scope is None or scope.run is not run:
            self._messages.pop(run.run_id, None)  # a run that was resumed may have other parameters
            while len(self._scopes) >= _KNOWN_RUNS:
                oldest = next(iter(self._scopes))
                del self._scopes[oldest]
                self._messages.pop(oldest, None)
            scope = self._scopes[run.run_id] = run_scope(run)
        return scope

    def _from_any_thread(self, emit: Emit) -> Callable[[Emission], None]:
        loop_thread, ring = self._thread, self._threads.ring

        def send(emission: Emission) -> None:
            if threading.get_ident() == loop_thread:
                emit(emission)
            else:
                ring(emit, emission)

        return send

    def _from_worker_thread(self, emit: Emit) -> Callable[[Emission], None]:
        ring = self._threads.ring
        return lambda emission: ring(emit, emission)


class _InContext:
    """Awaits a coroutine in a context of its own, so that context variables that a task sets stay with it.

    As PEP 380 defines `yield from`, with each step taken inside the context.
    """

    __slots__ = ("_context", "_coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, Outcome], scope: Scope) -> None:
        self._coroutine = coroutine
        self._context = contextvars.copy_context()
        self._context.run(enter_scope, scope)

    def __await__(self) -> Generator[Any, Any, Outcome]:
        run, coroutine = self._context.run, self._coroutine
        step: Callable[..., Any] = coroutine.send
        argument: Any = None
        try:
            while True:
                waits_for = run(step, argument)
                try:
                    argument = yield waits_for
                    step = coroutine.send
                except GeneratorExit:
                    run(coroutine.close)
                    raise
                except BaseException as error:
                    argument = error
                    step = coroutine.throw
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome
