"""Trace context of this process: which span is current, and making one current for a task.

OpenTelemetry is imported only where a run is traced, and where it is installed.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

_HEADER = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
PARENT, STATE = "TRACEPARENT", "TRACESTATE"  # as OpenTelemetry's specification names the variables


class Parent(NamedTuple):
    """A span that something may be below. Ids are hexadecimal."""

    trace_id: str
    span_id: str
    flags: int
    state: str


def current_parent() -> Parent | None:
    """The span that is current here: OpenTelemetry's, or else that of the variable TRACEPARENT."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is not None:
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            ids = (trace.format_trace_id(span.trace_id), trace.format_span_id(span.span_id))
            return Parent(*ids, int(span.trace_flags), span.trace_state.to_header())
    header = os.environ.get(PARENT)
    return None if header is None else parent_of(header, os.environ.get(STATE, ""))


def parent_of(header: str, state: str = "") -> Parent | None:
    """The span that a W3C `traceparent` names; None if it is malformed."""
    found = _HEADER.fullmatch(header.strip().lower())
    if found is None or header[:2].lower() == "ff" or not (int(found[1], 16) and int(found[2], 16)):
        return None
    return Parent(found[1], found[2], int(found[3], 16), state)


def enter_span(header: str, state: str) -> None:
    """Make the span that `header` names OpenTelemetry's current one in this context, if that is installed."""
    parent = parent_of(header, state)
    if parent is None:
        return
    try:
        from opentelemetry import context
    except ImportError:
        return
    context.attach(context_of(parent))


def context_of(parent: Parent) -> Any:
    """An OpenTelemetry context in which `parent` is the current span. Raises `ImportError` without OpenTelemetry."""
    from opentelemetry import trace

    span = trace.SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(parent.flags),
        trace_state=trace.TraceState.from_header([parent.state] if parent.state else []),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(span))


@contextmanager
def variables(header: str, state: str) -> Iterator[None]:
    """While the block runs, the environment says that the span of `header` is current: for processes that run one thing
    at a time, and what they start."""
    before = {name: os.environ.get(name) for name in (PARENT, STATE)}
    _set({PARENT: header, STATE: state or None})
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, text in values.items():
        if text is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = text
