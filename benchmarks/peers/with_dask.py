"""Dask: `dask.delayed`, on its synchronous scheduler or the threaded one, which is the default."""

from __future__ import annotations

import sys
from typing import Any

import dask

from benchmarks.graphs import Graph
from benchmarks.peers.measuring import BURNS, PROCESSES, THREADS, Run, ends, measure
from benchmarks.work import burn, nothing

SCHEDULER = "sync" if "sync" in sys.argv else "threads"


def prepare(graph: Graph) -> Run:
    made: dict[int, Any] = {}
    for node, after in graph.items():
        made[node] = dask.delayed(nothing)(*[made[before] for before in after])
    last = [made[node] for node in ends(graph)]
    workers = {} if SCHEDULER == "sync" else {"num_workers": THREADS}
    return lambda: dask.compute(*last, scheduler=SCHEDULER, **workers)


def cpu() -> None:
    dask.compute(*[dask.delayed(burn)(n) for n in range(BURNS)], scheduler="processes", num_workers=PROCESSES)


if __name__ == "__main__":
    threads = SCHEDULER == "threads"
    measure(
        chain=prepare,
        fan_out=prepare if threads else None,
        layered=prepare,
        cpu=cpu if threads else None,
    )
