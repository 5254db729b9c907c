"""joblib: one level of side by side; it knows no dependencies."""

from __future__ import annotations

from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor

from benchmarks.graphs import Graph
from benchmarks.peers.measuring import BURNS, PROCESSES, THREADS, Run, measure
from benchmarks.work import burn, nothing


def fan_out(graph: Graph) -> Run:
    def run() -> None:
        nothing()
        Parallel(n_jobs=THREADS, backend="threading")(delayed(nothing)(n) for n in range(len(graph) - 2))
        nothing()

    return run


def cpu() -> None:
    Parallel(n_jobs=PROCESSES)(delayed(burn)(n) for n in range(BURNS))


if __name__ == "__main__":
    measure(fan_out=fan_out, cpu=cpu, after=lambda: get_reusable_executor().shutdown(wait=True))
