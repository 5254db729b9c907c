"""The sink `prometheus`: what runs did, as metrics of this process to be scraped, and as files for the node exporter.

`exposition` gives what there is to scrape. Labels are those of code: DAGs, labels of tasks (all instances of an `each`
have one) and names of metrics; when there are too many, the rest is counted together, as `other`.
"""

from __future__ import annotations

import threading
from collections import Counter as Tally
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, write_to_textfile
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_fd_to_metric_families
from pydantic import BaseModel, ConfigDict, PositiveInt

from gluepy.core import events as e
from gluepy.core.graph import slug_of
from gluepy.sinks.port import Sink

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings

OTHER = "other"  # the label of what there are too many of
_RUN_BUCKETS = (0.1, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600)
_TASK_BUCKETS = (0.01, 0.1, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600)

EndOfRun = e.RunFinished | e.RunFailed | e.RunCancelled
_STATUS: dict[type, str] = {e.RunFinished: "finished", e.RunFailed: "failed", e.RunCancelled: "cancelled"}


class PrometheusSettings(BaseModel):
    """The group PROMETHEUS. `textfile` is the folder that the node exporter reads (`--collector.textfile.directory`),
    under the project if it is relative; `max_labels` is how many DAGs, tasks and names of metrics are told apart."""

    model_config = ConfigDict(extra="forbid")

    textfile: str | None = None
    max_labels: PositiveInt = 500


class Metrics:
    """The metrics of all runs that this process drives, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._known: set[tuple[str, ...]] = set()
        dag, task = ["dag"], ["dag", "task"]
        self.runs = Counter("gluepy_runs", "Sessions of runs that ended.", [*dag, "status"], registry=registry)
        self.active = Gauge("gluepy_runs_active", "Runs that are driven now.", dag, registry=registry)
        self.duration = Histogram(
            "gluepy_run_duration_seconds", "Duration of sessions.", dag, registry=registry, buckets=_RUN_BUCKETS
        )
        self.attempts = Counter("gluepy_attempts", "Attempts that ended.", [*task, "status"], registry=registry)
        self.attempt_duration = Histogram(
            "gluepy_attempt_duration_seconds", "Duration of attempts.", task, registry=registry, buckets=_TASK_BUCKETS
        )
        self.queued = Histogram(
            "gluepy_attempt_queued_seconds",
            "How long attempts were ready before they began.",
            dag,
            registry=registry,
            buckets=_TASK_BUCKETS,
        )
        self.value = Gauge("gluepy_metric", "The latest value of self.metric().", [*task, "name"], registry=registry)
        self.last = LastRuns(registry)

    def label(self, limit: int, *names: str) -> str:
        """The last of `names`, which is below the others; `other` once `limit` of its kind are known."""
        with self._lock:
            if names not in self._known:
                if sum(len(each) == len(names) for each in self._known) >= limit:
                    return OTHER
                self._known.add(names)
        return names[-1]


class LastRuns:
    """How the last run of each DAG went, and when the last one finished well."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ended = Gauge("gluepy_last_run_timestamp_seconds", "When the last run ended.", ["dag"], registry=registry)
        self.success = Gauge(
            "gluepy_last_success_timestamp_seconds",
            "When the last run that finished well ended.",
            ["dag"],
            registry=registry,
        )
        self.finished = Gauge(
            "gluepy_last_run_success", "Whether the last run finished well.", ["dag"], registry=registry
        )
        self.duration = Gauge(
            "gluepy_last_run_duration_seconds", "How long the last run took.", ["dag"], registry=registry
        )
        self.tasks = Gauge(
            "gluepy_last_run_tasks", "Tasks of the last run by status.", ["dag", "status"], registry=registry
        )

    def note(self, dag: str, event: EndOfRun) -> None:
        """Take a run that ended."""
        at = _seconds(event.timestamp)
        self.ended.labels(dag).set(at)
        self.finished.labels(dag).set(isinstance(event, e.RunFinished))
        self.duration.labels(dag).set(event.duration_s)
        for status in ("finished", "failed", "skipped", "cancelled", "blocked"):
            self.tasks.labels(dag, status).set(event.counts.get(status, 0))
        if isinstance(event, e.RunFinished):
            self.success.labels(dag).set(at)

    def note_success(self, dag: str, at: float) -> None:
        """A run of the past finished well at `at` (Unix time)."""
        self.success.labels(dag).set(at)


