"""asyncio's event loop against uvloop's, where that is installed (`pip install 'gluepy[uvloop]'`)."""

from __future__ import annotations

import gc
import statistics
import time
from importlib.util import find_spec

import anyio
import msgspec

from benchmarks.turns import Effort
from benchmarks.workloads import InThread, OnLoop, Sleep, Workload, chain, fan_out, layered, side_by_side
from gluepy import Runtime


class Loop(msgspec.Struct, kw_only=True):
    """One workload on both event loops: the seconds of each turn."""

    workload: str
    tasks: int
    asyncio_s: list[float]
    uvloop_s: list[float]

    @property
    def gain(self) -> float:
        """How many times as fast uvloop is."""
        pairs = zip(self.asyncio_s, self.uvloop_s, strict=True)
        return statistics.median(plain / fast for plain, fast in pairs)


def loops(effort: Effort) -> list[Loop]:
    """Nothing where there is no uvloop."""
    if find_spec("uvloop") is None:
        return []
    count, layers = effort.tasks, max(effort.tasks // 50, 2)
    found = []
    for name, workload, concurrency in (
        (f"chain of {count:,} async no-ops", chain(OnLoop, count), None),
        (f"layered {layers} × 100, async no-ops", layered(OnLoop, layers, 100), None),
        (f"{count:,} × 10 ms sleeps, 100 at a time", side_by_side(Sleep, count), 100),
        (f"chain of {count:,} sync no-ops in threads", chain(InThread, count), None),
        (f"1 → {count:,} → 1 on 4 threads", fan_out(InThread, count), 4),
    ):
        loop = Loop(workload=name, tasks=len(workload.graph), asyncio_s=[], uvloop_s=[])
        for _ in range(effort.turns):
            for use_uvloop, seconds in ((False, loop.asyncio_s), (True, loop.uvloop_s)):
                options = {"use_uvloop": use_uvloop}
                seconds.append(anyio.run(_second_run, workload, concurrency, backend_options=options))
        found.append(loop)
    return found


async def _second_run(workload: Workload, concurrency: int | None) -> float:
    async with Runtime() as runtime:
        await runtime.run_dag(workload.dag, concurrency=concurrency)
        gc.collect()
        began = time.perf_counter()
        await runtime.run_dag(workload.dag, concurrency=concurrency)
        return time.perf_counter() - began
