"""What is ahead of a run: how long it will still take, what its tasks usually take, and what waits for what."""

from __future__ import annotations

import time
from collections.abc import Mapping

from gluepy.clock import seconds_of
from gluepy.core import events as e
from gluepy.core.forecast import forecast
from gluepy.core.state import FINISHED, PENDING, RETRYING, RUNNING, State
from gluepy.core.timeline import held_back
from gluepy.errors import UsageError
from gluepy.runs.durations import read_durations, typical
from gluepy.runs.reading import RunReader
from gluepy.runs.record import Record

MOST = 2_000  # tasks of a run that is looked at: the display must cost next to nothing
_LOOK_S = 1.0
_UNKNOWN = 0.25  # of the tasks that are left: with more of which nothing is known, nothing is said


class Remaining:
    """Looks at the log of a run, once a second at most, and tells from it and from earlier runs what is ahead.

    `left_s` are the seconds that are left, None while too little is known (`at_least`: an `each` has still to find its
    values); `usual_s` maps the tasks that run to what they
    usually take; `waiting` maps what ready tasks wait for, a limit's name or "" for a slot, to these tasks' ids.
    """

    def __init__(self, record: Record, dag: str, slots: int, limits: Mapping[str, int]) -> None:
        self._reader = RunReader(record.events)
        self._known = read_durations(record.root, dag)
        self._slots, self._limits = slots, limits
        self._looked = -_LOOK_S
        self._started: dict[str, float] = {}
        self._at_once = 0.0  # how many tasks run at a time, as limits, slots and dependencies have it
        self._size = 0
        self._over = False
        self.left_s: float | None = None
        self.at_least = False
        self.usual_s: dict[str, float] = {}
        self.waiting: dict[str, list[str]] = {}

    def look(self, now: float) -> None:
        """Take in what has happened, where the last look is a while ago."""
        if self._over or now - self._looked < _LOOK_S:
            return
        self._looked = now
        try:
            for event in self._reader.events():
                if isinstance(event, e.TaskStarted):
                    self._started[event.task] = seconds_of(event.timestamp) or time.time()
            state = self._reader.state
        except UsageError:  # the display is no place to tell it
            self._over = True
            return
        if len(state.graph) > MOST:
            self._over, self.left_s, self.usual_s, self.waiting = True, None, {}, {}
            return
        self._tell(state)

    def _tell(self, state: State) -> None:
        graph = state.graph
        self.waiting = {}
        for node, name in held_back(state, self._slots, self._limits).items():
            self.waiting.setdefault(name, []).append(graph.task_id(node))
        here: dict[str, list[float]] = {}
        for node in graph.tasks():
            if state.status[node] == FINISHED:
                here.setdefault(graph.spec(node).label, []).append(state.duration_s[node])
        usual: dict[int, float] = {}
        for node in graph.tasks():
            label = graph.spec(node).label
            seconds = self._known.median(graph.task_id(node), label)
            if seconds is None and label in here:
                seconds = typical(here[label])
            if seconds is not None:
                usual[node] = seconds
        self.usual_s = {graph.task_id(node): usual[node] for node in usual if state.status[node] == RUNNING}
        todo = [node for node in graph.tasks() if state.status[node] in (PENDING, RUNNING, RETRYING)]
        unknown = sum(node not in usual for node in todo)
        if not todo or unknown > _UNKNOWN * len(todo):
            self.left_s = None
            return
        self.at_least = any(graph.expandable(node) is not None for node in todo)
        average = typical(usual.values())
        if len(graph) != self._size:
            self._size = len(graph)
            whole = forecast(graph, lambda node: usual.get(node, average), concurrency=self._slots, limits=self._limits)
            self._at_once = max(1.0, whole.work_s / whole.makespan_s) if whole.makespan_s else 1.0
        wall, work_s, longest_s = time.time(), 0.0, 0.0
        for node in todo:
            left_s = usual.get(node, average)
            if state.status[node] == RUNNING:
                left_s = max(0.0, left_s - (wall - self._started.get(graph.task_id(node), wall)))
            work_s += left_s
            longest_s = max(longest_s, left_s)
        self.left_s = max(work_s / self._at_once, longest_s)
