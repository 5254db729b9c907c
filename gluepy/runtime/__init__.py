"""Running DAGs: `run_dag`, `stream_dag`, `resume_run`, `run_dag_sync`, `Runtime`. The composition root."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import current_token

from gluepy.clock import Clock, SystemClock
from gluepy.conf import discovered_project
from gluepy.conf.schema import Settings
from gluepy.conf.sources import load_settings
from gluepy.core.events import Event
from gluepy.core.scheduler import Limits
from gluepy.errors import NestedRun, OptionError
from gluepy.exec.dag import DAG
from gluepy.exec.engine import Engine
from gluepy.exec.executors.local import LocalExecutor
from gluepy.exec.port import Executor
from gluepy.exec.scope import current_scope
from gluepy.loop import Doorbell, run_loop
from gluepy.runs.flusher import Flusher
from gluepy.runtime.descriptors import OF_RUN, patiently
from gluepy.runtime.kept import Kept
from gluepy.runtime.options import (
    ResumeOptions,
    RunOptions,
    check_concurrency,
    check_options,
    make_executor,
    recorded_name,
)
from gluepy.runtime.requests import StopRequests
from gluepy.runtime.results import ResumePlan, RunCancelledError, RunResult, RunTimedOutError, TaskResult
from gluepy.runtime.session import Session, Shared
from gluepy.sinks.feed import Subscription

_SHARED = ""  # the name of a Runtime's own concurrency among the limits


class Run:
    """A run in progress: what `stream_dag` and `start_dag` give. Iterate over it, once, for its events.

    `id`, `path` (the folder of its record; with `record=False` there is none); of a resumed run `plan`, what it does
    again and why; of a traced one `traceparent`, the span that all is below, as W3C trace context has it.
    """

    def __init__(self, session: Session) -> None:
        self.id: str = session.record.run_id
        self.path: Path = session.record.path
        self.plan: ResumePlan | None = session.plan
        trace = session.run.trace
        self.traceparent: str | None = None if trace is None else trace.header()
        self._session = session
        self._begins_at = None if session.held is None else os.fstat(session.held.file).st_size  # in the log
        self._began, self._ended = anyio.Event(), anyio.Event()
        self._result: RunResult | None = None
        self._error: BaseException | None = None
        self._engine: Engine | None = None
        self._cancelled = False

    @cached_property
    def events(self) -> Subscription:
        """What iterating gives; its `take` gives many events at once."""
        return self._session.feed.subscribe(since=self._begins_at)

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self._ended.is_set()

    def cancel(self) -> None:
        """Stop the run, as Ctrl-C would: what runs is stopped, and the log says so. Returns at once; from any thread,
        also in a signal handler."""
        self._cancelled = True
        if self._engine is not None:
            self._engine.cancel()

    async def result(self) -> RunResult:
        """Wait for the end. Raises as `run_dag` does."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def __aiter__(self) -> AsyncIterator[Event]:
        return self.events

    async def _drive(self, check: bool) -> None:
        """Drive it, and keep how it ended for `result`."""
        self._session.handle = self._on_engine
        try:
            self._result = await self._session.drive(check)
        except Exception as error:
            self._error = error
        finally:
            if self._result is None and self._error is None:
                self._error = RunCancelledError(self.id)
            self._ended.set()
            self._began.set()

    def _on_engine(self, engine: Engine) -> None:
        self._engine = engine
        self._began.set()
        if self._cancelled:
            engine.cancel()


