"""How good the order of starting is: runs in virtual time, decided by the real scheduler, of six families of DAGs.

Each task has a typical duration, drawn once for each DAG, and each run takes it times some noise. Three runs teach the
durations as `gluepy.runs.durations` keeps them; the fourth is measured, against max(critical path, work / slots) of
the durations that it really had: no order can beat that, and often none can reach it.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import msgspec

from benchmarks import graphs
from benchmarks.graphs import Graph as Plain
from benchmarks.turns import Row
from gluepy.core import events as e
from gluepy.core.graph import Deps, Graph, Leaf, Spec, Tree
from gluepy.core.scheduler import EndRun, Scheduler, Start
from gluepy.core.state import State
from gluepy.runs.durations import Durations

SLOTS = (2, 4, 8)
LESSONS = 3
SPREAD = 1.0  # sigma of the typical durations' logarithms: a tenth of the tasks take more than 3.6 times the median
NOISE = 0.3  # and of what a run makes of them: half of the tasks are off by more than a fifth

Weight = Callable[[int], float]


class Order(msgspec.Struct, kw_only=True):
    """One family of DAGs on so many slots: the mean ratio of the makespan to the bound, first in first out, by gluepy
    with nothing known, and with learned durations."""

    family: str
    slots: int
    fifo: float
    unknown: float
    learned: float


def families(draw: random.Random) -> Iterator[tuple[str, Plain]]:
    """One DAG of each family."""
    yield "fan-out", graphs.fan_out(100)
    yield "layers", graphs.layered(8, 12)
    yield "chains", _chains([draw.randint(2, 20) for _ in range(10)])
    yield "in-tree", _in_tree(127)
    yield "grid", _grid(10, 10)
    yield "series and parallel", _series_parallel(draw, 100)


def orders(seeds: int) -> list[Order]:
    """Every family on every number of slots, the mean of `seeds` DAGs."""
    ratios: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for seed in range(seeds):
        for number, (family, plain) in enumerate(families(random.Random(seed))):
            for slots in SLOTS:
                found = measured(compiled(plain), slots, random.Random(f"{seed}:{number}"))
                ratios.setdefault((family, slots), []).append(found)
    means = {key: map(statistics.fmean, zip(*found, strict=True)) for key, found in ratios.items()}
    return [
        Order(family=family, slots=slots, fifo=fifo, unknown=unknown, learned=learned)
        for (family, slots), (fifo, unknown, learned) in means.items()
    ]


def row(found: Sequence[Order]) -> Row:
    """The mean over all families."""
    return Row(
        workload="makespan with learned durations, 6 families of DAGs",
        floor="max(critical path, work / slots)",
        floor_s=[1.0] * len(found),
        gluepy_s=[order.learned for order in found],
        aim=(1.07, 1.03),
        mean=True,
        note=f"first in, first out: {statistics.fmean(order.fifo for order in found):.2f}",
    )


def measured(graph: Graph, slots: int, draw: random.Random) -> tuple[float, float, float]:
    """The ratios of one DAG's makespans to its bound."""
    typical = [draw.lognormvariate(3.0, SPREAD) for _ in graph.ids]

    def lived() -> list[float]:
        return [seconds * draw.lognormvariate(0.0, NOISE) for seconds in typical]

    def unknown(node: int) -> float:
        return 1.0

    known = Durations()
    for _ in range(LESSONS):
        _, state = run(graph, lived(), slots, unknown)
        known.learn(state, set())

    def learned(node: int) -> float:
        median = known.median(graph.task_id(node), graph.spec(node).label)
        assert median is not None
        return median

    takes_s = lived()
    bound_s = max(*graph.longest_paths(takes_s.__getitem__), sum(takes_s) / slots)
    fifo_s = first_in_first_out(graph, takes_s, slots)
    unknown_s, learned_s = (run(graph, takes_s, slots, weight)[0] for weight in (unknown, learned))
    assert min(fifo_s, unknown_s, learned_s) > 0.999999 * bound_s
    return fifo_s / bound_s, unknown_s / bound_s, learned_s / bound_s


def run(graph: Graph, takes_s: Sequence[float], slots: int, weight: Weight) -> tuple[float, State]:
    """When the scheduler is through with `graph`, in virtual time; and the state after that."""
    state = State(graph)
    scheduler = Scheduler(state, concurrency=slots, weight=weight)
    now, seq = 0.0, 0
    running: list[tuple[float, int]] = []

    def header(node: int) -> tuple[int, int, str, str, str, str, str, int]:
        nonlocal seq
        seq += 1
        return seq, 1, "", "info", "", "", graph.task_id(node), 1

    while True:
        while (command := scheduler.next(now)) is not None:
            if isinstance(command, EndRun):
                return now, state
            assert isinstance(command, Start)
            scheduler.observe(e.TaskStarted(*header(command.node), 1, "", "", "", 0, 0.0), now)
            heapq.heappush(running, (now + takes_s[command.node], command.node))
        now, node = heapq.heappop(running)
        scheduler.observe(e.TaskFinished(*header(node), "", "", takes_s[node]), now)


def first_in_first_out(graph: Graph, takes_s: Sequence[float], slots: int) -> float:
    """When all is done if whatever is ready first starts first."""
    waits = [len(nodes) for nodes in graph.dependencies]
    ready = deque(node for node, count in enumerate(waits) if not count)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            node = ready.popleft()
            heapq.heappush(running, (now + takes_s[node], node))
        now, node = heapq.heappop(running)
        for other in graph.dependents[node]:
            waits[other] -= 1
            if not waits[other]:
                ready.append(other)
    return now


def compiled(plain: Plain) -> Graph:
    """`plain` as gluepy's graph. Each task has a label of its own, so nothing is learned from its neighbours."""
    specs = tuple(Spec(cls="benchmarks.makespan:none", label=f"t{node}") for node in plain)
    leaves = tuple(Leaf(spec=place) for place in range(len(plain)))
    places = {node: place for place, node in enumerate(plain)}
    dependencies = tuple(tuple(places[other] for other in plain[node]) for node in plain)
    return Graph(Tree(specs, Deps(leaves, dependencies)))


def _chains(lengths: Sequence[int]) -> Plain:
    """Chains side by side."""
    graph: dict[int, Sequence[int]] = {}
    for length in lengths:
        for place in range(length):
            graph[len(graph)] = [len(graph) - 1] if place else []
    return graph


def _in_tree(count: int) -> Plain:
    """Two make one, until one is left."""
    leaves = (count + 1) // 2
    return {n: [] if n < leaves else [2 * (n - leaves), 2 * (n - leaves) + 1] for n in range(count)}


def _grid(rows: int, columns: int) -> Plain:
    """Each cell waits for the one above and the one to the left."""
    graph: dict[int, Sequence[int]] = {}
    for row in range(rows):
        for column in range(columns):
            above = [(row - 1) * columns + column] if row else []
            left = [row * columns + column - 1] if column else []
            graph[row * columns + column] = above + left
    return graph


def _series_parallel(draw: random.Random, count: int) -> Plain:
    """Sequences of branches of sequences."""
    graph: dict[int, Sequence[int]] = {}

    def task(after: Sequence[int]) -> list[int]:
        graph[len(graph)] = after
        return [len(graph) - 1]

    def build(room: int, after: Sequence[int]) -> Sequence[int]:
        if room < 3:
            for _ in range(room):
                after = task(after)
            return after
        if draw.random() < 0.4:
            first = draw.randint(1, room - 1)
            return build(room - first, build(first, after))
        begun = task(after)
        rooms = [(room - 2) // branches for branches in [draw.randint(2, 5)] for _ in range(branches)]
        ends = [end for part in rooms if part for end in build(part, begun)]
        return task(ends or begun)

    build(count, ())
    return graph
