"""A run in plain text: when it is over, or later."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gluepy.cli.text import (
    STYLE_OF,
    amount,
    count,
    damage,
    duration,
    error_line,
    first_line,
    moment,
    printable,
    printable_block,
    styled,
    table,
    waited_thing,
)
from gluepy.core.events import JSON
from gluepy.core.graph import compact
from gluepy.report.failures import Failure
from gluepy.runs.durations import typical
from gluepy.traces import without_our_frames

if TYPE_CHECKING:
    from gluepy.report import DatasetReport, RunReport, TaskReport

_ORDER = (
    "finished",
    "failed",
    "blocked",
    "cancelled",
    "skipped",
    "running",
    "interrupted",
    "retrying",
    "pending",
    "not selected",
)
_URGENT = ("failed", "running", "interrupted", "retrying")  # told one by one, however many tasks there are
_ROWS = 60  # tasks in a table
_LOG_LINES = 10  # of a log file, behind a failure that has no traceback
_TRACEBACKS = 20  # shown whole; further failures are one line each


def facts(run: RunReport) -> dict[str, str]:
    """What a run is, on a line each, by what is told: those of which there is something to say."""
    told = {
        "run": run.run_id,
        "dag": run.dag,
        "status": run.status + _why(run),
        "started": moment(run.started_at),
        "took": duration(run.duration_s),
        "code": run.code_version + _began_with(run),
        "options": _options(run.state.options),
        "record": str(run.path),
    }
    return {name: printable(value) for name, value in told.items() if value}


def run_text(run: RunReport, colour: bool) -> Iterator[str]:
    """A run: header, parameters, tasks, metrics. Failures are `failure_text`."""
    told = facts(run)
    status = styled(run.status, STYLE_OF.get(run.status, "bold"), colour)
    told["status"] = status + told["status"].removeprefix(run.status)
    yield from table(told.items())
    if run.damage:
        words = damage(run.damage.bad_lines, run.damage.gaps, run.damage.doubled)
        yield f"the log is damaged: {', '.join(words)}"
    parameters = list(run.parameters.items())
    if parameters:
        yield ""
        rows = [(printable(name), value_text(value)) for name, value in parameters[:_ROWS]]
        yield from table([("parameter", ""), *rows])
        yield from _more(len(parameters) - len(rows), colour)
    yield ""
    chosen = [task for task in run.tasks.values() if task.reason != "unselected"]
    yield from task_table(chosen, colour)
    unselected = len(run.tasks) - len(chosen)
    if unselected:
        yield styled(f"and {count(unselected, 'task')} that the run's selection left out", "dim", colour)
    metrics = list(metric_rows(run))
    if metrics:
        yield ""
        yield from table([("metric", "", ""), *metrics[:_ROWS]])
        yield from _more(len(metrics) - _ROWS, colour)
    written = [each for each in run.datasets if each.written]
    if written:
        yield ""
        sizes = [dataset_row(each) for each in written[:_ROWS]]
        yield from table([("dataset", "", ""), *sizes])
        yield from _more(len(written) - _ROWS, colour)


def task_table(tasks: Sequence[TaskReport], colour: bool) -> Iterator[str]:
    """Tasks as a table."""
    rows = list(_rows(tasks))
    shown = rows if len(rows) <= _ROWS else rows[: _ROWS - 1]
    lines = table([("task", "status", "attempts", "took", ""), *(cells for _, cells in shown)])
    yield styled(lines[0], "dim", colour)
    for line, (word, _) in zip(lines[1:], shown, strict=True):
        yield styled(line, STYLE_OF.get(word, ""), colour and word not in ("finished", "pending"))
    yield from _more(len(rows) - len(shown), colour)


def _more(left_out: int, colour: bool) -> Iterator[str]:
    if left_out > 0:
        yield styled(f"… and {left_out:,} more; --json has all", "dim", colour)


def _rows(tasks: Sequence[TaskReport]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The rows of the table of tasks, each with the word that it is coloured by. Of very many tasks, those with a
    label are one row, and rows of their own have only those that failed or that run."""
    if len(tasks) <= _ROWS:
        yield from map(_row, tasks)
        return
    by_label: dict[str, list[TaskReport]] = {}
    for task in tasks:
        by_label.setdefault(task.label, []).append(task)
    room = max(0, _ROWS - len(by_label))
    for label, members in by_label.items():
        if len(members) == 1:
            yield _row(members[0])
            continue
        words = Counter(task.status for task in members)
        told = ", ".join(f"{words[word]:,} {word}" for word in _ORDER if words[word])
        took = sorted(task.duration_s for task in members if task.status == "finished")
        span = f"{duration(took[0])} to {duration(took[-1])}" if took else ""
        waiting = Counter(task.waiting_for for task in members if task.waiting_for is not None)
        waits = ", ".join(f"{number:,} waiting for {waited_thing(name)}" for name, number in waiting.items())
        if len(words) == 1 and len(said := {explanation(task, waits=False) for task in members}) == 1:
            waits = waits or said.pop()
        group = f"{printable(label)} × {len(members):,}"
        yield next(iter(words)) if len(words) == 1 else "", (group, told, "", span, waits)
        urgent = [task for task in members if task.status in _URGENT]
        urgent.sort(key=lambda task: _URGENT.index(task.status))
        for task in urgent[: room if len(urgent) <= room else max(0, room - 1)]:
            word, (name, *cells) = _row(task)
            yield word, (f"  {name}", *cells)
        if len(urgent) > room > 0:
            rest = Counter(task.status for task in urgent[room - 1 :])
            left = ", ".join(f"{number:,} {word}" for word, number in rest.items())
            yield "", (f"  … and {left}", "", "", "", "")
        room -= min(room, len(urgent))


