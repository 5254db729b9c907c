"""The workloads: the same graph as a gluepy DAG and as a plain mapping for the floors."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from benchmarks import graphs
from benchmarks.graphs import Graph
from benchmarks.work import burn, nothing, nothing_async
from gluepy import DAG, Task, each

SLEEP_S = 0.01


class OnLoop(Task):
    """Nothing, on the event loop."""

    n: int

    async def run(self) -> None:
        await nothing_async()


class InThread(Task):
    """Nothing, in a thread."""

    n: int

    def run(self) -> None:
        nothing()


class InProcess(Task):
    """Nothing, in a worker process."""

    pool = "process"
    n: int

    def run(self) -> None:
        nothing()


class Sleep(Task):
    """A wait, on the event loop."""

    n: int

    async def run(self) -> None:
        await asyncio.sleep(SLEEP_S)


class Burn(Task):
    """Half a second of CPU time, in a worker process."""

    pool = "process"
    n: int

    def run(self) -> None:
        burn()


@dataclass(frozen=True)
class Workload:
    """`graph` for the floors, `dag` for gluepy: the same tasks with the same dependencies."""

    graph: Graph
    dag: type[DAG]


def chain(task: type[Task], count: int) -> Workload:
    """One after another."""
    return Workload(graphs.chain(count), dag_of(tuple(task(n=n) for n in range(count))))


def fan_out(task: type[Task], count: int) -> Workload:
    """One, then many side by side, then one."""
    tasks = (task(n=0), each(task, n=range(1, count + 1)), task(n=count + 1))
    return Workload(graphs.fan_out(count), dag_of(tasks))


def layered(task: type[Task], layers: int, width: int) -> Workload:
    """Layers in which each task depends on three of the layer before."""
    graph = graphs.layered(layers, width)
    made = {n: task(n=n) for n in graph}
    return Workload(graph, dag_of({made[n]: tuple(made[before] for before in after) for n, after in graph.items()}))


def side_by_side(task: type[Task], count: int) -> Workload:
    """Many, none of which waits for another."""
    return Workload({n: [] for n in range(count)}, dag_of((each(task, n=range(count)),)))


def dag_of(tasks: Any) -> type[DAG]:
    """A DAG of `tasks`."""
    return type("Benchmark", (DAG,), {"tasks": tasks, "__module__": __name__})
