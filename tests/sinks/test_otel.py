"""A run as OpenTelemetry has it: one trace, spans that nest across processes, metrics, logs."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from typing import Any

import otlp
import pytest
import structlog
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from receivers import Receiver
from traced import InThread, OnLoop, TracedDAG

import gluepy
from gluepy import DAG, Task
from gluepy.conf.schema import Settings, Source
from gluepy.core.spans import attempt_span, session_span, task_span
from gluepy.errors import MissingExtra, SettingsError
from gluepy.runtime import RunResult, Runtime
from gluepy.sinks import Consumer
from gluepy.sinks.otel import Otel
from gluepy.testing import HELD, SinkContract, Step, events_of, name_of
from gluepy.testing.sinks import SinkContractDAG, run, script

RUN = f"RUN {SinkContractDAG.label}"


class TestOtel(SinkContract):
    @pytest.fixture
    def sink(self, collector: Receiver) -> Consumer:
        return Otel.from_settings(Settings())


def tree(spans: list[otlp.Got]) -> dict[str, list[str]]:
    """The names of the spans below each, by its name."""
    names = {span.id: span.name for span in spans}
    below: dict[str, list[str]] = {}
    for span in spans:
        below.setdefault(names.get(span.parent, ""), []).append(span.name)
    return {name: sorted(children) for name, children in below.items()}


def named(spans: list[otlp.Got], name: str) -> otlp.Got:
    (found,) = [span for span in spans if span.name == name]
    return found


async def test_run_is_one_trace_with_a_span_for_it_each_task_and_each_attempt(
    settings: Settings, collector: Receiver
) -> None:
    result = await run(settings, script(), "otel")
    spans = otlp.spans(collector.requests)
    assert {span.trace_id for span in spans} == {result.run_id.replace("-", "")}
    below = tree(spans)
    assert below[""] == [RUN]
    assert below[RUN] == sorted(result.tasks)
    assert below["loads"] == ["loads attempt 1", "loads attempt 2"]
    assert below["part[number=1]"] == ["part attempt 1"]
    assert "behindfails" not in below
    assert named(spans, RUN).what.kind == Span.SPAN_KIND_SERVER
    assert {span.resource["service.name"] for span in spans} == {"gluepy"}


async def test_names_and_values_are_those_of_the_conventions_for_pipelines(
    settings: Settings, collector: Receiver
) -> None:
    result = await run(settings, script(), "otel")
    spans = otlp.spans(collector.requests)
    about = named(spans, RUN).attributes
    assert about["cicd.pipeline.name"] == SinkContractDAG.label
    assert (about["cicd.pipeline.run.id"], about["cicd.pipeline.action.name"]) == (result.run_id, "RUN")
    assert about["cicd.pipeline.result"] == "failure"
    results = {span.name: span.attributes.get("cicd.pipeline.task.run.result") for span in spans}
    assert (results["loads"], results["loads attempt 1"], results["loads attempt 2"]) == (
        "success",
        "failure",
        "success",
    )
    assert (results["skips"], results["behindskips"], results["behindfails"]) == ("skip", "skip", "skip")
    assert named(spans, "part[number=1]").attributes["cicd.pipeline.task.name"] == "part"
    failed = named(spans, "fails attempt 1")
    assert failed.what.status.code == Status.STATUS_CODE_ERROR
    (exception,) = failed.what.events
    assert exception.name == "exception"
    told = otlp.plain(exception.attributes)
    assert (told["exception.type"], told["exception.message"]) == ("RuntimeError", "größe ☃")


async def test_metrics_and_datasets_are_events_of_their_attempt(settings: Settings, collector: Receiver) -> None:
    await run(settings, script(), "otel")
    events = named(otlp.spans(collector.requests), "loads attempt 2").what.events
    told = [(event.name, otlp.plain(event.attributes)) for event in events]
    assert told[0] == ("gluepy.metric", {"gluepy.metric.name": "größe ☃", "gluepy.metric.value": 0.5})
    assert [name for name, _ in told] == ["gluepy.metric", "gluepy.dataset.read", "gluepy.dataset.written"]
    assert (told[2][1]["gluepy.dataset"], told[2][1]["gluepy.rows"]) == ("rows", 3)


async def test_times_of_spans_are_those_of_the_events(settings: Settings, collector: Receiver) -> None:
    result = await run(settings, script(), "otel")
    first, *_, last = events_of(result)
    span = named(otlp.spans(collector.requests), RUN).what
    for event, nanoseconds in ((first, span.start_time_unix_nano), (last, span.end_time_unix_nano)):
        seconds, micros = divmod(nanoseconds // 1_000, 1_000_000)
        assert event.timestamp.endswith(f"{micros:06d}Z"), (event.timestamp, seconds)


async def test_metrics_and_output_are_exported_too(settings: Settings, collector: Receiver) -> None:
    result = await run(settings, script(), "otel")
    metrics = otlp.metrics(collector.requests)
    assert set(metrics) == {
        "cicd.pipeline.run.duration",
        "cicd.pipeline.run.active",
        "gluepy.task.duration",
        "gluepy.task.queued",
    }
    (point,) = metrics["cicd.pipeline.run.duration"].histogram.data_points
    assert otlp.plain(point.attributes)["cicd.pipeline.result"] == "failure"
    assert (point.count, metrics["cicd.pipeline.run.duration"].unit) == (1, "s")
    assert [point.as_int for point in metrics["cicd.pipeline.run.active"].sum.data_points] == [0]
    (record,) = otlp.logs(collector.requests)
    assert record.what.body.string_value == "ü ☃\x1b[0m"
    assert record.id == attempt_span(result.run_id, "loads", 2)
    assert record.attributes["log.iostream"] == "stdout"


async def test_runs_at_once_may_have_one_sink(settings: Settings, collector: Receiver) -> None:
    executor, sink = script(fails=HELD), Otel.from_settings(settings)
    async with (
        Runtime(settings, executor=executor) as runtime,
        runtime.stream_dag(SinkContractDAG, sinks=[sink], check=False) as stream,
    ):
        await executor.wait_for("fails")
        await run(settings, script(), sink)
        executor.release("fails")
        await stream.result()
    results = [span.attributes["cicd.pipeline.result"] for span in otlp.spans(collector.requests) if span.name == RUN]
    assert results == ["failure", "success"]


async def test_cancelled_run_ends_its_spans_so(settings: Settings, collector: Receiver) -> None:
    executor = script(fails=HELD)
    async with (
        Runtime(settings, executor=executor) as runtime,
        runtime.stream_dag(SinkContractDAG, sinks=["otel"], check=False) as stream,
    ):
        await executor.wait_for("fails")
        stream.cancel()
        await stream.result()
    spans = otlp.spans(collector.requests)
    assert named(spans, RUN).attributes["cicd.pipeline.result"] == "cancellation"
    assert named(spans, "fails attempt 1").attributes["cicd.pipeline.task.run.result"] == "cancellation"


async def test_resumed_run_is_in_the_same_trace_and_links_to_the_session_before(
    settings: Settings, collector: Receiver
) -> None:
    result = await run(settings, script(), "otel")
    collector.requests.clear()
    async with Runtime(settings, executor=script(fails=Step())) as runtime:
        await runtime.resume_run(result.run_id, sinks=["otel"])
    spans = otlp.spans(collector.requests)
    again = named(spans, RUN)
    assert again.trace_id == result.run_id.replace("-", "")
    (link,) = again.what.links
    assert (link.trace_id.hex(), link.span_id.hex()) == (again.trace_id, session_span(result.run_id, 1))
    assert again.id == session_span(result.run_id, 2)


async def test_record_that_is_exported_twice_gives_the_very_same_spans_and_no_metrics(
    settings: Settings, collector: Receiver
) -> None:
    await run(settings, script(), "otel")
    async with Runtime(settings, executor=script(fails=Step())) as runtime:
        await runtime.resume_run("latest", sinks=["otel"])
    live = sorted(span.what.SerializeToString() for span in otlp.spans(collector.requests))
    for _ in range(2):
        collector.requests.clear()
        await gluepy.export_run("latest", "otel", settings=settings)
        assert sorted(span.what.SerializeToString() for span in otlp.spans(collector.requests)) == live
        assert otlp.logs(collector.requests) == []
        (point,) = otlp.metrics(collector.requests)["cicd.pipeline.run.active"].sum.data_points
        assert point.as_int == 0
        points = otlp.metrics(collector.requests)["cicd.pipeline.run.duration"].histogram.data_points
        assert sum(point.count for point in points) == 2


async def test_run_whose_driver_died_and_that_was_resumed_is_exported_with_each_span_once(
    settings: Settings, collector: Receiver
) -> None:
    result = await run(settings, script())
    log = result.path / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    started = next(number for number, line in enumerate(lines) if json.loads(line)["event"] == "task.started")
    log.write_text("".join(lines[: started + 1]))
    async with Runtime(settings, executor=script(fails=Step())) as runtime:
        await runtime.resume_run(result.run_id)
    await gluepy.export_run(result.run_id, "otel", settings=settings)
    spans = otlp.spans(collector.requests)
    assert len({span.id for span in spans}) == len(spans)
    interrupted = next(span for span in spans if span.id == attempt_span(result.run_id, "loads", 1))
    assert interrupted.attributes["cicd.pipeline.task.run.result"] == "error"
    runs = {span.attributes["gluepy.session"]: span for span in spans if span.name == RUN}
    assert interrupted.what.end_time_unix_nano <= runs[2].what.start_time_unix_nano
    assert [runs[number].attributes["cicd.pipeline.result"] for number in (1, 2)] == ["error", "success"]


async def test_run_whose_driver_died_is_exported_with_what_had_no_end(settings: Settings, collector: Receiver) -> None:
    result = await run(settings, script())
    log = result.path / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    started = next(number for number, line in enumerate(lines) if json.loads(line)["event"] == "task.started")
    log.write_text("".join(lines[: started + 1]))
    await gluepy.export_run(result.run_id, "otel", settings=settings)
    spans = otlp.spans(collector.requests)
    assert len(spans) == 3
    assert {span.what.status.code for span in spans} == {Status.STATUS_CODE_ERROR}


@pytest.fixture
def provider() -> InMemorySpanExporter:
    """The program's own set-up of OpenTelemetry; its spans."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


