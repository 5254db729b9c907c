"""Tasks that make spans of their own, and start programs, in every pool."""

from __future__ import annotations

import subprocess
import sys

import anyio
from opentelemetry import trace

from gluepy import DAG, Task, parallel

TELL = "import os; print('TRACEPARENT', os.environ.get('TRACEPARENT'))"


class Traced(Task):
    def run(self) -> None:
        with trace.get_tracer("mine").start_as_current_span(f"mine in {self.id}"):
            print("told", self.traceparent)


class OnLoop(Task):
    async def run(self) -> None:
        with trace.get_tracer("mine").start_as_current_span(f"mine in {self.id}"):
            await anyio.lowlevel.checkpoint()
            print("told", self.traceparent)


class InThread(Traced):
    pool = "thread"


class InProcess(Traced):
    pool = "process"

    def run(self) -> None:
        super().run()
        done = subprocess.run([sys.executable, "-c", TELL], capture_output=True, text=True, check=True)
        print(done.stdout, end="")


class TracedDAG(DAG):
    label = "traced"
    tasks = (OnLoop, parallel(InThread, InProcess))
