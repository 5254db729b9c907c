"""One session of a run, new or resumed: checked and held, then driven to its end."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from gluepy.clock import Clock, rfc3339
from gluepy.conf.context import Context
from gluepy.conf.dags import find_dag
from gluepy.conf.parameters import NO_PARAMETERS, RunParameters, load_parameters, resumed_parameters
from gluepy.conf.schema import Settings
from gluepy.core import events as e
from gluepy.core.events import SCHEMA_VERSION
from gluepy.core.graph import Graph
from gluepy.core.resume import changes, evaluation_of, plan_resume
from gluepy.core.scheduler import Limits, Scheduler
from gluepy.core.selection import awaited, select
from gluepy.core.spans import SAMPLED
from gluepy.core.state import FINISHED, PENDING, RETRYING, RUNNING, State
from gluepy.errors import GluepyError, ImportFailed, OptionError, RunError, RunLocked, RunStopped
from gluepy.exec.dag import DAG, Compiled
from gluepy.exec.endings import HOST
from gluepy.exec.engine import Engine
from gluepy.exec.executors.local import LocalExecutor
from gluepy.exec.executors.streams import capturing
from gluepy.exec.graph_level import GraphExecutor
from gluepy.exec.journal import Journal, TracedJournal
from gluepy.exec.opening import open_session
from gluepy.exec.port import Executor, RunInfo
from gluepy.exec.slots import Turn, places
from gluepy.exec.task import Task, outputs_of
from gluepy.loop import Doorbell
from gluepy.runs.durations import typical
from gluepy.runs.flusher import Flusher
from gluepy.runs.lock import Held
from gluepy.runs.log import FileLog, LogBroken, LogReader, disk_hint
from gluepy.runs.record import Record, check_run_id, new_run_id
from gluepy.runtime.checks import check_storage
from gluepy.runtime.descriptors import Descriptors
from gluepy.runtime.kept import Kept, KnownDag
from gluepy.runtime.options import make_executor, make_sinks, recorded_name
from gluepy.runtime.requests import StopRequests
from gluepy.runtime.results import ResumePlan, RunCancelledError, RunResult, RunTimedOutError, TaskResults
from gluepy.runtime.tracing import trace_context
from gluepy.sinks.consume import Delivery
from gluepy.sinks.feed import Feed, Subscription
from gluepy.version import VERSION

if TYPE_CHECKING:
    from gluepy.runs.reading import RunReader

_ANY_NUMBER = 1 << 30  # of tasks at once


_OF_A_SESSION = ("executor", "sinks", "force", "evaluate")  # options that the run does not go on with


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the runs of one `Runtime` share. `units` are what each task takes of `limits` besides its own `uses`; `here`
    runs what belongs into this process, whatever the `executor`; `turn` is held by the engine that takes its next step,
    for the limits are everybody's."""

    settings: Settings
    executor: Executor
    here: LocalExecutor
    limits: Limits
    units: tuple[tuple[str, int], ...]
    concurrency: int | None
    clock: Clock
    doorbell: Doorbell
    flusher: Flusher
    requests: StopRequests
    kept: Kept
    descriptors: Descriptors = field(default_factory=Descriptors)
    named_executor: str | None = None  # by an option, as a run's record has it
    turn: Turn = field(default_factory=threading.Lock)


class Resolved(NamedTuple):
    """What a run's options and settings stand for. `executor` is its own, None if it uses the runtime's."""

    debug: bool
    pool: str
    executor: Executor | None
    sinks: list[Delivery]


def resolve_options(settings: Settings, dag: KnownDag, options: Mapping[str, Any]) -> Resolved:
    """Make what they name. Raises `UsageError`, also for a task that cannot run where they want it."""
    check_storage(settings)
    debug, pool = bool(options.get("debug")), options.get("pool") or settings.POOL
    executor: Executor | None = None
    if debug:
        executor = LocalExecutor(inline=True)
    else:
        dag.check_processes(pool)
        if options.get("executor") is not None:
            executor = make_executor(options["executor"], settings)
    return Resolved(debug, pool, executor, make_sinks(options.get("sinks") or (), settings))