async def test_span_that_is_current_is_the_parent_and_the_program_s_providers_are_used(
    settings: Settings, provider: InMemorySpanExporter
) -> None:
    with trace.get_tracer("app").start_as_current_span("request") as request:
        result = await run(settings, script(), "otel")
    spans = {span.name: span for span in provider.get_finished_spans()}
    context = request.get_span_context()
    assert {span.context.trace_id for span in spans.values()} == {context.trace_id}
    parent = spans[RUN].parent
    assert parent is not None
    assert parent.span_id == context.span_id
    assert events_of(result)[0].trace_id == trace.format_trace_id(context.trace_id)


async def test_events_have_the_ids_of_their_spans(settings: Settings, provider: InMemorySpanExporter) -> None:
    result = await run(settings, script(), "otel")
    for event in events_of(result):
        task: Any = getattr(event, "task", None)
        attempt: Any = getattr(event, "attempt", 0)
        if task is None:
            expected = session_span(result.run_id, 1)
        elif attempt:
            expected = attempt_span(result.run_id, task, attempt)
        else:
            expected = task_span(result.run_id, 1, task)
        assert (event.trace_id, event.span_id) == (result.run_id.replace("-", ""), expected), name_of(event)
    made = {trace.format_span_id(span.context.span_id) for span in provider.get_finished_spans() if span.context}
    assert {event.span_id for event in events_of(result)} <= made


