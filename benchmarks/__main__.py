"""`python -m benchmarks [--small]`: measure, and print a table of medians and ratios.

Each floor runs in turn with gluepy in the same process, five times or more; a ratio is the median over the turns of
gluepy's time to the floor's. gluepy runs with its default settings: the record is written, two events a task.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks import floors
from benchmarks.workloads import (
    InProcess,
    InThread,
    OnLoop,
    Workload,
    chain,
    fan_out,
    layered,
    nothing,
    nothing_at_all,
)
from gluepy import Runtime


class Row(NamedTuple):
    """One line of the table: times in microseconds a task."""

    workload: str
    where: str
    floor: str
    floor_us: float
    gluepy_us: float
    ratio: float


async def compare(
    runtime: Runtime, workload: Workload, where: str, name: str, floor: Callable[[], Awaitable[None]], repeats: int
) -> Row:
    """Run floor and gluepy in turn; one turn of each is not counted."""
    times: list[tuple[float, float]] = []
    for turn in range(repeats + 1):
        began = time.perf_counter()
        await floor()
        between = time.perf_counter()
        result = await runtime.run_dag(workload.dag, concurrency=workload.concurrency)
        ended = time.perf_counter()
        assert len(result.tasks) == len(workload.graph)
        assert all(task.status == "finished" for task in result.tasks.values())
        if turn:
            times.append((between - began, ended - between))
    scale = 1e6 / len(workload.graph)
    return Row(
        workload.name,
        where,
        name,
        statistics.median(time for time, _ in times) * scale,
        statistics.median(time for _, time in times) * scale,
        statistics.median(ours / theirs for theirs, ours in times),
    )


async def measure(repeats: int, size: int) -> list[Row]:
    """All workloads, on the loop, in threads and in processes."""
    rows = []
    few = max(size // 5, 10)
    async with Runtime() as runtime:
        for workload in (chain(OnLoop, size), fan_out(OnLoop, size, 100), layered(OnLoop, max(size // 50, 2), 100)):

            async def on_loop(workload: Workload = workload) -> None:
                await floors.task_group(workload.graph, nothing, workload.concurrency)

            rows.append(await compare(runtime, workload, "loop", "TaskGroup", on_loop, repeats))
        for task, where, pool in (
            (InThread, "threads", ThreadPoolExecutor(4)),
            (InProcess, "processes", ProcessPoolExecutor(4)),
        ):
            count = size if task is InThread else few
            with pool:
                for workload in (chain(task, count), fan_out(task, count), layered(task, max(count // 100, 2), 100)):

                    async def in_pool(
                        workload: Workload = workload, pool: ThreadPoolExecutor | ProcessPoolExecutor = pool
                    ) -> None:
                        floors.futures(workload.graph, nothing_at_all, pool, workload.concurrency)

                    rows.append(await compare(runtime, workload, where, type(pool).__name__, in_pool, repeats))
    return rows


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| workload | on | floor | floor, us a task | gluepy, us a task | ratio |", "| --- " * 6 + "|"]
    for row in rows:
        figures = f"{row.floor_us:.1f} | {row.gluepy_us:.1f} | {row.ratio:.2f}"
        lines.append(f"| {row.workload} | {row.where} | {row.floor} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the options, measure in a temporary folder, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--small", action="store_true", help="a hundred tasks, once: only to see that it works")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    repeats, size = (1, 100) if options.small else (max(options.repeats, 5), 1000)
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GLUEPY_RUNS_ROOT"] = str(Path(folder, "runs"))
        os.environ["GLUEPY_STORAGE_ROOT"] = str(Path(folder, "data"))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(home), os.environ.get("PYTHONPATH", "")])
        rows = asyncio.run(measure(repeats, size))
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    print(f"gluepy {version('gluepy')} on {machine}; medians of {repeats} turns\n")
    print(table(rows))


if __name__ == "__main__":
    main()