@dataclass
class Session:
    """A run, checked, recorded and held, ready to be driven. `close` lets go of it, and calls `on_close`."""

    shared: Shared
    dag: KnownDag
    record: Record
    parameters: RunParameters
    options: Mapping[str, Any]
    resolved: Resolved
    state: State
    held: Held | None  # None: nothing is recorded
    plan: ResumePlan | None = None
    handle: Callable[[Engine], None] = lambda engine: None
    on_close: Callable[[], None] | None = None
    _resets: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shared, options = self.shared, self.options
        settings, kept, compiled, record = shared.settings, shared.kept, self.dag.compiled, self.record
        self.debug, self.pool, self.own_executor, self.sinks = self.resolved
        self.selection = select(self.state.graph, compiled.label, options)
        plan, run_id, modules = self.plan, record.run_id, self.dag.modules
        self.code_version = kept.code_versions.of(modules) if plan is None else plan.code_version
        self.run = RunInfo(
            run_id=run_id,
            dag=compiled.label,
            path=f"{kept.files_root}{run_id}",
            storage=kept.storage_root,
            record=None if self.held is None else record.folder,
            context=self.parameters.values,
            secrets=self.parameters.secrets,
            project=str(settings.project) if settings.project else None,
            settings=kept.options,
            capture=bool(options.get("capture")) and not self.debug,
            log_format=settings.LOG_FORMAT,
            redact=kept.redact,
            masked=kept.secrets.with_those_of(self._contexts()),
            code_version=self.code_version,
            modules=modules,
            trace=trace_context(run_id, self.state.session + 1, [delivery.sink for delivery in self.sinks]),
        )
        self.feed = Feed(None if self.held is None else lambda offset: LogReader(record.events, offset))

    def _contexts(self) -> Iterator[Context]:
        parameters = self.parameters
        if parameters.values:
            yield parameters.context()
        if parameters.given:
            yield Context(parameters.given, "", list(parameters.hidden))

    @classmethod
    def new(cls, shared: Shared, dag: str | type[DAG], options: Mapping[str, Any]) -> Session:
        """A run that has not begun. Raises `UsageError`, and `RunStopped` where it cannot be recorded."""
        settings, kept = shared.settings, shared.kept
        recorded = reference(dag)  # before its file is imported, which may change the current folder
        known = kept.compiled(kept.find(dag))
        graph = known.compiled.graph
        select(graph, known.compiled.label, options)
        resolved = resolve_options(settings, known, options)
        _check(resolved.executor or shared.executor, graph, options)
        parameters = load_parameters(settings, options.get("params") or {})
        options = {**options, "dag": recorded}
        is_recorded: bool = options.get("record", True)
        run_id = options.get("run_id")
        run_id = new_run_id(shared.clock.wall(), recorded=is_recorded) if run_id is None else run_id
        if not is_recorded:
            check_run_id(run_id)
            record = Record(kept.runs_root, run_id)
            return cls(shared, known, record, parameters, options, resolved, State(graph), None)
        record = Record.create(kept.runs_root, run_id, parameters.recorded(), parameters.recorded_inputs())
        held: Held | None = None
        try:
            held = record.lock(new=True)
            if options.get("capture"):
                record.make_logs()
            return cls(shared, known, record, parameters, options, resolved, State(graph), held)
        except RunLocked:
            raise  # somebody was faster, and has it now
        except BaseException:
            record.discard()
            if held is not None:
                held.release()
            raise

    @classmethod
    def resumed(cls, shared: Shared, run: str, options: Mapping[str, Any]) -> Session:
        """A run that goes on: its log read and folded, what runs again found out. Raises `UsageError` (`UnknownRun`,
        `RunLocked` while another driver holds it, `UnreadableLog`)."""
        from gluepy.runs.reading import find_record, read_record  # new runs do without it

        settings = shared.settings
        check_storage(settings)
        record = find_record(shared.kept.runs_root, run)
        held = record.lock()
        try:
            return cls._resumed(shared, record, held, read_record(record, ended=True), options)
        except BaseException:
            held.release()
            raise

    @classmethod
    def _resumed(
        cls, shared: Shared, record: Record, held: Held, log: RunReader, options: Mapping[str, Any]
    ) -> Session:
        settings, kept, state, run_id = shared.settings, shared.kept, log.state, record.run_id
        given = {name: value for name, value in options.items() if value is not None}
        merged = {**state.options, **given, "from_task": state.options.get("from_task")}  # what the run began with
        merged["dag"] = reference(merged.get("dag") or state.dag)  # before its file is imported
        known = kept.compiled(_find_again(given.get("dag") or merged["dag"], settings, run_id))
        compiled = known.compiled
        if shared.named_executor is not None and "executor" not in given:
            merged.pop("executor", None)  # it is the runtime's
        dag_changes = _adopt(state, compiled.graph)
        force = given.get("force") or ()
        if given.get("evaluate"):
            force, merged["skip_evaluation"] = evaluation_of(state, compiled.label), False
        reruns = plan_resume(
            state,
            compiled.label,
            force=[force] if isinstance(force, str) else force,
            from_task=given.get("from_task"),
            missing_outputs=_missing_outputs(compiled, state, settings, record),
            selection=select(state.graph, compiled.label, merged),
        )
        earlier, params = state.options.get("params") or {}, given.get("params") or {}
        parameters = resumed_parameters(
            settings,
            run_id,
            record.context,
            record.inputs,
            params,
            earlier,
            began_with_none=state.params_digest == NO_PARAMETERS,
        )
        merged["params"] = {**earlier, **parameters.mask_params(params)}
        plan = ResumePlan(
            run_id=run_id,
            session=state.session + 1,
            again=reruns.again,
            waiting=reruns.waiting,
            kept=reruns.kept,
            changes=dag_changes,
            code_before=state.code_version,
            code_version=kept.code_versions.of(known.modules),
            bad_lines=log.bad,
            gaps=log.gaps,
            none_of=reruns.no_task_yet,
            retrying=reruns.retrying,
            left_out=reruns.left_out,
            doubled=log.doubled,
            params_changed=parameters.changes,
            stale=[task for task in reruns.kept if parameters.changes or task in state.stale],
        )
        resolved = resolve_options(settings, known, merged)
        _check(resolved.executor or shared.executor, state.graph, merged)
        if merged.get("capture"):
            record.make_logs()
        return cls(shared, known, record, parameters, merged, resolved, state, held, plan, _resets=reruns.resets)

    def close(self) -> None:
        """Let go of the run. Idempotent."""
        if self.held is not None:
            self.held.release()
        self.feed.close()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    async def drive(self, check: bool) -> RunResult:
        """Run to the end, and tell how it was; raises as `run_dag` does."""
        try:
            if self.plan is not None:
                self._sweep()
            if self.own_executor is None and not self.run.capture and not self.is_handed_over:
                engine, failure = await self._drive(self.shared.executor)
            else:
                async with AsyncExitStack() as stack:
                    if self.run.capture:
                        stack.enter_context(capturing())
                    executor = self.shared.executor
                    if self.own_executor is not None:
                        executor = await stack.enter_async_context(self.own_executor)
                    if isinstance(executor, GraphExecutor):
                        executor = await stack.enter_async_context(self._handed_over(executor))
                    engine, failure = await self._drive(executor)
        except LogBroken as error:  # when it was opened, or with the last of what was to be flushed
            raise RunStopped(self.run.run_id, f"cannot write {error.path}: {error.why}", error.hint) from error
        finally:
            if self.state.run != "finished":  # an attempt may have been killed, and no other came after it
                self._sweep()
            self.close()
        if failure is not None:
            raise failure
        return self._result(engine, check)

    async def _drive(self, executor: Executor) -> tuple[Engine, GluepyError | None]:
        """Drive it by `executor`; returns what drove it, and what stopped the run."""
        shared, record = self.shared, self.record
        subscriptions = [self.feed.subscribe() for _ in self.sinks]
        for sink in self.sinks:
            sink.begin(self.state.seq, self.held is not None)
        if self.held is None:
            return await self._drive_by(self._open(executor, None), subscriptions)
        log = FileLog(record.events, shared.settings.EVENT_SYNC, held=self.held, flusher=shared.flusher)
        async with log:
            before = enumerate(self.state.status) if self.plan else ()
            finished = {node for node, status in before if status == FINISHED}
            engine = self._open(executor, log)
            shared.requests.begin(engine, record.stop_asked)
            try:
                return await self._drive_by(engine, subscriptions)
            finally:
                shared.requests.end(engine)
                shared.kept.durations.learn(self.dag.compiled.label, self.state, finished)

    async def _drive_by(self, engine: Engine, subscriptions: list[Subscription]) -> tuple[Engine, GluepyError | None]:
        self.handle(engine)
        return engine, await self._with_sinks(engine, subscriptions)

    @property
    def is_handed_over(self) -> bool:
        """Whether an engine of graph level schedules the run."""
        return isinstance(self.own_executor or self.shared.executor, GraphExecutor)

    def _handed_over(self, executor: GraphExecutor) -> Executor:
        from gluepy.runtime.handing_over import handed_over  # other runs do without it

        to_run = [
            self.state.graph.task_id(node)
            for node in self.state.graph.tasks()
            if (node in self._resets or self.state.status[node] in (PENDING, RUNNING, RETRYING))
            and (self.selection is None or self.selection.takes(self.state.graph, node))
        ]
        return handed_over(
            executor,
            self.run,
            self.state,
            to_run,
            self.parameters,
            self.options,
            settings=self.shared.settings,
            created_at=rfc3339(self.shared.clock.wall()),
            concurrency=self.options.get("concurrency") or self.shared.concurrency,
            is_part=self.selection is not None,
        )

    def _sweep(self) -> None:
        from gluepy.exec.drafts import sweep

        sweep(self.run)

    async def _with_sinks(self, engine: Engine, subscriptions: list[Subscription]) -> GluepyError | None:
        """Drive the engine while sinks consume its events; returns what stopped the run."""
        if not self.sinks:
            return await _driven(engine)
        async with anyio.create_task_group() as tasks:
            scopes = [anyio.CancelScope(shield=True) for _ in self.sinks]
            ended = [anyio.Event() for _ in self.sinks]

            async def feed(
                sink: Delivery, subscription: Subscription, scope: anyio.CancelScope, end: anyio.Event
            ) -> None:
                try:
                    with scope:
                        await sink.consume(subscription, self.run.run_id)
                finally:
                    end.set()

            for each in zip(self.sinks, subscriptions, scopes, ended, strict=True):
                tasks.start_soon(feed, *each)
            try:
                failure = await _driven(engine)
            finally:
                with anyio.move_on_after(self.shared.settings.SINK_TIMEOUT_S, shield=True):
                    for end in ended:
                        await end.wait()
                for sink, scope, end in zip(self.sinks, scopes, ended, strict=True):
                    if not end.is_set():
                        sink.left_behind(self.run.run_id, self.state.seq)
                        scope.cancel()
        return failure

    def _open(self, executor: Executor, log: FileLog | None) -> Engine:
        """Write how the session begins, and make what drives it. Raises `LogBroken`."""
        shared, state, doorbell = self.shared, self.state, self.shared.doorbell
        journal = (Journal if self.run.trace is None else TracedJournal)(
            self.run, state.session + 1, state.seq, log, self.feed, shared.clock, doorbell
        )
        journal.tick()
        here = executor if isinstance(executor, LocalExecutor) else shared.here
        if executor is shared.executor and state.graph.specs is self.dag.compiled.graph.specs:
            where = self.dag.places(executor, here, self.pool)
        else:
            where = places(state.graph.specs, self.dag.compiled.targets, executor, here, self.pool)
        open_session(journal, state, self._opening(*journal.header("info")), self._resets, where)
        if self.plan is not None and self.options.get("params"):  # they are in the log by now
            try:
                self.record.write_context(self.parameters.recorded(), self.parameters.recorded_inputs())
            except OSError as error:
                raise LogBroken(str(self.record.context), error.strerror or str(error), disk_hint(error)) from error
        return Engine(
            run=self.run,
            scheduler=self._scheduler(),
            journal=journal,
            places=where,
            clock=shared.clock,
            doorbell=doorbell,
            timeout_s=self.options.get("timeout_s"),
            ignore_timeouts=self.debug or self.is_handed_over,  # its steps keep them
            turn=shared.turn,
        )

    def _scheduler(self) -> Scheduler:
        shared, limits, units = self.shared, self.shared.limits, self.shared.units
        concurrency = self.options.get("concurrency") or shared.concurrency or shared.settings.CONCURRENCY
        on_failure = self.options.get("on_failure")
        if self.is_handed_over:  # the engine decides what runs; here, all that may be running is waited for
            concurrency, limits, units = _ANY_NUMBER, Limits(dict.fromkeys(limits.capacity, _ANY_NUMBER)), ()
            on_failure = "continue"
        return Scheduler(
            self.state,
            concurrency=1 if self.debug else concurrency,
            limits=limits,
            shared=units,
            on_failure=on_failure or "drain",
            selection=self.selection,
            awaited=awaited(self.state.graph, self._named()),
            weight=self._weight(),
            now=shared.clock.now(),
            wall=shared.clock.wall(),
        )

    def _named(self) -> list[str]:
        """The tasks that somebody named, without those that a resumed run has found already."""
        tasks = self.options.get("tasks") or ()
        ends = [self.options[name] for name in ("from_task", "to_task") if self.options.get(name) is not None]
        return [*ends, *([tasks] if isinstance(tasks, str) else tasks), *(self.plan.none_of if self.plan else ())]

    def _weight(self) -> Callable[[int], float]:
        """What earlier runs tell about the duration of a task: where one is unknown, as long as a typical one."""
        known = self.shared.kept.durations.of(self.dag.compiled.label)
        medians = {label: typical(durations) for label, durations in known.labels.items()}
        if not medians:
            return lambda node: 1.0
        graph, usual = self.state.graph, typical(medians.values())
        by_spec = [medians.get(spec.label, usual) for spec in graph.specs]
        if not known.tasks:
            return lambda node: by_spec[graph.spec_of[node]]
        tasks = {task: typical(durations) for task, durations in known.tasks.items()}
        return lambda node: tasks.get(graph.task_id(node)) or by_spec[graph.spec_of[node]]

    def _opening(self, *header: Any) -> e.RunStarted | e.RunResumed:
        options = {name: value for name, value in self.options.items() if name not in _OF_A_SESSION}
        own = self.options.get("executor")
        options["executor"] = self.shared.named_executor if own is None else recorded_name(own)
        options.pop("record", None)
        if self.plan is None:
            options.pop("params", None)  # they are in the context
        facts = (
            SCHEMA_VERSION,
            VERSION,
            HOST,
            os.getpid(),
            self.state.graph.tree.record(),
            self.parameters.digest(),
            self.code_version,
            {name: value for name, value in options.items() if value not in (None, False, "", [], ())},
        )
        more: dict[str, Any] = {}
        if (trace := self.run.trace) is not None:
            more = {"parent_span_id": trace.parent_span_id, "sampled": bool(trace.flags & SAMPLED)}
        if self.plan is None:
            return e.RunStarted(*(*header, *facts), **more)
        changed = {name: list(values) for name, values in self.plan.params_changed.items()}
        more["previous_trace_id"] = self.state.trace_id
        return e.RunResumed(*(*header, *facts, self.plan.changes, changed or None), **more)

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
            TaskResults(state, engine.errors),
        )
        if state.run == "finished" or not check:
            return result
        errors: list[Exception] = [engine.errors[node] for node in sorted(engine.errors)]
        if state.run == "cancelled":
            errors.append(RunCancelledError(self.run.run_id))
            message = f"DAG {self.run.dag!r} was cancelled (run {self.run.run_id})"
        elif not errors:
            errors.append(RunTimedOutError(self.run.run_id, self.options.get("timeout_s")))
            message = f"DAG {self.run.dag!r} was out of time (run {self.run.run_id})"
        else:
            count = f"{len(errors)} task{'s' if len(errors) > 1 else ''}"
            message = f"{count} of DAG {self.run.dag!r} failed (run {self.run.run_id})"
        raise RunError.from_result(message, errors, self.run.run_id, result)


