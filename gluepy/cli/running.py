"""`gluepy run`, from the options to the exit code; and what `gluepy resume` shares with it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import anyio
import msgspec
from anyio.lowlevel import current_token

from gluepy.cli import exiting
from gluepy.cli.estimate import Estimate
from gluepy.cli.guard import guarded
from gluepy.cli.interrupts import Interrupts
from gluepy.cli.invocation import Invocation, no_stdin, own_stdout, set_variable
from gluepy.cli.plan import Plan
from gluepy.cli.progress import Silent, View, view_of
from gluepy.cli.story import failure_text, summary
from gluepy.cli.text import json_text, let_go, log_to_stderr, printable, say, tell, wants_colour
from gluepy.conf.dags import find_dag
from gluepy.conf.parameters import load_context
from gluepy.conf.schema import Settings
from gluepy.core.events import (
    JSON,
    RunCancelled,
    RunFailed,
    RunFinished,
    TaskCancelled,
    TaskFailed,
    TaskRetrying,
    TaskSkipped,
    TaskStarted,
)
from gluepy.core.selection import select
from gluepy.errors import OptionError, RunError, RunStopped, TaskError, did_you_mean
from gluepy.exec.dag import compile_dag
from gluepy.exec.executors.following import following_threads
from gluepy.exec.executors.streams import capturing
from gluepy.loop import Doorbell, run_loop
from gluepy.report.failures import Failure
from gluepy.runs.durations import read_durations
from gluepy.runs.log import LogReader
from gluepy.runs.record import Record
from gluepy.runtime import ResumePlan, Run, RunOptions, RunResult, RunStream, Runtime
from gluepy.runtime.checks import check_processes, check_storage
from gluepy.runtime.options import SinkOption, make_executor, make_sinks
from gluepy.runtime.results import RunTimedOutError
from gluepy.sinks.lines import EventLines

_POOLS = ("thread", "process")
_STUCK_S = 1.0  # how long the result may take once the run has ended


@dataclass(frozen=True, kw_only=True)
class Call:
    """The options that everything that runs tasks has, as they were typed."""

    concurrency: int | None
    executor: str | None
    sink: Sequence[str]
    pool: str | None
    param: Sequence[str]
    params: str | None
    from_task: str | None
    keep_going: bool
    fail_fast: bool
    timeout: float | None
    debug: bool
    as_json: bool
    events: str | None
    progress: str
    quiet: bool
    dry_run: bool
    skip_evaluation: bool


@dataclass(frozen=True, kw_only=True)
class RunCall(Call):
    """The options of `gluepy run`."""

    label: str
    task: Sequence[str]
    to_task: str | None
    run_id: str | None


Start = Callable[[Runtime, Sequence[SinkOption]], RunStream]


def run(invocation: Invocation, call: RunCall) -> int:
    """Carry out `gluepy run` and return the exit code."""
    check(call)
    params = params_of(call)
    with stdout_kept(call) as own:
        settings = invocation.settings(overrides_of(call), quiet=call.quiet)
        invocation.check_label(call.label, settings)
        options = _options(call, params)
        if call.dry_run:
            return _dry_run(call, settings, options)

        def start(runtime: Runtime, sinks: Sequence[SinkOption]) -> RunStream:
            options["sinks"] = sinks
            return runtime.stream_dag(call.label, **options)

        ending = carry_out(invocation, call, settings, own, start)
        return conclude(invocation, call, ending, own)


@contextmanager
def stdout_kept(call: Call) -> Iterator[IO[bytes] | None]:
    """While tasks run in the block, stdout is kept for results, whoever else writes there; not from a debugger, unless
    a machine reads them."""
    machine = call.as_json or call.events == "-"
    with ExitStack() as stack:
        own = stack.enter_context(own_stdout()) if not call.dry_run and (machine or not call.debug) else None
        if not call.dry_run and not call.debug:
            stack.enter_context(no_stdin())
            # before modules of the project are imported and get hold of the streams, and for as long as a thread that
            # could not be stopped may print
            (exiting.until_the_end if exiting.process_ends else stack).enter_context(capturing())
        yield own


def carry_out(
    invocation: Invocation,
    call: Call,
    settings: Settings,
    own: IO[bytes] | None,
    start: Start,
    explain: Callable[[ResumePlan], Sequence[str]] = lambda plan: (),
) -> Ending | int:
    """Drive the run that `start` starts to its end, with progress as `call` wants it; what `explain` says comes before
    it. `own` is stdout, where it is kept for results. Returns the exit code where a signal came before anything
    began."""
    exiting.tasks_ran = True
    with ExitStack() as stack:
        events = None
        if call.events is not None:
            file = own if own is not None and call.events == "-" else stack.enter_context(_opened(call.events))
            events = EventLines(file)
        if call.debug:
            log_to_stderr()
        else:
            stack.enter_context(following_threads())
        if settings.LEFTOVER_PROCESSES == "auto":
            settings = settings.replaced(LEFTOVER_PROCESSES="kill")
        say_killed = (lambda line: None) if call.quiet else tell
        stack.enter_context(guarded(settings.LEFTOVER_PROCESSES == "kill", say_killed))
        view = stack.enter_context(closing(view_of(call.progress, call.quiet, call.debug, settings)))

        def killed(run: str) -> str:
            return f"killed; resume it with: {invocation.resume_command(Record(settings.runs_root, run))}"

        interrupts = stack.enter_context(Interrupts(view, killed))
        sinks: list[SinkOption] = [*call.sink, *([] if events is None else [events])]

        def write(ending: Ending) -> None:
            if events is not None:
                for event in LogReader(ending.path / "events.jsonl").events():
                    if event.session == ending.session:
                        events(event)  # what a slow reader has not got yet
            if call.as_json and own is not None:
                from gluepy.report import RunReport

                told = RunReport.from_record(Record(ending.path.parent, ending.run_id), settings).summary_json()
                own.write(f"{json_text({**told, 'files': ending.files})}\n".encode())

        def leave_tasks_behind(ending: Ending) -> None:
            view.close()
            write(ending)
            code = conclude(invocation, call, ending, own)
            if own is not None:
                own.flush()
            exiting.leave_all_behind(code)

        leave_behind = leave_tasks_behind if exiting.process_ends else None
        try:
            ending = run_loop(_drive, settings, sinks, start, explain, view, interrupts, leave_behind)
        except KeyboardInterrupt:  # nothing had begun; or a task raised it
            return interrupts.exit_code or 130
        write(ending)
        return ending


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a session of a run ended. `error` is why it stopped, or failed without a task that did; `interrupted` the
    exit code of the signal that cancelled it, 0 without one."""

    run_id: str
    dag: str
    status: str
    path: Path
    session: int
    interrupted: int
    files: str = ""
    duration_s: float = 0.0
    counts: dict[str, int]
    failures: Sequence[Failure] = ()
    error: Exception | None = None


