"""Runs, as they are reported: `read_run`, `read_runs`, `follow_run`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gluepy.clock import seconds_of
from gluepy.conf.places import flat
from gluepy.core import events as e
from gluepy.core.events import JSON, Event
from gluepy.core.state import BLOCKED, FAILED, RETRYING, SKIPPED, STATUS, State
from gluepy.core.timeline import TimelineFold, held_back, timeline
from gluepy.errors import OptionError
from gluepy.redact import masked
from gluepy.report.datasets import DatasetReport, datasets_in
from gluepy.report.failures import Failure
from gluepy.report.rows import NamedRows, Parameters, Rows
from gluepy.report.tasks import AttemptReport, MetricReport, TaskDetails, TaskReport, attempts_in, metrics_in
from gluepy.report.timeline import RunTimeline
from gluepy.runs.log import LogReader
from gluepy.runs.reading import RunReader, find_record, read_record
from gluepy.runs.record import Record

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings
    from gluepy.runs.index import RunSummary


class Damage(msgspec.Struct, frozen=True):
    """What is wrong with a run's log: lines that cannot be read, events that are missing, events whose number was there
    before. False if nothing is."""

    bad_lines: int = 0
    gaps: int = 0
    doubled: int = 0

    def __bool__(self) -> bool:
        return any((self.bad_lines, self.gaps, self.doubled))

    def to_json(self) -> dict[str, JSON]:
        """All fields."""
        return {"bad_lines": self.bad_lines, "gaps": self.gaps, "doubled": self.doubled}


class RunReport:
    """A run as its record tells it. It does not change: of a live run it has what had happened when it was read.

    `record` is where it was read, `state` the fold of its events. What takes long to find out is found out when it is
    asked for. `settings` say what is a secret, and how many tasks may run at a time; `now` gives the time in seconds
    since 1970, and `told` the timeline of the events, if that is at hand: they are read again otherwise.
    """

    def __init__(
        self,
        record: Record,
        reader: RunReader,
        settings: Settings,
        *,
        told: TimelineFold | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.record, self.state = record, reader.state
        self.run_id, self.path = record.run_id, record.path
        self.damage = Damage(reader.bad, reader.gaps, reader.doubled)
        self._settings, self._now = settings, now
        self._seen, self._skip_messages, self._told = reader.seen, reader.skip_messages, told
        state = reader.state
        self.dag, self.reason = state.dag, state.reason
        self.started_at, self.sessions = state.started_at, state.session
        self.code_version, self.first_code_version = state.code_version, state.first_code_version
        self.options: dict[str, JSON] = masked("", state.options)  # drivers of earlier versions recorded them unmasked

    @classmethod
    def from_record(cls, record: Record, settings: Settings, *, with_timeline: bool = False) -> RunReport:
        """Read `record`. `with_timeline`: that will be asked for, so it is found out on the way.

        Raises `UnreadableLog`, and `UnknownRun` for a run that was deleted meanwhile.
        """
        told = TimelineFold() if with_timeline else None
        return cls(record, read_record(record, see=None if told is None else told.add), settings, told=told)

    def __repr__(self) -> str:
        counts = ", ".join(f"{number:,} {word}" for word, number in self.counts.items())
        return f"<RunReport {self.dag} {self.status}, {self.duration_s:.3g} s, {counts}, run {self.run_id}>"

    @cached_property
    def status(self) -> str:
        """`finished`, `failed`, `cancelled`, `running`, or `interrupted` when its driver is gone."""
        status: str = self.state.run
        return "interrupted" if status == "running" and not self.record.is_held() else status

    @property
    def duration_s(self) -> float:
        """How long its sessions took together, or have taken until now, or until the last event that is known."""
        since_s = 0.0
        if self.status == "running":
            now = self._now()
            since_s = now - (seconds_of(self.state.last_at) or now)
        return self.state.lasted_s() + max(0.0, since_s)

    @cached_property
    def counts(self) -> dict[str, int]:
        """The number of tasks by status."""
        return self.counts_as(self.status)

    def counts_as(self, status: str) -> dict[str, int]:
        """`counts`, for a run that has this `status`."""
        return {
            "interrupted" if word == "running" and status == "interrupted" else word: number
            for word, number in self.state.counts().items()
        }

    @cached_property
    def nodes(self) -> list[int]:
        """The nodes of the tasks in the order of the DAG: what an `each` found stands where the `each` does."""
        graph = self.state.graph
        ordered = [node for node in graph.order() if graph.ids[node] is not None]
        return ordered if len(ordered) == len(graph.index) else list(graph.tasks())

    @cached_property
    def tasks(self) -> NamedRows[TaskReport]:
        """The tasks by id, in the order of the DAG."""
        return NamedRows((self.state.graph.task_id(node), self.task(node)) for node in self.nodes)

    @cached_property
    def attempts(self) -> Rows[AttemptReport]:
        """All attempts, in the order in which they began."""
        return attempts_in(self.events, self.path, live=self.status == "running")

    @cached_property
    def metrics(self) -> Rows[MetricReport]:
        """All values that tasks have measured, in their order; `tasks` have the last of each."""
        return metrics_in(self.events)

    @cached_property
    def datasets(self) -> Rows[DatasetReport]:
        """What tasks have read and written by name, the last of each, in the order of the tasks."""
        return datasets_in(self.state)

    def task(self, node: int) -> TaskReport:
        """The task that is the node `node` of the graph."""
        state, graph = self.state, self.state.graph
        status, task, spec = state.status[node], graph.task_id(node), graph.spec(node)
        word = STATUS[status]
        error = state.error.get(node) if status in (FAILED, RETRYING) else None
        attempts = state.attempt[node]
        return TaskReport(
            task=task,
            label=spec.label,
            status="interrupted" if word == "running" and self.status == "interrupted" else word,
            attempts=attempts,
            max_attempts=max(spec.retry.attempts + state.attempts_before_reset.get(node, 0), attempts),
            duration_s=state.duration_s[node],
            reason=state.skip_reason.get(node, "") if status == SKIPPED else None,
            why=self._skip_messages.get(task) if status == SKIPPED else None,
            waiting_for=self._waiting.get(node),
            blocked_by=state.blocked_by.get(node, []) if status == BLOCKED else None,
            failure=Failure.from_event(error, self.path) if error is not None else None,
            metrics=state.metrics.get(node, {}),
        )

    def details(self, task: str) -> TaskDetails:
        """A task, by its id, with its declaration and its attempts. Raises `KeyError` for an id that no task has."""
        graph = self.state.graph
        node = graph.index[task]
        spec = graph.spec(node)
        return TaskDetails(
            report=self.task(node),
            cls=spec.cls,
            parameters=graph.params(node),
            trigger=spec.trigger,
            max_attempts=spec.retry.attempts,
            timeout_s=spec.timeout_s,
            memory_mb=spec.memory_mb,
            cpus=spec.cpus,
            queue=spec.queue,
            uses=spec.uses,
            inputs=list(spec.inputs),
            outputs=list(spec.outputs),
            dependencies=self._in_order(set(graph.task_dependencies(node))),
            dependents=self._in_order(set(graph.task_dependents(node))),
            attempts=attempts_in(self.events, self.path, live=self.status == "running", task=task),
        )

    @property
    def failures(self) -> Rows[Failure]:
        """The failures of the tasks that failed, in the order of the DAG."""
        errors, status = self.state.error, self.state.status
        failed = (errors[node] for node in self.nodes if node in errors and status[node] == FAILED)
        return Rows(Failure.from_event(event, self.path) for event in failed if isinstance(event, e.TaskFailed))

    @cached_property
    def context(self) -> dict[str, JSON]:
        """The run's context, flat, by dotted names, as it is recorded: to be compared, not to be shown."""
        try:
            values = msgspec.json.decode(self.record.context.read_bytes())
        except (OSError, msgspec.DecodeError, UnicodeError, RecursionError):
            return {}
        return flat(values) if isinstance(values, dict) else {}

    @property
    def parameters(self) -> Parameters:
        """The run's context, flat, by dotted names, with its secrets masked. Empty if it cannot be read."""
        mask = self._settings.mask
        return Parameters((name, mask(name.rpartition(".")[2], value)) for name, value in self.context.items())

    @cached_property
    def events(self) -> Rows[Event]:
        """The events of the run, as far as they had happened when it was read."""
        return Rows(LogReader(self.record.events).events(self._seen))

    @cached_property
    def timeline(self) -> RunTimeline:
        """When its attempts ran, and what they waited for."""
        found = timeline(self.events, self.state) if self._told is None else self._told.timeline(self.state)
        limits = self._settings.LIMITS
        return RunTimeline(found, self.state, concurrency=self._slots, limits=limits, status=self.status)

    def summary_json(self) -> dict[str, JSON]:
        """`to_json` without the parameters and the timeline."""
        return {
            "run_id": self.run_id,
            "dag": self.dag,
            "status": self.status,
            "reason": self.reason,
            "path": str(self.path),
            "started_at": self.started_at,
            "duration_s": round(self.duration_s, 6),
            "code_version": self.code_version,
            "first_code_version": self.first_code_version,
            "options": self.options,
            "counts": self.counts,
            "tasks": {name: task.to_json() for name, task in self.tasks.items()},
        }

    def to_json(self) -> dict[str, JSON]:
        """What `gluepy show --json` prints."""
        return {
            **self.summary_json(),
            "sessions": self.sessions,
            "damage": self.damage.to_json(),
            "parameters": self.parameters,
            "timeline": self.timeline.to_json(),
        }

    @property
    def _slots(self) -> int:
        """How many tasks it may run at a time."""
        if self.state.options.get("debug"):
            return 1
        concurrency = self.state.options.get("concurrency")
        return concurrency if isinstance(concurrency, int) and concurrency > 0 else self._settings.CONCURRENCY

    @cached_property
    def _waiting(self) -> dict[int, str]:
        """The ready tasks that do not run, with the limit that each waits for ("": a slot)."""
        return held_back(self.state, self._slots, self._settings.LIMITS) if self.status == "running" else {}

    def _in_order(self, nodes: set[int]) -> list[str]:
        return [self.state.graph.task_id(node) for node in self.nodes if node in nodes]


