"""The trace that a session of a run is in: `trace_context`."""

from __future__ import annotations

from collections.abc import Iterable

from gluepy.core.spans import SAMPLED, TraceContext, session_span, trace_id_of
from gluepy.sinks.port import Consumer, Sink
from gluepy.tracing import current_parent


def trace_context(run_id: str, session: int, sinks: Iterable[Consumer]) -> TraceContext | None:
    """The trace: that of the span which is current here, or else the run's own if one of `sinks` makes spans; None
    without either."""
    parent = current_parent()
    makers = [sink for sink in sinks if isinstance(sink, Sink) and sink.makes_spans]
    if not makers:
        if parent is None:
            return None
        return TraceContext(
            run_id=run_id,
            session=session,
            trace_id=parent.trace_id,
            span_id=parent.span_id,
            flags=parent.flags,
            state=parent.state,
        )
    trace_id = trace_id_of(run_id) if parent is None else parent.trace_id
    sampled = makers[0].samples(trace_id) if parent is None else parent.flags & SAMPLED
    return TraceContext(
        run_id=run_id,
        session=session,
        trace_id=trace_id,
        span_id=session_span(run_id, session),
        parent_span_id=None if parent is None else parent.span_id,
        flags=SAMPLED if sampled else 0,
        state="" if parent is None else parent.state,
        own=True,
        sdk=makers[0].worker_sdk,
    )
