"""The graphs of the workloads, as graphlib takes them: each task, a number, with what it depends on.

Only the standard library: the peers' virtual environments have nothing else of this project.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

Graph = Mapping[int, Sequence[int]]


def chain(count: int) -> Graph:
    """One after another."""
    return {n: [n - 1] if n else [] for n in range(count)}


def fan_out(count: int) -> Graph:
    """One, then `count` side by side, then one."""
    middle = range(1, count + 1)
    return {0: [], **{n: [0] for n in middle}, count + 1: middle}


def layered(layers: int, width: int, dependencies: int = 3) -> Graph:
    """Layers in which each task depends on some of the layer before, drawn with a fixed seed."""
    draw = random.Random(0)
    graph: dict[int, Sequence[int]] = {}
    for layer in range(layers):
        before = range((layer - 1) * width, layer * width)
        for place in range(width):
            graph[layer * width + place] = draw.sample(before, dependencies) if layer else []
    return graph