async def _drive(
    settings: Settings,
    sinks: Sequence[SinkOption],
    start: Start,
    explain: Callable[[ResumePlan], Sequence[str]],
    view: View,
    interrupts: Interrupts,
    leave_behind: Callable[[Ending], None] | None,
) -> Ending:
    """Drive the run to its end. `leave_behind`, if given, ends the process: it is called once the end is recorded while
    a task of the event loop goes on that swallows its cancellation, since the loop cannot end before the task does."""
    doorbell = Doorbell()
    async with Runtime(settings) as runtime, start(runtime, sinks) as run:
        if run.traceparent is not None:  # for what tasks in this process start
            set_variable("TRACEPARENT", run.traceparent)
        interrupts.cancels(run.id, lambda: doorbell.ring(run.cancel))
        session = 1
        if run.plan is not None:
            session, kept = run.plan.session, len(run.plan.kept)
            total = kept + len(run.plan.again) + len(run.plan.waiting) + len(run.plan.retrying)
            view.say(explain(run.plan), {"finished": kept}, total)

        def stuck(counts: dict[str, int]) -> None:
            record = Record(run.path.parent, run.id)
            if leave_behind is not None and _has_left_a_task(record):
                from gluepy.report import RunReport

                left = RunReport.from_record(record, settings)
                ending = Ending(
                    run_id=run.id,
                    dag=left.dag,
                    status=left.state.run,
                    path=run.path,
                    session=session,
                    interrupted=interrupts.exit_code,
                    files=settings.run_files(run.id),
                    duration_s=left.duration_s,
                    counts=counts,
                    failures=left.failures,
                )
                leave_behind(ending)

        counts = await _watch(run, view, stuck)
        failures: list[Failure] = []
        error: Exception | None = None
        try:
            result = await run.result()
        except RunError as failed:
            assert isinstance(failed.result, RunResult)
            result = failed.result
            for each in failed.exceptions:
                if isinstance(each, TaskError):
                    failures.append(Failure.from_error(each))
                else:
                    error = each
        except RunStopped as stopped:
            _let_go_of_threads()
            return Ending(
                run_id=run.id,
                dag="",
                status="stopped",
                path=run.path,
                session=session,
                interrupted=interrupts.exit_code,
                counts=counts,
                error=stopped,
            )
    _let_go_of_threads()
    return Ending(
        run_id=result.run_id,
        dag=result.dag,
        status=result.status,
        path=result.path,
        session=session,
        interrupted=interrupts.exit_code,
        files=result.files,
        duration_s=result.duration_s,
        counts=counts,
        failures=failures,
        error=error,
    )