class Runtime:
    """What many runs share: an executor with its workers, named limits, a bound on the tasks of all runs together.

        async with gluepy.Runtime(settings, concurrency=16) as runtime:
            await runtime.run_dag("train")

    `settings` are a `Settings`, a mapping of some over those of the project around the current folder, or None for
    just those. A runtime runs DAGs in the event loop in which it was opened, and is closed there.
    """

    def __init__(
        self,
        settings: Settings | Mapping[str, object] | None = None,
        *,
        concurrency: int | None = None,
        executor: str | type[Executor] | Executor | None = None,
        clock: Clock | None = None,
    ) -> None:
        snapshot = getattr(settings, "snapshot", None)
        if snapshot is not None:  # Settings, or the proxy for the current ones
            self.settings: Settings = snapshot()
        else:
            self.settings = load_settings(discovered_project(), dict(settings or {}))
        check_concurrency(concurrency)
        self._concurrency = concurrency
        self._executor = executor
        self._clock = clock or SystemClock()
        self._stack = AsyncExitStack()
        self._shared: Shared | None = None
        self._loop: object = None  # in which it was opened
        self._background: TaskGroup | None = None
        self._started_runs: set[Run] = set()  # which the background drives

    @property
    def is_open(self) -> bool:
        """Whether it runs DAGs: inside its `async with`."""
        return self._shared is not None

    async def __aenter__(self) -> Self:
        _refuse_nesting()
        _refuse_while_importing_main()
        if self._shared is not None:
            raise OptionError("Runtime", "it is open already", "open it once, and share it; or make another")
        self._loop = current_token().native_token
        settings = self.settings
        bound = {} if self._concurrency is None else {_SHARED: self._concurrency}
        executor = make_executor(self._executor or settings.EXECUTOR_BACKEND, settings)
        executor = await self._stack.enter_async_context(executor)
        here = executor if isinstance(executor, LocalExecutor) else LocalExecutor.from_settings(settings)
        if here is not executor:
            await self._stack.enter_async_context(here)
        doorbell, kept = Doorbell(), Kept(settings)
        flusher, requests = Flusher(doorbell), StopRequests(doorbell.signal)
        self._stack.callback(flusher.end)
        self._stack.callback(kept.close)
        await self._in_background(requests.listen)
        self._shared = Shared(
            settings=settings,
            executor=executor,
            here=here,
            limits=Limits({**settings.LIMITS, **bound}),
            units=tuple((name, 1) for name in bound),
            concurrency=self._concurrency,
            clock=self._clock,
            doorbell=doorbell,
            flusher=flusher,
            requests=requests,
            kept=kept,
            named_executor=self._named_executor(),
        )
        self._background = await anyio.create_task_group().__aenter__()
        self._stack.push_async_callback(self._end_background)  # before anything else that is open is closed
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._shared is not None and exc_type is None:
            self._refuse_other_loop("leave its `async with` where it was entered")
        self._shared = None
        return await self._stack.__aexit__(exc_type, exc, traceback)

    async def run_dag(self, dag: str | type[DAG], *, check: bool = True, **options: Unpack[RunOptions]) -> RunResult:
        """Run `dag` (a label, a DAG class, or "file.py:TrainDAG") to its end.

        Raises `RunError`, the group of the tasks' `TaskError`s, when the run failed or was cancelled from elsewhere
        (not with `check=False`), `RunStopped` when it could not go on, and `UsageError` before anything runs.
        Cancelling the call cancels the run and passes.
        """
        return await (await self._new(dag, options)).drive(check)

    async def resume_run(
        self, run: str = "latest", *, check: bool = True, **options: Unpack[ResumeOptions]
    ) -> RunResult:
        """Resume a run that failed, was cancelled, or whose driver died: `run` is its id, the unique ending of one,
        "latest" or "latest:label".

        Every task that has not finished runs, and every one after a task that runs again; what has finished does not,
        unless `force` or `from_task` name it or its declared outputs are gone. Raises as `run_dag` does, and
        `UnknownRun`, and `RunLocked` while another driver holds the run.
        """
        return await (await self._resumed(run, options)).drive(check)

    def stream_dag(self, dag: str | type[DAG], *, check: bool = True, **options: Unpack[RunOptions]) -> RunStream:
        """`run_dag`, watched: `async with runtime.stream_dag("train") as run: async for event in run: …`.

        Leaving the block before the run has ended cancels it.
        """
        return RunStream(None, lambda: self._new(dag, options), check)

    def stream_resume(self, run: str = "latest", *, check: bool = True, **options: Unpack[ResumeOptions]) -> RunStream:
        """`resume_run`, watched as `stream_dag` is."""
        return RunStream(None, lambda: self._resumed(run, options), check)

    async def start_dag(self, dag: str | type[DAG], **options: Unpack[RunOptions]) -> Run:
        """Start a run that goes on in the background, until it has ended or the runtime is closed, which cancels it.

        Returns when the run has begun. Raises as `run_dag` does before that. `result()` of what is returned tells how
        the run ended, also of one that failed; one that could not go on is logged as well.
        """
        return await self._started(await self._new(dag, options))

    async def start_resume(self, run: str = "latest", **options: Unpack[ResumeOptions]) -> Run:
        """Resume a run in the background, as `start_dag` runs one."""
        return await self._started(await self._resumed(run, options))

    def plan_resume(self, run: str = "latest", **options: Unpack[ResumeOptions]) -> ResumePlan:
        """What `resume_run` would do, without doing it. Raises as that does before anything runs."""
        check_options(options, ResumeOptions)
        session = Session.resumed(self._ready(), run, dict(options))
        session.close()
        assert session.plan is not None
        return session.plan

    async def _new(self, dag: str | type[DAG], options: RunOptions) -> Session:
        check_options(options, RunOptions)
        self._refuse_other_loop("open a Runtime in each event loop that runs DAGs")
        return await self._opened(lambda: Session.new(self._ready(), dag, dict(options)), options)

    async def _resumed(self, run: str, options: ResumeOptions) -> Session:
        check_options(options, ResumeOptions)
        self._refuse_other_loop("open a Runtime in each event loop that runs DAGs")
        return await self._opened(lambda: Session.resumed(self._ready(), run, dict(options)), options)

    async def _opened(self, make: Callable[[], Session], options: RunOptions | ResumeOptions) -> Session:
        """The session that `make` returns, once there are descriptors for it."""
        shared = self._ready()
        count = (
            OF_RUN * bool(options.get("record", True)) + len(shared.settings.SINKS) + len(options.get("sinks") or ())
        )
        if options.get("capture") and options.get("record", True):  # a log file for each attempt that runs
            count += options.get("concurrency") or shared.concurrency or shared.settings.CONCURRENCY

        async def made() -> Session:
            return make()

        await shared.descriptors.take(count)
        try:
            session = await patiently(made)
        except BaseException:
            shared.descriptors.give(count)
            raise
        session.on_close = partial(shared.descriptors.give, count)
        return session

    async def _started(self, session: Session) -> Run:
        run = Run(session)

        assert self._background is not None
        self._background.start_soon(self._drive_in_background, run)
        await run._began.wait()
        if run._error is not None:
            raise run._error
        return run

    async def _end_background(self) -> None:
        for run in self._started_runs:
            run.cancel()
        assert self._background is not None
        await self._background.__aexit__(None, None, None)

    async def _drive_in_background(self, run: Run) -> None:
        self._started_runs.add(run)
        try:
            await run._drive(check=False)
        finally:
            self._started_runs.discard(run)
        if run._error is not None:
            import structlog

            problem = "a run in the background could not go on"
            structlog.get_logger("gluepy.runtime").error(problem, run_id=run.id, error=str(run._error))

    async def _in_background(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have `work` done in a task until the runtime is closed."""
        tasks = anyio.create_task_group()
        await tasks.__aenter__()

        async def stop() -> None:
            tasks.cancel_scope.cancel()
            await tasks.__aexit__(None, None, None)

        self._stack.push_async_callback(stop)
        tasks.start_soon(work)

    def _named_executor(self) -> str | None:
        if self._executor is not None:
            return recorded_name(self._executor)
        from_option = self.settings.source("EXECUTOR_BACKEND").kind == "option"
        return recorded_name(self.settings.EXECUTOR_BACKEND) if from_option else None

    def _refuse_other_loop(self, hint: str) -> None:
        if self._shared is not None and current_token().native_token is not self._loop:
            raise OptionError("Runtime", "it was opened in another event loop", hint)

    def _ready(self) -> Shared:
        _refuse_nesting()
        if self._shared is None:
            raise OptionError("Runtime", "it is not open", "run DAGs inside `async with Runtime(…) as runtime:`")
        return self._shared


class RunStream:
    """The context manager that `stream_dag` returns; entering it starts the run and gives a `Run`."""

    def __init__(self, runtime: Runtime | None, prepare: Callable[[], Awaitable[Session]], check: bool) -> None:
        self._runtime, self._prepare, self._check = runtime, prepare, check

    async def __aenter__(self) -> Run:
        async with AsyncExitStack() as stack:
            if self._runtime is not None:
                await stack.enter_async_context(self._runtime)
            session = await self._prepare()
            stack.callback(session.close)
            self._run = Run(session)
            self._run.events = session.feed.subscribe()  # before anything happens: also of what tasks print
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
            self._stack = stack.pop_all()
        self._tasks.start_soon(self._run._drive, self._check)
        return self._run

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            if not self._run.ended:
                self._run.cancel()
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._stack.__aexit__(exc_type, exc, traceback)
        return None


async def run_dag(dag: str | type[DAG], *, check: bool = True, **options: Unpack[RunOptions]) -> RunResult:
    """Run `dag` with the project's settings, in a `Runtime` of its own; see `Runtime.run_dag`."""
    async with Runtime(executor=_take_executor(options)) as runtime:
        return await runtime.run_dag(dag, check=check, **options)


async def resume_run(run: str = "latest", *, check: bool = True, **options: Unpack[ResumeOptions]) -> RunResult:
    """Resume a run, in a `Runtime` of its own; see `Runtime.resume_run`."""
    async with Runtime(executor=_take_executor(options)) as runtime:
        return await runtime.resume_run(run, check=check, **options)


def stream_dag(dag: str | type[DAG], *, check: bool = True, **options: Unpack[RunOptions]) -> RunStream:
    """Run `dag` and watch it, in a `Runtime` of its own; see `Runtime.stream_dag`."""
    runtime = Runtime(executor=_take_executor(options))
    return RunStream(runtime, lambda: runtime._new(dag, options), check)


def run_dag_sync(dag: str | type[DAG], *, check: bool = True, **options: Unpack[RunOptions]) -> RunResult:
    """`run_dag` for scripts, on uvloop where that is installed (the extra `uvloop`).

    Raises `OptionError` in a running event loop: there, `await run_dag(…)`.
    """
    _refuse_nesting()
    if _in_event_loop():
        raise OptionError("run_dag_sync", "an event loop is running here already", "write `await gluepy.run_dag(…)`")
    return run_loop(lambda: run_dag(dag, check=check, **options))


def _take_executor(options: Any) -> Any:
    # A run in a runtime of its own needs one executor, not two.
    return None if options.get("debug") else options.pop("executor", None)


def _refuse_nesting() -> None:
    scope = current_scope()
    if scope is not None:
        raise NestedRun(scope.attempt.task)


def _refuse_while_importing_main() -> None:
    # A worker process that imports a script without a main guard would start the script's run again, and so on.
    if "multiprocessing.process" in sys.modules:
        from gluepy.exec.executors.processes import importing_main

        if importing_main():
            raise OptionError(
                "the main script",
                "a worker process imports it and comes to where it starts a run",
                'put what the script runs under `if __name__ == "__main__":`',
            )


def _in_event_loop() -> bool:
    try:
        anyio.get_current_task()
    except Exception:
        return False
    return True


__all__ = [
    "ResumeOptions",
    "ResumePlan",
    "Run",
    "RunCancelledError",
    "RunOptions",
    "RunResult",
    "RunStream",
    "RunTimedOutError",
    "Runtime",
    "TaskResult",
    "resume_run",
    "run_dag",
    "run_dag_sync",
    "stream_dag",
]
