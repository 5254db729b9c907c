"""Runs side by side: `compare`; and whether one is worse than another: `check`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gluepy.cli.invocation import Invocation
from gluepy.cli.text import amount, count, duration, json_text, printable, say, styled, table, tell, wants_colour
from gluepy.core.events import JSON
from gluepy.core.policy import Goal
from gluepy.errors import OptionError, did_you_mean
from gluepy.report import RunComparison, RunReport, check_run, compare_many
from gluepy.runs.reading import find_record

_SHORT = 8  # characters of a run's id


def compare(
    invocation: Invocation, runs: Sequence[str], *, metric: str | None, highest: bool, lowest: bool, as_json: bool
) -> int:
    """`gluepy compare`"""
    if highest and lowest:
        raise OptionError("--max and --min", "they are mutually exclusive")
    if len(runs) < 2:
        raise OptionError("RUN", "two runs are needed at least, to be compared", "gluepy compare RUN RUN …")
    if (metric is not None) != (highest or lowest):
        raise OptionError("--metric", "it goes with --max or --min", "gluepy compare RUN RUN --metric TASK.NAME --max")
    reports = _reports(invocation, runs)
    goals = None if metric is None else {metric: Goal("higher" if highest else "lower")}
    found = compare_many(reports, goals)
    if metric is not None and metric not in found.metrics:
        hint = did_you_mean(metric, found.metrics) or f"; they have {', '.join(found.metrics) or 'none'}"
        raise OptionError("--metric", f"none of these runs has a metric {metric!r}{hint}")
    if as_json:
        say(json_text(found.to_json()))
        return 0
    columns = columns_of(found, None if metric is None else [metric])
    if len(columns) > len(runs) + 1:  # as narrow as can be: what differs below, or beside
        columns = [list(row) for row in zip(*columns, strict=True)]
    lines = table([*zip(*columns, strict=True)])
    colour = wants_colour(sys.stdout)
    say(styled(lines[0], "dim", colour), *lines[1:])
    if found.best:
        tell("* is the best value")
    return 0


def columns_of(found: RunComparison, metrics: Sequence[str] | None = None) -> list[list[str]]:
    """Runs side by side, each list with its name first: ids, times, parameters that differ, `metrics` (None: all)."""
    ids = found.runs
    if len({run[-_SHORT:] for run in ids}) == len(ids):
        ids = [run[-_SHORT:] for run in ids]
    columns = [["run", *map(printable, ids)]]
    if len(set(found.dags)) > 1:
        columns.append(["dag", *map(printable, found.dags)])
    if set(found.statuses) != {"finished"}:
        columns.append(["status", *found.statuses])
    columns.append(["took", *map(duration, found.durations_s)])
    columns += [[printable(name), *map(_value, values)] for name, values in found.parameters.items()]
    for name, values in found.metrics.items():
        if metrics is None or name in metrics:
            best = found.best.get(name, [])
            shown = [_number(value) + (" *" if at in best else "") for at, value in enumerate(values)]
            columns.append([printable(name), *shown])
    return columns


def check(invocation: Invocation, run: str, baseline: str, as_json: bool) -> int:
    """`gluepy check`"""
    now, before = _reports(invocation, (run, baseline))
    found = check_run(now, before)
    if not found:
        hint = "declare what is better in a task of the DAG, as in goals = {'auc': 'higher'}, and run it"
        raise OptionError("gluepy check", f"run {before.run_id} has measured nothing that has a goal", hint)
    bad = [each for each in found if each.is_bad]
    if as_json:
        say(json_text({"run": now.run_id, "baseline": before.run_id, "ok": not bad, "metrics": found.to_dicts()}))
        return 1 if bad else 0
    rows = [("metric", "better", "baseline", "run", "change", "")]
    for each in found:
        change = "" if each.value is None else f"{each.value - each.baseline:+.4g}"
        verdict = (
            f"worse, by more than {each.tolerance:g}" if each.verdict == "worse" and each.tolerance else each.verdict
        )
        values = (_number(each.baseline), _number(each.value))
        rows.append((printable(each.metric), each.better, *values, change, verdict))
    colour = wants_colour(sys.stdout)
    lines = table(rows)
    say(styled(lines[0], "dim", colour))
    for line, each in zip(lines[1:], found, strict=True):
        say(styled(line, "red", colour and each.is_bad))
    if bad:
        tell(f"{count(len(bad), 'metric')} of {printable(now.run_id)} worse than in {printable(before.run_id)}")
    return 1 if bad else 0


def _reports(invocation: Invocation, runs: Sequence[str]) -> list[RunReport]:
    settings = invocation.settings()
    return [RunReport.from_record(find_record(settings.runs_root, run), settings) for run in runs]


def _value(value: JSON) -> str:
    return "–" if value is None else printable(value if isinstance(value, str) else json_text(value))


def _number(value: float | None) -> str:
    return "–" if value is None else amount(value)