def _check(executor: Executor, graph: Graph, options: Mapping[str, Any]) -> None:
    executor.check(graph)
    if isinstance(executor, GraphExecutor):
        executor.check_options(options)


async def _driven(engine: Engine) -> GluepyError | None:
    # Returned, not raised: a task group around it would wrap it.
    try:
        await engine.drive()
    except GluepyError as error:
        return error
    return None


def reference(dag: str | type[DAG]) -> str:
    """By what a later session finds the DAG."""
    if isinstance(dag, str):
        return os.path.abspath(dag) if ".py" in dag else dag
    if dag.__module__ == "__main__" and (script := _main_script()):
        return f"{script}:{dag.__qualname__}"
    return f"{dag.__module__}:{dag.__qualname__}"


def _main_script() -> str:
    """The file of the script that this process runs; empty in a notebook, on stdin and with -c."""
    return _script(getattr(sys.modules.get("__main__"), "__file__", None))


@lru_cache(1)  # before the current folder changes, which it may be relative to
def _script(file: str | None) -> str:
    return os.path.abspath(file) if file is not None and file.endswith(".py") and os.path.isfile(file) else ""


def _find_again(dag: str | type[DAG], settings: Settings, run_id: str) -> type[DAG]:
    """`find_dag`, which finds the DAG of the script that runs here there, and says what to do where a file or a
    notebook is gone."""
    if not isinstance(dag, str):
        return find_dag(dag, settings)
    place, _, name = dag.rpartition(":")
    main = sys.modules.get("__main__")
    if place == "__main__" or (place and place == _main_script()):
        found = getattr(main, name, None)
        if isinstance(found, type) and issubclass(found, DAG):
            return found
    if place == "__main__":
        hint = f"resume it there, or from a file that defines it: gluepy run FILE:{name} --retry {run_id}"
        raise ImportFailed(dag, "the run began in a notebook or console, which defined it", hint=hint)
    try:
        return find_dag(dag, settings)
    except ImportFailed as error:
        if isinstance(error.__cause__, OptionError) and error.__cause__.option == "run_dag_sync":
            hint = 'put what it runs under `if __name__ == "__main__":`'
            raise ImportFailed(error.module, "it starts a run while it is imported", hint=hint) from None
        if ".py" not in error.module or os.path.exists(error.module):
            raise
        hint = f"if it was moved: gluepy run FILE --retry {run_id}"
        raise ImportFailed(error.module, "there is no such file any more", hint=hint) from None


def _adopt(state: State, graph: Graph) -> list[str]:
    """Have `state` be that of `graph`, which may differ from what the run's last session had; returns how, in words."""
    if graph.tree == state.graph.tree:
        return []
    before = state.graph
    state.carry_over(Graph(graph.tree))
    return changes(before, state.graph)


def _missing_outputs(compiled: Compiled, state: State, settings: Settings, record: Record) -> set[int]:
    """The finished tasks of which a declared output is not there any more."""
    from gluepy.exec.files import exists, opened  # which bring fsspec; new runs do without it

    missing = set()
    files = opened(settings.run_files(record.run_id))
    for node in state.graph.tasks():
        target = compiled.targets[state.graph.spec_of[node]]
        if state.status[node] != FINISHED or not (isinstance(target, type) and issubclass(target, Task)):
            continue
        outputs = outputs_of(target, state.graph.spec(node), state.graph.params(node))
        try:
            if not all(exists(files, name) for name in outputs):
                missing.add(node)
        except Exception as error:  # whatever an object store's library raises
            why = f"cannot look for the outputs of {state.graph.task_id(node)}: {error}"
            raise RunStopped(record.run_id, why, "make the storage reachable, and resume it again") from error
    return missing
