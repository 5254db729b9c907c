"""Records of runs that no driver on this machine followed, made of what their steps have left: `gluepy collect`."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from gluepy.clock import parse_rfc3339
from gluepy.conf.schema import Settings
from gluepy.core import events as e
from gluepy.core.graph import slug_of
from gluepy.core.policy import judge
from gluepy.core.state import BLOCKED, CANCELLED, FAILED, FINISHED, PENDING, RETRYING, RUNNING, SKIPPED, State
from gluepy.errors import OptionError
from gluepy.exec.files import opened
from gluepy.exec.steps import RunFile, StepFolder, has_ended
from gluepy.runs.log import LogReader, UnreadableLog
from gluepy.runs.record import Record, write_private

COLLECTED = "collected"  # the option that a record has which was made here
_ENDED = (FINISHED, SKIPPED, FAILED, CANCELLED, BLOCKED)


class Collected(NamedTuple):
    """A run whose record was made or made again: its `status` is that of the events, `running` for one without an
    end. `is_new`: there was no record of it."""

    run_id: str
    dag: str
    status: str
    is_new: bool


def collect_run(settings: Settings, run_id: str) -> Collected:
    """Make the record of the run, or make it again, as its steps tell it now.

    Raises `OptionError` for a run without `run.json` in STORAGE_ROOT, and for one of which a driver wrote the record;
    `RunLocked` while somebody else writes it.
    """
    folder = StepFolder(settings.run_files(run_id))
    run_file = _read(folder, run_id)
    record, is_new = Record(settings.runs_root, run_id), False
    if record.is_gone():
        record = Record.create(settings.runs_root, run_id, run_file.context)
        is_new = True
    elif not _was_collected(record):
        why = f"its record in {settings.runs_root} is that of its driver"
        raise OptionError(f"run {run_id}", why, f"see it with `gluepy show {run_id}`")
    state, lines, logs = _events_of(folder, run_file)
    with record.lock(new=is_new) as held:
        record.make_logs()
        for name, data in logs:
            write_private(record.logs / name, data.decode("utf-8", "replace"))
        os.ftruncate(held.file, 0)
        os.pwrite(held.file, b"".join(lines), 0)
        os.fsync(held.file)
    return Collected(run_id, run_file.dag, state.run, is_new)


def uncollected(settings: Settings) -> Iterator[str]:
    """The runs in STORAGE_ROOT of which this machine has no record, or one that was collected while they went on; the
    oldest first."""
    root = opened(settings.storage_root) / "runs"
    try:
        names = sorted(path.name for path in root.iterdir())
    except FileNotFoundError:
        return
    for name in names:
        record = Record(settings.runs_root, name)
        if not record.is_gone() and (not _was_collected(record) or _is_over(record)):
            continue
        if (root / name / "run.json").exists():
            yield name


def _read(folder: StepFolder, run_id: str) -> RunFile:
    try:
        run_file = folder.read_run()
    except ValueError as error:
        raise OptionError(f"run {run_id}", str(error), "remove it") from None
    if run_file is None:
        raise OptionError(f"run {run_id}", f"{folder.place} has no run.json", "it was not handed to an orchestrator")
    return run_file


def _was_collected(record: Record) -> bool:
    first = _first(record)
    return first is None or bool(first.options.get(COLLECTED))


def _is_over(record: Record) -> bool:
    try:
        *_, last = LogReader(record.events).events()
    except (UnreadableLog, ValueError):
        return False
    return isinstance(last, e.RunFinished | e.RunFailed | e.RunCancelled)


def _first(record: Record) -> e.RunStarted | None:
    try:
        first = next(LogReader(record.events).events(1), None)
    except UnreadableLog:
        return None
    return first if isinstance(first, e.RunStarted) else None


def _events_of(folder: StepFolder, run_file: RunFile) -> tuple[State, list[bytes], list[tuple[str, bytes]]]:
    """The state, the lines of the log, and the log files with their names."""
    files = sorted((file.slug, file.attempt) for file in folder.files())
    told: list[list[e.TaskEvent]] = [folder.events(*file) for file in files]
    for position, (events, (slug, attempt)) in enumerate(zip(told, files, strict=True)):
        is_followed = (slug, attempt + 1) in files
        if events and is_followed and not has_ended(events):
            told[position] = [*events, _lost(events)]
    logs = [(f"{slug}.{attempt}.log", data) for slug, attempt in files if (data := folder.log(slug, attempt))]
    named = {name for name, _ in logs}
    everything = sorted((event for events in told for event in events), key=lambda event: event.timestamp)
    lines: list[bytes] = []
    state = _begin(run_file, lines)
    waiting = everything
    while waiting:  # what an `each` adds may have told before the `each` has
        later: list[e.TaskEvent] = []
        for event in waiting:
            if event.task in state.graph.index:
                _store(state, lines, _with_log(event, named))
            else:
                later.append(event)
        if len(later) == len(waiting):
            break
        waiting = later
    _conclude(state, lines, run_file)
    return state, lines, logs


def _begin(run_file: RunFile, lines: list[bytes]) -> State:
    started = e.RunStarted(
        1,
        1,
        run_file.created_at,
        "info",
        run_file.run_id,
        run_file.dag,
        schema_version=run_file.schema_version,
        gluepy_version=run_file.gluepy_version,
        host=socket.gethostname(),
        pid=os.getpid(),
        graph=run_file.graph,
        params_digest=run_file.params_digest,
        code_version=run_file.code_version,
        options={**run_file.options, "executor": run_file.executor, COLLECTED: True},
    )
    lines.append(e.encode(started))
    return State.from_events([started])


def _store(state: State, lines: list[bytes], event: e.Event) -> None:
    event = msgspec.structs.replace(event, seq=state.seq + 1, session=1)
    state.apply(event)
    lines.append(e.encode(event))


def _with_log(event: e.TaskEvent, names: set[str]) -> e.TaskEvent:
    if isinstance(event, e.TaskFailed | e.TaskRetrying):
        name = f"{slug_of(event.task)}.{event.attempt}.log"
        return msgspec.structs.replace(event, log=f"logs/{name}" if name in names else None)
    return event


def _conclude(state: State, lines: list[bytes], run_file: RunFile) -> None:
    """Tell of the tasks that never came to a step, as far as what came before them says it, and of the end."""
    graph = state.graph

    def header(level: str) -> tuple[int, int, str, str, str, str]:
        return 0, 1, state.last_at, level, run_file.run_id, run_file.dag

    selected = None if run_file.selected is None else set(run_file.selected)
    for node in graph.order():
        if graph.ids[node] is None or state.status[node] != PENDING:
            continue
        task = graph.task_id(node)
        if selected is not None and task not in selected:
            _store(state, lines, e.TaskSkipped(*header("info"), task, 0, reason="unselected"))
            continue
        before = graph.task_dependencies(node)
        if any(state.status[other] not in _ENDED for other in before):
            continue
        bad = [other for other in before if state.status[other] in (FAILED, CANCELLED, BLOCKED)]
        skipped = [
            other for other in before if state.status[other] == SKIPPED and state.skip_reason.get(other) != "unselected"
        ]
        finished = any(state.status[other] != SKIPPED or other not in skipped for other in graph.deciding(node))
        match judge(graph.spec(node).trigger, bad=bool(bad), skipped=bool(skipped), finished=finished):
            case "blocked":
                causes: Mapping[str, None] = dict.fromkeys(
                    cause for other in bad for cause in (state.blocked_by.get(other) or [graph.task_id(other)])
                )
                _store(state, lines, e.TaskBlocked(*header("warning"), task, 0, list(causes)))
            case "start":
                pass
            case reason:
                _store(state, lines, e.TaskSkipped(*header("info"), task, 0, reason=reason))
    codes = {state.status[node] for node in graph.tasks()}
    if codes & {PENDING, RUNNING, RETRYING}:
        return
    duration_s = max(0.0, parse_rfc3339(state.last_at) - parse_rfc3339(run_file.created_at))
    failed = [graph.task_id(node) for node in graph.tasks() if state.status[node] == FAILED]
    if failed:
        _store(state, lines, e.RunFailed(*header("error"), duration_s, state.counts(), failed))
    elif CANCELLED in codes:
        _store(state, lines, e.RunCancelled(*header("warning"), duration_s, state.counts()))
    else:
        _store(state, lines, e.RunFinished(*header("info"), duration_s, state.counts()))


def _lost(events: list[e.TaskEvent]) -> e.TaskRetrying:
    """The end of an attempt that has none, and was followed by another."""
    first, last = events[0], events[-1]
    assert isinstance(first, e.TaskStarted)
    return e.TaskRetrying(
        0,
        1,
        last.timestamp,
        "warning",
        first.run_id,
        first.dag,
        first.task,
        first.attempt,
        max_attempts=max(first.max_attempts, first.attempt + 1),
        executor=first.executor,
        pool=first.pool,
        duration_s=max(0.0, parse_rfc3339(last.timestamp) - parse_rfc3339(first.timestamp)),
        delay_s=0.0,
        reason="lost",
        error_type="AttemptLost",
        error_message="the attempt was lost: its step is gone, and another has begun",
        pid=first.pid,
        host=first.host,
    )