async def test_without_the_sink_events_have_the_span_that_is_current(
    settings: Settings, provider: InMemorySpanExporter
) -> None:
    with trace.get_tracer("app").start_as_current_span("request") as request:
        result = await run(settings, script())
    ids = (
        trace.format_trace_id(request.get_span_context().trace_id),
        trace.format_span_id(request.get_span_context().span_id),
    )
    assert {(event.trace_id, event.span_id) for event in events_of(result)} == {ids}
    untraced = await run(settings, script())
    assert {(event.trace_id, event.span_id) for event in events_of(untraced)} == {(None, None)}


async def test_record_of_a_run_in_a_trace_is_exported_into_that_trace(
    settings: Settings, provider: InMemorySpanExporter
) -> None:
    with trace.get_tracer("app").start_as_current_span("request") as request:
        await run(settings, script())
    await gluepy.export_run("latest", "otel", settings=settings)
    spans = {span.name: span for span in provider.get_finished_spans()}
    parent = spans[RUN].parent
    assert parent is not None
    assert (parent.trace_id, parent.span_id) == (
        request.get_span_context().trace_id,
        request.get_span_context().span_id,
    )


async def test_span_of_a_task_s_own_is_below_its_attempt_on_the_loop_and_in_threads(
    settings: Settings, provider: InMemorySpanExporter
) -> None:
    class BothDAG(DAG):
        tasks = (OnLoop, InThread)

    async with Runtime(settings) as runtime:
        result = await runtime.run_dag(BothDAG, sinks=["otel"])
        spans = {span.name: span for span in provider.get_finished_spans()}
        for task in ("onloop", "inthread"):
            parent = spans[f"mine in {task}"].parent
            assert parent is not None
            assert trace.format_span_id(parent.span_id) == attempt_span(result.run_id, task, 1)
        await runtime.run_dag(BothDAG, sinks=["otel"], debug=True)  # in this very context
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_thread_that_ran_a_traced_task_has_no_span_for_the_next(
    settings: Settings, provider: InMemorySpanExporter
) -> None:
    class ThreadDAG(DAG):
        tasks = (InThread,)

    async with Runtime(settings) as runtime:
        await runtime.run_dag(ThreadDAG, sinks=["otel"])
        await runtime.run_dag(ThreadDAG)
    traced, untraced = [span for span in provider.get_finished_spans() if span.name == "mine in inthread"]
    assert (traced.parent is not None, untraced.parent) == (True, None)


class Logs(Task):
    def run(self) -> None:
        self.log.info("told", rows=3)


class LogsDAG(DAG):
    tasks = (Logs,)


