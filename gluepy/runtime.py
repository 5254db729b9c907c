"""Running DAGs: `run_dag`, `stream_dag`, `Runtime`, `run_dag_sync`. The composition root, and the reader of settings."""

from __future__ import annotations

import hashlib
import inspect
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

import anyio
import msgspec

from gluepy.clock import Clock, SystemClock
from gluepy.conf.context import load_context
from gluepy.conf.dags import find_dag
from gluepy.conf.project import find_project, import_object
from gluepy.conf.schema import Settings, load_settings
from gluepy.core import events as e
from gluepy.core.events import JSON, SCHEMA_VERSION, Event
from gluepy.core.graph import Graph
from gluepy.core.policy import OnFailure
from gluepy.core.scheduler import EndRun, Limits, Scheduler, Selection
from gluepy.core.state import STATUS, State
from gluepy.errors import DagError, GluepyError, NestedRun, OptionError, RunError, TaskError, UnknownTask, did_you_mean
from gluepy.exec.dag import DAG, Compiled, as_json, compile_dag
from gluepy.exec.engine import Engine
from gluepy.exec.executors.capture import capturing
from gluepy.exec.executors.local import LocalExecutor
from gluepy.exec.port import Executor, RunInfo
from gluepy.exec.scope import current_scope
from gluepy.exec.task import Task
from gluepy.runs.log import FileLog, LogReader
from gluepy.runs.record import Record, new_run_id
from gluepy.sinks.consume import Sink, consume
from gluepy.sinks.feed import Feed, Subscription

_SHARED = ""  # the name of a Runtime's own concurrency among the limits
_SINKS_LINGER_S = 5.0


class RunOptions(TypedDict, total=False):
    """The options of a run, the same everywhere.

    `params` override the context; `concurrency` bounds the tasks that run at once; `executor` is an executor, its
    class or the class's dotted path; `pool` ("thread" or "process") is where a `def run` without a pool of its own
    goes; `tasks`, `from_task`, `to_task` select tasks by id or label (what is not selected counts as satisfied);
    `on_failure` is "drain", "continue" or "cancel"; `timeout_s` bounds the run; `run_id` names it; `sinks` consume its
    events; `capture` sends what tasks print to their log files; `debug` runs inline, uncaptured, one task at a time.
    """

    params: Mapping[str, JSON] | None
    concurrency: int | None
    executor: str | type[Executor] | Executor | None
    pool: Literal["thread", "process"] | None
    tasks: Sequence[str] | str | None
    from_task: str | None
    to_task: str | None
    on_failure: OnFailure
    timeout_s: float | None
    run_id: str | None
    sinks: Sequence[Sink | str]
    capture: bool
    debug: bool


class RunCancelled(GluepyError):
    """The run was cancelled from elsewhere, by `run.cancel()` or `gluepy cancel`."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"run {self.run_id} was cancelled"


class RunTimedOut(GluepyError):
    """The run took longer than its `timeout_s`."""

    def __init__(self, run_id: str, timeout_s: float | None) -> None:
        super().__init__(run_id, timeout_s)
        self.run_id, self.timeout_s = run_id, timeout_s

    def __str__(self) -> str:
        return f"run {self.run_id} took longer than its timeout_s of {self.timeout_s:g} s"


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How a task ended. `status` is finished, failed, skipped, cancelled or blocked; `attempts` how often it began;
    `duration_s` of the last attempt; `error` its `TaskError` when it failed in this session."""

    status: str
    attempts: int
    duration_s: float
    error: TaskError | None = None


