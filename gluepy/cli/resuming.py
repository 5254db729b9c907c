"""`gluepy resume`, and `gluepy run LABEL --retry RUN`: go on with a run, and say what runs again and why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from gluepy.cli.invocation import Invocation
from gluepy.cli.running import (
    Call,
    RunCall,
    carry_out,
    check,
    conclude,
    on_failure_of,
    overrides_of,
    params_of,
    stdout_kept,
)
from gluepy.cli.text import cells, count, damage, fit, json_text, printable, say, table
from gluepy.conf.dags import find_dag
from gluepy.conf.schema import Settings
from gluepy.core.events import JSON
from gluepy.errors import OptionError
from gluepy.loop import run_loop
from gluepy.runs.log import LogReader
from gluepy.runs.reading import find_record
from gluepy.runtime import ResumeOptions, ResumePlan, RunStream, Runtime
from gluepy.runtime.options import SinkOption

_SHOWN = 16  # tasks that run again, and changes of the code
_VALUE = 60  # columns of a parameter
_LINE = 100  # columns of the names of tasks that are kept


@dataclass(frozen=True, kw_only=True)
class ResumeCall(Call):
    """The options of `gluepy resume`. `dag` says where the DAG is, when that was said anew."""

    run: str
    force: Sequence[str]
    dag: str | None = None
    evaluate: bool = False


def resume(invocation: Invocation, call: ResumeCall) -> int:
    """Carry out `gluepy resume` and return the exit code."""
    return _resume(invocation, call, None)


def retry(invocation: Invocation, call: RunCall, run: str) -> int:
    """Carry out `gluepy run LABEL --retry RUN`: `gluepy resume RUN`, of a run of that DAG."""
    asked = {
        "--task": call.task,
        "--to-task": call.to_task is not None,
        "--run-id": call.run_id is not None,
    }
    for option, given in asked.items():
        if given:
            raise OptionError(f"{option} and --retry", "a run that is resumed is what it was", "leave one of them out")
    shared = {name: getattr(call, name) for name in Call.__dataclass_fields__}
    dag = os.path.abspath(call.label) if ".py" in call.label else call.label
    return _resume(invocation, ResumeCall(**shared, run=run, force=(), dag=dag), call.label)


def _resume(invocation: Invocation, call: ResumeCall, label: str | None) -> int:
    check(call)
    params = params_of(call)
    with stdout_kept(call) as own:
        settings = invocation.settings(overrides_of(call), quiet=call.quiet)
        run = call.run
        if label is not None:
            invocation.check_label(label, settings)
            run = _run_of(label, run, settings)
        options: ResumeOptions = {
            "from_task": call.from_task,
            "force": list(call.force),
            "params": params,
            "concurrency": call.concurrency,
            "pool": cast(Any, call.pool),
            "timeout_s": call.timeout,
            "capture": not call.debug,
            "debug": call.debug,
        }
        if (on_failure := on_failure_of(call)) is not None:
            options["on_failure"] = on_failure
        if call.skip_evaluation:
            options["skip_evaluation"] = True
        if call.evaluate:
            options["evaluate"] = True
        if call.dag is not None:
            options["dag"] = call.dag

        if call.dry_run:
            plan = run_loop(_planned, settings, run, options)
            if call.as_json:
                say(json_text(plan))
            else:
                say(*explanation(plan, whole=True), "nothing was run")
            return 0

        def start(runtime: Runtime, sinks: Sequence[SinkOption]) -> RunStream:
            options["sinks"] = sinks
            return runtime.stream_resume(run, **options)

        ending = carry_out(invocation, call, settings, own, start, lambda plan: list(explanation(plan)))
        return conclude(invocation, call, ending, own)


def _run_of(label: str, run: str, settings: Settings) -> str:
    """The id of `run`, a run of the DAG that `label` means. Raises `OptionError` for a run of another one."""
    wanted = find_dag(label, settings).label
    record = find_record(settings.runs_root, f"latest:{wanted}" if run == "latest" else run)
    first = next(LogReader(record.events).events(1), None)
    if first is None or first.dag != wanted:
        of = f"a run of {first.dag!r}" if first is not None else "without events"
        raise OptionError("--retry", f"run {record.run_id} is {of}, not of {wanted!r}", "see `gluepy runs`")
    return record.run_id


async def _planned(settings: Settings, run: str, options: ResumeOptions) -> ResumePlan:
    async with Runtime(settings) as runtime:
        return runtime.plan_resume(run, **options)


def _value(value: JSON) -> str:
    return fit(json_text(value), _VALUE)


def explanation(plan: ResumePlan, *, whole: bool = False) -> Iterator[str]:
    """What a resumed run does again and why, what is wrong with its log, how its code differs: a screenful, or the
    `whole` of it."""
    parts = (
        (plan.again, "again"),
        (plan.waiting, "still to run"),
        (plan.retrying, "due for another attempt"),
        (plan.kept, "kept"),
    )
    facts = [f"{count(len(tasks), 'task')} {what}" for tasks, what in parts if tasks]
    nothing = "" if plan.again or plan.waiting or plan.retrying else "; nothing is left to do"
    run = f"run {printable(plan.run_id)}, session {plan.session}"
    yield f"resuming {run}: {', '.join(facts) or 'it has no tasks'}{nothing}"
    if broken := damage(plan.bad_lines, plan.gaps, plan.doubled):
        yield f"warning: its log has {' and '.join(broken)}; tasks whose end is lost run again"
    for name, why in plan.none_of.items():
        yield f"no task {printable(name)!r} to run again: {printable(why)}"
    for change in plan.changes[:_SHOWN]:
        yield f"the DAG has changed: {printable(change)}"
    if plan.code_version != plan.code_before:
        before = printable(plan.code_before)
        yield f"the code has changed: {before} in session {plan.session - 1}, {printable(plan.code_version)} now"
    for name, (old, new) in list(plan.params_changed.items())[:_SHOWN]:
        yield f"a parameter has changed: {printable(name)} is {_value(new)}, it was {_value(old)}"
    if len(plan.params_changed) > _SHOWN:
        yield f"and {len(plan.params_changed) - _SHOWN:,} more parameters have changed"
    if plan.stale:
        names = ", ".join(map(printable, plan.stale[:_SHOWN])) + (", …" if len(plan.stale) > _SHOWN else "")
        does, them = ("does", "it") if len(plan.stale) == 1 else ("do", "them")
        yield f"{count(len(plan.stale), 'task')} finished with other parameters and {does} not run again: {names}"
        yield f"  to run {them} again: --force TASK, or --from-task TASK"
    rows = [(printable(task), printable(cause)) for task, cause in plan.again.items()]
    if whole:
        rows += [(printable(task), what) for tasks, what in parts[1:] for task in tasks]
        yield from table(rows, "  ")
        return
    yield from table(rows if len(rows) <= _SHOWN else rows[: _SHOWN - 1], "  ")
    if len(rows) > _SHOWN:
        yield f"  … and {len(rows) - _SHOWN + 1:,} more; `gluepy events` has each as task.reset"
    kept = ", ".join(map(printable, plan.kept[:_SHOWN]))
    if 0 < len(plan.kept) <= _SHOWN and cells(kept) <= _LINE:
        yield f"  kept: {kept}"