def _let_go_of_threads() -> None:
    """Have the end of the event loop not wait for what `asyncio.to_thread` may still run: asyncio's does, for minutes.
    Who does not use such threads has not imported what they come from."""
    loop: Any = current_token().native_token
    if hasattr(loop, "set_default_executor") and "concurrent.futures.thread" in sys.modules:
        from concurrent.futures import ThreadPoolExecutor

        loop.set_default_executor(ThreadPoolExecutor(1))


def _has_left_a_task(record: Record) -> bool:
    """Whether an attempt on the event loop was given up."""
    on_the_loop: set[str] = set()
    left: set[str] = set()
    for event in LogReader(record.events).events():
        if isinstance(event, TaskStarted) and event.pool == "loop":
            on_the_loop.add(event.task)
        elif isinstance(event, (TaskFailed, TaskRetrying, TaskCancelled)) and event.abandoned:
            left.add(event.task)
    return not left.isdisjoint(on_the_loop)


async def _watch(run: Run, view: View, stuck: Callable[[dict[str, int]], None]) -> dict[str, int]:
    """Show the run's events, in batches, until there are no more; returns the number of tasks by how they ended. Calls
    `stuck` with that if the run's end has been shown and its result does not come."""
    over = anyio.Event()
    counts: dict[str, int] = {}
    left_out = run.plan.left_out if run.plan is not None else 0

    async def wait() -> None:
        with suppress(Exception):  # `_drive` asks again
            await run.result()
        over.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        while events := await run.events.take():
            for event in events:
                if isinstance(event, TaskSkipped) and event.reason == "unselected":
                    left_out += 1
            if isinstance(event, (RunFinished, RunFailed, RunCancelled)):
                counts = event.counts
            try:
                view.show(events)
            except OSError:
                let_go(sys.stderr)  # nobody reads the progress any more, or the disk is full; the run goes on
                view = Silent()
            with anyio.move_on_after(view.pause_s):
                await over.wait()
        if left_out:
            counts = {**counts, "skipped": counts.get("skipped", 0) - left_out, "not selected": left_out}
        with anyio.move_on_after(_STUCK_S):
            await over.wait()
        if counts and not over.is_set():
            stuck(counts)
    return counts


def conclude(invocation: Invocation, call: Call, ending: Ending | int, own: IO[bytes] | None) -> int:
    """Tell how the run ended, and return the exit code. `own` is stdout, where it is kept for results."""

    def result(line: str) -> None:
        if own is None:
            say(line)
        else:
            encoding = getattr(sys.__stdout__, "encoding", None) or "utf-8"
            own.write(f"{line}\n".encode(encoding, "backslashreplace"))

    if isinstance(ending, int):
        return ending
    colour = wants_colour(sys.stderr)
    if ending.failures:
        tell("", *failure_text(ending.failures, colour), "")
    if ending.status == "stopped":
        tell(f"error: {ending.error}")
    elif not (call.quiet and ending.status == "finished"):
        line = summary(ending.dag, ending.run_id, ending.status, ending.counts, ending.duration_s)
        machine = call.quiet or call.as_json or call.events == "-"
        (tell if machine else result)(line)
        if ending.status == "finished" and not machine and ("://" in ending.files or Path(ending.files).is_dir()):
            result(f"files: {printable(ending.files)}")
        sys.stdout.flush()
        if ending.error is not None and not ending.interrupted:
            tell(f"error: {ending.error}")
    if ending.status == "finished":
        return 0
    more: tuple[str, ...] = ()
    if isinstance(ending.error, RunTimedOutError) and ending.error.timeout_s:
        more = ("--timeout", f"{2 * ending.error.timeout_s:g}")  # with the same one it would end the same way
    tell(f"resume it with: {invocation.resume_command(Record(ending.path.parent, ending.run_id), *more)}")
    if ending.status == "stopped":
        return 3
    if ending.status == "cancelled" and ending.interrupted:
        return ending.interrupted
    return 1


