"""When attempts must have ended: `Deadlines`."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

_SPARE = 16


class Deadlines:
    """The deadlines of the attempts that are under way, at most one for each node.

    An attempt that ends leaves its entry in the heap. When the heap has more such entries than others it is built anew,
    so its size is bounded by what is under way, and `add` and `forget` take constant time on average.
    """

    def __init__(self) -> None:
        self._at: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, node: int, at: float) -> None:
        """The attempt of `node` must have ended `at` that time."""
        self._at[node] = at
        heapq.heappush(self._heap, (at, node))

    def forget(self, node: int) -> None:
        """The attempt of `node` has ended."""
        if self._at.pop(node, None) is not None and len(self._heap) > 2 * len(self._at) + _SPARE:
            self._heap = [(at, node) for node, at in self._at.items()]
            heapq.heapify(self._heap)

    def next(self) -> float:
        """The earliest deadline; infinity if there is none."""
        heap = self._heap
        while heap and self._at.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def due(self, now: float) -> Iterator[int]:
        """The nodes whose deadline has come, each once."""
        while self.next() <= now:
            _, node = heapq.heappop(self._heap)
            del self._at[node]
            yield node
