"""Which spans a run has in distributed traces: their ids, derived so that whoever needs one knows it.

A trace has a span for each session of the run, below it one for each task, below that one for each attempt. Ids are
hexadecimal, as W3C trace context has them.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gluepy.core.identity import derived, run_uuid

SAMPLED = 1


def trace_id_of(run_id: str) -> str:
    """The trace of a run that is in nobody else's: the run's own id, without dashes, where it is a UUID."""
    return run_uuid(run_id).hex


def session_span(run_id: str, session: int) -> str:
    """The span of a session of a run."""
    return derived(8, run_id, "session", session).hex()


def task_span(run_id: str, session: int, task: str) -> str:
    """The span of a task in a session of a run."""
    return derived(8, run_id, "task", session, task).hex()


def attempt_span(run_id: str, task: str, attempt: int) -> str:
    """The span of an attempt. Attempts of a task have different numbers in all sessions."""
    return derived(8, run_id, "attempt", task, attempt).hex()


class TraceContext(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The trace that a session of a run is in.

    `own`: a sink makes spans of the session, its tasks and attempts; `span_id` is then the session's. Else it is the
    span that was current when the run began, which everything is below. `parent_span_id` is what the session's span is
    below. `sdk` is how worker processes set up the OpenTelemetry SDK, None where they leave that to the program.
    """

    run_id: str
    session: int
    trace_id: str
    span_id: str
    parent_span_id: str | None = None
    flags: int = SAMPLED
    state: str = ""
    own: bool = False
    sdk: Mapping[str, str] | None = None

    def span_of(self, task: str, attempt: int) -> str:
        """The span of an attempt of a task; of the task itself, if `attempt` is 0."""
        if not self.own:
            return self.span_id
        if attempt == 0:
            return task_span(self.run_id, self.session, task)
        return attempt_span(self.run_id, task, attempt)

    def header(self, span_id: str | None = None) -> str:
        """The W3C `traceparent` of a span of the trace, by default `span_id`."""
        return f"00-{self.trace_id}-{span_id or self.span_id}-{self.flags:02x}"
