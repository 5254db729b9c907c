"""What an attempt costs on Dask, beside a call of nothing by Dask itself, on the same workers."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from benchmarks.turns import Effort, Row, in_turn, seconds
from benchmarks.work import nothing
from benchmarks.workloads import InThread, Workload, chain, side_by_side
from gluepy import Runtime

WORKERS = 2


async def on_dask(effort: Effort) -> AsyncIterator[Row]:
    """No-ops one by one, and many at once; and what a cluster's start costs with and without gluepy."""
    try:
        from distributed import Client, LocalCluster

        from gluepy.exec.executors.dask import DaskExecutor
    except ImportError:
        return
    few, many = min(effort.tasks, 200), min(effort.tasks, 500)
    line, row = chain(InThread, few), side_by_side(InThread, many)
    started: Any = LocalCluster
    connected: Any = Client
    options = {"n_workers": WORKERS, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}

    async def start_dask() -> None:
        async with started(**options, asynchronous=True) as cluster, connected(cluster, asynchronous=True) as client:
            await client.submit(nothing, pure=False)

    async def start_ours() -> None:
        async with Runtime(executor=DaskExecutor(workers=WORKERS)) as runtime:
            await runtime.run_dag(chain(InThread, 1).dag)

    times = await in_turn(
        lambda: seconds(start_dask()), lambda: seconds(start_ours()), effort.turns, warm=effort.turns > 1
    )
    yield Row(
        workload=f"a cluster of {WORKERS} workers started, for one no-op on Dask",
        floor="LocalCluster",
        floor_s=times[0],
        gluepy_s=times[1],
        aim=(1.3, 1.1),
    )
    before = os.environ.get("GLUEPY_INSTALLED_MODULES")
    os.environ["GLUEPY_INSTALLED_MODULES"] = json.dumps(["benchmarks"])  # of the workers
    try:
        async with (
            started(**options, asynchronous=True) as cluster,
            connected(cluster, asynchronous=True) as client,
            Runtime(executor=DaskExecutor(cluster.scheduler_address)) as runtime,
        ):

            async def one_by_one() -> None:
                for _ in range(few):
                    await client.submit(nothing, pure=False)

            async def at_once() -> None:
                await client.gather([client.submit(nothing, pure=False) for _ in range(many)])

            for workload, floor, name in (
                (line, one_by_one, f"chain of {few} no-ops on Dask"),
                (row, at_once, f"{many} no-ops at once on Dask"),
            ):

                async def theirs(floor: Callable[[], Awaitable[None]] = floor) -> float:
                    return await seconds(floor())

                async def ours(workload: Workload = workload) -> float:
                    return await seconds(runtime.run_dag(workload.dag, concurrency=many))

                floor_s, gluepy_s = await in_turn(theirs, ours, effort.turns)
                yield Row(
                    workload=f"{name}, {WORKERS} workers",
                    floor="Client.submit",
                    floor_s=floor_s,
                    gluepy_s=gluepy_s,
                    tasks=len(workload.graph),
                    aim=(1.3, 1.1),
                )
    finally:
        if before is None:
            del os.environ["GLUEPY_INSTALLED_MODULES"]
        else:
            os.environ["GLUEPY_INSTALLED_MODULES"] = before