metrics = Metrics()  # of this process


def exposition(accept: str = "") -> tuple[bytes, str]:
    """What there is to scrape, and its content type, by the header `Accept` of who asks."""
    encode, kind = choose_encoder(accept)
    return encode(metrics.registry), kind


class Prometheus(Sink):
    """Counts runs and attempts in the metrics of this process, which all sinks of the kind share, and, if there is a
    folder `textfile`, leaves a file there for each DAG when a run of it has ended."""

    settings_group: ClassVar = ("PROMETHEUS", PrometheusSettings)

    def __init__(self, textfile: Path | None = None, max_labels: int = 500) -> None:
        self.textfile, self.max_labels = textfile, max_labels
        self._entered = 0
        self._open: Tally[str] = Tally()  # DAGs of runs that began and have not ended

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Made as PROMETHEUS says."""
        group = settings.group(*cls.settings_group)
        return cls(None if group.textfile is None else settings.folder / group.textfile, group.max_labels)

    def __enter__(self) -> Self:
        self._entered += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._entered -= 1
        if not self._entered:  # no other run has this sink; one that is left could not go on, and has no end
            for dag, number in self._open.items():
                metrics.active.labels(dag).dec(number)
            self._open.clear()

    def __call__(self, event: e.Event) -> None:
        """Count `event`; of a record that is sent again only how the run ended."""
        if not self.replaying:
            self._count(event)
        if isinstance(event, EndOfRun) and self.textfile is not None:
            _write(self.textfile / f"gluepy-{slug_of(event.dag)}.prom", event)

    def _count(self, event: e.Event) -> None:
        dag = metrics.label(self.max_labels, event.dag)
        match event:
            case e.RunStarted() | e.RunResumed():
                self._open[dag] += 1
                metrics.active.labels(dag).inc()
            case e.RunFinished() | e.RunFailed() | e.RunCancelled():
                self._open[dag] -= 1
                metrics.active.labels(dag).dec()
                metrics.runs.labels(dag, _STATUS[type(event)]).inc()
                metrics.duration.labels(dag).observe(event.duration_s)
                metrics.last.note(dag, event)
            case e.TaskStarted():
                metrics.queued.labels(dag).observe(event.queued_s)
            case e.TaskFinished() | e.TaskFailed() | e.TaskRetrying():
                status = type(event).__struct_config__.tag
                self._attempt(dag, event.task, str(status).removeprefix("task."), event.duration_s)
            case e.TaskSkipped() | e.TaskCancelled() if event.attempt and event.duration_s is not None:
                status = "skipped" if isinstance(event, e.TaskSkipped) else "cancelled"
                self._attempt(dag, event.task, status, event.duration_s)
            case e.TaskMetric() if event.value is not None:
                task = self._task(dag, event.task)
                name = metrics.label(self.max_labels, dag, task, event.name)
                metrics.value.labels(dag, task, name).set(event.value)
            case _:
                pass

    def _attempt(self, dag: str, id: str, status: str, duration_s: float) -> None:
        task = self._task(dag, id)
        metrics.attempts.labels(dag, task, status).inc()
        metrics.attempt_duration.labels(dag, task).observe(duration_s)

    def _task(self, dag: str, id: str) -> str:
        return metrics.label(self.max_labels, dag, id.partition("[")[0])


def _write(path: Path, event: EndOfRun) -> None:
    """Write how the last run of a DAG went, whole or not at all. One that ended later stays, and so does when the last
    one finished well."""
    before = _read(path)
    if before.get("gluepy_last_run_timestamp_seconds", 0.0) > _seconds(event.timestamp):
        return
    registry = CollectorRegistry()
    last = LastRuns(registry)
    if (success := before.get("gluepy_last_success_timestamp_seconds")) is not None:
        last.note_success(event.dag, success)
    last.note(event.dag, event)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(path), registry)  # the exporter passes over files that do not end in .prom, as its draft


def _read(path: Path) -> dict[str, float]:
    try:
        with path.open(encoding="utf-8") as file:
            return {
                sample.name: sample.value
                for family in text_fd_to_metric_families(file)
                for sample in family.samples
                if set(sample.labels) == {"dag"}
            }
    except (OSError, ValueError):  # there is none yet, or somebody else's
        return {}


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
