"""One task of a run, whole: `gluepy show RUN TASK`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gluepy.cli.story import explanation, failure_text, value_text
from gluepy.cli.text import STYLE_OF, amount, duration, error_line, first_line, moment, printable, styled, table
from gluepy.report import AttemptReport, TaskDetails

_SHOWN = 20  # of the tasks before it, and of those after it


def details_text(run_id: str, details: TaskDetails, colour: bool) -> Iterator[str]:
    """As lines: how it stands, how it is declared, each attempt, its metrics, its failure whole."""
    task = details.report
    what = explanation(task)
    declared = [f"up to {details.max_attempts} attempts"] if details.max_attempts > 1 else []
    declared += [f"at most {details.timeout_s:g} s"] if details.timeout_s is not None else []
    declared += [f"at most {details.memory_mb:,} MB"] if details.memory_mb is not None else []
    declared += [f"{details.cpus} CPUs"] if details.cpus is not None else []
    declared += [f"queue {details.queue}"] if details.queue is not None else []
    declared += [f"uses {units:,} {name}" for name, units in details.uses.items()]
    declared += [f"trigger {details.trigger}"] if details.trigger != "all_success" else []
    status = styled(task.status, STYLE_OF.get(task.status, "bold"), colour)
    parameters = (f"{printable(name)} = {value_text(value)}" for name, value in details.parameters.items())
    facts = [
        ("task", printable(task.task)),
        ("run", printable(run_id)),
        ("status", status + (f": {what}" if what else "")),
        ("class", printable(details.cls)),
        ("parameters", ", ".join(parameters)),
        ("declared", _listed(declared)),
        ("after", _listed(details.dependencies)),
        ("before", _listed(details.dependents)),
        ("inputs", _listed(details.inputs)),
        ("outputs", _listed(details.outputs)),
        ("metrics", ", ".join(f"{printable(name)} = {amount(value)}" for name, value in task.metrics.items())),
    ]
    yield from table(fact for fact in facts if fact[1])
    if details.attempts:
        yield ""
        yield from table([("attempt", "started", "waited", "took", "where", "how"), *map(_row, details.attempts)])
    logs = [attempt.log for attempt in details.attempts if attempt.log]
    if task.failure is not None:
        yield ""
        yield from failure_text([task.failure], colour)
    elif logs:
        yield f"log: {printable(logs[-1])}"


def _row(attempt: AttemptReport) -> tuple[str, ...]:
    usage = attempt.usage
    where = f"{attempt.pool}, pid {usage['pid']} on {usage['host']}"
    used = [f"{duration(usage['cpu_s'])} CPU"] if "cpu_s" in usage else []
    used += [f"peak RSS {usage['peak_rss_mb']:,.0f} MB"] if "peak_rss_mb" in usage else []
    failure = attempt.failure
    why = first_line(attempt.why or "")
    if failure is not None:
        why = error_line(failure.type, failure.message, failure.reason)
    return (
        str(attempt.attempt),
        moment(attempt.started_at),
        duration(attempt.queued_s),
        duration(attempt.duration_s) if attempt.duration_s is not None else "",
        printable(where),
        ", ".join([attempt.status, *used]) + (f": {why}" if why else ""),
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(printable, names[:_SHOWN])) + more
