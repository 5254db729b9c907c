"""What each sink costs a task: the same chain without it and with it, to its end. The floor is gluepy itself.

What is sent over HTTP goes to a process that reads it and throws it away.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec

import structlog

from benchmarks.turns import Effort, Row, in_turn, seconds
from benchmarks.workloads import OnLoop, chain
from gluepy import DAG, Runtime

SINKS = {
    "jsonlines": "gluepy",
    "structlog": "gluepy",
    "otel": "opentelemetry",
    "prometheus": "prometheus_client",
    "openlineage": "openlineage",
    "mlflow": "httpx",
    "webhook": "httpx",
}

_RECEIVER = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MLFLOW = b'{"experiment": {"experiment_id": "1"}, "run": {"info": {"run_id": "1"}}}'

class Takes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = MLFLOW if "/mlflow/" in self.path else b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    do_GET = do_POST
    def log_message(self, *words):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Takes)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


async def sinks(effort: Effort) -> AsyncIterator[Row]:
    """Each sink that is shipped, where its extra is installed."""
    workload = chain(OnLoop, effort.tasks)
    with (
        _receiver() as url,
        _quiet(),
        _variables(OTEL_EXPORTER_OTLP_ENDPOINT=url, OPENLINEAGE_URL=url, MLFLOW_TRACKING_URI=url),
    ):
        groups = {"WEBHOOK": {"url": url}, "JSONLINES": {"path": os.devnull}}
        async with Runtime({"SINK_TIMEOUT_S": 60.0, **groups}) as runtime:
            for name, package in SINKS.items():
                if find_spec(package) is None:
                    print(f"not measured: {name}, whose extra is not installed")
                    continue
                without = partial(_run, runtime, workload.dag, [])
                times = await in_turn(without, partial(_run, runtime, workload.dag, [name]), effort.turns)
                yield Row(
                    workload=f"chain of {effort.tasks:,} async no-ops: the sink {name}",
                    floor="gluepy without it",
                    floor_s=times[0],
                    gluepy_s=times[1],
                    tasks=effort.tasks,
                    detail=True,
                )


async def _run(runtime: Runtime, dag: type[DAG], names: list[str]) -> float:
    return await seconds(runtime.run_dag(dag, sinks=names))


@contextmanager
def _receiver() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", _RECEIVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Have structlog write its lines where nobody reads them."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(nowhere))
        try:
            yield
        finally:
            structlog.reset_defaults()


@contextmanager
def _variables(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text
