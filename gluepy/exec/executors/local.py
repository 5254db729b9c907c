"""LocalExecutor: attempts on the event loop, in threads, in worker processes of this machine."""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio
import msgspec

from gluepy.exec.boundary import execute, execute_async, failed, run_scope
from gluepy.exec.executors.capture import AttemptOutput
from gluepy.exec.executors.threads import Threads
from gluepy.exec.port import (
    FINISHED,
    Abandoned,
    Attempt,
    Emit,
    Executor,
    Outcome,
    Output,
    Relay,
    Released,
    RunInfo,
    Stopped,
)
from gluepy.exec.scope import RunScope, Scope

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus

    from gluepy.exec.executors.processes import WorkerPool

_KNOWN_RUNS = 64


class LocalExecutor(Executor):
    """Runs attempts on this machine: `async def run` on the event loop, `def run` in a thread or a worker process.

    `inline` runs everything in the event loop's own thread instead, so that `breakpoint()` works (`debug`).
    """

    goes_on = True

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

    async def __aenter__(self) -> Self:
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

    def run(self, attempt: Attempt, emit: Emit) -> Coroutine[Any, Any, Outcome]:
        """Carry out `attempt` where its `pool` says."""
        run = attempt.run
        scope = self._scopes.get(run.run_id)
        if scope is None or scope.run is not run:
            scope = self._enter_run(run)
        if attempt.pool == "thread" and not self._inline:
            chain = _Chain(scope, attempt, emit)
            return self._threads.run(chain.run, chain.abandon, chain.release)
        if run.capture and not self._inline:
            return self._captured(attempt, emit, scope)
        return self._run(attempt, emit, scope, None)

    async def _captured(self, attempt: Attempt, emit: Emit, scope: RunScope) -> Outcome:
        with closing(_output(attempt, emit)) as output:
            outcome = await self._run(attempt, emit, scope, output)
            _tell_failure(outcome, output)
            return outcome

    async def _run(self, attempt: Attempt, emit: Emit, scope: RunScope, output: AttemptOutput | None) -> Outcome:
        if attempt.pool == "loop":
            context = contextvars.copy_context()  # so that context variables that the task sets stay with it
            coroutine = execute_async(attempt, Scope(scope, attempt, emit, output))
            try:
                waits_for = context.run(coroutine.send, None)
            except StopIteration as stop:  # it never waited
                outcome: Outcome = stop.value
                return outcome
            return await _InContext(context, coroutine, waits_for)
        if self._inline:
            return execute(attempt, Scope(scope, attempt, emit, None))
        return await self._in_process(attempt, emit, output)

    async def _in_process(self, attempt: Attempt, emit: Emit, output: AttemptOutput | None) -> Outcome:
        from gluepy.exec.executors import remote  # and `processes`: only runs with process tasks pay for them
        from gluepy.exec.executors.processes import EntryFailed, Killed, WorkerLost

        pool = self._pool or await self._worker_pool()
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

        def on_killed(killed: Killed) -> None:
            emit(Stopped(worker=killed.worker, pid=killed.pid, cpu_s=killed.cpu_s, peak_rss_mb=killed.peak_rss_mb))

        try:
            reply = await pool.call(
                "gluepy.exec.executors.remote:run_message",
                shared,
                remote.attempt_message(attempt),
                on_line=on_line,
                on_message=on_message,
                on_killed=on_killed,
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
                cpu_s=lost.cpu_s,
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

    def _enter_run(self, run: RunInfo) -> RunScope:
        self._messages.pop(run.run_id, None)  # a run that was resumed may have other parameters
        while len(self._scopes) >= _KNOWN_RUNS:
            oldest = next(iter(self._scopes))
            del self._scopes[oldest]
            self._messages.pop(oldest, None)
        scope = self._scopes[run.run_id] = run_scope(run)
        return scope


class _Chain:
    """What a thread runs: an attempt, and then whatever the engine has it run next."""

    def __init__(self, scope: RunScope, attempt: Attempt, emit: Emit) -> None:
        self._scope = scope
        self._take(attempt, emit)

    def run(self) -> Outcome:
        """In the thread: how the last of the attempts ended."""
        while True:
            attempt, emit, output = self._attempt, self._emit, self._output
            try:
                self._claim.pop()
            except IndexError:
                return FINISHED  # it never began, and nobody asks
            scope = Scope(self._scope, attempt, emit, output)
            if output is None:
                outcome = contextvars.copy_context().run(execute, attempt, scope)
            else:
                with closing(output):
                    outcome = contextvars.copy_context().run(execute, attempt, scope)
                    _tell_failure(outcome, output)
            if not isinstance(emit, Relay) or not emit.proceed(outcome, self._take):
                return outcome

    def _take(self, attempt: Attempt, emit: Emit) -> None:
        self._attempt, self._emit = attempt, emit
        self._output = _output(attempt, emit) if attempt.run.capture else None
        self._claim = [True]  # whoever pops it, this thread or who cancels the call, has the attempt

    def abandon(self) -> None:
        """The call was cancelled while the thread was at work."""
        try:
            self._claim.pop()
        except IndexError:
            self._emit(Abandoned())
            if self._output is not None:
                self._output.close()

    def release(self) -> None:
        """The thread of an abandoned call has come to its end."""
        self._emit(Released())


def _output(attempt: Attempt, emit: Emit) -> AttemptOutput:
    record = attempt.run.record
    return AttemptOutput(Path(record, attempt.log) if record else None, emit)


def _tell_failure(outcome: Outcome, output: AttemptOutput) -> None:
    if outcome.status == "failed":
        output.write("log", outcome.error_stack or f"{outcome.error_type}: {outcome.error_message}")


class _InContext:
    """The rest of a coroutine that has waited once, as PEP 380 defines `yield from`, each step inside the context."""

    __slots__ = ("_context", "_coroutine", "_waits_for")

    def __init__(self, context: contextvars.Context, coroutine: Coroutine[Any, Any, Outcome], waits_for: Any) -> None:
        self._context, self._coroutine, self._waits_for = context, coroutine, waits_for

    def __await__(self) -> Generator[Any, Any, Outcome]:
        run, coroutine, waits_for = self._context.run, self._coroutine, self._waits_for
        step: Callable[..., Any]
        try:
            while True:
                try:
                    argument = yield waits_for
                    step = coroutine.send
                except GeneratorExit:
                    run(coroutine.close)
                    raise
                except BaseException as error:
                    argument = error
                    step = coroutine.throw
                waits_for = run(step, argument)
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome
