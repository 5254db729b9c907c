"""How good the order of starting is on graphs of real workflows, made by wfcommons from traces of what ran.

As `makespan`, with the tasks' typical durations from the traces. Beside max(critical path, work / slots) stands a bound
that sees more: tasks before which at least r seconds pass, and after which at least q, can begin at r and must have
ended q before the end, so r + their work / slots + q is a bound for any r and q. What lies between that and the best
of many orders is not known.
"""

from __future__ import annotations

import graphlib
import heapq
import random
import statistics
from collections.abc import Sequence
from importlib.util import find_spec

import msgspec

from benchmarks.graphs import Graph as Plain
from benchmarks.makespan import compiled, first_in_first_out, run
from gluepy.core.graph import Graph
from gluepy.runs.durations import Durations

FAMILIES = (
    "Blast", "Bwa", "Cycles", "Epigenomics", "Genome", "Montage", "Rnaseq", "Seismology", "Soykb", "Srasearch"
)  # fmt: skip
SLOTS = (4, 16)
TASKS = 300
LESSONS = 2
NOISE = 0.2
ORDERS = 100  # that are tried to find a better one


class RealOrder(msgspec.Struct, kw_only=True):
    """One family on so many slots: mean ratios of makespans to max(critical path, work / slots), first in first out,
    by gluepy with learned durations, and by the best of many orders that know the durations; and of the bound that
    sees more to that one."""

    family: str
    slots: int
    tasks: int
    fifo: float
    learned: float
    best: float
    bound: float


def real_orders(seeds: int) -> list[RealOrder]:
    """Every family on every number of slots, the mean of `seeds` graphs; nothing where wfcommons is not installed."""
    if find_spec("wfcommons") is None:
        return []
    found = []
    for family in FAMILIES:
        graphs = [_workflow(family, seed) for seed in range(seeds)]
        for slots in SLOTS:
            ratios = [
                _measured(compiled(plain), typical, slots, random.Random(f"{family}:{seed}"))
                for seed, (plain, typical) in enumerate(graphs)
            ]
            fifo, learned, best, bound = map(statistics.fmean, zip(*ratios, strict=True))
            found.append(
                RealOrder(
                    family=family,
                    slots=slots,
                    tasks=round(statistics.fmean(len(plain) for plain, _ in graphs)),
                    fifo=fifo,
                    learned=learned,
                    best=best,
                    bound=bound,
                )
            )
    return found


def _workflow(family: str, seed: int) -> tuple[Plain, list[float]]:
    """A graph of the family, and the seconds that its tasks take."""
    import numpy as np
    from wfcommons import WorkflowGenerator
    from wfcommons.wfchef import recipes

    random.seed(seed)
    np.random.seed(seed)  # wfcommons draws from both
    made = WorkflowGenerator(getattr(recipes, f"{family}Recipe").from_num_tasks(TASKS)).build_workflow()
    names = {name: node for node, name in enumerate(made.nodes)}
    before = {name: list(made.predecessors(name)) for name in made.nodes}
    order = graphlib.TopologicalSorter(before).static_order()
    plain: dict[int, Sequence[int]] = {names[name]: sorted(names[other] for other in before[name]) for name in order}
    typical = {names[name]: max(float(data["task"].runtime), 1e-3) for name, data in made.nodes(data=True)}
    return plain, [typical[node] for node in plain]


def _measured(graph: Graph, typical: Sequence[float], slots: int, draw: random.Random) -> tuple[float, ...]:
    def lived() -> list[float]:
        return [seconds * draw.lognormvariate(0.0, NOISE) for seconds in typical]

    known = Durations()
    for _ in range(LESSONS):
        known.learn(run(graph, lived(), slots, lambda _: 1.0)[1], set())
    takes_s = lived()
    paths = graph.longest_paths(takes_s.__getitem__)
    least_s = max(*paths, sum(takes_s) / slots)
    learned_s = run(graph, takes_s, slots, lambda node: known.median(graph.task_id(node), "") or 0.0)[0]
    orders = ([path * draw.uniform(0.5, 1.5) for path in paths] for _ in range(ORDERS))
    best_s = min(by_priority(graph, takes_s, slots, order) for order in (paths, *orders))
    fifo_s, bound_s = first_in_first_out(graph, takes_s, slots), bound(graph, takes_s, slots)
    return tuple(seconds / least_s for seconds in (fifo_s, learned_s, min(best_s, learned_s), bound_s))


def bound(graph: Graph, takes_s: Sequence[float], slots: int) -> float:
    """No order makes it shorter."""
    tails = [path - took for path, took in zip(graph.longest_paths(takes_s.__getitem__), takes_s, strict=True)]
    heads: list[float] = []
    for dependencies in graph.dependencies:  # in topological order
        heads.append(max((heads[other] + takes_s[other] for other in dependencies), default=0.0))
    most = max(head + took + tail for head, took, tail in zip(heads, takes_s, tails, strict=True))
    by_tail = sorted(range(len(tails)), key=tails.__getitem__, reverse=True)
    for head in set(heads):
        work_s = 0.0
        for node in by_tail:
            if heads[node] >= head:
                work_s += takes_s[node]
                most = max(most, head + work_s / slots + tails[node])
    return most


def by_priority(graph: Graph, takes_s: Sequence[float], slots: int, priority: Sequence[float]) -> float:
    """When all is done if of what is ready that with the highest priority starts first."""
    waits = [len(nodes) for nodes in graph.dependencies]
    ready = [(-priority[node], node) for node, count in enumerate(waits) if not count]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            _, node = heapq.heappop(ready)
            heapq.heappush(running, (now + takes_s[node], node))
        now, node = heapq.heappop(running)
        for other in graph.dependents[node]:
            waits[other] -= 1
            if not waits[other]:
                heapq.heappush(ready, (-priority[other], other))
    return now
