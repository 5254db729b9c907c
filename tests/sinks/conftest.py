"""Nothing of a sink is left when its test ends, and each test sets up OpenTelemetry anew."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import otlp
import pytest
from opentelemetry import _logs, metrics, trace
from opentelemetry.util._once import Once
from receivers import Receiver


@pytest.fixture(autouse=True)
def _no_sink_is_left_behind() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 60
    while (left := [each for each in threading.enumerate() if each.name.startswith("gluepy")]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.01)
    assert left == []


@pytest.fixture(autouse=True)
def _opentelemetry_is_set_up_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module, name in ((trace, "TRACER"), (metrics._internal, "METER"), (_logs._internal, "LOGGER")):
        monkeypatch.setattr(module, f"_{name}_PROVIDER", None)
        monkeypatch.setattr(module, f"_{name}_PROVIDER_SET_ONCE", Once())
    for name in ("TRACEPARENT", "TRACESTATE"):
        monkeypatch.delenv(name, raising=False)
    yield
    otlp.shut_down()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """An OTLP receiver, which the environment names."""
    with Receiver(answer=otlp.answer) as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver
        otlp.shut_down()