def task_row(task: TaskReport) -> tuple[str, ...]:
    """Id, status, attempts, time, explanation of a task."""
    return _row(task)[1]


def _row(task: TaskReport) -> tuple[str, tuple[str, ...]]:
    active = task.status in ("running", "interrupted")
    took = duration(task.duration_s) if task.attempts and not active else ""
    cells = (printable(task.task), task.status, _tries(task), took, explanation(task))
    return "" if active else task.status, cells


def dataset_row(dataset: DatasetReport) -> tuple[str, str, str]:
    """Task, name and size of a dataset."""
    return printable(dataset.task), printable(dataset.dataset), _size(dataset)


def _size(dataset: DatasetReport) -> str:
    columns = count(len(dataset.columns), "column") if dataset.columns else ""
    rows = count(dataset.rows, "row") if dataset.rows is not None else ""
    return ", ".join(filter(None, (rows, columns, f"{dataset.bytes:,} bytes")))


def metric_rows(run: RunReport) -> Iterator[tuple[str, str, str]]:
    """Task, name and value of each metric; of very many, those of a label and a name are one row."""
    measured = [(task, name, value) for task in run.tasks.values() for name, value in task.metrics.items()]
    if len(measured) <= _ROWS:
        for task, name, value in measured:
            yield printable(task.task), printable(name), amount(value)
        return
    groups: dict[tuple[str, str], list[tuple[str, float | None]]] = {}
    for task, name, value in measured:
        groups.setdefault((task.label, name), []).append((task.task, value))
    for (label, name), found in groups.items():
        if len(found) == 1:
            yield printable(found[0][0]), printable(name), amount(found[0][1])
            continue
        values = [value for _, value in found if value is not None] or [math.nan]
        span = f"{amount(min(values))} to {amount(max(values))}, mostly about {amount(typical(values))}"
        yield f"{printable(label)} × {len(found):,}", printable(name), span


def _why(run: RunReport) -> str:
    limit = run.state.options.get("timeout_s")
    if run.reason == "timeout" and isinstance(limit, (int, float)):
        return f": it took longer than its timeout_s of {limit:g} s"
    return f": {run.reason}" if run.reason else ""


def _began_with(run: RunReport) -> str:
    return f"; it began with {run.first_code_version}" if run.first_code_version != run.code_version else ""


def _tries(task: TaskReport) -> str:
    """How often the task was tried, of how often it may be."""
    if task.attempts and task.max_attempts > 1:
        return f"{task.attempts} of {task.max_attempts}"
    return str(task.attempts or "")


def explanation(task: TaskReport, *, waits: bool = True) -> str:
    """Why the task is as it is, in a few words; empty if there is nothing to say. `waits`: also what it waits for."""
    if waits and task.waiting_for is not None:
        return f"waiting for {waited_thing(task.waiting_for)}"
    if task.blocked_by is not None:
        return f"by {', '.join(map(printable, task.blocked_by))}"
    match task.reason:
        case None:
            failure = task.failure
            return error_line(failure.type, failure.message, failure.reason) if failure is not None else ""
        case "upstream":
            return "what it depends on was skipped"
        case "trigger":
            return "its trigger was not met"
        case _:
            return first_line(task.why or "")


def failure_text(failures: Sequence[Failure], colour: bool) -> Iterator[str]:
    """Each failure: task, attempt, error, the whole traceback without gluepy's frames, the log file."""
    seen: dict[str, str] = {}
    for number, failure in enumerate(failures):
        if 0 < number <= _TRACEBACKS:
            yield ""
        of = f" of {failure.max_attempts}" if failure.max_attempts > 1 else ""
        title = f"{printable(failure.task)} failed in attempt {failure.attempt}{of}"
        text = error_line(failure.type, failure.message, failure.reason)
        yield styled(f"{title}: {text}", "red", colour)
        same = seen.get(failure.stack) if failure.stack else None
        if same is not None:
            yield f"  with the same traceback as {same}"
        elif number >= _TRACEBACKS:
            pass
        elif failure.stack:
            seen[failure.stack] = printable(failure.task)
            yield from _indented(failure.stack)
        else:
            if len(failure.message.splitlines()) > 1:
                yield from _indented(failure.message)
            yield from _indented(_last_lines(failure))
        if failure.log:
            yield f"  log: {printable(failure.log)}"


def summary(dag: str, run_id: str, status: str, counts: dict[str, int], duration_s: float) -> str:
    """One line about a run that is over."""
    rest = {word: counts[word] for word in _ORDER if counts.get(word)}
    total = sum(rest.values())
    if status == "finished" and set(rest) <= {"finished"}:
        tasks = count(total, "task")
    else:
        tasks = ", ".join(f"{number:,} {word}" for word, number in rest.items())
    return f"run {printable(run_id)} of {printable(dag)} {status} in {duration(duration_s)}: {tasks}"


def value_text(value: JSON) -> str:
    """A value on one line: text as it is, unless it would read as something else."""
    return printable(compact(value))


def _options(options: dict[str, JSON]) -> str:
    shown = {name: value for name, value in options.items() if name not in ("capture", "dag", "run_id", "params")}
    return ", ".join(f"{name} = {value}" for name, value in shown.items())


def _indented(text: str) -> Iterator[str]:
    for line in printable_block(text).splitlines():
        yield f"  {line}".rstrip()


def _last_lines(failure: Failure) -> str:
    """The end of the log file of an attempt that has no traceback, without what its title says already."""
    if not failure.log:
        return ""
    try:
        with open(failure.log, "rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - 20_000))
            text = log.read().decode("utf-8", "replace").rstrip()
    except OSError:
        return ""
    text = text.removesuffix(f"{failure.type}: {failure.message}")
    return "\n".join(without_our_frames(text.splitlines())[-_LOG_LINES:])
