"""Tasks on a Celery worker, by way of Redis, against Celery's own no-ops on the same broker."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import anyio.to_thread
from celery import Celery, group

from benchmarks.machine import ROOT
from benchmarks.turns import Effort, Row, in_turn, seconds
from benchmarks.workloads import InThread, Workload, chain, side_by_side
from gluepy import Runtime
from gluepy.exec.executors.celery import CeleryExecutor

WORKERS = 2  # processes
BROKER, QUEUE = "BENCHMARK_BROKER", "floor"

bare = Celery("benchmarks.on_celery", broker=os.environ.get(BROKER), backend=os.environ.get(BROKER))
bare.conf.task_default_queue = QUEUE


@bare.task(name="nothing")  # type: ignore[untyped-decorator]
def nothing() -> None:
    """The floor's task."""


async def on_celery(effort: Effort) -> AsyncIterator[Row]:
    """No-ops one after another, and all at once."""
    server = shutil.which("redis-server")
    if server is None:
        print("not measured: there is no redis-server")
        return
    one_by_one, at_once = min(effort.tasks // 5, 100), effort.tasks // 2
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(_redis(server, folder))
        bare.conf.update(broker_url=url, result_backend=url)
        floor = ["celery", "-A", "benchmarks.on_celery", "worker", "-Q", QUEUE, "-c", str(WORKERS), "-l", "WARNING"]
        ours = ["gluepy", "worker", "-c", str(WORKERS)]
        stack.enter_context(_process([sys.executable, "-m", *floor], folder, url))
        stack.enter_context(_process([sys.executable, "-m", *ours], folder, url))
        async with Runtime(executor=CeleryExecutor(broker_url=url, queue_timeout_s=120)) as runtime:
            line, wide = chain(InThread, one_by_one), side_by_side(InThread, at_once)
            yield await _row(runtime, f"chain of {one_by_one} no-ops on Celery", line, _one_by_one, effort)
            yield await _row(runtime, f"{at_once} no-ops at once on Celery", wide, _at_once, effort)


async def _row(runtime: Runtime, name: str, workload: Workload, floor: Callable[[int], None], effort: Effort) -> Row:
    async def theirs() -> None:
        await anyio.to_thread.run_sync(floor, len(workload.graph))

    async def ours() -> None:
        await runtime.run_dag(workload.dag, concurrency=len(workload.graph))

    times = await in_turn(lambda: seconds(theirs()), lambda: seconds(ours()), effort.turns)
    return Row(
        workload=name,
        floor=f"the same as Celery tasks; Redis, {WORKERS} processes for each",
        floor_s=times[0],
        gluepy_s=times[1],
        tasks=len(workload.graph),
        aim=(1.3, 1.0),
    )


def _one_by_one(count: int) -> None:
    for _ in range(count):
        nothing.delay().get()


def _at_once(count: int) -> None:
    group(nothing.s() for _ in range(count))().get()


@contextmanager
def _redis(server: str, folder: Path) -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [server, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with _process([*command, "--appendonly", "yes"], folder, ""):
        connect = partial(socket.create_connection, ("127.0.0.1", port), 5)
        while True:
            try:
                connect().close()
                break
            except OSError:
                time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def _process(command: list[str], folder: Path, url: str) -> Iterator[None]:
    environment = os.environ | {
        BROKER: url,
        "GLUEPY_CELERY__BROKER_URL": url,
        "GLUEPY_INSTALLED_MODULES": '["benchmarks.workloads"]',
        "PYTHONPATH": str(ROOT),
    }
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
