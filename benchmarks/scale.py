"""100,000 tasks side by side, and a million: time, and memory. Each measurement is a process of its own."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from benchmarks import floors, graphs
from benchmarks.turns import Effort, Row, in_turn, seconds
from benchmarks.work import calls, nothing_async
from benchmarks.workloads import OnLoop, dag_of
from gluepy import Runtime, each
from gluepy.exec.dag import compile_dag

AT_ONCE = 100


class Scale(msgspec.Struct, kw_only=True):
    """One size of the fan-out: seconds of a run, by the clock and of the processor, and the peak memory of the process,
    in MiB, with the compiled graph alone and with the run."""

    tasks: int
    run_s: float
    cpu_s: float
    graph_mib: float
    run_mib: float


async def hundred_thousand(effort: Effort) -> AsyncIterator[Row]:
    """The fan-out of 100,000 against the floor at the same size."""
    count = effort.many[0]

    async def floor() -> float:
        return child("floor", count)["seconds"]

    async def ours() -> float:
        return child("run", count)["seconds"]

    floor_s, gluepy_s = await in_turn(floor, ours, effort.turns, warm=False)
    yield Row(
        workload=f"1 → {count:,} → 1, async no-ops",
        floor="TaskGroup",
        floor_s=floor_s,
        gluepy_s=gluepy_s,
        tasks=count + 2,
        aim=(1.0, 0.5),
    )


def scales(effort: Effort) -> list[Scale]:
    """Both sizes, once: the time of the processor tells whether what a task costs depends on their number."""
    found = []
    for count in effort.many:
        graph, run = child("graph", count), child("run", count)
        found.append(
            Scale(tasks=count, run_s=run["seconds"], cpu_s=run["cpu"], graph_mib=graph["mib"], run_mib=run["mib"])
        )
    return found


def child(what: str, count: int) -> dict[str, float]:
    """The seconds, by the clock and of the processor, and the MiB of one measurement."""
    command = [sys.executable, "-m", "benchmarks.scale", what, str(count)]
    told: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return told


def peak_mib() -> float:
    """The most memory that this process has had (getrusage would count its parent's, from before `exec`)."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    return int(peak[1]) / 1024


async def measure(what: str, count: int) -> None:
    """Do it, and print what it took."""
    dag = dag_of((OnLoop(n=0), each(OnLoop, n=range(1, count + 1)), OnLoop(n=count + 1)))
    taken_s, cpu_s = 0.0, time.process_time()
    match what:
        case "floor":
            graph = graphs.fan_out(count)
            taken_s = await seconds(floors.task_group(graph, nothing_async, AT_ONCE))
        case "run":
            async with Runtime() as runtime:
                taken_s = await seconds(runtime.run_dag(dag, concurrency=AT_ONCE))
        case "graph":
            async with Runtime():
                compiled = compile_dag(dag)
                assert len(compiled.graph.index) == count + 2
    assert what == "graph" or calls() == count + 2
    print(json.dumps({"seconds": taken_s, "cpu": time.process_time() - cpu_s, "mib": peak_mib()}))


if __name__ == "__main__":
    asyncio.run(measure(sys.argv[1], int(sys.argv[2])))
