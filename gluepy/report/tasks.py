"""The tasks of a run, as they are reported: each in brief, or with its declaration and its attempts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from gluepy.core import events as e
from gluepy.core.events import JSON
from gluepy.core.graph import slug_of
from gluepy.report.failures import Failure
from gluepy.report.rows import Rows

_USAGE = ("worker", "pid", "host", "cpu_s", "peak_rss_mb")


class TaskReport(msgspec.Struct, frozen=True, kw_only=True):
    """A task of a run. `status` is pending, running, retrying, finished, skipped, failed, cancelled or blocked; or
    interrupted, if it was running when the run's driver died.

    `attempts` is how many have started, of `max_attempts`; `duration_s` is that of the last one that ended. `reason`
    is that of a skip (`skip`, with the task's own message in `why`; `upstream`, `trigger`, `unselected`), and None
    otherwise. `waiting_for` is the named limit that a ready task waits for, "" for a slot, None if it does not wait.
    `failure` is the last failure of a task that failed or is retrying. `metrics` has the last value of each.
    """

    task: str
    label: str
    status: str
    attempts: int
    max_attempts: int
    duration_s: float
    reason: str | None = None
    why: str | None = None
    waiting_for: str | None = None
    blocked_by: list[str] | None = None
    failure: Failure | None = None
    metrics: Mapping[str, float | None] = {}

    def to_dict(self) -> dict[str, JSON]:
        """As a row of a table. The metrics are a table of their own."""
        names = ("task", "label", "status", "attempts", "max_attempts", "duration_s")
        more = ("reason", "why", "waiting_for", "blocked_by")
        return {name: getattr(self, name) for name in (*names, *more)} | Failure.columns(self.failure)

    def to_json(self) -> dict[str, JSON]:
        """As in the `tasks` of `gluepy show --json`, where the task's id is the key."""
        told: dict[str, JSON] = {
            "label": self.label,
            "status": self.status,
            "attempts": self.attempts,
            "max_attempts": self.max_attempts,
            "duration_s": self.duration_s,
        }
        if self.reason is not None:
            told["reason"] = self.reason
        if self.why is not None:
            told["why"] = self.why
        if self.waiting_for is not None:
            told["waiting_for"] = awaited(self.waiting_for)
        if self.blocked_by is not None:
            told["blocked_by"] = self.blocked_by
        if self.failure is not None and self.status == "failed":
            told["error"] = {**self.failure.error(), "log": self.failure.log or None}
        if self.metrics:
            told["metrics"] = dict(self.metrics)
        return told


class AttemptReport(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt of a task. `status` is running, finished, failed, cancelled, skipped or interrupted; `session` is the
    session of the run in which it started; `log` is the path of its log file, if there is one. `usage` has what is
    known of where it ran and what it used, by the names of the events' fields: worker, pid, host, cpu_s, peak_rss_mb.
    """

    task: str
    attempt: int
    session: int
    status: str
    started_at: str
    queued_s: float
    executor: str
    pool: str
    log: str | None
    usage: Mapping[str, JSON]
    duration_s: float | None = None
    failure: Failure | None = None
    why: str | None = None

    def to_dict(self) -> dict[str, JSON]:
        """As a row of a table."""
        names = ("task", "attempt", "session", "status", "started_at", "queued_s", "duration_s", "executor", "pool")
        usage = {name: self.usage.get(name) for name in _USAGE}
        told = {name: getattr(self, name) for name in names} | usage | {"log": self.log, "why": self.why}
        return told | Failure.columns(self.failure)

    def to_json(self) -> dict[str, JSON]:
        """As in the `history` of `gluepy show RUN TASK --json`."""
        usage = dict(self.usage)
        told: dict[str, JSON] = {
            "attempt": self.attempt,
            "session": self.session,
            "status": self.status,
            "started_at": self.started_at,
            "queued_s": self.queued_s,
            "executor": self.executor,
            "pool": self.pool,
            "host": usage.pop("host"),
            "pid": usage.pop("pid"),
            "log": self.log,
        }
        if self.status not in ("running", "interrupted"):
            told["duration_s"] = self.duration_s
        told |= usage
        if self.failure is not None:
            told["error"] = self.failure.error()
        if self.why is not None:
            told["why"] = self.why
        return told


class TaskDetails(msgspec.Struct, frozen=True, kw_only=True):
    """A task with its declaration and its attempts. `cls` is its class as `module:name`; `dependencies` and
    `dependents` are the ids of the tasks directly before and after it."""

    report: TaskReport
    cls: str
    parameters: Mapping[str, JSON]
    trigger: str
    max_attempts: int
    timeout_s: float | None
    memory_mb: int | None
    cpus: int | None
    queue: str | None
    uses: Mapping[str, int]
    inputs: list[str]
    outputs: list[str]
    dependencies: list[str]
    dependents: list[str]
    attempts: list[AttemptReport]

    def to_json(self) -> dict[str, JSON]:
        """As in the `tasks` of `gluepy show RUN TASK --json`."""
        return {
            **self.report.to_json(),
            "label": self.report.label,
            "class": self.cls,
            "parameters": dict(self.parameters),
            "trigger": self.trigger,
            "max_attempts": self.max_attempts,
            "timeout_s": self.timeout_s,
            "memory_mb": self.memory_mb,
            "cpus": self.cpus,
            "queue": self.queue,
            "uses": dict(self.uses),
            "inputs": self.inputs,
            "outputs": self.outputs,
            "after": self.dependencies,
            "before": self.dependents,
            "history": [attempt.to_json() for attempt in self.attempts],
        }


def awaited(limit: str) -> str:
    """What a task waits for, by the name of a limit, or "" for a slot."""
    return f"limit {limit}" if limit else "a slot"


class MetricReport(msgspec.Struct, frozen=True, kw_only=True):
    """A value that an attempt of a task has measured, the `step`th of this name in the attempt, counted from 1; None
    for what JSON cannot hold."""

    task: str
    attempt: int
    name: str
    step: int
    value: float | None
    timestamp: str

    def to_dict(self) -> dict[str, JSON]:
        """All fields."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


def metrics_in(events: Iterable[e.Event]) -> Rows[MetricReport]:
    """The metrics among `events`, in their order."""
    steps: Counter[tuple[str, int, str]] = Counter()
    found: Rows[MetricReport] = Rows()
    for event in events:
        if isinstance(event, e.TaskMetric):
            key = event.task, event.attempt, event.name
            steps[key] += 1
            task, attempt, name = key
            found.append(
                MetricReport(
                    task=task,
                    attempt=attempt,
                    name=name,
                    step=steps[key],
                    value=event.value,
                    timestamp=event.timestamp,
                )
            )
    return found


def attempts_in(events: Iterable[e.Event], folder: Path, *, live: bool, task: str | None = None) -> Rows[AttemptReport]:
    """The attempts in a run with these `events`, whose record is `folder`, in the order in which they began; `live` if
    a driver holds it. Of one `task`, if it is given."""
    attempts: dict[tuple[str, int], AttemptReport] = {}
    try:
        logs = set(os.listdir(folder / "logs"))
    except OSError:
        logs = set()
    for event in events:
        if task is not None and getattr(event, "task", None) != task:
            continue
        match event:
            case e.TaskStarted():
                log = f"{slug_of(event.task)}.{event.attempt}.log"
                attempts[event.task, event.attempt] = AttemptReport(
                    task=event.task,
                    attempt=event.attempt,
                    session=event.session,
                    status="running" if live else "interrupted",
                    started_at=event.timestamp,
                    queued_s=event.queued_s,
                    executor=event.executor,
                    pool=event.pool,
                    log=str(folder / "logs" / log) if log in logs else None,
                    usage={"host": event.host, "pid": event.pid},
                )
            case e.TaskFinished() | e.TaskFailed() | e.TaskRetrying() | e.TaskCancelled() | e.TaskSkipped():
                key = event.task, event.attempt
                if key in attempts:
                    attempts[key] = _ended(attempts[key], event, folder)
    return Rows(attempts.values())


_End = e.TaskFinished | e.TaskFailed | e.TaskRetrying | e.TaskCancelled | e.TaskSkipped
_ENDS = {e.TaskFinished: "finished", e.TaskCancelled: "cancelled", e.TaskSkipped: "skipped"}


def _ended(attempt: AttemptReport, event: _End, folder: Path) -> AttemptReport:
    used = {name: value for name in _USAGE if (value := getattr(event, name, None)) is not None}
    return msgspec.structs.replace(
        attempt,
        status=_ENDS.get(type(event), "failed"),
        duration_s=event.duration_s,
        usage={**attempt.usage, **used},
        failure=Failure.from_event(event, folder) if isinstance(event, (e.TaskFailed, e.TaskRetrying)) else None,
        why=event.why if isinstance(event, e.TaskSkipped) else None,
    )