async def test_lines_that_tasks_log_have_the_ids_too(settings: Settings, provider: InMemorySpanExporter) -> None:
    structlog.reset_defaults()  # `capture_logs` of other tests counts as a configuration
    async with Runtime(settings.replaced(LOG_FORMAT="json")) as runtime:
        result = await runtime.run_dag(LogsDAG, sinks=["otel"], capture=True)
    line = json.loads((result.path / "logs/logs.1.log").read_text())
    ids = result.run_id.replace("-", ""), attempt_span(result.run_id, "logs", 1)
    assert (line["event"], line["trace_id"], line["span_id"]) == ("told", *ids)


async def test_variable_traceparent_is_the_parent_where_no_span_is_current(
    settings: Settings, provider: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    result = await run(settings, script(), "otel")
    first = events_of(result)[0]
    assert first.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert first.parent_span_id == "b7ad6b7169203331"  # type: ignore[union-attr]


async def test_resumed_run_links_to_the_trace_that_the_session_before_was_in(
    settings: Settings, provider: InMemorySpanExporter
) -> None:
    with trace.get_tracer("app").start_as_current_span("request") as request:
        result = await run(settings, script(), "otel")
    async with Runtime(settings, executor=script(fails=Step())) as runtime:
        await runtime.resume_run(result.run_id, sinks=["otel"])
    (link,) = [link for span in provider.get_finished_spans() for link in span.links]
    assert link.context.trace_id == request.get_span_context().trace_id
    assert trace.format_span_id(link.context.span_id) == session_span(result.run_id, 1)


async def test_run_in_a_trace_that_is_not_sampled_is_not_exported(
    settings: Settings, provider: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
    await run(settings, script(), "otel")
    assert provider.get_finished_spans() == ()


async def test_trace_that_is_not_sampled_is_not_exported_and_tasks_know_it(
    settings: Settings, collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    async with Runtime(settings) as runtime:

        class OneDAG(DAG):
            tasks = (InThread,)

        result = await runtime.run_dag(OneDAG, sinks=["otel"], capture=True)
    assert otlp.spans(collector.requests) == []
    assert (result.path / "logs/inthread.1.log").read_text().strip().endswith("-00")


async def test_the_api_alone_is_enough_for_a_program_with_providers_of_its_own(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace.set_tracer_provider(trace.NoOpTracerProvider())
    for name in [name for name in sys.modules if name.startswith("opentelemetry.sdk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    result = await run(settings, script(), "otel")
    assert result.status == "failed"
    assert events_of(result)[0].trace_id == result.run_id.replace("-", "")


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry.sdk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with pytest.raises(MissingExtra, match=r"pip install 'gluepy\[otel\]'"):
        Otel.from_settings(Settings())


async def test_settings_stand_in_for_variables_that_are_not_set(settings: Settings) -> None:
    with Receiver(answer=otlp.answer) as receiver:
        source = Source("module", "settings.py")
        group = {"endpoint": (receiver.url, source), "service_name": ("shop", source), "output": (False, source)}
        await run(settings.replaced(groups={"OTEL": group}), script(), "otel")
        assert {span.resource["service.name"] for span in otlp.spans(receiver.requests)} == {"shop"}
        assert otlp.logs(receiver.requests) == []
        otlp.shut_down()
    assert "OTEL_SERVICE_NAME" not in os.environ


@pytest.mark.parametrize(
    ("variable", "text", "problem"),
    [
        ("OTEL_TRACES_EXPORTER", "pigeon", "there is no exporter 'pigeon' here; install its package"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier", "there is no protocol 'carrier'; known are http/protobuf, grpc"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "install opentelemetry-exporter-otlp-proto-grpc"),
    ],
)
def test_exporter_that_is_not_here_is_one_clear_error(
    variable: str, text: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text == "grpc" and importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc"):
        pytest.skip("it is here")
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsError) as caught:
        Otel.from_settings(Settings())
    assert str(caught.value).startswith(f"{variable} (environment): ")
    assert problem in str(caught.value)


@pytest.mark.slow
async def test_spans_nest_across_worker_processes_and_what_those_start(settings: Settings, collector: Receiver) -> None:
    async with Runtime(settings) as runtime:
        result: RunResult = await runtime.run_dag(TracedDAG, sinks=["otel"], capture=True)
    spans = otlp.spans(collector.requests)
    below = tree(spans)
    for task in ("onloop", "inthread", "inprocess"):
        assert below[f"{task} attempt 1"] == [f"mine in {task}"]
    assert {span.trace_id for span in spans} == {result.run_id.replace("-", "")}
    log = (result.path / "logs/inprocess.1.log").read_text()
    header = f"00-{result.run_id.replace('-', '')}-{attempt_span(result.run_id, 'inprocess', 1)}-01"
    assert f"told {header}" in log
    assert f"TRACEPARENT {header}" in log
