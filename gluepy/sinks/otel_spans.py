"""The spans of one run: a span a session, a task, an attempt, begun and ended as the events tell.

Names and values are those of OpenTelemetry's semantic conventions for CI/CD pipelines, and `gluepy.*` beyond them. All
times are those of the events and all ids derived (`gluepy.core.spans`), so a record that is sent again gives the same
trace.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer

from gluepy.core import events as e
from gluepy.core.identity import derived_uuid
from gluepy.core.spans import SAMPLED, attempt_span, session_span, task_span, trace_id_of
from gluepy.tracing import Parent, context_of

_RESULTS = {"exception": "failure", "outputs": "failure", "timeout": "timeout"}  # for the other reasons: error
_ERRORS = ("failure", "error", "timeout")
_UNKNOWN = "its driver died, or what followed was not told"

EndOfRun = e.RunFinished | e.RunFailed | e.RunCancelled
EndOfAttempt = e.TaskFinished | e.TaskRetrying | e.TaskFailed | e.TaskCancelled | e.TaskSkipped | e.TaskBlocked


def label_of(task: str) -> str:
    """The task's label: what it has in common with the other instances of its `each`."""
    return task.partition("[")[0]


def nanoseconds(timestamp: str) -> int:
    """A timestamp of an event as OpenTelemetry has it."""
    moment = datetime.fromisoformat(timestamp)
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000_000 + moment.microsecond * 1_000


def result_of_run(event: EndOfRun) -> str:
    """How a run ended, as the conventions call it."""
    match event:
        case e.RunFinished():
            return "success"
        case e.RunFailed():
            return "timeout" if event.reason == "timeout" else "failure"
        case e.RunCancelled():
            return "cancellation"


def result_of_attempt(event: EndOfAttempt) -> str:
    """How an attempt or a task ended, as the conventions call it."""
    match event:
        case e.TaskFinished():
            return "success"
        case e.TaskRetrying() | e.TaskFailed():
            return _RESULTS.get(event.reason, "error")
        case e.TaskCancelled():
            return "cancellation"
        case e.TaskSkipped() | e.TaskBlocked():
            return "skip"


class GivenIds:
    """An id generator for the SDK's tracers, which gives what it was told to in this thread, or else what another
    generator does."""

    def __init__(self, others: Any) -> None:
        self._others = others
        self._next = threading.local()

    @classmethod
    def of_tracer(cls, tracer: Tracer) -> GivenIds:
        """That of `tracer`, which from now on asks it; one that is never asked, if `tracer` is not the SDK's."""
        known = getattr(tracer, "id_generator", None)
        if isinstance(known, cls):
            return known
        ids = cls(known)
        if known is not None:
            tracer.id_generator = ids  # type: ignore[attr-defined]
        return ids

    def give(self, trace_id: str, span_id: str) -> None:
        """The ids of the span that this thread begins next."""
        self._next.ids = int(trace_id, 16), int(span_id, 16)

    def generate_trace_id(self) -> int:
        """The trace id for a span without a parent."""
        ids = getattr(self._next, "ids", None)
        return ids[0] if ids is not None else self._others.generate_trace_id()  # type: ignore[no-any-return]

    def generate_span_id(self) -> int:
        """The id of a span, which is given once."""
        ids, self._next.ids = getattr(self._next, "ids", None), None
        return ids[1] if ids is not None else self._others.generate_span_id()  # type: ignore[no-any-return]

    def is_trace_id_random(self) -> bool:
        """Most of the bits of a run's id are."""
        return True


