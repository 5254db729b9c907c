"""Ray: remote functions, in worker processes of a cluster that is started here."""

from __future__ import annotations

from typing import Any

import ray

from benchmarks.graphs import Graph
from benchmarks.peers.measuring import BURNS, PROCESSES, THREADS, Run, ends, measure
from benchmarks.work import burn, nothing


def prepare(graph: Graph) -> Run:
    if not ray.is_initialized():
        ray.init(num_cpus=THREADS, include_dashboard=False)
    step = ray.remote(nothing)

    def run() -> None:
        made: dict[int, Any] = {}
        for node, after in graph.items():
            made[node] = step.remote(*[made[before] for before in after])
        ray.get([made[node] for node in ends(graph)])

    return run


def cpu() -> None:
    ray.shutdown()
    ray.init(num_cpus=PROCESSES, include_dashboard=False)
    step = ray.remote(burn)
    ray.get([step.remote(n) for n in range(BURNS)])
    ray.shutdown()


if __name__ == "__main__":
    measure(chain=prepare, fan_out=prepare, layered=prepare, cpu=cpu, counted=False)
