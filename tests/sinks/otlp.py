"""What an OTLP receiver got, decoded by OpenTelemetry's own classes."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from receivers import Request

from gluepy import otelsdk

_KINDS: dict[str, Any] = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
}


def shut_down() -> None:
    """Have what was set up in this process send nothing more."""
    for pipelines in otelsdk._pipelines:
        for provider in pipelines.providers:
            provider.shutdown()
    otelsdk._pipelines.clear()


def answer(request: Request) -> tuple[int, str, bytes]:
    """As a collector answers: an empty message says that all was taken."""
    return 200, "application/x-protobuf", b""


@dataclass
class Got:
    """A span, log record or metric, with its attributes and those of its resource as plain values."""

    what: Any
    attributes: dict[str, Any]
    resource: dict[str, Any]
    scope: str

    @property
    def name(self) -> str:
        return str(self.what.name)

    @property
    def trace_id(self) -> str:
        return str(self.what.trace_id.hex())

    @property
    def id(self) -> str:
        return str(self.what.span_id.hex())

    @property
    def parent(self) -> str:
        return str(self.what.parent_span_id.hex())


def spans(requests: list[Request]) -> list[Got]:
    """All spans, in the order in which they came."""
    return list(_each(requests, "/v1/traces", "resource_spans", "scope_spans", "spans"))


def logs(requests: list[Request]) -> list[Got]:
    """All log records."""
    return list(_each(requests, "/v1/logs", "resource_logs", "scope_logs", "log_records"))


def metrics(requests: list[Request]) -> dict[str, Any]:
    """The latest of each metric by its name."""
    return {
        got.name: got.what for got in _each(requests, "/v1/metrics", "resource_metrics", "scope_metrics", "metrics")
    }


def _each(requests: list[Request], path: str, resources: str, scopes: str, members: str) -> Iterator[Got]:
    for request in requests:
        if request.path != path:
            continue
        body = gzip.decompress(request.body) if request.headers.get("content-encoding") == "gzip" else request.body
        for resource in getattr(_KINDS[path].FromString(body), resources):
            about = plain(resource.resource.attributes)
            for scope in getattr(resource, scopes):
                for each in getattr(scope, members):
                    yield Got(each, plain(getattr(each, "attributes", ())), about, scope.scope.name)


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes as a dictionary of plain values."""
    return {each.key: _value(each.value) for each in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
