"""Many short runs in one open `Runtime`, as a service has them: how many a second, how long each takes, what it
holds.

Each case is a process of its own, in which the floor and gluepy take turns: graphlib and asyncio.TaskGroup with the
same tasks, without a record. So many runs are under way at once, and the next begins when one ends.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from benchmarks import floors, graphs
from benchmarks.turns import Effort
from benchmarks.work import nothing, nothing_async
from benchmarks.workloads import InProcess, InThread, OnLoop, Workload, dag_of, fan_out
from gluepy import Runtime

T = TypeVar("T")
Where = Literal["loop", "threads", "processes"]
KINDS = {"loop": OnLoop, "threads": InThread, "processes": InProcess}
POOLS: dict[str, Callable[[], Any]] = {
    "loop": nullcontext,
    "threads": partial(ThreadPoolExecutor, 4),
    "processes": partial(ProcessPoolExecutor, 2),
}
CASES: list[tuple[Where, int, int]] = [  # where its tasks run, how many a run has, how many runs at once
    ("loop", 1, 1),
    ("loop", 1, 10),
    ("loop", 1, 100),
    ("loop", 1, 1_000),
    ("loop", 3, 1),
    ("loop", 10, 1),
    ("threads", 1, 1),
    ("threads", 3, 1),
    ("threads", 10, 1),
    ("processes", 1, 1),
    ("processes", 3, 1),
    ("processes", 10, 1),
    ("loop", 3, 100),
    ("threads", 3, 100),
    ("processes", 3, 100),
]


class Service(msgspec.Struct, kw_only=True):
    """One case. The seconds are medians of the turns: `floor_s`, `run_s` and `unrecorded_s` (with `record=False`) the
    time divided by the number of runs, `cpu_s` of the processor in this process, `p50_s` and `p99_s` from the call to
    the result. `descriptors` and `threads` are the most that the process had meanwhile, beyond those before."""

    where: str
    tasks: int
    at_once: int
    floor_s: float
    run_s: float
    unrecorded_s: float
    cpu_s: float
    p50_s: float
    p99_s: float
    descriptors: int
    threads: int


class Kept(msgspec.Struct, kw_only=True):
    """What a service keeps of `runs` that are over: the MiB that the process has grown by since it had done a tenth of
    them."""

    runs: int
    mib: float


def services(effort: Effort) -> list[Service]:
    """Every case."""
    found = []
    for where, tasks, at_once in CASES:
        at_once = at_once if effort.turns > 1 else min(at_once, 10)
        runs = max(2 * at_once, effort.tasks // 5)
        found.append(_child(Service, where, tasks, at_once, runs, effort.turns))
    return found


def kept(effort: Effort) -> Kept:
    """20,000 runs of one task."""
    return _child(Kept, "kept", 20_000 if effort.turns > 1 else 100)


def _child(kind: type[T], *arguments: object) -> T:
    command = [sys.executable, "-m", "benchmarks.service", *map(str, arguments)]
    return msgspec.json.decode(subprocess.run(command, capture_output=True, check=True).stdout, type=kind)


async def measure(where: Where, tasks: int, at_once: int, runs: int, turns: int) -> Service:
    """Floor and gluepy in turn, after one turn in which it is looked what they hold."""
    workload = _workload(where, tasks)
    floor_s, run_s, unrecorded_s, cpu_s, p50_s, p99_s = [], [], [], [], [], []
    before = _held()
    async with Runtime() as runtime:
        ours = partial(runtime.run_dag, workload.dag)
        with POOLS[where]() as pool:
            theirs = partial(floors.task_group, workload.graph, _work(pool), 100)
            await many(theirs, at_once, at_once)
            held = await _most_held(many(ours, at_once, max(at_once, runs // 4)))
            for _ in range(turns):
                gc.collect()
                floor_s.append((await many(theirs, at_once, runs))[0])
                gc.collect()
                cpu = time.process_time()
                taken_s, latencies = await many(ours, at_once, runs)
                cpu_s.append((time.process_time() - cpu) / runs)
                run_s.append(taken_s)
                p50_s.append(statistics.median(latencies))
                p99_s.append(sorted(latencies)[len(latencies) * 99 // 100])
                gc.collect()
                unrecorded_s.append((await many(partial(ours, record=False), at_once, runs))[0])
    descriptors, threads = (most - least for most, least in zip(held, before, strict=True))
    return Service(
        where=where,
        tasks=tasks,
        at_once=at_once,
        floor_s=statistics.median(floor_s),
        run_s=statistics.median(run_s),
        unrecorded_s=statistics.median(unrecorded_s),
        cpu_s=statistics.median(cpu_s),
        p50_s=statistics.median(p50_s),
        p99_s=statistics.median(p99_s),
        descriptors=descriptors,
        threads=threads,
    )


async def many(run: Callable[[], Awaitable[object]], at_once: int, runs: int) -> tuple[float, list[float]]:
    """The seconds a run of `runs`, `at_once` under way at any time; and how long each took."""
    left, latencies = iter(range(runs)), []

    async def one_after_another() -> None:
        for _ in left:
            began = time.perf_counter()
            await run()
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one_after_another())
    return (time.perf_counter() - began) / runs, latencies


async def keep(runs: int) -> Kept:
    """Run one task again and again, 10 at once."""
    workload = _workload("loop", 1)
    async with Runtime() as runtime:
        ours = partial(runtime.run_dag, workload.dag)
        await many(ours, 10, runs // 10)
        gc.collect()
        before = _resident_mib()
        await many(ours, 10, runs - runs // 10)
        gc.collect()
        return Kept(runs=runs, mib=_resident_mib() - before)


def _workload(where: str, tasks: int) -> Workload:
    kind = KINDS[where]
    return fan_out(kind, tasks - 2) if tasks > 2 else Workload(graphs.chain(1), dag_of((kind(n=0),)))


def _work(pool: Executor | None) -> Callable[[int], Awaitable[None]]:
    if pool is None:
        return nothing_async
    loop = asyncio.get_running_loop()

    async def there(node: int) -> None:
        await loop.run_in_executor(pool, nothing, node)

    return there


async def _most_held(work: Awaitable[object]) -> tuple[int, int]:
    """The most descriptors and threads at any moment of `work`."""
    most, task = _held(), asyncio.ensure_future(work)
    while not task.done():
        now = _held()
        most = max(most[0], now[0]), max(most[1], now[1])
        await asyncio.sleep(0.002)
    await task
    return most


def _held() -> tuple[int, int]:
    return len(os.listdir("/dev/fd")), threading.active_count()


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    case, numbers = sys.argv[1], map(int, sys.argv[2:])
    told = asyncio.run(keep(*numbers) if case == "kept" else measure(case, *numbers))  # type: ignore[arg-type]
    print(json.dumps(msgspec.to_builtins(told)))
