"""Commands that look and change nothing: `list`, `graph`, `settings`, `show`, `events`, `logs`."""

from __future__ import annotations

import shlex
import shutil
import sys
import time

from gluepy.cli.bars import timeline_text
from gluepy.cli.invocation import Invocation, NoProject
from gluepy.cli.plan import as_dot, as_mermaid, as_text
from gluepy.cli.show_task import details_text
from gluepy.cli.story import failure_text, run_text, task_table
from gluepy.cli.text import (
    RESET,
    count,
    damage,
    first_line,
    for_terminal,
    json_text,
    printable,
    say,
    styled,
    table,
    tell,
    wants_colour,
)
from gluepy.conf.dags import Listed, find_dag, find_dags, list_dags
from gluepy.core.events import JSON, RunCancelled, RunFailed, RunFinished
from gluepy.core.graph import slug_of
from gluepy.core.selection import expanders, resolve_name
from gluepy.errors import DagError, OptionError, did_you_mean
from gluepy.exec.dag import compile_dag
from gluepy.report import RunReport
from gluepy.runs.log import LogReader
from gluepy.runs.reading import find_record

FORMATS = ("text", "mermaid", "dot", "svg")
_POLL_S = 0.2
_WHOLE = 5  # tasks of one label that are shown whole


def show_dags(invocation: Invocation, check: bool, as_json: bool) -> int:
    """`gluepy list`"""
    settings = invocation.settings()
    if settings.project is None and not settings.INSTALLED_MODULES:
        raise NoProject("no DAGs to list", str(invocation.where.absolute()))
    rows: list[dict[str, JSON]] = []
    found = [Listed.from_class(dag) for dag in find_dags(settings).values()] if check else list_dags(settings)
    for each in sorted(found, key=lambda each: each.label):
        row: dict[str, JSON] = {"dag": each.label, "class": f"{each.module}:{each.name}", "about": each.about}
        try:
            row["tasks"] = each.tasks if each.dag is None else len(compile_dag(each.dag, settings.LIMITS).graph.index)
        except DagError as error:
            row["error"] = str(error)
        rows.append(row)
    if as_json:
        _say_json(rows)
    elif not rows:
        tell(f"no DAG is defined in INSTALLED_MODULES = {settings.INSTALLED_MODULES}")
    else:
        colour = wants_colour(sys.stdout)
        lines = table(
            (
                printable(row["dag"]),
                f"error: {first_line(row['error'])}"
                if "error" in row
                else count(row["tasks"], "task")
                if row["tasks"] is not None
                else "",
                row["class"],
                printable(row["about"]),
            )
            for row in rows
        )
        say(*(styled(line, "red", colour and "error" in row) for line, row in zip(lines, rows, strict=True)))
    return 0


def show_graph(invocation: Invocation, label: str, format: str) -> int:
    """`gluepy graph`"""
    if format not in FORMATS:
        raise OptionError("--format", f"{format!r} is not one of {', '.join(FORMATS)}{did_you_mean(format, FORMATS)}")
    settings = invocation.settings()
    invocation.check_label(label, settings)
    compiled = compile_dag(find_dag(label, settings), settings.LIMITS)
    match format:
        case "mermaid":
            say(*as_mermaid(compiled.graph))
        case "dot":
            say(*as_dot(compiled.graph, compiled.label))
        case "svg":
            from gluepy.cli.drawing import as_svg

            say(*as_svg(compiled.graph, compiled.label))
        case _:
            say(*as_text(compiled))
    return 0


def show_settings(invocation: Invocation, as_json: bool) -> int:
    """`gluepy settings`"""
    settings = invocation.settings()
    masked = settings.masked()
    if as_json:
        _say_json({name: {"value": value, "source": source} for name, (value, source) in masked.items()})
        return 0
    colour = wants_colour(sys.stdout)
    tell(f"project: {settings.project}" if settings.project else "no project here: these are the defaults")
    rows = [(name, printable(source), json_text(value)) for name, (value, source) in masked.items()]
    for line, (_, source, _) in zip(table(rows), rows, strict=True):
        say(styled(line, "dim", colour and source == "default"))
    return 0