class _Tasks(Mapping[str, TaskResult]):
    """Results by task id, made when they are asked for: a run may have a million."""

    def __init__(self, state: State, errors: Mapping[int, TaskError]) -> None:
        self._state, self._errors = state, errors

    def __getitem__(self, task: str) -> TaskResult:
        node = self._state.graph.index[task]
        state = self._state
        return TaskResult(
            STATUS[state.status[node]], state.attempt[node], state.duration_s[node], self._errors.get(node)
        )

    def __iter__(self) -> Iterator[str]:
        return (self._state.graph.id(node) for node in self._state.graph.tasks())

    def __len__(self) -> int:
        return len(self._state.graph.index)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended. `status` is finished, failed or cancelled; `path` the folder of its record, `files` where its
    tasks' files are (`self.path`); `started_at` a timestamp in RFC 3339; `tasks` maps each task's id to its result."""

    run_id: str
    dag: str
    status: str
    path: Path
    files: str
    started_at: str
    duration_s: float
    tasks: Mapping[str, TaskResult]


class Run:
    """A run in progress: what `stream_dag` gives. Iterate over it, once, for its events."""

    def __init__(self, id: str, path: Path, subscription: Subscription) -> None:
        self.id, self.path = id, path
        self._subscription = subscription
        self._ended = anyio.Event()
        self._result: RunResult | None = None
        self._error: BaseException | None = None
        self._engine: Engine | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Stop the run, as Ctrl-C would: what runs is stopped, and the log says so."""
        self._cancelled = True
        if self._engine is not None:
            self._engine.stop(EndRun("cancelled"))

    async def result(self) -> RunResult:
        """Wait for the end. Raises as `run_dag` does."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._subscription

    def _drives(self, engine: Engine) -> None:
        self._engine = engine
        if self._cancelled:
            self.cancel()


class Runtime:
    """What many runs share: an executor with its workers, named limits, a bound on the tasks of all runs together.

        async with gluepy.Runtime(settings, concurrency=16) as runtime:
            await runtime.run_dag("train")

    `settings` are a `Settings`, a mapping of some over those of the project around the current folder, or None for
    just those.
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
            self.settings = load_settings(find_project(Path.cwd()), dict(settings or {}))
        _check_concurrency(concurrency)
        self._concurrency = concurrency
        self._executor_option = executor
        self._clock = clock or SystemClock()
        shared = {} if concurrency is None else {_SHARED: concurrency}
        self._limits = Limits({**self.settings.LIMITS, **shared})
        self._shared = tuple((name, 1) for name in shared)
        self._stack = AsyncExitStack()
        self._executor: Executor | None = None

    async def __aenter__(self) -> Self:
        _refuse_nesting()
        executor = _executor(self._executor_option or self.settings.EXECUTOR_BACKEND, self.settings)
        self._executor = await self._stack.enter_async_context(executor)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._executor = None
        return await self._stack.__aexit__(exc_type, exc, traceback)

    async def run_dag(self, dag: str | type[DAG], *, check: bool = True, **options: Unpack[RunOptions]) -> RunResult:
        """Run `dag` (a label, a DAG class, or "file.py:TrainDAG") to its end.

        Raises `RunError`, the group of the tasks' `TaskError`s, when the run failed or was cancelled from elsewhere
        (not with `check=False`), `RunStopped` when it could not go on, and `UsageError` before anything runs.
        Cancelling the call cancels the run and passes.
        """
        prepared = _Prepared(self, dag, options)
        return await prepared.drive(check)

    def stream_dag(self, dag: str | type[DAG], *, check: bool = True, **options: Unpack[RunOptions]) -> Streaming:
        """`run_dag`, watched: `async with runtime.stream_dag("train") as run: async for event in run: …`.

        Leaving the block before the run has ended cancels it.
        """
        return Streaming(None, self, dag, check, options)


class Streaming:
    """The context manager that `stream_dag` returns; entering it starts the run and gives a `Run`."""

    def __init__(
        self,
        own: Runtime | None,
        runtime: Runtime,
        dag: str | type[DAG],
        check: bool,
        options: RunOptions,
    ) -> None:
        self._own, self._runtime, self._dag, self._check, self._options = own, runtime, dag, check, options
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Run:
        if self._own is not None:
            await self._stack.enter_async_context(self._own)
        try:
            prepared = _Prepared(self._runtime, self._dag, self._options)
            self._run = run = Run(prepared.run.run_id, prepared.record.path, prepared.feed.subscribe())
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
        except BaseException:
            await self._stack.__aexit__(*sys.exc_info())
            raise
        self._tasks.start_soon(self._drive, prepared, run)
        return run

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            if not self._run._ended.is_set():
                self._run.cancel()
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._stack.__aexit__(exc_type, exc, traceback)
        return None

    async def _drive(self, prepared: _Prepared, run: Run) -> None:
        try:
            run._result = await prepared.drive(self._check, run)
        except Exception as error:
            run._error = error
        finally:
            prepared.feed.close()
            run._ended.set()


async def run_dag(dag: str | type[DAG], *, check: bool = True, **options: Unpack[RunOptions]) -> RunResult:
    """Run `dag` with the project's settings, in a `Runtime` of its own; see `Runtime.run_dag`."""
    async with Runtime(executor=_take_executor(options)) as runtime:
        return await runtime.run_dag(dag, check=check, **options)


