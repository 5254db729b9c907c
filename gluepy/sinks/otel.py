"""The sink `otel`: a run as a trace of OpenTelemetry, its metrics, and what its tasks print as logs."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from opentelemetry import _logs, metrics, trace
from opentelemetry._logs.severity import SeverityNumber
from pydantic import BaseModel, ConfigDict

from gluepy.core import events as e
from gluepy.core.spans import attempt_span
from gluepy.otelsdk import Pipelines, set_up
from gluepy.sinks.otel_spans import (
    EndOfRun,
    GivenIds,
    RunSpans,
    label_of,
    nanoseconds,
    result_of_attempt,
    result_of_run,
)
from gluepy.sinks.port import Sink
from gluepy.tracing import Parent, context_of
from gluepy.version import VERSION

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings

_FLUSHED = 400  # spans and metrics in them: the SDK's queue has room for 2048 spans, and drops what is beyond that
_SEVERITIES = {"stdout": SeverityNumber.INFO, "stderr": SeverityNumber.WARN, "log": SeverityNumber.INFO}

_BOUNDARIES = (0.01, 0.1, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600)  # seconds


class OtelSettings(BaseModel):
    """The group OTEL. `endpoint` and `service_name` are for OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_SERVICE_NAME where
    these are not set; `output`: what tasks print and log becomes logs, where the run captures it."""

    model_config = ConfigDict(extra="forbid")

    endpoint: str | None = None
    service_name: str = "gluepy"
    output: bool = True


class ExportFailed(Exception):
    """OpenTelemetry could not export `lost` spans, log records and sets of metrics."""

    def __init__(self, lost: int) -> None:
        super().__init__(lost)
        self.lost = lost

    def __str__(self) -> str:
        return f"{self.lost} spans, log records and sets of metrics could not be exported"


class Otel(Sink):
    """Makes spans, metrics and logs of runs, by the providers that the program has set up. If it has set up none, the
    OpenTelemetry SDK is, as its environment variables say.

    With an implementation other than the SDK, spans have ids that it draws: those of tasks are then not below them.
    """

    settings_group: ClassVar = ("OTEL", OtelSettings)
    makes_spans: ClassVar = True

    def __init__(
        self, output: bool = True, pipelines: Pipelines | None = None, worker_sdk: Mapping[str, str] | None = None
    ) -> None:
        self._output, self._pipelines, self.worker_sdk = output, pipelines, worker_sdk
        self._tracer = trace.get_tracer("gluepy", VERSION)
        self._ids = GivenIds.of_tracer(self._tracer)
        self._runs: dict[str, RunSpans] = {}
        self._entered, self._unflushed, self._lost_before = 0, 0, 0
        self._logger = _logs.get_logger("gluepy", VERSION)
        meter = metrics.get_meter("gluepy", VERSION)
        self._active = meter.create_up_down_counter("cicd.pipeline.run.active", "{run}", "Runs that are active.")
        self._duration = _histogram(meter, "cicd.pipeline.run.duration", "Duration of a session of a run.")
        self._task_duration = _histogram(meter, "gluepy.task.duration", "Duration of an attempt.")
        self._queued = _histogram(meter, "gluepy.task.queued", "How long an attempt waited while ready.")

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Made as OTEL says. Raises `MissingExtra` where the SDK is needed and not installed."""
        group = settings.group(*cls.settings_group)
        options = {"service_name": group.service_name}
        if group.endpoint is not None:
            options["endpoint"] = group.endpoint
        pipelines = set_up(options)
        return cls(group.output, pipelines, None if pipelines is None else options)

    def samples(self, trace_id: str) -> bool:
        """What the SDK's sampler says of a trace without a parent."""
        sampler = getattr(self._tracer, "sampler", None)
        return sampler is None or sampler.should_sample(None, int(trace_id, 16), "RUN").decision.is_sampled()

    def __enter__(self) -> Self:
        self._entered += 1
        self._lost_before = 0 if self._pipelines is None else self._pipelines.lost
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        if not self._entered:  # no other run has this one; what is left has no end
            for spans in self._runs.values():
                spans.close()
            self._runs.clear()
        if self._pipelines is not None:
            self._pipelines.flush()
            if (lost := self._pipelines.lost - self._lost_before) > 0:
                raise ExportFailed(lost)

    def __call__(self, event: e.Event) -> None:
        """Begin and end spans as `event` tells, measure, and log."""
        if isinstance(event, e.TaskOutput):
            self._log(event)
            return
        if event.run_id not in self._runs:
            self._runs[event.run_id] = RunSpans(event.run_id, self._tracer, self._ids, self._keep_small)
        self._runs[event.run_id].take(event)
        if not self.replaying:  # a run of the past would count as one of today
            self._measure(event)
        if isinstance(event, EndOfRun):
            del self._runs[event.run_id]

    def _keep_small(self) -> None:
        self._unflushed += 1
        if self._unflushed >= _FLUSHED:
            self._unflushed = 0
            flush = getattr(trace.get_tracer_provider(), "force_flush", None)
            if flush is not None:
                flush()

    def _measure(self, event: e.Event) -> None:
        run = {"cicd.pipeline.name": event.dag}
        active = {**run, "cicd.pipeline.run.state": "executing"}
        match event:
            case e.RunStarted() | e.RunResumed():
                self._active.add(1, active)
            case e.RunFinished() | e.RunFailed() | e.RunCancelled():
                self._active.add(-1, active)
                self._duration.record(event.duration_s, {**active, "cicd.pipeline.result": result_of_run(event)})
            case e.TaskStarted():
                self._queued.record(event.queued_s, {**run, "cicd.pipeline.task.name": label_of(event.task)})
            case e.TaskFinished() | e.TaskRetrying() | e.TaskFailed():
                task = {**run, "cicd.pipeline.task.name": label_of(event.task)}
                result = result_of_attempt(event)
                self._task_duration.record(event.duration_s, {**task, "cicd.pipeline.task.run.result": result})
            case _:
                pass

    def _log(self, event: e.TaskOutput) -> None:
        spans = self._runs.get(event.run_id)
        if not self._output or spans is None or event.line.endswith("\r"):  # it is still being drawn
            return
        span = Parent(spans.trace_id, attempt_span(event.run_id, event.task, event.attempt), spans.flags, "")
        self._logger.emit(
            timestamp=nanoseconds(event.timestamp),
            context=context_of(span),
            severity_number=_SEVERITIES.get(event.stream, SeverityNumber.INFO),
            body=event.line,
            attributes={
                "cicd.pipeline.name": event.dag,
                "cicd.pipeline.run.id": event.run_id,
                "cicd.pipeline.task.name": label_of(event.task),
                "gluepy.task": event.task,
                "gluepy.attempt": event.attempt,
                "log.iostream": event.stream,
            },
        )


def _histogram(meter: metrics.Meter, name: str, description: str) -> metrics.Histogram:
    return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=_BOUNDARIES)
