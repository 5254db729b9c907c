"""LocalExecutor: attempts on the event loop, in threads, in worker processes of this machine."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Coroutine, Generator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from gluepy.exec.boundary import execute, execute_async, run_scope
from gluepy.exec.executors.capture import AttemptOutput
from gluepy.exec.executors.threads import Threads
from gluepy.exec.forks import refuse_to_go_on
from gluepy.exec.port import (
    FINISHED,
    Abandoned,
    Attempt,
    Emit,
    Executor,
    Outcome,
    Relay,
    Released,
    RunInfo,
)
from gluepy.exec.scope import RunScope, Scope, redactor_of

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus

    from gluepy.exec.executors.workers import Workers

_KNOWN_RUNS = 64


class LocalExecutor(Executor):
    """Runs attempts on this machine: `async def run` on the event loop, `def run` in a thread or a worker process.

    `inline` runs everything in the event loop's own thread instead, so that `breakpoint()` works (`debug`).
    """

    goes_on = True

    def __init__(self, *, inline: bool = False) -> None:
        self._inline = inline
        self._scopes: dict[str, RunScope] = {}
        self._threads = Threads()
        self._tasks: TaskGroup | None = None
        self._workers: Workers | None = None
        self._workers_wanted = anyio.Lock()
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
        if attempt.pool == "process" and not self._inline:
            return self._in_process(attempt, emit)
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
            inner = Scope(scope, attempt, emit, output)
            coroutine = execute_async(attempt, inner)
            try:
                waits_for = context.run(coroutine.send, None)
            except StopIteration as stop:  # it never waited
                outcome: Outcome = stop.value
                return outcome
            return await _InContext(context, coroutine, waits_for, inner)
        return execute(attempt, Scope(scope, attempt, emit, None))

    async def _in_process(self, attempt: Attempt, emit: Emit) -> Outcome:
        workers = self._workers or await self._started_workers()
        return await workers.run(attempt, emit)

    async def _started_workers(self) -> Workers:
        async with self._workers_wanted:
            if self._workers is None:
                assert self._tasks is not None
                self._workers = await self._tasks.start(self._own_workers)
            return self._workers

    async def _own_workers(self, *, task_status: TaskStatus[Workers]) -> None:
        # Its pool has a task group, which one task must enter and leave; whichever attempt comes first cannot.
        from gluepy.exec.executors.workers import Workers  # only runs with process tasks pay for them

        async with Workers() as workers:
            task_status.started(workers)
            await self._closing.wait()

    def _enter_run(self, run: RunInfo) -> RunScope:
        while len(self._scopes) >= _KNOWN_RUNS:
            del self._scopes[next(iter(self._scopes))]
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
    return AttemptOutput(Path(record, attempt.log) if record else None, emit, redactor_of(attempt))


def _tell_failure(outcome: Outcome, output: AttemptOutput) -> None:
    if outcome.status == "failed":
        output.write("log", outcome.error_stack or f"{outcome.error_type}: {outcome.error_message}")


class _InContext:
    """The rest of a coroutine that has waited once, as PEP 380 defines `yield from`, each step inside the context."""

    __slots__ = ("_context", "_coroutine", "_scope", "_waits_for")

    def __init__(
        self, context: contextvars.Context, coroutine: Coroutine[Any, Any, Outcome], waits_for: Any, scope: Scope
    ) -> None:
        self._context, self._coroutine, self._waits_for, self._scope = context, coroutine, waits_for, scope

    def __await__(self) -> Generator[Any, Any, Outcome]:
        run, coroutine, waits_for, scope = self._context.run, self._coroutine, self._waits_for, self._scope
        step: Callable[..., Any]
        try:
            while True:
                if scope.forked:
                    refuse_to_go_on()
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
