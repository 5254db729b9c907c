"""Commands about runs that were: `runs`, `report`, `diff`, `prune`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gluepy.cli.invocation import Invocation
from gluepy.cli.text import (
    STYLE_OF,
    amount,
    count,
    duration,
    json_text,
    moment,
    printable,
    say,
    styled,
    table,
    tell,
    wants_colour,
)
from gluepy.core.events import JSON
from gluepy.errors import GluepyError, OptionError, RunLocked, UnknownRun, did_you_mean
from gluepy.exec.drafts import discard
from gluepy.exec.port import RunInfo, local_path
from gluepy.report import RunDifference, RunReport, RunSummary, compare_runs, read_runs
from gluepy.report.datasets import dataset_change
from gluepy.runs.index import Index
from gluepy.runs.prune import deleted, prunable, sweep
from gluepy.runs.reading import find_record
from gluepy.runs.record import Record
from gluepy.runtime.checks import check_storage

STATUSES = ("finished", "failed", "cancelled", "running", "interrupted", "unreadable")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SHOWN = 20  # lines of one part of a diff, and of what prune names


def list_runs(invocation: Invocation, dag: str | None, status: str | None, limit: int, as_json: bool) -> int:
    """`gluepy runs`"""
    if status is not None and status not in STATUSES:
        hint = did_you_mean(status, STATUSES)
        raise OptionError("--status", f"{status!r} is not one of {', '.join(STATUSES)}{hint}")
    root = invocation.settings().runs_root
    runs: list[RunSummary] = read_runs(root, dag, status=status, limit=0 if limit == 0 else limit + 1)
    more = len(runs) > limit > 0
    runs = runs[:limit] if more else runs
    if as_json:
        say(json_text([run.to_json() for run in runs]))
        return 0
    if not runs:
        tell(f"no runs {'like that ' if dag or status else ''}in {root}")
        return 0
    colour = wants_colour(sys.stdout)
    rows = [("run", "dag", "status", "started", "took", "tasks"), *map(_row, runs)]
    lines = table(rows)
    say(styled(lines[0], "dim", colour))
    for line, run in zip(lines[1:], runs, strict=True):
        say(styled(line, STYLE_OF.get(run.status, "bold"), colour and run.status != "finished"))
    if more:
        tell("… older ones with --limit 0")
    return 0


def report(invocation: Invocation, label: str, html: str, limit: int) -> int:
    """`gluepy report`"""
    from gluepy.cli.page import history_page, save

    settings = invocation.settings()
    root = settings.runs_root
    listed = read_runs(root, label, limit=limit)
    if not listed:
        known = sorted({run.dag for run in read_runs(root, limit=1000) if run.dag})
        hint = did_you_mean(label, known) or (f"; there are runs of {', '.join(known[:5])}" if known else "")
        raise OptionError("LABEL", f"no run of {label!r} in {root}{hint}")
    runs = [RunReport.from_record(Record(root, run.run_id), settings) for run in reversed(listed)]
    save(history_page(label, runs), html)
    return 0


def _row(run: RunSummary) -> tuple[str, ...]:
    if run.status == "unreadable":
        return printable(run.run_id), "", run.status, "", "", printable(run.problem)
    tasks = ", ".join(f"{number:,} {word}" for word, number in run.counts.items())
    again = f", session {run.sessions}" if run.sessions > 1 else ""
    took = duration(run.duration_s)
    return printable(run.run_id), printable(run.dag), run.status, moment(run.started_at), took, f"{tasks}{again}"


def prune(
    invocation: Invocation,
    *,
    keep: int | None,
    older_than: str | None,
    dag: str | None,
    files: bool,
    dry_run: bool,
) -> int:
    """`gluepy prune`"""
    if keep is None and older_than is None:
        raise OptionError("prune", "it has to be said which runs go", "give --keep N, --older-than 30d, or both")
    from gluepy.exec.executors.remote.fence import claims_of  # brings all that runs attempts

    settings = invocation.settings()
    if files:
        check_storage(settings)
    before = None
    if older_than is not None:
        before = f"{datetime.now(UTC) - _age(older_than):%Y-%m-%dT%H:%M:%S.%fZ}"
    root = settings.runs_root
    gone: list[RunSummary] = []
    failed = False
    with Index(root) as index:
        for run in prunable(index.runs(dag), keep, before):
            if not dry_run:
                try:
                    with deleted(root, run.run_id):
                        place = settings.run_files(run.run_id)
                        of_run = RunInfo(run_id=run.run_id, dag=run.dag, path=place, storage=settings.storage_root)
                        discard(of_run)
                        if files:
                            _delete_files(place)
                        if files or local_path(settings.storage_root) is not None:
                            _delete_files(claims_of(of_run))
                except RunLocked:
                    tell(f"kept {run.run_id}: it has just been resumed")
                    continue
                except UnknownRun:
                    continue  # somebody else was faster
                except (OSError, GluepyError) as error:
                    tell(f"cannot delete {run.run_id}: {error}")
                    failed = True
                    continue
            gone.append(run)
    if not dry_run:
        sweep(root)
    say(
        *table(
            (printable(run.run_id), printable(run.dag), run.status, printable(run.started_at[:10]))
            for run in gone[:_SHOWN]
        )
    )
    if len(gone) > _SHOWN:
        say(f"… and {len(gone) - _SHOWN:,} more")
    what = "would delete" if dry_run else "deleted"
    where = f"{settings.storage_root.rstrip('/')}/runs"
    rest = f" and their files in {where}" if files else f"; their files in {where} stay" if gone else ""
    say(f"{what} {count(len(gone), 'run')}{rest}")
    return 1 if failed else 0


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})\s*([smhdw])", text)
    if found is None:
        raise OptionError("--older-than", f"{text!r} is no age", "give a number and s, m, h, d or w, as in 30d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _delete_files(folder: str) -> None:
    """Raises `OSError` for whatever the library of an object store raises."""
    from upath import UPath  # brings fsspec

    path = UPath(folder)
    if path.protocol in ("", "file", "local") and Path(path.path).is_symlink():
        Path(path.path).unlink()  # what it leads to is not the run's
        return
    try:
        if path.exists():
            path.fs.rm(path.path, recursive=True)
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{folder}: {error}") from error


def diff(invocation: Invocation, first: str, second: str, as_json: bool) -> int:
    """`gluepy diff`"""
    settings = invocation.settings()
    runs = [RunReport.from_record(find_record(settings.runs_root, run), settings) for run in (first, second)]
    found = compare_runs(*runs)
    if as_json:
        say(json_text(found.to_json()))
        return 0
    say(*_diff_text(found, runs))
    return 0


def _diff_text(found: RunDifference, runs: Sequence[RunReport]) -> Iterator[str]:
    yield from table(
        [
            ("run", *(printable(run.run_id) for run in runs)),
            ("dag", *(printable(run.dag) for run in runs)),
            ("status", *(run.status for run in runs)),
            ("started", *(moment(run.started_at) for run in runs)),
            ("took", *(duration(run.duration_s) for run in runs)),
            ("code", *(printable(run.code_version) for run in runs)),
        ]
    )
    parts = [
        (title, [(name, _value(before), "→", _value(after), "") for name, (before, after) in pairs.items()])
        for title, pairs in (("options", found.options), ("context", found.context), ("tasks", found.tasks))
    ]
    for title, pairs, text in (("durations", found.durations, duration), ("metrics", found.metrics, amount)):
        rows = []
        for name, (before, after) in pairs.items():
            numbers = isinstance(before, (int, float)) and isinstance(after, (int, float))
            change = f"{(after - before) / abs(before):+.0%}" if numbers and before else ""
            rows.append((name, _number(before, text), "→", _number(after, text), change))
        parts.append((title, rows))
    same = True
    for title, rows in parts:
        if rows:
            same = False
            yield ""
            yield title
            yield from table(((printable(row[0]), *row[1:]) for row in rows[:_SHOWN]), "  ")
            if len(rows) > _SHOWN:
                yield f"  … and {len(rows) - _SHOWN:,} more; --json has all"
    before, after = ({each.dataset: each for each in run.datasets if each.written} for run in runs)
    changes = {name: dataset_change(before.get(name), after.get(name)) for name in found.datasets}
    if changes:
        same = False
        yield ""
        yield "datasets"
        told = [(printable(name), printable(", ".join(words))) for name, words in changes.items()]
        yield from table(told[:_SHOWN], "  ")
        if len(told) > _SHOWN:
            yield f"  … and {len(told) - _SHOWN:,} more; --json has all"
    if same:
        yield ""
        yield "options, context, statuses, durations, metrics and datasets are the same"


def _value(value: JSON) -> str:
    return "–" if value is None else printable(value if isinstance(value, str) else json_text(value))


def _number(value: JSON, text: Callable[[float], str]) -> str:
    return "–" if value is None else text(value)
