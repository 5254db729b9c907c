"""The workloads: the same graph as a gluepy DAG and as a plain mapping for the floors."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gluepy import DAG, Task, each


class OnLoop(Task):
    """Nothing, on the event loop."""

    n: int

    async def run(self) -> None: ...


class InThread(Task):
    """Nothing, in a thread."""

    n: int

    def run(self) -> None: ...


class InProcess(Task):
    """Nothing, in a worker process."""

    pool = "process"
    n: int

    def run(self) -> None: ...


async def nothing(_: int) -> None:
    """What the floors run on the loop."""


def nothing_at_all(_: int) -> None:
    """What the floors run in threads and processes."""


@dataclass(frozen=True)
class Workload:
    """`graph` for the floors, `dag` for gluepy: the same tasks with the same dependencies."""

    name: str
    graph: Mapping[int, Sequence[int]]
    dag: type[DAG]
    concurrency: int


def chain(task: type[Task], count: int) -> Workload:
    """One after another."""
    tasks = tuple(task(n=n) for n in range(count))
    graph = {n: [n - 1] if n else [] for n in range(count)}
    return Workload(f"chain of {count:,}", graph, _dag(tasks), 4)


def fan_out(task: type[Task], count: int, concurrency: int = 4) -> Workload:
    """One, then many side by side, then one."""
    tasks = (task(n=0), each(task, n=range(1, count + 1)), task(n=count + 1))
    graph = {0: [], **{n: [0] for n in range(1, count + 1)}, count + 1: range(1, count + 1)}
    return Workload(f"1 → {count:,} → 1, {concurrency} at a time", graph, _dag(tasks), concurrency)


def layered(task: type[Task], layers: int, width: int, dependencies: int = 3) -> Workload:
    """Layers in which each task depends on some of the layer before, drawn with a fixed seed."""
    draw = random.Random(0)
    graph: dict[int, list[int]] = {}
    for layer in range(layers):
        for place in range(width):
            before = range((layer - 1) * width, layer * width)
            graph[layer * width + place] = draw.sample(before, dependencies) if layer else []
    made = {n: task(n=n) for n in graph}
    tasks = {made[n]: tuple(made[dep] for dep in deps) for n, deps in graph.items()}
    return Workload(f"layered {layers} x {width}, {dependencies} dependencies each", graph, _dag(tasks), 4)


def _dag(tasks: Any) -> type[DAG]:
    return type("Benchmark", (DAG,), {"tasks": tasks, "__module__": __name__})
