"""LocalExecutor: attempts on the event loop, in threads, in worker processes of this machine."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from gluepy.errors import OptionError
from gluepy.exec.boundary import execute, execute_async, run_scope
from gluepy.exec.continuation import Continuation, continuation
from gluepy.exec.executors.capture import AttemptOutput, tell_failure
from gluepy.exec.executors.threads import Threads
from gluepy.exec.forks import refuse_to_go_on
from gluepy.exec.port import (
    FINISHED,
    Attempt,
    Emit,
    Executor,
    Outcome,
    Released,
    RunInfo,
)
from gluepy.exec.scope import RunScope, Scope, redactor_of

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus

    from gluepy.conf.schema import Settings
    from gluepy.exec.executors.leftovers import Process
    from gluepy.exec.executors.workers import Workers

_KNOWN_RUNS = 64


class LocalExecutor(Executor):
    """Runs attempts on this machine: `async def run` on the event loop, `def run` in a thread or a worker process.

    `inline` runs everything in the event loop's own thread instead, so that `breakpoint()` works (`debug`). Processes
    that a thread or loop task has left running are told by name and pid, or killed, as LEFTOVER_PROCESSES says.
    """

    continues = True

    def __init__(self, *, inline: bool = False) -> None:
        self._inline = inline
        self._scopes: dict[str, RunScope] = {}
        self._threads = Threads()
        self._left = _Left()
        self._tasks: TaskGroup | None = None
        self._workers: Workers | None = None
        self._workers_wanted = anyio.Lock()
        self._closing = anyio.Event()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """One that does as LEFTOVER_PROCESSES says."""
        executor = super().from_settings(settings)
        executor._left.kills = settings.LEFTOVER_PROCESSES == "kill"
        return executor

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise OptionError("LocalExecutor", "it is in use already", "give each Runtime an executor of its own")
        await self._threads.__aenter__()
        self._workers, self._closing = None, anyio.Event()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._closing.set()
        assert self._tasks is not None
        tasks, self._tasks = self._tasks, None
        await tasks.__aexit__(None, None, None)
        if not self._inline:
            self._left.at_the_end(list(self._threads.ids))
        await self._threads.__aexit__(None, None, None)
        return None

    def run(self, attempt: Attempt, emit: Emit) -> Coroutine[Any, Any, Outcome]:
        """Carry out `attempt` where its `pool` says."""
        run = attempt.run
        scope = self._scopes.get(run.run_id)
        if scope is None or scope.run is not run:
            scope = self._enter_run(run)
        if attempt.pool == "thread" and not self._inline:
            chain = _Chain(scope, attempt, continuation(emit), self._left)
            return self._threads.run(chain.run, chain.abandon, chain.release)
        if attempt.pool == "process" and not self._inline:
            return self._in_process(attempt, emit)
        if run.capture and not self._inline:
            return self._captured(attempt, emit, scope)
        return self._run(attempt, emit, scope, None)

    async def _captured(self, attempt: Attempt, emit: Emit, scope: RunScope) -> Outcome:
        with closing(_output(attempt, emit)) as output:
            outcome = await self._run(attempt, emit, scope, output)
            tell_failure(attempt, outcome, output)
            return outcome

    async def _run(self, attempt: Attempt, emit: Emit, scope: RunScope, output: AttemptOutput | None) -> Outcome:
        if attempt.pool == "loop":
            context = contextvars.copy_context()  # so that context variables that the task sets stay with it
            inner, began_s = Scope(scope, attempt, emit, output), time.monotonic()
            coroutine = execute_async(attempt, inner)
            try:
                waits_for = context.run(coroutine.send, None)
            except StopIteration as stop:  # it never waited
                outcome: Outcome = stop.value
                return outcome
            try:
                return await _InContext(context, coroutine, waits_for, inner)
            except BaseException:
                self._left.by_loop(attempt, began_s, list(self._threads.ids))
                raise
        return execute(attempt, Scope(scope, attempt, emit, None))

    async def _in_process(self, attempt: Attempt, emit: Emit) -> Outcome:
        workers = self._workers or await self._started_workers()
        return await workers.run(attempt, continuation(emit))

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
    """What a thread runs: an attempt, and those that follow it in the same thread."""

    def __init__(self, scope: RunScope, attempt: Attempt, emit: Continuation, left: _Left) -> None:
        self._scope, self._attempt, self._emit, self._left = scope, attempt, emit, left
        self._abandoned: Continuation | None = None

    def run(self) -> Outcome:
        """In the thread: how the last of the attempts ended."""
        self._thread = threading.get_native_id()
        outcome = FINISHED
        step: tuple[Attempt, Continuation] | None = self._attempt, self._emit
        while step is not None:
            # Before it is claimed: `abandon` looks at these only if the thread has the claim.
            attempt, emit = step
            self._attempt = attempt
            self._output = output = _output(attempt, emit) if attempt.run.capture else None
            self._began_s = time.monotonic()
            if not emit.begin():
                break
            scope = Scope(self._scope, attempt, emit, output)
            if output is None:
                outcome = contextvars.copy_context().run(execute, attempt, scope)
            else:
                with closing(output):
                    outcome = contextvars.copy_context().run(execute, attempt, scope)
                    tell_failure(attempt, outcome, output)
            step = emit.next(outcome)
        return outcome

    def abandon(self) -> None:
        """The call was cancelled while the thread was at work."""
        self._abandoned = self._emit.abandon()
        if self._abandoned is not None:
            self._left.by_thread(self._attempt, self._thread, self._began_s)
            if self._output is not None:
                self._output.close()

    def release(self) -> None:
        """The thread of an abandoned call has come to its end."""
        if self._abandoned is not None:
            self._abandoned(Released())


class _Left:
    """Processes that attempts have started and not seen to their end: told, once, and killed if it `kills`."""

    def __init__(self) -> None:
        self.kills = False
        self._told: set[Process] = set()

    def by_thread(self, attempt: Attempt, thread: int, since_s: float) -> None:
        """The attempt was stopped, but not its thread: of what that started, nothing is anybody else's."""
        if _has_children(thread):
            from gluepy.exec.executors import leftovers

            self._tell(leftovers.children_of(thread, since_s), attempt, self.kills)

    def by_loop(self, attempt: Attempt, since_s: float, others: Collection[int]) -> None:
        """The attempt was stopped, which runs among others: what this process has started meanwhile, but for the
        threads of other tasks, may be what it left. So that is never killed here; the command line does at its end."""
        from gluepy.exec.executors import leftovers

        found = [leftovers.children_of(thread, since_s) for thread in leftovers.threads() if thread not in others]
        self._tell([process for some in found for process in some], attempt, kill=False)

    def at_the_end(self, threads: Collection[int]) -> None:
        """No more tasks run here: what is still there of what they have started in `threads`."""
        for thread in filter(_has_children, threads):
            from gluepy.exec.executors import leftovers

            if self.kills:
                leftovers.end_pools()
            self._tell(leftovers.children_of(thread), None, self.kills)

    def _tell(self, found: Sequence[Process], attempt: Attempt | None, kill: bool) -> None:
        found = [process for process in found if process not in self._told]
        if not found:
            return
        self._told.update(found)
        event = "a task has left processes running"
        if kill:
            from gluepy.exec.executors.leftovers import kill_with_descendants

            found, event = kill_with_descendants(found), "killed processes that a task had left"
        import structlog

        facts: dict[str, object] = {"processes": ", ".join(map(str, found))}
        if attempt is not None:
            facts |= {"run_id": attempt.run.run_id, "task": attempt.task, "attempt": attempt.number}
        if not self.kills:
            facts["hint"] = "LEFTOVER_PROCESSES = 'kill' has them killed"
        contextvars.Context().run(partial(structlog.get_logger("gluepy.exec").warning, event, **facts))


def _has_children(thread: int) -> bool:
    try:
        with open(f"/proc/self/task/{thread}/children", "rb") as file:
            return file.read(1) != b""
    except OSError:
        return False


def _output(attempt: Attempt, emit: Emit) -> AttemptOutput:
    record = attempt.run.record
    return AttemptOutput(Path(record, attempt.log) if record else None, emit, redactor_of(attempt))


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
