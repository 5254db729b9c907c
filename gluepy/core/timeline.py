"""When a run's attempts ran: the bars of its timeline, its critical path, what more slots would have brought."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

import msgspec

from gluepy.clock import seconds_of
from gluepy.core import events as e
from gluepy.core.forecast import Forecast, forecast
from gluepy.core.state import FINISHED, PENDING, RUNNING, State

_LOOK_BACK = 50  # ends of attempts that used the limit: the one that made room is among the last
_LONGEST_S = 1e9  # a damaged log can hold any number
_JUMP_S = 60.0  # so far an event may be from where it belongs before it is the clock that was wrong


class Bar(msgspec.Struct, frozen=True):
    """One attempt: seconds since the run began, how long it was ready before, how it ended (`running`: not yet)."""

    task: str
    attempt: int
    started_s: float
    ended_s: float
    queued_s: float
    status: str


class Timeline(msgspec.Struct, frozen=True):
    """The attempts of a run in the order in which they started, and what follows from them.

    `working_s` is the time of all attempts, `waiting_s` how long ready tasks waited for a slot. `critical_path`
    are the tasks that the run had to wait for, the last one last.
    """

    bars: list[Bar]
    length_s: float
    working_s: float
    waiting_s: float
    critical_path: list[str]


class TimelineFold:
    """Takes the events of a run, one after another, and makes its timeline: without pauses between sessions.

    Nothing in it takes longer than it did, nor less than no time, where somebody set the machine's clock meanwhile.
    """

    def __init__(self) -> None:
        self._bars: dict[tuple[str, int], Bar] = {}
        self._running: dict[tuple[str, int], tuple[float, float]] = {}  # when each started, how long it was ready
        self._clock = _Clock()
        self._now = 0.0

    def add(self, event: e.Event) -> None:
        """Take the next event."""
        match event:
            case e.TaskStarted():
                self._now = now = self._clock.seconds(event)
                key = event.task, event.attempt
                self._running[key] = now, event.queued_s
                self._bars.setdefault(key, _PLACE)
            case e.TaskFinished() | e.TaskFailed() | e.TaskRetrying() | e.TaskCancelled() | e.TaskSkipped():
                begun = self._running.pop((event.task, event.attempt), None)
                if begun is None:
                    self._now = self._clock.seconds(event)
                    return
                self._now = self._clock.seconds(event, begun[0] + (event.duration_s or math.inf))
                self._end((event.task, event.attempt), begun, _ENDS[type(event)])
            case e.RunFinished() | e.RunFailed() | e.RunCancelled():
                self._now = self._clock.end(event.duration_s)
            case e.RunResumed():  # what had no end was running when its driver died; the DAG may have lost the task too
                for key, begun in self._running.items():
                    self._end(key, begun, "failed")
                self._running.clear()
                self._now = self._clock.seconds(event)
            case _:
                self._now = self._clock.seconds(event)

    def timeline(self, state: State) -> Timeline:
        """The timeline up to here, of the run with this `state`."""
        running = self._running
        done = [
            bar if key not in running else self._bar(key, running[key], "running") for key, bar in self._bars.items()
        ]
        return Timeline(
            done,
            self._now,
            sum(bar.ended_s - bar.started_s for bar in done),
            sum(bar.queued_s for bar in done),
            _critical_path(state, done),
        )

    def _end(self, key: tuple[str, int], begun: tuple[float, float], status: str) -> None:
        self._bars[key] = self._bar(key, begun, status)

    def _bar(self, key: tuple[str, int], begun: tuple[float, float], status: str) -> Bar:
        return Bar(*key, begun[0], self._now, begun[1], status)


def timeline(events: Iterable[e.Event], state: State) -> Timeline:
    """The timeline of the run with these `events`, of which `state` is the fold."""
    fold = TimelineFold()
    for event in events:
        fold.add(event)
    return fold.timeline(state)


def with_more_slots(state: State, concurrency: int, limits: Mapping[str, int]) -> Callable[[int], Forecast]:
    """How long the run would take with so many slots, from how long its tasks did take."""

    def simulated(slots: int) -> Forecast:
        return forecast(
            state.graph,
            lambda node: min(max(0.0, state.duration_s[node]), _LONGEST_S) if state.status[node] == FINISHED else 0.0,
            concurrency=max(slots, concurrency),
            limits=limits,
        )

    return simulated


def waited_for(told: Timeline, state: State, limits: Mapping[str, int]) -> dict[str, float]:
    """What the ready tasks waited for, in seconds: by the name of the limit, and by "" for a slot.

    It was the limit if that was short at some time while the task waited.
    """
    if not any(spec.uses for spec in state.graph.specs):
        waiting = [bar.queued_s for bar in told.bars if bar.queued_s > 0]
        return {"": sum(waiting)} if waiting else {}
    edges = [(bar.started_s, 1, bar) for bar in told.bars] + [(bar.ended_s, 0, bar) for bar in told.bars]
    waited: dict[str, float] = {}
    used: dict[str, int] = {}
    levels: dict[str, list[tuple[float, int]]] = {}  # of each limit: how much was used until when
    graph = state.graph
    for at, starts, bar in sorted(edges, key=lambda edge: edge[:2]):
        uses = graph.spec(graph.index[bar.task]).uses if bar.task in graph.index else {}
        if starts and bar.queued_s > 0:
            ready, cause = at - bar.queued_s, ""
            for name, amount in uses.items():
                for until, level in islice(reversed(levels.get(name, ())), _LOOK_BACK):
                    if until < ready:
                        break
                    if level + amount > limits.get(name, math.inf):
                        cause = name
                        break
            waited[cause] = waited.get(cause, 0.0) + bar.queued_s
        for name, amount in uses.items():
            if not starts:
                levels.setdefault(name, []).append((at, used.get(name, 0)))
            used[name] = used.get(name, 0) + (amount if starts else -amount)
    return waited


def held_back(state: State, slots: int, limits: Mapping[str, int]) -> dict[int, str]:
    """The tasks of a running run that are ready and do not run, with what each waits for: the name of a limit, or ""
    for a slot."""
    graph, status = state.graph, state.status
    used: dict[str, int] = {}
    running = 0
    for node in graph.tasks():
        if status[node] == RUNNING:
            running += 1
            for name, amount in graph.spec(node).uses.items():
                used[name] = used.get(name, 0) + amount
    ended: dict[int, bool] = {}  # of joins: whether all before them has ended

    def over(node: int) -> bool:
        if graph.ids[node] is not None:
            return status[node] >= FINISHED
        if node not in ended:
            ended[node] = all(map(over, graph.dependencies[node]))
        return ended[node]

    found: dict[int, str] = {}
    for node in graph.tasks():
        if status[node] != PENDING or not all(map(over, graph.dependencies[node])):
            continue
        uses = graph.spec(node).uses.items()
        short = next((name for name, amount in uses if used.get(name, 0) + amount > limits.get(name, math.inf)), None)
        if short is not None:
            found[node] = short
        elif running >= slots:
            found[node] = ""
    return found


class _Clock:
    """Seconds since the run began, without the time between its sessions, and without jumps of the machine's clock."""

    def __init__(self) -> None:
        self._session = 0
        self._began = 0.0
        self._shift = 0.0
        self._last = 0.0
        self._read: tuple[str, float | None] = "", None  # the events of one moment have one timestamp

    def seconds(self, event: e.Event, due_s: float = math.inf) -> float:
        """When `event` happened; `due_s` is when it must have, more or less, by a clock that nobody can set."""
        if event.timestamp != self._read[0]:
            self._read = event.timestamp, seconds_of(event.timestamp)
        at = self._read[1]
        if at is None:  # a damaged one: it happened, at some time after the one before
            at = self._last + self._shift
        if event.session != self._session:
            self._session, self._began = event.session, self._last
            self._shift = at - self._last
        now = at - self._shift
        if now < self._last or now > due_s + _JUMP_S:
            now = self._last if due_s == math.inf else max(self._last, due_s)
            self._shift = at - now
        self._last = now
        return now

    def end(self, duration_s: float) -> float:
        """When the session ended, which took so long by a clock that nobody can set."""
        self._last = max(self._last, self._began + duration_s)
        return self._last


def _critical_path(state: State, bars: Sequence[Bar]) -> list[str]:
    """From the attempt that ended last back to each time the task before it that ended last, of the tasks that the DAG
    still has."""
    graph = state.graph
    last = {bar.task: bar for bar in bars if bar.task in graph.index}
    if not last:
        return []
    node = graph.index[max(last.values(), key=lambda bar: bar.ended_s).task]
    path = [graph.task_id(node)]
    while True:
        dependencies = [graph.task_id(other) for other in graph.task_dependencies(node)]
        ended = [last[task] for task in dependencies if task in last]
        if not ended:
            return path[::-1]
        latest = max(ended, key=lambda bar: bar.ended_s)
        node = graph.index[latest.task]
        path.append(latest.task)


_PLACE = Bar("", 0, 0.0, 0.0, 0.0, "running")  # of an attempt in the order of their beginnings, until it ends
_ENDS = {
    e.TaskFinished: "finished",
    e.TaskFailed: "failed",
    e.TaskRetrying: "failed",
    e.TaskCancelled: "cancelled",
    e.TaskSkipped: "skipped",
}
