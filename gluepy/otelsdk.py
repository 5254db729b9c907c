"""Setting up the OpenTelemetry SDK of this process as its environment variables say, where the program has not.

What the SDK reads by itself (resource, sampler, limits, batches, and all of `OTEL_EXPORTER_OTLP_*`) is left to it.
Which exporters there are, `OTEL_{TRACES,METRICS,LOGS}_EXPORTER` say; `otlp`, as the specification has it, if they are
not set.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

from gluepy.errors import MissingExtra, SettingsError

_VARIABLES = {"service_name": "OTEL_SERVICE_NAME", "endpoint": "OTEL_EXPORTER_OTLP_ENDPOINT"}
_EXIT_S = 2.0
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


class Pipelines:
    """What was set up: the three providers, of which `lost` counts what could not be exported."""

    def __init__(self) -> None:
        self.providers: list[Any] = []
        self.lost = 0

    def flush(self) -> None:
        """Export what has been recorded so far. Blocks for as long as the exporters do."""
        for provider in self.providers:
            provider.force_flush()

    def counted(self, exporter: Any) -> Any:
        """`exporter`, with what it fails to export counted."""
        export = exporter.export

        def counting(batch: Any, *more: Any, **options: Any) -> Any:
            result = export(batch, *more, **options)
            if result.name != "SUCCESS":
                self.lost += len(batch) if hasattr(batch, "__len__") else 1
            return result

        exporter.export = counting
        return exporter


_pipelines: list[Pipelines] = []


def is_needed() -> bool:
    """Whether the program has set up no provider of traces itself. Raises `ImportError` without OpenTelemetry."""
    from opentelemetry import trace

    return isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def set_up(options: Mapping[str, str]) -> Pipelines | None:
    """Set up the SDK, once in a process, unless the program has done so; None in that case.

    `options` may have `service_name` and `endpoint`, for variables that are not set. What is left when the process ends
    is exported then. Raises `MissingExtra` where the SDK or the exporter is not installed, `SettingsError` for an
    exporter that is not known.
    """
    if _pipelines:
        return _pipelines[0]
    if not is_needed():
        return None
    try:
        from opentelemetry import _logs, metrics, trace
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtra("OpenTelemetry, which the program has not set up,", "otel") from error
    pipelines = Pipelines()
    with _defaults({_VARIABLES[name]: text for name, text in options.items()}):
        spans = [pipelines.counted(make()) for make in _exporters("traces")]
        points = [make() for make in _exporters("metrics")]
        records = [pipelines.counted(make()) for make in _exporters("logs")]
        tracers = TracerProvider(shutdown_on_exit=False)
        for exporter in spans:
            tracers.add_span_processor(BatchSpanProcessor(exporter))
        readers = [
            each if isinstance(each, MetricReader) else PeriodicExportingMetricReader(pipelines.counted(each))
            for each in points
        ]
        meters = MeterProvider(readers, shutdown_on_exit=False)
        loggers = LoggerProvider(shutdown_on_exit=False)
        for exporter in records:
            loggers.add_log_record_processor(BatchLogRecordProcessor(exporter))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(meters)
    _logs.set_logger_provider(loggers)
    pipelines.providers = [tracers, loggers, meters]
    quiet = logging.getLogger("opentelemetry.exporter")  # what is lost is told once, by whoever asks for `lost`
    if quiet.level == logging.NOTSET:
        quiet.setLevel(logging.CRITICAL)
    _flush_at_exit(pipelines)
    _pipelines.append(pipelines)
    return pipelines


def _flush_at_exit(pipelines: Pipelines) -> None:
    """Export the rest when the process ends, by a thread that is there before, since none can be started then. A
    receiver that does not answer holds the process up for no more than `_EXIT_S`."""
    begin, done = threading.Event(), threading.Event()

    def flush() -> None:
        begin.wait()
        pipelines.flush()
        done.set()

    def leave() -> None:
        begin.set()
        done.wait(_EXIT_S)

    threading.Thread(target=flush, name="otel-flush", daemon=True).start()
    atexit.register(leave)


def _exporters(signal: str) -> Iterator[Any]:
    """The classes of the exporters of `signal` that the environment names."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    for name in os.environ.get(variable, "otlp").split(","):
        wanted, named_by = name.strip(), variable
        if wanted in ("", "none"):
            continue
        if wanted == "otlp":
            wanted, named_by = _protocol(signal), "OTEL_EXPORTER_OTLP_PROTOCOL"
            if wanted not in _PROTOCOLS:
                why = f"there is no protocol {wanted!r}; known are {', '.join(_PROTOCOLS)}"
                raise SettingsError(named_by, "environment", why)
        point = _PROTOCOLS.get(wanted, wanted)
        found = tuple(entry_points(group=f"opentelemetry_{signal}_exporter", name=point))
        if not found:
            package = f"opentelemetry-exporter-{point.replace('_', '-')}" if wanted in _PROTOCOLS else "its package"
            raise SettingsError(named_by, "environment", f"there is no exporter {wanted!r} here", f"install {package}")
        yield found[0].load()


def _protocol(signal: str) -> str:
    common = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    return os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", common)


@contextmanager
def _defaults(variables: Mapping[str, str]) -> Iterator[None]:
    missing = [name for name in variables if not os.environ.get(name)]
    os.environ.update({name: variables[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
