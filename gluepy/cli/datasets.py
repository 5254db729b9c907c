"""`gluepy data` and `gluepy lineage`: the datasets of a run, and where one comes from."""

from __future__ import annotations

from collections.abc import Iterator

from gluepy.cli.invocation import Invocation
from gluepy.cli.text import count, json_text, moment, printable, say, table
from gluepy.core.events import JSON
from gluepy.errors import OptionError, did_you_mean
from gluepy.report import DatasetReport, RunReport, read_run, read_runs

_NEWEST = 1000  # runs that are looked through


def show_datasets(invocation: Invocation, run: str, as_json: bool) -> int:
    """`gluepy data`"""
    settings = invocation.settings()
    report = read_run(run, settings.runs_root)
    found = report.datasets
    if as_json:
        say(json_text([each.to_json() for each in found]))
    elif not found:
        say(f"no task of run {report.run_id} has read or written a dataset by its name (self.read, self.write)")
    else:
        say(*table([("task", "", "dataset", "rows", "columns", "bytes", "fingerprint"), *map(_row, found)]))
    return 0


def show_lineage(invocation: Invocation, name: str, as_json: bool) -> int:
    """`gluepy lineage`"""
    settings = invocation.settings()
    known: set[str] = set()
    for row in read_runs(settings.runs_root, limit=_NEWEST):
        if not row.run_id:
            continue
        report = read_run(row.run_id, settings.runs_root)
        written = [each for each in report.datasets if each.written]
        known.update(each.dataset for each in written)
        made = next((each for each in reversed(written) if name in (each.dataset, each.url)), None)
        if made is not None:
            read = [each for each in report.datasets if not each.written and each.task == made.task]
            if as_json:
                say(json_text(_record(report, made, read)))
            else:
                say(*_text(report, made, read))
            return 0
    hint = did_you_mean(name, known).removeprefix("; ") or f"written were {', '.join(sorted(known)) or 'none'}"
    raise OptionError("lineage", f"no run has written a dataset {name!r}", hint)


def _row(each: DatasetReport) -> tuple[str, ...]:
    columns = "" if each.columns is None else str(len(each.columns))
    rows = "" if each.rows is None else f"{each.rows:,}"
    did = "wrote" if each.written else "read"
    return printable(each.task), did, printable(each.dataset), rows, columns, f"{each.bytes:,}", each.fingerprint[:12]


def _text(report: RunReport, made: DatasetReport, read: list[DatasetReport]) -> Iterator[str]:
    facts = [
        ("dataset", made.dataset),
        ("at", made.url),
        ("written", moment(made.timestamp)),
        ("by task", f"{made.task}, attempt {made.attempt}"),
        ("of run", f"{report.run_id} ({report.dag}, {report.status})"),
        ("code", report.code_version),
        ("rows", "" if made.rows is None else f"{made.rows:,}"),
        ("bytes", f"{made.bytes:,}"),
        ("fingerprint", made.fingerprint),
    ]
    yield from table((name, printable(value)) for name, value in facts if value)
    if made.columns:
        yield ""
        yield from table(
            [("column", "type"), *((printable(name), printable(kind)) for name, kind in made.columns.items())]
        )
    yield ""
    if read:
        yield from table([("from", "rows", "fingerprint"), *((row[2], row[3], row[6]) for row in map(_row, read))])
    else:
        yield "its task has read no dataset by its name"
    parameters = list(report.parameters.items())
    if parameters:
        yield ""
        yield from table([("parameter", ""), *((printable(name), json_text(value)) for name, value in parameters)])
    yield f"see all of it with: gluepy show {report.run_id}, {count(len(report.tasks), 'task')}"


def _record(report: RunReport, made: DatasetReport, read: list[DatasetReport]) -> dict[str, JSON]:
    return {
        **made.to_json(),
        "run_id": report.run_id,
        "dag": report.dag,
        "code_version": report.code_version,
        "parameters": dict(report.parameters),
        "from": [each.to_json() for each in read],
    }
