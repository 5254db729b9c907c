"""Hamilton: each task a function whose parameters name what it depends on; built and executed."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from hamilton import driver
from hamilton.plugins.h_threadpool import FutureAdapter

from benchmarks.graphs import Graph
from benchmarks.peers.measuring import THREADS, Run, ends, measure
from benchmarks.work import nothing


def prepare(graph: Graph, adapters: tuple[Any, ...] = ()) -> Run:
    lines = []
    for node, after in graph.items():
        parameters = ", ".join(f"t{before}: int" for before in after)
        lines.append(f"def t{node}({parameters}) -> int:\n    nothing()\n    return 0\n")
    module = ModuleType(f"graph_{len(graph)}")
    vars(module)["nothing"] = nothing
    sys.modules[module.__name__] = module
    exec("\n".join(lines), vars(module))
    wanted = [f"t{node}" for node in ends(graph)]

    def run() -> None:
        built = driver.Builder().with_modules(module).with_adapters(*(make() for make in adapters)).build()
        built.execute(wanted)

    return run


if __name__ == "__main__":
    sys.setrecursionlimit(20_000)  # it walks graphs recursively
    measure(
        chain=prepare,
        fan_out=lambda graph: prepare(graph, (lambda: FutureAdapter(max_workers=THREADS),)),
        layered=prepare,
    )
