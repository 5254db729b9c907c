"""Deciding what happens next: events in, commands out. No IO, no clock, no randomness; time is an argument.

Incremental: an event costs what it touches, not the graph. Every node counts down what it waits for, and collects from
it three facts (flags): something failed, something was skipped, a failure lies somewhere before. When the count is
zero the task's trigger is judged by the flags. Joins hand the flags on. Ready tasks wait in heaps, one for each
combination of named limits, ordered by the longest remaining path (Graham's list scheduling by critical path).

What a task does once all its direct predecessors have ended, by its trigger and by how they ended (`bad`: failed,
blocked or cancelled; a task that was not selected counts as finished, but hides nothing bad before it):

    trigger        all finished   some skipped, none bad   some bad
    all_success    starts         skipped (upstream)       blocked
    none_failed    starts         starts                   blocked
    none_failed_…  starts         starts, or skipped       blocked
    all_done       starts         starts                   starts
    one_failed     skipped        skipped (trigger)        starts

(none_failed_min_one_success starts after a skip if another predecessor finished, and is skipped, reason upstream, if
none did.)

After a failure that leaves no attempt, `on_failure` decides about the rest of the run. "continue": nothing changes.
"drain": what has begun goes on, retries included; what would start although no failure lies before it is blocked when
the run ends. "cancel": as "drain", but what has begun is stopped, and retries are cancelled.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, Literal, assert_never

import msgspec

from gluepy.core import events as e
from gluepy.core.events import Event
from gluepy.core.policy import OnFailure
from gluepy.core.selection import Selection
from gluepy.core.state import BLOCKED, CANCELLED, FAILED, FINISHED, PENDING, RETRYING, RUNNING, SKIPPED, State

_FAILED: Final = 1  # a direct predecessor failed, was blocked or cancelled
_SKIPPED: Final = 2  # a direct predecessor was skipped
_AFTERMATH: Final = 4  # a failure lies somewhere before
_TOP: Final = 1 << 40
_NODE: Final = (1 << 32) - 1  # the part of a heap's key that is the node
_CAUSES: Final = 8  # blocked_by names at most so many
GRACE_S: Final = 10.0  # how long a retry, or the rest of a run, waits for what cannot be stopped


class Start(msgspec.Struct, frozen=True, gc=False):
    """Start attempt `attempt` of the task; it has been ready for `queued_s`."""

    node: int
    attempt: int
    queued_s: float


class SkipTask(msgspec.Struct, frozen=True, gc=False):
    """Record the task as skipped."""

    node: int
    reason: Literal["upstream", "trigger", "unselected"]


class BlockTask(msgspec.Struct, frozen=True):
    """Record the task as blocked by the failure of `causes`."""

    node: int
    causes: tuple[int, ...]


class CancelTask(msgspec.Struct, frozen=True, gc=False):
    """Record the task, which does not run, as cancelled."""

    node: int


class StopTask(msgspec.Struct, frozen=True, gc=False):
    """Stop the running attempt of the task."""

    node: int


class EndRun(msgspec.Struct, frozen=True):
    """Everything has ended; record how."""

    status: Literal["finished", "failed", "cancelled"]
    reason: str | None = None


Command = Start | SkipTask | BlockTask | CancelTask | StopTask | EndRun


class Limits:
    """Named limits that several runs may share. `capacity` by name; a task takes all that it uses at once."""

    def __init__(self, capacity: Mapping[str, int]) -> None:
        self.capacity = dict(capacity)
        self.free = dict(capacity)
        self._waiting: dict[Callable[[], None], None] = {}

    def take(self, uses: Iterable[tuple[str, int]]) -> bool:
        """Take all of `uses`, or nothing and return False."""
        free = self.free
        for name, amount in uses:
            if free[name] < amount:
                return False
        for name, amount in uses:
            free[name] -= amount
        return True

    def give(self, uses: Iterable[tuple[str, int]]) -> None:
        """Give `uses` back, and call those who wait for limits, the longest waiting one first."""
        for name, amount in uses:
            self.free[name] += amount
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            for call in waiting:
                call()

    def wait(self, call: Callable[[], None]) -> None:
        """Call `call`, once, at the next `give`."""
        self._waiting[call] = None

    def stop_waiting(self, call: Callable[[], None]) -> None:
        """Undo `wait`."""
        self._waiting.pop(call, None)


class Scheduler:
    """Decides for one run. `observe` takes every event in (and folds it into `state`); `next` gives the next command.

    `concurrency` bounds the tasks that run at once; `shared` are units that every task of the run takes from `limits`
    besides its own `uses` (a `Runtime`'s concurrency). `on_limit_free` is called when a limit that the run waits for
    comes free; the caller of `next` sets it. Without a `selection` all tasks run. `awaited` are ids that the run's
    options name and that only an `each` can still add, with the nodes that find its values. `weight` estimates a node's
    duration. `now` and `wall` are the same moment, by the monotonic clock and in seconds since 1970.
    """

    def __init__(
        self,
        state: State,
        *,
        concurrency: int,
        limits: Limits | None = None,
        shared: tuple[tuple[str, int], ...] = (),
        on_failure: OnFailure = "drain",
        selection: Selection | None = None,
        awaited: Mapping[str, Collection[int]] | None = None,
        weight: Callable[[int], float] = lambda node: 1.0,
        now: float = 0.0,
        wall: float = 0.0,
    ) -> None:
        self.state = state
        self.graph = state.graph
        self.concurrency = concurrency
        self.on_limit_free: Callable[[], None] = lambda: None
        self.on_failure = on_failure
        # Nodes for which `next` has given a Start and no event of an end has come. They hold their limits and a slot.
        self.running: set[int] = set()
        # Nodes whose attempt was given up and goes on: which attempt, and until when a retry waits for it. They hold
        # limits and a slot as running ones do, and are never running: a retry takes them over.
        self.abandoned: dict[int, tuple[int, float]] = {}
        self._limits = limits if limits is not None else Limits({})
        self._uses = [shared + tuple(spec.uses.items()) for spec in self.graph.specs]
        self._selection = selection
        self._awaited = dict(awaited or {})
        self._weight = weight
        self._paths = self.graph.longest_paths(weight)
        # Of each node, the dependencies that have not ended yet; it is judged when this becomes 0, never again.
        self._waiting = [len(dependencies) for dependencies in self.graph.dependencies]
        self._flags = bytearray(len(self.graph))  # of each node, from those of its dependencies that have ended
        self._ready_at = array("d", bytes(8 * len(self.graph)))
        self._causes: dict[int, tuple[int, ...]] = {}  # for each node with the flag _FAILED, what failed before it
        self._commands: deque[Command] = deque()  # what `next` gives before it decides anything
        # Ready nodes, by what they use: pending or retrying, with nothing to wait for but limits and a slot. Each is in
        # one heap, and not delayed.
        self._heaps: dict[tuple[tuple[str, int], ...], list[int]] = {}
        self._only_heap: list[int] | None = None  # of these, if no task uses anything
        if not any(self._uses):
            self._only_heap = self._heaps[()] = []
        self._delayed: list[tuple[float, int]] = []  # a heap of retrying nodes, each once, with when they are due
        self._failed: list[int] = []
        self._transparent: set[int] = set()  # left out in an earlier session: they hand on what comes before them
        self._draining = False  # after a failure, unless `on_failure` is "continue"; never undone
        self._fast_path = selection is None  # everything is to run, and nothing has gone wrong
        self._stopping: EndRun | None = None  # once set, nothing is ready or delayed
        self._ended = False  # EndRun was given or is among the commands
        self._began = now
        self._shift = now - wall  # from the seconds in the log to those of `now`
        self._restore(now)

    def observe(self, event: Event, now: float) -> int:
        """Take `event` in, into the state and the queues; returns the node that it is about, or -1."""
        if isinstance(event, e.TaskFinished):
            return self.finish(event, self.graph.index[event.task], now)
        node = self.state.apply(event)
        match event:
            case e.TaskStarted():
                pass  # `next` has counted it already
            case e.TaskFailed():
                self._vacate(node, event.attempt, event.abandoned, now)
                self._fail(node, now)
            case e.TaskRetrying():
                self._vacate(node, event.attempt, event.abandoned, now)
                if self._stopping:
                    pass  # it is cancelled with the rest
                elif self._draining and self.on_failure == "cancel":
                    self._commands.append(CancelTask(node))
                else:
                    heapq.heappush(self._delayed, (now + event.delay_s, node))
            case e.TaskSkipped():
                self._stop_running(node)
                self._resolve(node, self._hands_on(node), now)
            case e.TaskBlocked():
                self._resolve(node, self._hands_on(node), now)
            case e.TaskCancelled():
                self._vacate(node, event.attempt, event.abandoned, now)
                self._causes.setdefault(node, (node,))
                self._resolve(node, self._hands_on(node), now)
            case e.TaskExpanded():
                self._grow()
            case (
                e.TaskReset()
                | e.TaskProgress()
                | e.TaskMetric()
                | e.DatasetRead()
                | e.DatasetWritten()
                | e.TaskOutput()
            ):
                pass
            case e.RunStarted() | e.RunResumed() | e.RunFinished() | e.RunFailed() | e.RunCancelled():
                pass
            case _:
                assert_never(event)
        return node

    def finish(self, event: e.TaskFinished, node: int, now: float) -> int:
        """`observe`, where it is known which `node` the event is about."""
        self.state.finish(event, node)
        self._stop_running(node)
        self._resolve(node, self._flags[node] & _AFTERMATH, now)
        return node

    def next(self, now: float) -> Command | None:
        """The next command, to be carried out and answered with its event before `next` is called again.

        None: wait for an event, for `next_wake()`, or for a shared limit. After `EndRun`, always None.
        """
        if self._commands:
            return self._commands.popleft()
        if self._ended:
            return None
        if self._stopping:
            return None if self.running else self._end(self._stopping)
        while self._delayed and self._delayed[0][0] <= now:
            _, node = heapq.heappop(self._delayed)
            if node not in self.abandoned:
                self._queue(node, now)
            elif now < self.abandoned[node][1]:
                heapq.heappush(self._delayed, (self.abandoned[node][1], node))
            else:
                return self._reclaim(node)
        if len(self.running) + len(self.abandoned) < self.concurrency and (node := self._pick()) >= 0:
            self.running.add(node)
            return Start(node, self.state.attempt[node] + 1, now - self._ready_at[node])
        if self.running or self._delayed:
            return None
        if any(self._heaps.values()):
            if not self._is_stuck() or now < self._grace_ends():
                return None
            self._clear_heaps()
            self._draining, self._fast_path = True, False
            self._failed[:0] = self.abandoned
        return self._end(EndRun("failed" if self._failed else "finished"))

    def next_wake(self) -> float:
        """When `next` may have something to say without any event; infinity where it never will."""
        if self._ended or self._stopping or not (self._delayed or self.abandoned):
            return math.inf
        if self._delayed:
            return self._delayed[0][0]
        if not self.running and any(self._heaps.values()) and self._is_stuck():
            return self._grace_ends()
        return math.inf

    def retry_delay(self, node: int, reason: str, retryable: bool, key: str) -> float | None:
        """Seconds until another attempt after a failure for `reason`, or None where no attempt is left.

        A task's own failures and lost workers each have the whole budget of `Retry.attempts`.
        """
        if not retryable or self._stopping or (self._draining and self.on_failure == "cancel"):
            return None
        spent = self.state.losses if reason == "lost" else self.state.failures
        failed = spent.get(node, 0) + 1
        retry = self.graph.spec(node).retry
        return retry.delay_s(failed, f"{key}:{self.graph.ids[node]}:{reason}") if failed < retry.attempts else None

    def awaits(self, node: int) -> bool:
        """Whether somebody named a task that only `node` can still add."""
        return bool(self._awaited) and any(node in origins for origins in self._awaited.values())

    def missing(self, node: int, ids: Collection[str]) -> str | None:
        """The task that somebody named and that will never be there if `node` adds `ids`; None if there is none."""
        status, graph = self.state.status, self.graph
        for task, origins in self._awaited.items():
            if node in origins and task not in ids and task not in graph.index:
                others = [other for other in origins if other != node and graph.expandable(other)]
                if all(status[other] not in (PENDING, RUNNING, RETRYING) for other in others):
                    return task
        return None

    def max_attempts(self, node: int) -> int:
        """How many attempts the task has, as far as it can be known: the last one is always `n of n`.

        Attempts before a reset come on top; where it failed by itself and lost workers too, so do the fewer of these,
        since each kind has a budget of its own.
        """
        state, more = self.state, 0
        if state.losses or state.attempts_before_reset:
            more = min(state.losses.get(node, 0), state.failures.get(node, 0))
            more += state.attempts_before_reset.get(node, 0)
        return self.graph.specs[self.graph.spec_of[node]].retry.attempts + more

    def stop(self, end: EndRun) -> None:
        """Stop the run: what runs is stopped, what waits is cancelled, then `end` is recorded."""
        if not self._ended and not self._stopping:
            self._stopping = end
            self._commands.extend(StopTask(node) for node in self.running)
            self._clear_heaps()
            self._delayed.clear()

    def release(self, node: int, attempt: int) -> None:
        """The abandoned attempt has really ended: its slot is free, and a retry need not wait any longer."""
        abandoned, until = self.abandoned.get(node, (0, 0.0))
        if abandoned == attempt:
            del self.abandoned[node]
            self._release_limits(node)
            if (until, node) in self._delayed:  # it was due before, and waited for this
                self._delayed.remove((until, node))
                heapq.heapify(self._delayed)
                heapq.heappush(self._delayed, (-math.inf, node))

    def close(self) -> None:
        """The run is over, in whatever way: the limits that its tasks hold are for others. Only abandoned work keeps
        what it holds, until its `release`."""
        for node in self.running:
            self._release_limits(node)
        self.running.clear()
        self._limits.stop_waiting(self.on_limit_free)

    def validate(self) -> None:
        """Check what holds whenever `next` has returned None. Raises `AssertionError`; takes time for every node."""
        status, running, abandoned = self.state.status, self.running, self.abandoned
        ready = [key & _NODE for heap in self._heaps.values() for key in heap]
        delayed = [node for _, node in self._delayed]
        assert not self._commands, f"left to do: {list(self._commands)}"
        assert not running & abandoned.keys(), f"running and abandoned: {running & abandoned.keys()}"
        assert len(running) + len(abandoned) <= self.concurrency, f"{running} and {abandoned} of {self.concurrency}"
        assert all(status[node] == RUNNING for node in running), f"not all of {running} are running"
        assert len({*ready, *delayed}) == len(ready) + len(delayed), f"twice in {ready} and {delayed}"
        assert not running & {*ready, *delayed}, f"running and waiting: {running & {*ready, *delayed}}"
        assert all(status[node] in (PENDING, RETRYING) and not self._waiting[node] for node in ready), f"{ready}"
        assert all(status[node] == RETRYING for node in delayed), f"delayed, and not to be retried: {delayed}"
        for uses, heap in self._heaps.items():
            assert all(self._uses[self.graph.spec_of[key & _NODE]] == uses for key in heap), f"in the heap of {uses}"
        assert not (self._stopping and (ready or delayed)), "something is ready in a run that is stopped"
        assert not (self._ended and running), f"the run has ended, and {running} run"
        assert not (self._fast_path and (self._draining or self._selection is not None)), "the fast path is not open"
        assert min(self._waiting, default=0) >= 0, "a node waits for fewer than none"
        held = dict.fromkeys(self._limits.capacity, 0)
        for node in (*running, *abandoned):
            for name, amount in self._uses[self.graph.spec_of[node]]:
                held[name] += amount
        for name, amount in held.items():
            assert 0 <= self._limits.free[name] <= self._limits.capacity[name] - amount, f"{name}: {amount} are held"

    # What follows from the state: at the start, after an end, after an expansion.

    def _restore(self, now: float) -> None:
        graph, status = self.graph, self.state.status
        for node in graph.order():
            if graph.ids[node] is None:
                continue  # joins follow from what is before them
            if status[node] in (PENDING, RETRYING):
                if not graph.dependencies[node]:
                    self._judge(node, now)
                continue
            if status[node] in (FAILED, CANCELLED):
                self._failed.append(node)
                self._causes[node] = (node,)
            elif status[node] == BLOCKED:
                known = [graph.index[task] for task in self.state.blocked_by.get(node, ()) if task in graph.index]
                self._causes.setdefault(node, tuple(known) or (node,))
            elif self._is_left_out(node) and self._waiting[node]:
                self._transparent.add(node)
                continue
            if status[node] != RUNNING:
                self._resolve(node, self._hands_on(node), now)

    def _grow(self) -> None:
        first = len(self._waiting)
        more = len(self.graph) - first
        self._waiting.extend(len(dependencies) for dependencies in self.graph.dependencies[first:])
        self._flags.extend(bytes(more))
        self._ready_at.extend([0.0] * more)
        self._paths = self.graph.longest_paths(self._weight, first, self._paths)
        for join in {
            other for node in range(first, first + more) for other in self.graph.dependents[node] if other < first
        }:
            self._waiting[join] += sum(1 for node in self.graph.dependencies[join] if node >= first)

    def _resolve(self, node: int, flags: int, now: float) -> None:
        """The node has ended: tell those that wait for it, and through joins those behind, until nothing follows."""
        todo: list[tuple[int, int]] = []
        graph, waiting = self.graph, self._waiting
        ids, dependents, origin = graph.ids, graph.dependents, graph.origin
        while True:
            causes = self._causes.get(node) if flags & _FAILED else None
            for dependent in dependents[node]:
                if flags:
                    self._flags[dependent] |= flags
                if origin and origin.get(dependent) == node:
                    self._see_through(node, dependent)
                if causes:
                    known = self._causes.get(dependent, ())
                    self._causes[dependent] = tuple(dict.fromkeys((*known, *causes)))[:_CAUSES] if known else causes
                waiting[dependent] -= 1
                if not waiting[dependent]:
                    if ids[dependent] is None:
                        todo.append((dependent, self._flags[dependent]))
                    elif dependent in self._transparent:
                        todo.append((dependent, self._hands_on(dependent)))
                    else:
                        self._judge(dependent, now)
            if not todo:
                return
            node, flags = todo.pop()

    def _see_through(self, node: int, instance: int) -> None:
        """What an `each` added judges its trigger by what comes before that `each`, as if it had been there always."""
        self._flags[instance] |= self._flags[node] & (_FAILED | _SKIPPED)
        if node in self._causes:
            self._causes[instance] = self._causes[node]

    def _hands_on(self, node: int) -> int:
        """The flags that a task which has ended hands on to those that wait for it."""
        status, past = self.state.status[node], self._flags[node] & _AFTERMATH
        if status == FINISHED:
            return past
        if status == SKIPPED:  # one that was not selected counts as satisfied, but hides no failure before it
            return self._flags[node] & _FAILED | past if self._is_left_out(node) else _SKIPPED | past
        return _FAILED | _AFTERMATH

    def _judge(self, node: int, now: float) -> None:
        """All that the task waited for has ended: does it start?"""
        status, flags = self.state.status[node], self._flags[node]
        if status not in (PENDING, RETRYING) or self._stopping or self._ended:
            return  # it has ended already, by what a log says; or it ends with the run
        trigger = self.graph.specs[self.graph.spec_of[node]].trigger
        if self._fast_path and not flags and trigger != "one_failed" and status == PENDING:
            self._queue(node, now)
        elif not self._is_selected(node):
            self._commands.append(SkipTask(node, "unselected"))
        elif self._is_blocked_by_trigger(node):
            self._commands.append(BlockTask(node, self._causes[node]))
        elif flags & _SKIPPED and self._is_skipped_by_trigger(node):
            self._commands.append(SkipTask(node, "upstream"))
        elif trigger == "one_failed" and not flags & _FAILED:
            self._commands.append(SkipTask(node, "trigger"))
        elif self._draining and not flags & _AFTERMATH:
            pass  # it ends with the run
        elif status == RETRYING:  # in an earlier session; the clocks may have jumped since
            retrying = self.state.error[node]
            assert isinstance(retrying, e.TaskRetrying)
            due = min(self.state.retry_at[node] + self._shift, self._began + retrying.delay_s)
            heapq.heappush(self._delayed, (due, node))
        else:
            self._queue(node, now)

    def _is_left_out(self, node: int) -> bool:
        return self.state.status[node] == SKIPPED and self.state.skip_reason.get(node) == "unselected"

    def _is_blocked_by_trigger(self, node: int) -> bool:
        failed = self._flags[node] & _FAILED
        return bool(failed) and self.graph.spec(node).trigger not in ("all_done", "one_failed")

    def _is_skipped_by_trigger(self, node: int) -> bool:
        """Whether the task, before which one was skipped and none went badly, is skipped for that."""
        trigger, status = self.graph.spec(node).trigger, self.state.status
        if trigger != "none_failed_min_one_success":
            return trigger == "all_success"
        return not any(status[other] == FINISHED or self._is_left_out(other) for other in self.graph.deciding(node))

    def _is_selected(self, node: int) -> bool:
        return self._selection is None or self._selection.takes(self.graph, node)

    def _queue(self, node: int, now: float) -> None:
        self._ready_at[node] = now
        heap = self._only_heap
        if heap is None:
            heap = self._heaps.setdefault(self._uses[self.graph.spec_of[node]], [])
        heapq.heappush(heap, (int((_TOP - self._paths[node]) * 1000) << 32) | node)

    def _pick(self) -> int:
        """The ready task that is to start, with what it uses taken; -1 where there is none."""
        if self._only_heap is not None:
            return heapq.heappop(self._only_heap) & _NODE if self._only_heap else -1
        best: list[int] | None = None
        starved = False
        for uses, heap in self._heaps.items():
            if heap and (best is None or heap[0] < best[0]):
                if not uses or all(self._limits.free[name] >= amount for name, amount in uses):
                    best = heap
                else:
                    starved = True
        if best is None:
            if starved:
                self._limits.wait(self.on_limit_free)
            return -1
        node = heapq.heappop(best) & _NODE
        uses = self._uses[self.graph.spec_of[node]]
        if uses:
            self._limits.take(uses)
        return node

    def _clear_heaps(self) -> None:
        for heap in self._heaps.values():
            heap.clear()

    def _reclaim(self, node: int) -> Start:
        """A retry that has waited long enough gets the slot, and the limits, that its abandoned attempt holds."""
        del self.abandoned[node]
        self.running.add(node)
        return Start(node, self.state.attempt[node] + 1, 0.0)

    def _is_stuck(self) -> bool:
        """Whether nothing can start before work ends that cannot be stopped, even if no other run were in the way."""
        if len(self.abandoned) >= self.concurrency:
            return True
        left = dict(self._limits.capacity)
        for node in self.abandoned:
            for name, amount in self._uses[self.graph.spec_of[node]]:
                left[name] -= amount
        return not any(
            heap and all(left[name] >= amount for name, amount in uses) for uses, heap in self._heaps.items()
        )

    def _grace_ends(self) -> float:
        return max((until for _, until in self.abandoned.values()), default=math.inf)

    def _stop_running(self, node: int) -> None:
        if node in self.running:
            self.running.remove(node)
            uses = self._uses[self.graph.spec_of[node]]
            if uses:
                self._limits.give(uses)

    def _release_limits(self, node: int) -> None:
        uses = self._uses[self.graph.spec_of[node]]
        if uses:
            self._limits.give(uses)

    def _vacate(self, node: int, attempt: int, abandoned: bool, now: float) -> None:
        if abandoned and node in self.running:
            self.running.discard(node)
            self.abandoned[node] = (attempt, now + GRACE_S)
        else:
            self._stop_running(node)

    def _fail(self, node: int, now: float) -> None:
        self._failed.append(node)
        self._causes[node] = (node,)
        if self.on_failure != "continue" and not self._draining:
            self._drain()
        self._resolve(node, _FAILED | _AFTERMATH, now)

    def _drain(self) -> None:
        """From the first failure on: what has begun goes on (or is stopped), else only what the failure lets start."""
        self._draining = True
        self._fast_path = False
        stops = self.on_failure == "cancel" and not self._stopping
        retries = [node for _, node in self._delayed]
        for heap in self._heaps.values():
            kept = []
            for key in heap:
                begun = self.state.status[key & _NODE] == RETRYING
                if begun and stops:
                    retries.append(key & _NODE)
                elif begun or self._flags[key & _NODE] & _AFTERMATH:
                    kept.append(key)
            heapq.heapify(kept)
            heap[:] = kept
        if stops:
            self._delayed.clear()
            self._commands.extend(StopTask(node) for node in self.running)
            self._commands.extend(CancelTask(node) for node in retries)

    def _end(self, end: EndRun) -> Command:
        status = self.state.status
        left = [node for node in self.graph.tasks() if status[node] in (PENDING, RETRYING)]
        if left and not self._stopping and not self._draining:
            raise AssertionError(f"nothing can start, yet {len(left)} tasks wait, among them {self.graph.ids[left[0]]}")
        causes = tuple(dict.fromkeys(self._failed))[:_CAUSES]
        for node in left:
            if not self._is_selected(node):
                self._commands.append(SkipTask(node, "unselected"))
            elif self._stopping:
                self._commands.append(CancelTask(node))
            else:
                own = self._causes[node] if self._is_blocked_by_trigger(node) else causes
                self._commands.append(BlockTask(node, own))
        self._commands.append(end)
        self._ended = True
        return self._commands.popleft()
