"""Trace context: what names a span is read as W3C says, and what a run's spans are called is derived."""

from __future__ import annotations

import os

import pytest

from gluepy.core.graph import Spec
from gluepy.core.spans import TraceContext, attempt_span, session_span, task_span, trace_id_of
from gluepy.exec.port import Attempt, RunInfo
from gluepy.tracing import current_parent, parent_of, variables

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
RUN = "0192f0c4-7a11-7cc1-8b57-3c5bb0b1a001"


def test_header_is_taken_apart() -> None:
    assert parent_of(f"00-{TRACE}-{SPAN}-01", "a=b") == (TRACE, SPAN, 1, "a=b")
    assert parent_of(f"  cc-{TRACE.upper()}-{SPAN}-00-what-is-to-come ") == (TRACE, SPAN, 0, "")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
    ],
)
def test_malformed_header_names_no_span(header: str) -> None:
    assert parent_of(header) is None


def test_environment_names_the_parent_while_the_block_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", "of before")
    monkeypatch.delenv("TRACESTATE", raising=False)
    with variables(f"00-{TRACE}-{SPAN}-01", "a=b"):
        assert current_parent() == (TRACE, SPAN, 1, "a=b")
    assert (os.environ["TRACEPARENT"], "TRACESTATE" in os.environ) == ("of before", False)
    assert current_parent() is None


def test_trace_of_a_run_has_its_id_and_its_spans_differ() -> None:
    assert trace_id_of(RUN) == RUN.replace("-", "")
    assert len(trace_id_of("nightly")) == 32
    spans = {
        session_span(RUN, 1),
        session_span(RUN, 2),
        task_span(RUN, 1, "fit"),
        task_span(RUN, 2, "fit"),
        attempt_span(RUN, "fit", 1),
        attempt_span(RUN, "fit", 2),
    }
    assert len(spans) == 6
    assert all(len(span) == 16 and int(span, 16) for span in spans)


def test_trace_travels_with_an_attempt_to_another_machine() -> None:
    context = TraceContext(run_id=RUN, session=1, trace_id=TRACE, span_id=SPAN, own=True, sdk={"service_name": "x"})
    run = RunInfo(run_id=RUN, dag="dag", path="/tmp", storage="/tmp", trace=context)  # nothing is written
    spec = Spec(label="fit", cls="m:Fit")
    there = Attempt.from_message(Attempt(run, spec, "fit", 3, 3, {}, "thread").message())
    assert there.run.trace == context
    assert there.traceparent == f"00-{TRACE}-{attempt_span(RUN, 'fit', 3)}-01"