def stream_dag(dag: str | type[DAG], *, check: bool = True, **options: Unpack[RunOptions]) -> Streaming:
    """Run `dag` and watch it, in a `Runtime` of its own; see `Runtime.stream_dag`."""
    runtime = Runtime(executor=_take_executor(options))
    return Streaming(runtime, runtime, dag, check, options)


def run_dag_sync(dag: str | type[DAG], *, check: bool = True, **options: Unpack[RunOptions]) -> RunResult:
    """`run_dag` for scripts. Raises `OptionError` in a running event loop: there, `await run_dag(…)`."""
    _refuse_nesting()
    if _in_event_loop():
        raise OptionError("run_dag_sync", "an event loop is running here already", "write `await gluepy.run_dag(…)`")
    return anyio.run(lambda: run_dag(dag, check=check, **options))


class _Prepared:
    """A run, checked and recorded, ready to be driven."""

    def __init__(self, runtime: Runtime, dag: str | type[DAG], options: RunOptions) -> None:
        _refuse_nesting()
        _check_options(options)
        if runtime._executor is None:
            raise OptionError("Runtime", "it is not open", "run DAGs inside `async with Runtime(…) as runtime:`")
        settings = runtime.settings
        self.runtime, self.options = runtime, options
        self.debug = bool(options.get("debug"))
        compiled = self.compiled = compile_dag(find_dag(dag, settings), settings.LIMITS)
        self.pool = options.get("pool") or settings.POOL
        if not self.debug:
            check_processes(compiled, self.pool)
        self.selection = select(compiled.graph, compiled.label, options)
        self.sinks = _sinks([*settings.SINKS, *(options.get("sinks") or ())])
        self.own_executor: Executor | None = None
        if self.debug:
            self.own_executor = LocalExecutor(inline=True)
        elif options.get("executor") is not None:
            self.own_executor = _executor(options["executor"], settings)
        context = load_context(settings, options.get("params") or {}).to_dict()
        run_id = options.get("run_id") or new_run_id(runtime._clock.wall())
        self.record = Record.create(settings.runs_root, run_id, context)
        self.run = RunInfo(
            run_id=run_id,
            dag=compiled.label,
            path=f"{settings.storage_root.rstrip('/')}/runs/{run_id}",
            storage=settings.storage_root,
            record=str(self.record.path),
            context=context,
            project=str(settings.project) if settings.project else None,
            settings=settings.options,
            capture=bool(options.get("capture")) and not self.debug,
            log_format=settings.LOG_FORMAT,
        )
        self.feed = Feed(lambda offset: LogReader(self.record.events, offset))
        self.state = State(compiled.graph)

    async def drive(self, check: bool, handle: Run | None = None) -> RunResult:
        """Run to the end, and tell how it was."""
        runtime, settings, options = self.runtime, self.runtime.settings, self.options
        failure: GluepyError | None = None
        async with AsyncExitStack() as stack:
            stack.enter_context(self.record.lock())
            if self.run.capture:
                stack.enter_context(capturing())
            executor = runtime._executor
            if self.own_executor is not None:
                executor = await stack.enter_async_context(self.own_executor)
            assert executor is not None
            log = await stack.enter_async_context(FileLog(self.record.events, settings.EVENT_SYNC))
            concurrency = options.get("concurrency") or runtime._concurrency or settings.CONCURRENCY
            scheduler = Scheduler(
                self.state,
                concurrency=1 if self.debug else concurrency,
                limits=runtime._limits,
                shared=runtime._shared,
                on_failure=options.get("on_failure") or "drain",
                selection=self.selection,
                starved=lambda: engine.look_again(),
                now=runtime._clock.now(),
            )
            engine = Engine(
                run=self.run,
                state=self.state,
                targets=self.compiled.targets,
                scheduler=scheduler,
                executor=executor,
                log=log,
                feed=self.feed,
                clock=runtime._clock,
                pool=self.pool,
                timeout_s=options.get("timeout_s"),
            )
            if handle is not None:
                handle._drives(engine)
            try:
                failure = await self._with_sinks(engine)
            finally:
                runtime._limits.leave(engine.look_again)
        if failure is not None:
            raise failure
        return self._result(engine, check)

    async def _with_sinks(self, engine: Engine) -> GluepyError | None:
        """Drive the engine while sinks consume its events; returns what stopped the run."""
        if not self.sinks:
            return await self._driven(engine)
        failure = None
        async with anyio.create_task_group() as tasks:
            consumers = anyio.CancelScope(shield=True)
            running = len(self.sinks)
            done = anyio.Event()

            async def feed(sink: Sink, subscription: Subscription) -> None:
                nonlocal running
                try:
                    with consumers:
                        await consume(subscription, sink)
                finally:
                    running -= 1
                    if not running:
                        done.set()

            for sink in self.sinks:
                tasks.start_soon(feed, sink, self.feed.subscribe())
            try:
                failure = await self._driven(engine)
            finally:
                with anyio.move_on_after(_SINKS_LINGER_S, shield=True):
                    await done.wait()
                tasks.cancel_scope.cancel()
        return failure

    async def _driven(self, engine: Engine) -> GluepyError | None:
        try:
            await engine.drive(self._opening)
        except GluepyError as error:
            return error
        return None

    def _opening(self, *header: Any) -> e.RunStarted:
        recorded = {name: value for name, value in self.options.items() if name not in ("params", "executor", "sinks")}
        if self.selection is not None:
            recorded["selected"] = len([node for node in self.selection.nodes if self.compiled.graph.ids[node]])
        params = msgspec.json.encode(self.run.context, order="sorted")
        facts = (
            SCHEMA_VERSION,
            version("gluepy"),
            socket.gethostname(),
            os.getpid(),
            self.compiled.graph.tree.record(),
            hashlib.sha256(params).hexdigest()[:16],
            code_version(self.compiled, self.run.project),
            {name: value for name, value in recorded.items() if value not in (None, False, "", [], ())},
        )
        return e.RunStarted(*(*header, *facts))

    def _result(self, engine: Engine, check: bool) -> RunResult:
        state = self.state
        result = RunResult(
            self.run.run_id,
            self.run.dag,
            state.run,
            self.record.path,
            self.run.path,
            state.started_at,
            state.run_duration_s,
            _Tasks(state, engine.errors),
        )
        if state.run == "finished" or not check:
            return result
        errors: list[Exception] = [engine.errors[node] for node in sorted(engine.errors)]
        if state.run == "cancelled":
            errors.append(RunCancelled(self.run.run_id))
            message = f"DAG {self.run.dag!r} was cancelled (run {self.run.run_id})"
        elif not errors:
            errors.append(RunTimedOut(self.run.run_id, self.options.get("timeout_s")))
            message = f"DAG {self.run.dag!r} was out of time (run {self.run.run_id})"
        else:
            count = f"{len(errors)} task{'s' if len(errors) > 1 else ''}"
            message = f"{count} of DAG {self.run.dag!r} failed (run {self.run.run_id})"
        raise RunError.of(message, errors, self.run.run_id, result)