class RunFollower:
    """Follows a run of this process or of another, as its log grows. `record` is the run's.

    `over` is True once there is nothing more to come: the run has ended, or no driver holds it. Nothing waits here:
    call `poll` as often as you like, in a thread if the event loop must not wait for the disk.
    """

    def __init__(self, record: Record, settings: Settings) -> None:
        self.record, self.over = record, False
        self._settings, self._reader = settings, RunReader(record.events)

    @property
    def state(self) -> State:
        """The fold of the events that `poll` has given. Raises `UnreadableLog` before the first."""
        return self._reader.state

    def poll(self) -> list[Event]:
        """The events that were written since the last call. Raises `UnreadableLog`."""
        held = self.record.is_held()  # first: of a driver that lets go now, all events are there to be read below
        events = list(self._reader.events())
        self.over = not held or (bool(events) and is_end(events[-1])) or (self.over and not events)
        return events

    def report(self) -> RunReport:
        """The run after the events that `poll` has given. The next `poll` changes its `state`: make a new one then."""
        return RunReport(self.record, self._reader, self._settings)


def is_end(event: Event) -> bool:
    """Whether the session of a run ends with `event`."""
    return isinstance(event, (e.RunFinished, e.RunFailed, e.RunCancelled))


def read_run(run: str | os.PathLike[str] = "latest", root: str | os.PathLike[str] | None = None) -> RunReport:
    """The run with the id `run`, or the one whose id ends so, `latest`, `latest:LABEL`, or the path of its record.

    `root` is the folder of the records: RUNS_ROOT, if omitted. Raises `UnknownRun`, and `UnreadableLog`.
    """
    return RunReport.from_record(_find(run, root), _settings())


