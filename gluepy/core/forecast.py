"""How long a run would take: the scheduler itself, driven through the graph with given durations, no clock, no work."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

import msgspec

from gluepy.core import events as e
from gluepy.core.graph import Graph
from gluepy.core.scheduler import BlockTask, CancelTask, EndRun, Limits, Scheduler, SkipTask, Start, StopTask
from gluepy.core.selection import Selection
from gluepy.core.state import State


class Forecast(msgspec.Struct, frozen=True):
    """`makespan_s` seconds in all; `critical_path_s` with any number of slots, `work_s` with a single one; `starts`
    maps each task to when it would start. `limits_s` maps each limit to how long the tasks that use it take, as many at
    a time as it lets."""

    makespan_s: float
    critical_path_s: float
    work_s: float
    starts: dict[str, float]
    limits_s: dict[str, float] = {}

    @property
    def narrowest(self) -> tuple[str, float]:
        """The limit that keeps the run longest, and for how long; an empty name where none keeps it longer than its
        critical path."""
        name = max(self.limits_s, key=self.limits_s.__getitem__, default="")
        return (name, self.limits_s[name]) if name and self.limits_s[name] > self.critical_path_s else ("", 0.0)


def forecast(
    graph: Graph,
    duration_s: Callable[[int], float],
    *,
    concurrency: int,
    limits: Mapping[str, int] | None = None,
    selection: Selection | None = None,
) -> Forecast:
    """Run through `graph` in virtual time. An `each` that asks a callable counts as having found nothing."""
    state = State(graph)
    scheduler = Scheduler(
        state, concurrency=concurrency, limits=Limits(limits or {}), selection=selection, weight=duration_s
    )
    now, work_s = 0.0, 0.0
    running: list[tuple[float, int]] = []
    starts: dict[str, float] = {}
    used_s: dict[str, float] = {}
    ended = False
    while not ended:
        while (command := scheduler.next(now)) is not None:
            match command:
                case Start():
                    node, took_s = command.node, duration_s(command.node)
                    state.begin(_STARTED, node)
                    starts[graph.task_id(node)] = now
                    work_s += took_s
                    for name, amount in graph.spec(node).uses.items():
                        used_s[name] = used_s.get(name, 0.0) + amount * took_s
                    heapq.heappush(running, (now + took_s, node))
                case SkipTask():
                    header = (0, 1, "", "info", "", "", graph.task_id(command.node), 0)
                    scheduler.observe(e.TaskSkipped(*header, command.reason), now)
                case EndRun():
                    ended = True
                case BlockTask() | CancelTask() | StopTask():
                    raise AssertionError("nothing fails and nobody cancels in a forecast")
        if running and not ended:
            now, node = heapq.heappop(running)
            scheduler.finish(_FINISHED, node, now)
    longest = max(graph.longest_paths(duration_s), default=0.0)
    limits_s = {name: seconds / limits[name] for name, seconds in used_s.items() if limits and limits.get(name)}
    return Forecast(now, longest, work_s, starts, limits_s)


# That one begins and ends is all that is known of a task in a forecast: these are of any.
_STARTED = e.TaskStarted(0, 1, "", "info", "", "", "", 1, 1, "", "", "", 0, 0.0)
_FINISHED = e.TaskFinished(0, 1, "", "info", "", "", "", 1, "", "", 0.0)