def select(graph: Graph, dag: str, options: RunOptions) -> Selection | None:
    """What `tasks`, `from_task` and `to_task` select; None for everything. Raises `UnknownTask`, and `OptionError`
    when nothing is selected."""
    tasks, from_task, to_task = options.get("tasks"), options.get("from_task"), options.get("to_task")
    if not tasks and from_task is None and to_task is None:
        return None
    names = [tasks] if isinstance(tasks, str) else list(tasks or ())
    coming = {node: graph.labels_of(node) for node in graph.tasks() if graph.expandable(node)}
    known = [*graph.index, *dict.fromkeys(label for labels in coming.values() for label in labels)]

    def nodes_of(name: str) -> list[int]:
        nodes = graph.names(name)
        nodes += [node for node, labels in coming.items() if name in labels]
        if not nodes:
            raise UnknownTask(name, dag, known)
        return nodes

    chosen = set(graph.tasks())
    if names:
        chosen = {node for name in names for node in nodes_of(name)}
    if from_task is not None:
        chosen &= graph.descendants(nodes_of(from_task))
    if to_task is not None:
        chosen &= graph.ancestors(nodes_of(to_task))
    if not chosen:
        raise OptionError("from_task and to_task", "nothing lies between them", f"see `gluepy graph {dag}`")
    origins = frozenset() if names else frozenset(chosen & set(coming))
    return Selection(frozenset(chosen), frozenset(names), origins)


def check_processes(compiled: Compiled, pool: str) -> None:
    """Raises `DagError` for a task that is to run in a worker process and cannot be imported there."""
    for spec, target in zip(compiled.graph.specs, compiled.targets, strict=True):
        if (spec.pool or pool) != "process" or not isinstance(target, type) or not issubclass(target, Task):
            continue
        place = f"task {target.__qualname__} ({target.__module__})"
        mend = "move it to a module, or let it run with pool = 'thread'"
        if "<locals>" in target.__qualname__:
            raise DagError(place, "a class defined inside a function cannot go to a worker process", mend)
        file = getattr(sys.modules.get("__main__"), "__file__", None)
        if target.__module__ == "__main__" and (file is None or not Path(file).is_file()):
            why = "a class defined in a notebook, on stdin or by -c cannot go to a worker process"
            raise DagError(place, why, mend)


