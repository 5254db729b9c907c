"""One attempt of one task, for an engine that schedules the graph itself: `gluepy step RUN TASK`.

It may be called again, twice at once, and after any death of an earlier call:

- A task that has finished (or was skipped) in this run is not run again: its end is told.
- An attempt begins once: its number is claimed at the fence. Who comes second waits for the end of the first, or until
  nothing is heard of it any more, and then makes the next attempt.
- An attempt of which nothing was heard notices that the next one was claimed, and is stopped.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import msgspec
import psutil

from gluepy.clock import rfc3339
from gluepy.conf.code import code_version, same_code
from gluepy.conf.dags import find_dag
from gluepy.conf.parameters import load_parameters
from gluepy.conf.schema import Settings
from gluepy.core import events as e
from gluepy.core.events import JSON, SCHEMA_VERSION
from gluepy.core.graph import Graph, Spec, slug_of
from gluepy.core.policy import judge
from gluepy.errors import OptionError, UnknownTask
from gluepy.exec.continuation import continuation
from gluepy.exec.dag import Compiled, Expander, compile_dag
from gluepy.exec.endings import HOST, timed_out
from gluepy.exec.executors.local import LocalExecutor
from gluepy.exec.executors.remote import Agent, Lease, StorageFence, decode_report, encode_order
from gluepy.exec.executors.streams import capturing
from gluepy.exec.port import Attempt, Dataset, Emission, Metric, Outcome, Output, Progress, RunInfo
from gluepy.exec.steps import RunFile, StepFolder, StepWriter, has_ended, rows_in
from gluepy.runtime.checks import check_processes, check_storage, modules_of
from gluepy.runtime.session import reference
from gluepy.version import VERSION

PATIENCE_S = 30.0  # after which an attempt of which nothing is heard is dead
_BEAT_S = 5.0
_LOOK_S = 0.25


class StepResult(NamedTuple):
    """How the task stands after a step: `status` is finished, skipped, failed, retrying (failed, with attempts left),
    cancelled or blocked; `attempt` the one that says so, `has_run` whether this step ran it, `told` what to tell."""

    status: str
    attempt: int
    has_run: bool
    told: str = ""


class StepOptions(NamedTuple):
    """What a step is told besides run and task: how to find the DAG and the parameters where the run is new."""

    dag: str | None = None
    params: Mapping[str, JSON] = {}
    executor: str = "step"


class _Granted:
    """The fence of an attempt that was claimed already."""

    def claim(self, attempt: Attempt, who: str) -> str | None:  # noqa: ARG002
        return None


async def run_step(
    settings: Settings,
    run_id: str,
    task: str,
    options: StepOptions,
    show: Callable[[str, str], None],
    patience_s: float = PATIENCE_S,
) -> StepResult:
    """Run the next attempt of `task` in the run `run_id`, and return how it ended. `show(stream, line)` gets what it
    prints.

    Cancelling the call stops the attempt with all its descendants, and records it. Raises `UsageError` for a run, task
    or DAG that is not there.
    """
    step = await anyio.to_thread.run_sync(_Step.prepared, settings, run_id, task, options)
    early = await anyio.to_thread.run_sync(step.judged)
    if early is not None:
        return early
    while True:
        number, ended = await step.next_number(patience_s)
        if ended is not None:
            return ended
        if await anyio.to_thread.run_sync(step.claim, number):
            return await step.run(number, show)
        await anyio.sleep(_LOOK_S)  # somebody was faster, and writes its first event


def added_rows(settings: Settings, run_id: str, task: str) -> list[dict[str, str]]:
    """What the `each` that `task` has asked has added: for each row the ids of its tasks, by their labels."""
    step = _Step.prepared(settings, run_id, task, StepOptions())
    return step.added()


class _Step:
    def __init__(
        self, settings: Settings, folder: StepFolder, run_file: RunFile, compiled: Compiled, graph: Graph, task: str
    ) -> None:
        self._settings, self._folder, self._run_file, self._compiled = settings, folder, run_file, compiled
        self._graph, self._node = graph, _node_of(graph, task, run_file.dag)
        self.task = graph.task_id(self._node)
        self.spec: Spec = graph.spec(self._node)
        self._slug = slug_of(self.task)
        self._floor = run_file.discarded.get(self.task, 0)
        self._run = self._run_info()

    @classmethod
    def prepared(cls, settings: Settings, run_id: str, task: str, options: StepOptions) -> _Step:
        check_storage(settings)
        folder = StepFolder(settings.run_files(run_id))
        try:
            run_file = folder.read_run()
        except ValueError as error:
            raise OptionError(f"run {run_id}", str(error), "remove it, or start another run") from None
        if run_file is None:
            if options.dag is None:
                why = f"{folder.place} has no run.json"
                raise OptionError(f"run {run_id}", why, "name its DAG with --dag, so that this step begins the run")
            run_file = folder.create_run(_new_run_file(settings, run_id, task, options))
        compiled = compile_dag(find_dag(run_file.reference, settings), settings.LIMITS)
        check_processes(compiled, "process")  # each attempt has one of its own: it can be killed with all it started
        graph = Graph(compiled.graph.tree)
        _expand(graph, folder, run_file)
        return cls(settings, folder, run_file, compiled, graph, task)

    def judged(self) -> StepResult | None:
        """How the step ends for what came before it: None if it is to run."""
        bad = skipped = finished = False
        deciding = set(self._graph.deciding(self._node))
        selected = self._run_file.selected
        if selected is not None and self.task not in selected and self._node not in self._graph.origin:
            return StepResult("skipped", 0, False, "skipped: the run's options leave it out")
        causes = []
        for other in self._graph.task_dependencies(self._node):
            name = self._graph.task_id(other)
            if selected is not None and name not in selected:
                finished = True
                continue
            status, _ = self._ended(slug_of(name), self._run_file.discarded.get(name, 0))
            if status == "skipped":
                skipped = True
            elif status == "finished":
                finished |= other in deciding
            else:
                bad = True
                causes.append(f"{name} ({status or 'not run'})")
        verdict = judge(self.spec.trigger, bad=bad, skipped=skipped, finished=finished)
        if verdict == "start":
            return None
        if verdict == "blocked":
            return StepResult("blocked", 0, False, f"blocked by {', '.join(causes)}")
        if not self._folder.attempts(self._slug):
            writer = self._folder.writer(self._slug, 0, "jsonl")
            writer.event(e.TaskSkipped(*self._header("info", 0), reason=verdict))
            writer.close()
        return StepResult("skipped", 0, False, f"skipped: {verdict}")

    async def next_number(self, patience_s: float) -> tuple[int, StepResult | None]:
        """The number of the attempt to make; or how the task ended, if there is nothing to do. Waits for an attempt
        that goes on elsewhere."""
        mark, seen_at = "", time.monotonic()
        while True:
            files = await anyio.to_thread.run_sync(self._folder.files)
            mine = sorted((file for file in files if file.slug == self._slug), key=lambda file: file.attempt)
            last = mine[-1] if mine and mine[-1].attempt > self._floor else None
            if last is None:
                return max(self._floor, mine[-1].attempt if mine else 0) + 1, None
            events = await anyio.to_thread.run_sync(self._folder.events, self._slug, last.attempt)
            if has_ended(events):
                status = _status_of(events[-1])
                if status in ("finished", "skipped"):
                    return 0, StepResult(status, last.attempt, False, f"{status} already, in attempt {last.attempt}")
                return last.attempt + 1, None
            if last.mark != mark:
                mark, seen_at = last.mark, time.monotonic()
            if _is_dead_here(events) or time.monotonic() - seen_at > patience_s:
                return last.attempt + 1, None
            await anyio.sleep(_LOOK_S)

    def added(self) -> list[dict[str, str]]:
        """See `added_rows`."""
        graph, rows = self._graph, []
        firsts = [node for node in graph.dependents[self._node] if graph.origin.get(node) == self._node]
        for first in firsts:
            row = sorted(graph.along(first, downstream=True))
            rows.append({graph.spec(node).label: graph.task_id(node) for node in row if graph.ids[node] is not None})
        return rows

    def claim(self, number: int) -> bool:
        """Whether the attempt is ours."""
        who = f"step on {HOST}, process {os.getpid()}, at {rfc3339(time.time())} ({os.urandom(4).hex()})"
        return StorageFence().claim(self._attempt(number), who) is None

    async def run(self, number: int, show: Callable[[str, str], None]) -> StepResult:
        """Run the attempt, which was claimed."""
        attempt = self._attempt(number)
        events = await anyio.to_thread.run_sync(self._folder.writer, self._slug, number, "jsonl")
        log = await anyio.to_thread.run_sync(self._folder.writer, self._slug, number, "log")
        try:
            events.event(
                e.TaskStarted(
                    *self._header("info", number),
                    max_attempts=attempt.max_attempts,
                    executor=self._run_file.executor,
                    pool=attempt.pool,
                    host=HOST,
                    pid=os.getpid(),
                    queued_s=0.0,
                )
            )
            began, outcome = time.monotonic(), None
            lease = Lease()
            try:
                outcome = await self._outcome(attempt, events, log, lease, show)
            finally:
                duration_s = int((time.monotonic() - began) * 1e6) / 1e6
                end = self._end(attempt, outcome, duration_s)
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(log.close)
                if outcome is not None and isinstance(end, e.TaskFinished) and self.spec.expands:
                    events.event(e.TaskExpanded(*self._header("info", number), outcome.value))
                events.event(end)
            return StepResult(_status_of(end), number, True, outcome.error_message)
        finally:
            events.close()

    async def _outcome(
        self, attempt: Attempt, events: StepWriter, log: StepWriter, lease: Lease, show: Callable[[str, str], None]
    ) -> Outcome:
        def tell(text: str) -> None:
            for emission in decode_report(text).emissions:
                match emission:
                    case Output() if not emission.line.endswith("\r"):
                        log.write(emission.line.encode("utf-8", "replace") + b"\n")
                        show(emission.stream, emission.line)
                    case Metric():
                        events.event(e.TaskMetric(*self._header("info", attempt.number), emission.name, emission.value))
                    case Dataset():
                        kind = e.DatasetWritten if emission.written else e.DatasetRead
                        facts = msgspec.structs.asdict(emission)
                        del facts["written"]
                        events.event(kind(*self._header("info", attempt.number), **facts))
                    case Progress():
                        events.event(
                            e.TaskProgress(*self._header("info", attempt.number), emission.done, emission.total)
                        )
                    case _:
                        pass

        if isinstance(target := self._compiled.targets[self._graph.spec_of[self._node]], Expander):
            return await self._ask(msgspec.structs.replace(attempt, target=target), log, show)
        order = encode_order(attempt, attempt.run, path=tuple(sys.path))
        report = ""
        async with Agent("", own=True, fence=_Granted()) as agent, anyio.create_task_group() as tasks:
            tasks.start_soon(self._beat, attempt.number, events, log, lease)
            with anyio.move_on_after(self.spec.timeout_s) as deadline:
                report = await agent.run(order, tell, lease)
            tasks.cancel_scope.cancel()
        if deadline.cancelled_caught:
            outcome = timed_out(attempt, None)
        elif (last := decode_report(report)).outcome is not None:
            return last.outcome
        else:
            why = last.stopped or " ".join(last.refused or ())
            outcome = Outcome(status="failed", reason="lost", error_type="AttemptLost", error_message=why)
        told = f"{outcome.error_type}: {outcome.error_message}"  # nobody else does
        log.write(told.encode("utf-8", "replace") + b"\n")
        show("log", told)
        return outcome

    async def _ask(self, attempt: Attempt, log: StepWriter, show: Callable[[str, str], None]) -> Outcome:
        """Ask what an `each` asks, in this process, as drivers do."""
        lines: deque[Output] = deque()

        def emit(emission: Emission) -> None:  # from any thread
            if isinstance(emission, Output) and not emission.line.endswith("\r"):
                lines.append(emission)

        with capturing():
            async with LocalExecutor.from_settings(self._settings) as here:
                outcome = await here.run(attempt, continuation(emit))
        for line in lines:
            log.write(line.line.encode("utf-8", "replace") + b"\n")
            show(line.stream, line.line)
        return outcome

    async def _beat(self, number: int, events: StepWriter, log: StepWriter, lease: Lease) -> None:
        """Show that the step is there, and stop the attempt once the next one was claimed: it was held for dead."""
        while True:
            await anyio.sleep(_BEAT_S)
            with suppress(OSError):
                await anyio.to_thread.run_sync(events.touch)
                await anyio.to_thread.run_sync(log.flush)
                if number + 1 in await anyio.to_thread.run_sync(self._folder.attempts, self._slug):
                    lease.cancel("it was held for dead, and another attempt has begun")

    def _end(self, attempt: Attempt, outcome: Outcome | None, duration_s: float) -> e.TaskEvent:
        number = attempt.number
        if outcome is None:
            return e.TaskCancelled(*self._header("warning", number), duration_s=duration_s, pid=os.getpid(), host=HOST)
        if outcome.status == "skipped":
            return e.TaskSkipped(
                *self._header("info", number), reason="skip", why=outcome.error_message, duration_s=duration_s
            )
        where: dict[str, Any] = {
            "worker": outcome.worker,
            "pid": outcome.pid or os.getpid(),
            "host": outcome.host or HOST,
            "cpu_s": outcome.cpu_s,
            "peak_rss_mb": outcome.peak_rss_mb,
        }
        how: dict[str, Any] = {"executor": self._run_file.executor, "pool": attempt.pool, "duration_s": duration_s}
        common = {**how, **where}
        if outcome.status == "finished":
            return e.TaskFinished(
                *self._header("info", number),
                max_attempts=attempt.max_attempts,
                warning=outcome.warning or None,
                **common,
            )
        message = outcome.error_message
        if outcome.missing:
            message = f"its declared inputs are missing: {', '.join(outcome.missing)}"
        failed: dict[str, Any] = {
            **common,
            "max_attempts": attempt.max_attempts,
            "reason": outcome.reason or "exception",
            "error_type": outcome.error_type,
            "error_message": message,
            "error_stack": outcome.error_stack or None,
            "log": attempt.log,
        }
        spent = number - self._floor
        if outcome.retryable and spent < self.spec.retry.attempts:
            delay_s = self.spec.retry.delay_s(spent, f"{self._run.run_id}:{self.task}:{outcome.reason}")
            return e.TaskRetrying(*self._header("warning", number), delay_s=int(delay_s * 1e6) / 1e6, **failed)
        return e.TaskFailed(*self._header("error", number), **failed)

    def _ended(self, slug: str, floor: int) -> tuple[str, int]:
        attempts = [attempt for attempt in self._folder.attempts(slug) if attempt > floor or attempt == 0]
        if not attempts:
            return "", 0
        events = self._folder.events(slug, attempts[-1])
        return (_status_of(events[-1]) if has_ended(events) else "running"), attempts[-1]

    def _attempt(self, number: int) -> Attempt:
        return Attempt(
            self._run,
            self.spec,
            self.task,
            number,
            self.spec.retry.attempts + self._floor,
            self._graph.params(self._node),
            self.spec.pool or self._settings.POOL,
        )

    def _run_info(self) -> RunInfo:
        settings, run_file, modules = self._settings, self._run_file, modules_of(self._compiled)
        here = code_version(modules, settings.project)
        if settings.CODE_CHECK == "refuse" and not same_code(here, run_file.code_version):
            of = f"code of {', '.join(modules)}"
            why = f"this machine has other {of}: {here}, the run began with {run_file.code_version}"
            raise OptionError(f"run {run_file.run_id}", why, "bring both to the same version (CODE_CHECK = 'refuse')")
        return RunInfo(
            run_id=run_file.run_id,
            dag=run_file.dag,
            path=settings.run_files(run_file.run_id),
            storage=settings.storage_root,
            context=run_file.context,
            secrets=run_file.secrets,
            project=str(settings.project) if settings.project else None,
            settings=settings.options,
            capture=True,
            log_format=settings.LOG_FORMAT,
            redact=tuple(settings.REDACT),
            code_version=here,
            modules=modules,
            trace=run_file.trace,
        )

    def _header(self, level: str, number: int) -> tuple[int, int, str, str, str, str, str, int]:
        run = self._run_file
        return 0, run.session, rfc3339(time.time()), level, run.run_id, run.dag, self.task, number


def _new_run_file(settings: Settings, run_id: str, task: str, options: StepOptions) -> RunFile:
    assert options.dag is not None
    recorded = reference(options.dag)
    compiled = compile_dag(find_dag(options.dag, settings), settings.LIMITS)
    _node_of(compiled.graph, task, compiled.label)  # what an `each` adds is not the first to run
    parameters = load_parameters(settings, options.params)
    modules = modules_of(compiled)
    return RunFile(
        schema_version=SCHEMA_VERSION,
        gluepy_version=VERSION,
        run_id=run_id,
        dag=compiled.label,
        reference=recorded,
        created_at=rfc3339(time.time()),
        graph=compiled.graph.tree.record(),
        context=parameters.recorded(),
        params_digest=parameters.digest(),
        code_version=code_version(modules, settings.project),
        executor=options.executor,
        secrets=[list(place) for place in parameters.secrets],
        options={"dag": recorded},
    )


def expand_known(graph: Graph, folder: StepFolder, discarded: Mapping[str, int]) -> None:
    """Add to `graph` what the steps of each `each` have found so far."""
    for node in list(graph.tasks()):
        if not graph.expandable(node):
            continue
        slug = slug_of(graph.task_id(node))
        for attempt in reversed(folder.attempts(slug)):
            if attempt <= discarded.get(graph.task_id(node), 0):
                break
            rows = rows_in(folder.events(slug, attempt))
            if rows is not None:
                if (clash := graph.clash(node, rows)) is not None:
                    raise clash
                graph.expand(node, rows)
                break


def _expand(graph: Graph, folder: StepFolder, run_file: RunFile) -> None:
    if any(spec.expands for spec in graph.specs):
        expand_known(graph, folder, run_file.discarded)


def _node_of(graph: Graph, task: str, dag: str) -> int:
    node = graph.index.get(task)
    if node is None:
        node = next((node for id, node in graph.index.items() if slug_of(id) == task), None)
    if node is None:
        raise UnknownTask(task, dag, sorted(graph.index))
    return node


def _status_of(event: e.TaskEvent) -> str:
    match event:
        case e.TaskFinished():
            return "finished"
        case e.TaskSkipped():
            return "skipped"
        case e.TaskRetrying():
            return "retrying"
        case e.TaskCancelled():
            return "cancelled"
        case _:
            return "failed"


def _is_dead_here(events: list[e.TaskEvent]) -> bool:
    """Whether the attempt ran on this machine, in a process that is gone."""
    first = events[0] if events else None
    if not isinstance(first, e.TaskStarted) or first.host != HOST:
        return False
    try:
        process = psutil.Process(first.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        return rfc3339(process.create_time() - 1) > first.timestamp  # another has the number now
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
