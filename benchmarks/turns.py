"""Measuring in turn: the floor, then gluepy, then again; and the row of the table that comes of it."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable

import msgspec

Side = Callable[[], Awaitable[float]]


class Row(msgspec.Struct, kw_only=True):
    """One comparison: the seconds of each turn, of the floor and of gluepy.

    `tasks` is what the times are divided by for the table. `aim` are two ratios, a good one and an excellent one.
    `mean`: the times are of different things, so only the mean of their ratios tells something. `detail` keeps the row
    out of the picture: it is for the report's table only.
    """

    workload: str
    floor: str
    floor_s: list[float]
    gluepy_s: list[float]
    tasks: int = 1
    aim: tuple[float, float] | None = None
    mean: bool = False
    detail: bool = False
    note: str = ""

    @property
    def ratio(self) -> float:
        """The median over the turns of gluepy's time to the floor's (`mean`: the mean)."""
        ratios = [ours / floor for floor, ours in zip(self.floor_s, self.gluepy_s, strict=True)]
        return statistics.fmean(ratios) if self.mean else statistics.median(ratios)

    @property
    def floor_each_s(self) -> float:
        """The floor's median time for a task."""
        return statistics.median(self.floor_s) / self.tasks

    @property
    def gluepy_each_s(self) -> float:
        """gluepy's median time for a task."""
        return statistics.median(self.gluepy_s) / self.tasks


async def in_turn(floor: Side, gluepy: Side, turns: int, *, warm: bool = True) -> tuple[list[float], list[float]]:
    """Both sides' seconds, turn by turn. `warm`: one turn more, which comes first and is not counted."""
    floor_s: list[float] = []
    gluepy_s: list[float] = []
    for _ in range(turns + warm):
        for side, seconds in ((floor, floor_s), (gluepy, gluepy_s)):
            gc.collect()
            seconds.append(await side())
    return floor_s[warm:], gluepy_s[warm:]


async def seconds(work: Awaitable[object]) -> float:
    """How long `work` takes."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


class Effort(msgspec.Struct, frozen=True):
    """How much to measure: `full`, or `small`, which only sees that everything works."""

    turns: int
    tasks: int
    many: tuple[int, int]
    shown: int
    events: int
    seeds: int


def full(turns: int) -> Effort:
    """What the report shows."""
    return Effort(max(turns, 5), 1_000, (100_000, 1_000_000), 10_000, 20_000, 30)


small = Effort(1, 100, (1_000, 2_000), 200, 200, 1)
