"""Commands that look and change nothing: `list`, `graph`, `settings`, `show`, `events`, `logs`."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Mapping

from gluepy.cli.bars import Shape, most_at_once
from gluepy.cli.invocation import Invocation, NoProject
from gluepy.cli.onetask import OneTask
from gluepy.cli.plan import as_dot, as_mermaid, as_text
from gluepy.cli.story import Story, failure_text
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
from gluepy.core.events import JSON, Event, RunCancelled, RunFailed, RunFinished
from gluepy.core.graph import slug_of
from gluepy.core.selection import expanders, resolve_name
from gluepy.core.timeline import held_back, timeline
from gluepy.errors import DagError, OptionError, did_you_mean
from gluepy.exec.dag import compile_dag
from gluepy.runs.log import LogReader
from gluepy.runtime import find_record

FORMATS = ("text", "mermaid", "dot")
_POLL_S = 0.2
_WHOLE = 5  # tasks of one label that are shown whole


def show_dags(invocation: Invocation, check: bool, as_json: bool) -> int:
    """`gluepy list`"""
    settings = invocation.settings()
    if settings.project is None and not settings.INSTALLED_MODULES:
        raise NoProject("no DAGs to list", str(invocation.where.absolute()))
    rows: list[dict[str, JSON]] = []
    found = [Listed.of(dag) for dag in find_dags(settings).values()] if check else list_dags(settings)
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


def show_run(invocation: Invocation, run: str, task: str | None, as_json: bool) -> int:
    """`gluepy show`"""
    settings = invocation.settings()
    events: list[Event] = []
    story = Story(find_record(settings, run), events.append)
    told = timeline(events, story.state)
    slots = 1 if story.state.options.get("debug") else story.state.options.get("concurrency") or settings.CONCURRENCY
    held = held_back(story.state, slots, settings.LIMITS) if story.status == "running" else {}
    if task is not None:
        _show_tasks(story, task, events, held, as_json)
        return 0
    slots = max(slots, most_at_once(told))
    parameters = story.parameters(settings.mask)
    shape = Shape(timeline=told, state=story.state, slots=slots, limits=settings.LIMITS, status=story.status)
    if as_json:
        _say_json({**story.record_of(held), "parameters": parameters, "timeline": shape.record()})
        return 0
    colour = wants_colour(sys.stdout)
    say(*story.text(colour, parameters, held))
    bars = list(shape.text(colour))
    if bars:
        say("", *bars)
    failures = story.failures()
    if failures:
        say("", *failure_text(failures, colour))
    if story.status in ("failed", "cancelled", "interrupted"):
        say("", f"resume it with: {invocation.resume_command(story.record)}")
    return 0


def _show_tasks(story: Story, task: str, events: list[Event], held: Mapping[int, str], as_json: bool) -> None:
    graph = story.state.graph
    wanted = set(resolve_name(graph, story.state.dag, task, expanders(graph))[0])
    nodes = [node for node in story.nodes if node in wanted]
    colour = wants_colour(sys.stdout)
    if as_json:
        tasks = {graph.task_id(node): OneTask(story, node, events, held).record() for node in nodes}
        _say_json({"run_id": story.record.run_id, "tasks": tasks})
    elif not nodes:
        tell("it is not known yet: an `each` has still to find its values")
    elif len(nodes) > _WHOLE:
        say(*story.table_of(nodes, held, colour))
        tell(f"to see all of one: gluepy show {story.record.run_id} {shlex.quote(graph.task_id(nodes[0]))}")
    else:
        for number, node in enumerate(nodes):
            say(*([""] if number else ()), *OneTask(story, node, events, held).text(colour))


def show_events(invocation: Invocation, run: str, follow: bool) -> int:
    """`gluepy events`"""
    record = find_record(invocation.settings(), run)
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
    story = Story(find_record(invocation.settings(), run))
    graph, state = story.state.graph, story.state
    wanted = set(story.nodes) if task is None else set(resolve_name(graph, state.dag, task, expanders(graph))[0])
    nodes = [node for node in story.nodes if node in wanted]
    files = []
    for node in nodes:
        for attempt in range(1, state.attempt[node] + 1):
            file = story.record.logs / f"{slug_of(graph.task_id(node))}.{attempt}.log"
            if file.is_file():
                files.append((f"{printable(graph.task_id(node))}, attempt {attempt}", file))
    if not files:
        tell("no output was kept" if any(state.attempt[node] for node in nodes) else "it has not begun")
    out = sys.stdout.buffer
    colour = wants_colour(sys.stdout)
    is_one = sum(state.attempt[node] for node in nodes) == 1
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