class RunSpans:
    """The spans of the run `run_id` that have begun and not ended. `on_part` is called for each that
    has ended, and each metric that one will have."""

    def __init__(self, run_id: str, tracer: Tracer, ids: GivenIds, on_part: Callable[[], None]) -> None:
        self.run_id, self.trace_id = run_id, trace_id_of(run_id)
        self.flags = SAMPLED
        self._tracer, self._ids, self._on_part = tracer, ids, on_part
        self._session: Span | None = None
        self._tasks: dict[str, Span] = {}
        self._attempts: dict[str, Span] = {}
        self._latest = ""  # timestamp

    def take(self, event: e.Event) -> None:
        """Begin and end spans."""
        match event:
            case e.RunStarted() | e.RunResumed():
                self.close()
                self._enter(event)
            case e.RunFinished() | e.RunFailed() | e.RunCancelled():
                self._latest = event.timestamp
                self._leave(event)
            case e.TaskStarted():
                self._begin_attempt(event)
            case e.TaskFailed(reason="interrupted"):
                pass  # in a session before this one, which ended with all that it had
            case (
                e.TaskFinished()
                | e.TaskRetrying()
                | e.TaskFailed()
                | e.TaskCancelled()
                | e.TaskSkipped()
                | e.TaskBlocked()
            ):
                self._end_attempt(event)
            case e.DatasetRead() | e.DatasetWritten() if event.task in self._attempts:
                about: dict[str, Any] = {
                    "gluepy.dataset": event.dataset,
                    "gluepy.dataset.url": event.url,
                    "gluepy.bytes": event.bytes,
                }
                if event.rows is not None:
                    about["gluepy.rows"] = event.rows
                name = "gluepy.dataset.read" if isinstance(event, e.DatasetRead) else "gluepy.dataset.written"
                self._attempts[event.task].add_event(name, about, nanoseconds(event.timestamp))
                self._on_part()
            case e.TaskMetric() if event.task in self._attempts and event.value is not None:
                told: dict[str, Any] = {"gluepy.metric.name": event.name, "gluepy.metric.value": event.value}
                self._attempts[event.task].add_event("gluepy.metric", told, nanoseconds(event.timestamp))
                self._on_part()
            case _:
                pass
        self._latest = event.timestamp

    def close(self) -> None:
        """End what has no end, with the last event that was told."""
        self._leave(None)

    def _enter(self, event: e.RunStarted | e.RunResumed) -> None:
        own = session_span(event.run_id, event.session)
        # Of a run without a sink that made spans, the events have the span that the run was in.
        parent = event.parent_span_id if event.span_id == own else event.span_id
        self.trace_id = event.trace_id or trace_id_of(event.run_id)
        self.flags = SAMPLED if event.sampled else 0
        links = []
        if isinstance(event, e.RunResumed):
            trace_id = event.previous_trace_id or trace_id_of(event.run_id)
            before = Parent(trace_id, session_span(event.run_id, event.session - 1), SAMPLED, "")
            links = [Link(trace.get_current_span(context_of(before)).get_span_context())]
        attributes = {
            "cicd.pipeline.name": event.dag,
            "cicd.pipeline.action.name": "RUN",
            "cicd.pipeline.run.id": event.run_id,
            "gluepy.session": event.session,
            "gluepy.version": event.gluepy_version,
            "gluepy.code_version": event.code_version,
            "host.name": event.host,
            "process.pid": event.pid,
        }
        name = f"RUN {event.dag}"
        self._session = self._start(name, own, parent, event.timestamp, attributes, SpanKind.SERVER, links)

    def _leave(self, event: EndOfRun | None) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        rest = "error" if event is None else "cancellation"
        for span in (*self._attempts.values(), *self._tasks.values()):
            self._end(span, rest, self._latest)
        self._attempts.clear()
        self._tasks.clear()
        result = "error" if event is None else result_of_run(event)
        session.set_attribute("cicd.pipeline.result", result)
        if event is not None:
            session.set_attributes({f"gluepy.tasks.{status}": number for status, number in event.counts.items()})
        if result in _ERRORS:
            session.set_status(Status(StatusCode.ERROR, _UNKNOWN if event is None else None))
        session.end(nanoseconds(self._latest))
        self._on_part()

    def _begin_attempt(self, event: e.TaskStarted) -> None:
        self._task(event)
        attributes = {
            **_names(event, derived_uuid(event.run_id, event.task, event.attempt)),
            "gluepy.attempt": event.attempt,
            "gluepy.max_attempts": event.max_attempts,
            "gluepy.executor": event.executor,
            "gluepy.pool": event.pool,
            "gluepy.queued_s": event.queued_s,
        }
        ids = attempt_span(event.run_id, event.task, event.attempt), task_span(event.run_id, event.session, event.task)
        name = f"{label_of(event.task)} attempt {event.attempt}"
        self._attempts[event.task] = self._start(name, *ids, event.timestamp, attributes)

    def _end_attempt(self, event: EndOfAttempt) -> None:
        task, attempt = self._task(event), self._attempts.pop(event.task, None)
        result = result_of_attempt(event)
        if attempt is not None:
            attempt.set_attributes(_where(event))
            if isinstance(event, (e.TaskFailed, e.TaskRetrying)):
                _add_exception(attempt, event)
            self._end(attempt, result, event.timestamp)
        if isinstance(event, e.TaskRetrying):
            return
        if isinstance(event, e.TaskFailed):
            task.set_attribute("error.type", event.error_type)
        elif isinstance(event, e.TaskSkipped):
            task.set_attribute("gluepy.skipped", event.why or event.reason)
        elif isinstance(event, e.TaskBlocked):
            task.set_attribute("gluepy.blocked_by", event.blocked_by)
        self._end(self._tasks.pop(event.task), result, event.timestamp)

    def _task(self, event: e.TaskEvent) -> Span:
        """The span of the event's task, which begins with the first event of the task in the session."""
        span = self._tasks.get(event.task)
        if span is None:
            ids = task_span(event.run_id, event.session, event.task), session_span(event.run_id, event.session)
            attributes = _names(event, derived_uuid(event.run_id, event.session, event.task))
            span = self._tasks[event.task] = self._start(event.task, *ids, event.timestamp, attributes)
        return span

    def _start(
        self,
        name: str,
        span_id: str,
        parent: str | None,
        timestamp: str,
        attributes: Mapping[str, Any],
        kind: SpanKind = SpanKind.INTERNAL,
        links: list[Link] | None = None,
    ) -> Span:
        if parent is None:
            context = trace.set_span_in_context(trace.INVALID_SPAN)
        else:
            context = context_of(Parent(self.trace_id, parent, self.flags, ""))
        self._ids.give(self.trace_id, span_id)
        return self._tracer.start_span(name, context, kind, attributes, links, nanoseconds(timestamp))

    def _end(self, span: Span, result: str, timestamp: str) -> None:
        span.set_attribute("cicd.pipeline.task.run.result", result)
        if result in _ERRORS:
            span.set_status(Status(StatusCode.ERROR))
        span.end(nanoseconds(timestamp))
        self._on_part()


def _names(event: e.TaskEvent, id: object) -> dict[str, Any]:
    return {
        "cicd.pipeline.task.name": label_of(event.task),
        "cicd.pipeline.task.run.id": str(id),
        "gluepy.task": event.task,
    }


def _where(event: EndOfAttempt) -> dict[str, Any]:
    """Where an attempt ran and what it cost, as far as the event tells."""
    found = {
        "cicd.worker.id": getattr(event, "worker", None),
        "host.name": getattr(event, "host", None),
        "process.pid": getattr(event, "pid", None),
        "gluepy.cpu_s": getattr(event, "cpu_s", None),
        "gluepy.peak_rss_mb": getattr(event, "peak_rss_mb", None),
        "error.type": getattr(event, "error_type", None),
    }
    return {name: value for name, value in found.items() if value is not None}


def _add_exception(span: Span, event: e.TaskFailed | e.TaskRetrying) -> None:
    told = {"exception.type": event.error_type, "exception.message": event.error_message}
    if event.error_stack:
        told["exception.stacktrace"] = event.error_stack
    span.add_event("exception", {**told, "gluepy.reason": event.reason}, nanoseconds(event.timestamp))
    span.set_status(Status(StatusCode.ERROR, f"{event.error_type}: {event.error_message}"))