def check(call: Call) -> None:
    """Raise `OptionError` for options that do not go together or cannot be meant."""
    if call.keep_going and call.fail_fast:
        raise OptionError("--keep-going and --fail-fast", "they are mutually exclusive")
    if call.as_json and call.events == "-":
        raise OptionError("--json and --events -", "both want stdout", "give --events a file")
    if call.dry_run and call.events is not None:
        raise OptionError("--events", "with --dry-run there are none")
    if call.pool is not None and call.pool not in _POOLS:
        raise OptionError("--pool", f"{call.pool!r} is not one of {', '.join(_POOLS)}{did_you_mean(call.pool, _POOLS)}")
    if call.timeout is not None and not call.timeout > 0:
        raise OptionError("--timeout", f"{call.timeout:g} must be a positive number", "give seconds")


def overrides_of(call: Call) -> dict[str, object]:
    """The settings that options go over."""
    return {"CONCURRENCY": call.concurrency, "POOL": call.pool, "EXECUTOR_BACKEND": call.executor}


def _options(call: RunCall, params: Mapping[str, JSON]) -> RunOptions:
    options: RunOptions = {
        "params": params,
        "concurrency": call.concurrency,
        "pool": cast(Any, call.pool),
        "tasks": list(call.task),
        "from_task": call.from_task,
        "to_task": call.to_task,
        "timeout_s": call.timeout,
        "run_id": call.run_id,
        "capture": not call.debug,
        "debug": call.debug,
    }
    if (on_failure := on_failure_of(call)) is not None:
        options["on_failure"] = on_failure
    if call.skip_evaluation:
        options["skip_evaluation"] = True
    return options


def on_failure_of(call: Call) -> Literal["continue", "cancel"] | None:
    """What to do after a failure, where that was said."""
    return "continue" if call.keep_going else "cancel" if call.fail_fast else None


def params_of(call: Call) -> dict[str, JSON]:
    """The parameters of --params and --param, the latter over the former."""
    return params_in(call.param, call.params)


def params_in(words: Sequence[str], file: str | None) -> dict[str, JSON]:
    """The parameters of `words`, each name=value, over those of a file."""
    params = _params_file(file) if file is not None else {}
    for text in words:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise OptionError("--param", f"{text!r} is not name=value", "as in --param date=2026-01-01")
        params.pop(name, None)  # later ones win, whatever comes between
        params[name] = _value(name, value)
    return params


def _value(name: str, text: str) -> JSON:
    from gluepy.conf.scalars import Ambiguous, typed

    try:
        return typed(text)
    except Ambiguous as ambiguous:
        quoted = shlex.quote(f"{name}={msgspec.json.encode(text).decode()}")
        value = f"{shlex.quote(f'{name}={ambiguous.instead}')}, or " if ambiguous.instead else ""
        raise OptionError(f"--param {name}", ambiguous.problem, f"write {value}{quoted} if it is text") from None


def _params_file(name: str) -> dict[str, JSON]:
    from gluepy.conf.contextfiles import values_of

    try:
        return values_of(Path(name).read_bytes(), f"--params {name}")
    except OSError as error:
        raise OptionError("--params", f"cannot read {name!r}: {error.strerror}") from None


def _dry_run(call: RunCall, settings: Settings, options: RunOptions) -> int:
    """All that a run does before its first task, and what it would then do."""
    compiled = compile_dag(find_dag(call.label, settings), settings.LIMITS)
    check_storage(settings)
    pool = call.pool or settings.POOL
    if not call.debug:
        check_processes(compiled, pool)
    make_sinks(call.sink, settings)
    name = "inline" if call.debug else make_executor(settings.EXECUTOR_BACKEND, settings).name
    selection = select(compiled.graph, compiled.label, options)
    load_context(settings, options["params"] or {})
    concurrency = 1 if call.debug else settings.CONCURRENCY
    plan = Plan(compiled, selection, pool, concurrency, name)
    known = read_durations(settings.runs_root, compiled.label)
    outlook = Estimate.from_durations(compiled.graph, selection, concurrency, settings.LIMITS, known)
    if call.as_json:
        say(json_text({**plan.record(), "outlook": outlook.record()}))
    else:
        say(*plan.text(), "", *outlook.text(), "nothing was run")
    return 0


def _opened(file: str) -> IO[bytes]:
    try:
        return open(file, "wb", buffering=0)
    except OSError as error:
        raise OptionError("--events", f"cannot write {file!r}: {error.strerror}") from None