def follow_run(run: str | os.PathLike[str] = "latest", root: str | os.PathLike[str] | None = None) -> RunFollower:
    """Follow a run, named as for `read_run`, from its first event on. Raises `UnknownRun`."""
    return RunFollower(_find(run, root), _settings())


def read_runs(
    root: str | os.PathLike[str] | None = None,
    dag: str | None = None,
    *,
    status: str | None = None,
    since: datetime | timedelta | str | None = None,
    limit: int = 100,
) -> Rows[RunSummary]:
    """The newest runs, at most `limit` (0: all), newest first; of one DAG, by its label, with one status, and `since` a
    moment (ISO 8601 as text; local time if it has no zone) or for so long.

    They come from an index, a file beside the records, that takes in only what has changed since the last call: this is
    the cheap way to list many runs. `root` is the folder of the records: RUNS_ROOT, if omitted. A run that cannot be
    read is listed too, with the status `unreadable`.
    """
    from gluepy.runs.index import Index  # brings SQLite

    with Index(Path(root) if root is not None else _settings().runs_root) as index:
        return Rows(index.runs(dag, status, limit, since=None if since is None else _timestamp(since)))


def _timestamp(since: datetime | timedelta | str) -> str:
    """A moment as logs write it. Raises `OptionError`."""
    if isinstance(since, timedelta):
        since = datetime.now(UTC) - since
    try:
        moment = datetime.fromisoformat(since) if isinstance(since, str) else since
        return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    except (ValueError, OverflowError) as error:
        raise OptionError("since", f"{since!r} is no moment: {error}", "write it as 2026-01-31T08:00:00Z") from None


def _find(run: str | os.PathLike[str], root: str | os.PathLike[str] | None) -> Record:
    if not isinstance(run, str) or os.sep in run:
        path = Path(run)
        record = Record(path.parent, path.name)
        if record.is_gone():
            raise record.gone()
        return record
    return find_record(Path(root) if root is not None else _settings().runs_root, run)


def _settings() -> Settings:
    from gluepy.conf import settings

    return settings