def show_run(invocation: Invocation, run: str, task: str | None, as_json: bool, html: str | None) -> int:
    """`gluepy show`"""
    if html is not None and (task is not None or as_json):
        raise OptionError("--html", "a page shows a whole run, and nothing on stdout", "leave out the task and --json")
    settings = invocation.settings()
    found = RunReport.from_record(find_record(settings.runs_root, run), settings, with_timeline=task is None)
    if task is not None:
        _show_tasks(found, task, as_json)
        return 0
    if html is not None:
        from gluepy.cli.page import run_page, save

        save(run_page(found), html)
        return 0
    if as_json:
        _say_json(found.to_json())
        return 0
    colour = wants_colour(sys.stdout)
    say(*run_text(found, colour))
    bars = list(timeline_text(found.timeline, colour))
    if bars:
        say("", *bars)
    failures = found.failures
    if failures:
        say("", *failure_text(failures, colour))
    if found.status in ("failed", "cancelled", "interrupted"):
        say("", f"resume it with: {invocation.resume_command(found.record)}")
    return 0


def _show_tasks(run: RunReport, task: str, as_json: bool) -> None:
    graph = run.state.graph
    wanted = {graph.task_id(node) for node in resolve_name(graph, run.dag, task, expanders(graph))[0]}
    tasks = [name for name in run.tasks if name in wanted]
    colour = wants_colour(sys.stdout)
    if as_json:
        _say_json({"run_id": run.run_id, "tasks": {name: run.details(name).to_json() for name in tasks}})
    elif not tasks:
        tell("it is not known yet: an `each` has still to find its values")
    elif len(tasks) > _WHOLE:
        say(*task_table([run.tasks[name] for name in tasks], colour))
        tell(f"to see all of one: gluepy show {run.run_id} {shlex.quote(tasks[0])}")
    else:
        for number, name in enumerate(tasks):
            say(*([""] if number else ()), *details_text(run.run_id, run.details(name), colour))


def show_events(invocation: Invocation, run: str, follow: bool) -> int:
    """`gluepy events`"""
    record = find_record(invocation.settings().runs_root, run)
    reader = LogReader(record.events)
    out = sys.stdout.buffer
    while True:
        driven = follow and record.is_held()  # asked before the last look, so that nothing is missed
        over = False
        for event in reader.events():
            out.write(f"{json_text(event)}\n".encode())
            over = isinstance(event, (RunFinished, RunFailed, RunCancelled))
        out.flush()
        if over or not driven:
            break
        time.sleep(_POLL_S)
    for what in damage(reader.bad, reader.gaps, reader.doubled):
        tell(f"{record.events}: {what}")
    return 0


def show_logs(invocation: Invocation, run: str, task: str | None) -> int:
    """`gluepy logs`"""
    settings = invocation.settings()
    found = RunReport.from_record(find_record(settings.runs_root, run), settings)
    graph = found.state.graph
    wanted = (
        None
        if task is None
        else {graph.task_id(node) for node in resolve_name(graph, found.dag, task, expanders(graph))[0]}
    )
    tasks = [each for each in found.tasks.values() if wanted is None or each.task in wanted]
    files = []
    for each in tasks:
        for attempt in range(1, each.attempts + 1):
            file = found.record.logs / f"{slug_of(each.task)}.{attempt}.log"
            if file.is_file():
                files.append((f"{printable(each.task)}, attempt {attempt}", file))
    if not files:
        tell("no output was kept" if any(each.attempts for each in tasks) else "it has not begun")
    out = sys.stdout.buffer
    colour = wants_colour(sys.stdout)
    is_one = sum(each.attempts for each in tasks) == 1
    for position, (title, file) in enumerate(files):
        if not is_one:
            out.write(f"{chr(10) * bool(position)}{styled(f'==> {title} <==', 'bold', colour)}\n".encode())
        with file.open("rb") as stream:
            if sys.stdout.isatty():
                out.writelines(for_terminal(line, colour) for line in stream)
                out.write(RESET if colour else b"")
            else:
                shutil.copyfileobj(stream, out)
        out.flush()
    return 0


def _say_json(value: JSON) -> None:
    say(json_text(value))