def code_version(compiled: Compiled, project: str | None) -> str:
    """Which code the DAG has: the git commit where there is one, and a digest of its modules' sources."""
    modules = {compiled.dag.__module__} | {
        target.__module__ for target in compiled.targets if isinstance(target, type) and issubclass(target, Task)
    }
    digest = hashlib.sha256()
    for name in sorted(modules):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None:
            try:
                digest.update(Path(file).read_bytes())
            except OSError:
                digest.update(name.encode())
    commit = _git_commit(Path(project or "."))
    return f"{commit[:12]}+{digest.hexdigest()[:12]}" if commit else digest.hexdigest()[:12]


def _git_commit(folder: Path) -> str:
    """The commit that is checked out around `folder`, read without git; empty where that is not plain."""
    try:
        git = next(
            each / ".git" for each in (folder.absolute(), *folder.absolute().parents) if (each / ".git").is_dir()
        )
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        ref = head.removeprefix("ref: ")
        if (git / ref).is_file():
            return (git / ref).read_text().strip()
        packed = (git / "packed-refs").read_text().splitlines()
        return next(line.split()[0] for line in packed if line.endswith(f" {ref}"))
    except (OSError, StopIteration, UnicodeError):
        return ""


def _executor(option: Any, settings: Settings) -> Executor:
    found = option
    if isinstance(option, str):
        found = import_object(option, entry_points="gluepy.executors", named_by="EXECUTOR_BACKEND")
    if isinstance(found, Executor):
        return found
    if isinstance(found, type) and issubclass(found, Executor):
        return found.from_settings(settings)
    if isinstance(found, type) and inspect.iscoroutinefunction(getattr(found, "run", None)):
        raise OptionError("executor", f"{found.__qualname__} does not derive from gluepy.exec.port.Executor")
    raise OptionError(
        "executor", f"{option!r} is not an executor", "name a class that derives from gluepy.exec.port.Executor"
    )


def _sinks(options: Sequence[Sink | str]) -> list[Sink]:
    sinks: list[Sink] = []
    for option in options:
        sink: Any = option
        if isinstance(option, str):
            sink = import_object(option, entry_points="gluepy.sinks", named_by="SINKS")
        if isinstance(sink, type):
            sink = sink()
        if not callable(sink):
            raise OptionError("sinks", f"{option!r} is not a sink", "give a callable that takes one event")
        sinks.append(sink)
    return sinks


def _take_executor(options: RunOptions) -> Any:
    # A run in a runtime of its own needs one executor, not two.
    return None if options.get("debug") else options.pop("executor", None)


def _check_options(options: RunOptions) -> None:
    for name in options:
        if name not in RunOptions.__annotations__:
            hint = did_you_mean(name, RunOptions.__annotations__)
            raise OptionError(
                name, f"there is no such option{hint or '; known are ' + ', '.join(RunOptions.__annotations__)}"
            )
    _check_concurrency(options.get("concurrency"))
    timeout_s: Any = options.get("timeout_s")
    if timeout_s is not None and not (isinstance(timeout_s, (int, float)) and timeout_s > 0):
        raise OptionError("timeout_s", f"{timeout_s!r} is no time", "give seconds, more than 0")
    for name, allowed in (("pool", ("thread", "process")), ("on_failure", ("drain", "continue", "cancel"))):
        value: Any = options.get(name)
        if value is not None and value not in allowed:
            raise OptionError(name, f"{value!r} is not one of {', '.join(allowed)}{did_you_mean(str(value), allowed)}")
    params: Any = options.get("params")
    if params is not None:
        try:
            if not isinstance(params, Mapping):
                raise ValueError(f"params is {type(params).__name__}, not a mapping")
            as_json(params, "params")
        except ValueError as error:
            raise OptionError("params", str(error), "give a mapping of names to JSON values") from None


def _check_concurrency(concurrency: Any) -> None:
    if concurrency is not None and (
        not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1
    ):
        raise OptionError("concurrency", f"{concurrency!r} is no number of tasks", "give a whole number, 1 or more")


def _refuse_nesting() -> None:
    scope = current_scope()
    if scope is not None:
        raise NestedRun(scope.attempt.task)


def _in_event_loop() -> bool:
    try:
        anyio.get_current_task()
    except Exception:
        return False
    return True
