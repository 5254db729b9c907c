"""A simulated world for `Scheduler` and `State`: random DAGs and random luck on a virtual clock, without IO or async.

`World(seed).play()` runs one to three random runs, which share named limits, to their ends, and doubts everything on
the way: a plain and slow model, which looks only at how tasks ended, says what each task should do, and the scheduler
must do just that. The world also knows what an engine knows of an attempt: threads that cannot be stopped, workers that
are lost, cancellation that comes too late.

Checked in every world, at every command or event, none of it on a share of them only:

- what starts is what the model would start first: all before it has ended, its trigger and the selection let it, a slot
  and its limits are free (`check_start`); and when nothing starts, nothing could (`check_nothing_can_start`);
- the attempts that run or cannot be stopped are never more than `concurrency`, nor do they take more than limits have,
  over all runs of the world (`start`);
- skips and blocks have the reason and the causes that the model gives (`check_skip`, `check_causes`);
- the live state, the graph with what an `each` added included, is the fold over the decoded lines so far (`audit`);
- as long as a run has not ended something will happen (`free_one`), and at its end each task has ended once (`end`).
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gluepy.clock import parse_rfc3339, rfc3339
from gluepy.core import events as e
from gluepy.core import scheduler as s
from gluepy.core.events import JSON, Reason
from gluepy.core.graph import Deps, Each, Element, Graph, Leaf, Par, Seq, Spec, Tree
from gluepy.core.policy import OnFailure, Retry, Trigger
from gluepy.core.resume import resets
from gluepy.core.selection import Selection
from gluepy.core.state import (
    BLOCKED,
    CANCELLED,
    FAILED,
    FINISHED,
    PENDING,
    RETRYING,
    RUNNING,
    SKIPPED,
    STATUS,
    State,
)

EPOCH = 1_700_000_000.0
ENDED = (FINISHED, SKIPPED, FAILED, CANCELLED, BLOCKED)
CAPACITY = {"gpu": 1, "disk": 3}
BAD, LEFT, DONE = 1, 2, 4  # what a task hands on to those after it, in the model: it went wrong, was skipped, finished


class RandomTree:
    """A DAG of random shape and random policies. `luck` is how often a task has something other than the default."""

    def __init__(self, rng: random.Random, size: int) -> None:
        self.rng, self.room = rng, size
        self.specs: list[Spec] = []
        self.odd = rng.choice((0.1, 0.3, 0.6))

    def tree(self) -> Tree:
        rng = self.rng
        root = self.mapping() if rng.random() < 0.2 else Seq(tuple(self.some(self.element, 1, 5)))
        return Tree(tuple(self.specs), root)

    def some(self, make: Callable[[], Any], least: int, most: int) -> Iterator[Any]:
        return (make() for _ in range(self.rng.randint(least, most)))

    def element(self, depth: int = 0, names: tuple[str, ...] = (), dynamic: bool = False) -> Element:
        rng = self.rng
        self.room -= 1
        kinds = ("leaf",) if depth > 3 or self.room < 0 else ("leaf", "leaf", "seq", "par", "par", "each", "ask")
        kind = rng.choice(kinds)
        inner = lambda: self.element(depth + 1, names, dynamic)  # noqa: E731
        if kind == "seq":
            return Seq(tuple(self.some(inner, 1, 3)))
        if kind == "par":
            return Par(tuple(self.some(inner, 1, 4)))
        if kind == "each":
            bound = (*names, f"p{depth}")
            rows = [[value] for value in range(rng.choice((0, 1, 2, 2, 3, 5)))]
            return Each(self.element(depth + 1, bound, dynamic), bound[-1:], rows=rows)
        if kind == "ask" and not names and not dynamic:
            first = len(self.specs)
            item = self.element(depth + 1, ("q",), True)
            trigger = self.specs[first].trigger if first < len(self.specs) else "all_success"
            return Each(item, ("q",), expander=self.spec((), trigger))  # it asks when its first task would start
        return self.leaf(names)

    def leaf(self, names: tuple[str, ...] = ()) -> Leaf:
        # now and then a fixed id where there will be several instances: what an `each` finds may clash
        clash = names == ("q",) and self.rng.random() < 0.03
        return Leaf(self.spec(names), id=f"same{len(self.specs)}" if clash else None)

    def mapping(self) -> Element:
        count = self.rng.randint(1, 12)
        after = [tuple(sorted(self.rng.sample(range(n), self.rng.randint(0, min(n, 3))))) for n in range(count)]
        return Deps(tuple(self.leaf() for _ in range(count)), tuple(after))

    def spec(self, params: tuple[str, ...], asks: Trigger | None = None) -> int:
        rng, odd, expands = self.rng, self.odd, asks is not None
        trigger: Trigger = asks or "all_success"
        retry = Retry(attempts=1)
        uses: dict[str, int] = {}
        if rng.random() < odd and not expands:
            trigger = rng.choice(("none_failed", "all_done", "one_failed"))
            if trigger == "none_failed" and len(self.specs) % 2:
                trigger = "none_failed_min_one_success"
        if rng.random() < odd:
            retry = Retry(attempts=rng.randint(2, 4), wait_s=rng.choice((0.0, 0.5, 3.0, 40.0)))
        if rng.random() < odd:
            uses = {name: rng.randint(1, amount) for name, amount in CAPACITY.items() if rng.random() < 0.5}
        number = len(self.specs)
        label = f"each-{number}" if expands else f"t{number}"
        self.specs.append(
            Spec(cls=f"m:{label}", label=label, params=params, trigger=trigger, retry=retry, uses=uses, expands=expands)
        )
        return number


class Luck:
    """How attempts end in one world; `kind` False: all of them end well."""

    def __init__(self, rng: random.Random, unkind: bool = True) -> None:
        self.rng = rng
        self.bad = rng.choice((0.0, 0.1, 0.3, 0.5)) if unkind else 0.0

    def duration_s(self) -> float:
        return self.rng.choice((0.0, 1.0, 1.0, 2.0, round(self.rng.expovariate(0.3), 3)))

    def end(self) -> str:
        if self.rng.random() >= self.bad:
            return "finished"
        return self.rng.choice(("exception", "exception", "final", "lost", "memory", "timeout", "abandoned", "skip"))


class World:
    """Time, limits, and the runs that live in them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.limits = s.Limits({**CAPACITY, "slot": 3})
        self.happens: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.runs: list[Run] = []
        self.taken: Counter[str] = Counter()

    def play(self) -> World:
        """Random runs, from their start to their end."""
        rng = self.rng
        count = rng.choice((1, 1, 1, 2, 3))
        for number in range(count):
            tree = RandomTree(rng, rng.choice((3, 8, 20))).tree()
            policy: OnFailure = rng.choice(("drain", "continue", "cancel"))
            shared = (("slot", 1),) if count > 1 and rng.random() < 0.5 else ()
            run = Run(self, f"run{number}", tree, policy, rng.choice((1, 2, 3, 100)), shared)
            if rng.random() < 0.2:
                run.select()
            run.begin(Luck(rng))
            if rng.random() < 0.25:
                reason = rng.choice((None, "timeout"))
                end = s.EndRun("failed", reason) if reason else s.EndRun("cancelled")
                self.at(rng.uniform(0, 20), lambda run=run, end=end: run.stop(end))  # type: ignore[misc]
        self.live()
        return self

    def resume(self, run: Run, cut: int, unkind: bool) -> Run:
        """What becomes of `run` if its driver dies after `cut` events, and another one takes over."""
        again = Run(self, run.run_id, run.tree, run.on_failure, run.concurrency)
        again.selection = run.selection
        again.resume(run.lines[:cut], Luck(self.rng, unkind))
        self.live()
        return again

    def at(self, delay_s: float, call: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.happens, (self.now + delay_s, self.count, call))

    def live(self) -> None:
        """Let things happen until all runs have ended."""
        self.settle()
        while not all(run.ended for run in self.runs):
            wake = min(run.scheduler.next_wake() for run in self.runs)
            due = self.happens[0][0] if self.happens else math.inf
            if min(wake, due) == math.inf:
                self.free_one()
                continue
            assert wake > self.now, "next_wake names a time at which nothing happens"
            self.now = min(wake, due)
            if due <= self.now:
                heapq.heappop(self.happens)[2]()
            self.settle()
        while self.happens:  # what cannot be stopped outlives its run, and gives back what it holds
            self.now, _, call = heapq.heappop(self.happens)
            call()
            self.settle()

    def free_one(self) -> None:
        """Nothing would ever happen, unless a thread of another run ends at last, and gives back what it holds."""
        stuck = [run for run in self.runs if not run.ended]
        threads = [(run, *thread) for run in self.runs for thread in sorted(run.threads) if stuck != [run]]
        assert threads, f"a deadlock: {self.waiting()}"
        run, node, number = threads[0]
        run.release(node, number)
        self.settle()

    def settle(self) -> None:
        """Let those runs decide that have reason to: something of theirs happened, it is time, a limit came free."""
        for run in self.runs:
            run.look |= run.scheduler.next_wake() <= self.now
        while any(run.look for run in self.runs):
            for run in self.runs:
                if run.look:
                    run.look = False
                    run.pump()

    def waiting(self) -> list[str]:
        return [
            f"{run.run_id}: {STATUS[run.state.status[node]]} {run.graph.task_id(node)}"
            for run in self.runs
            for node in run.graph.tasks()
            if run.state.status[node] not in ENDED
        ]


class Run:
    """One run, as its engine and an auditor see it."""

    def __init__(
        self,
        world: World,
        run_id: str,
        tree: Tree,
        on_failure: OnFailure,
        concurrency: int,
        shared: tuple[tuple[str, int], ...] = (),
    ) -> None:
        self.world, self.run_id, self.tree = world, run_id, tree
        self.on_failure, self.concurrency, self.shared = on_failure, concurrency, shared
        self.selection: Selection | None = None
        self.session = 0
        self.lines: list[bytes] = []
        self.state = State(Graph(tree))
        self.graph = self.state.graph
        self.mirror: State | None = None
        self.shift = EPOCH
        self.slots: dict[int, int] = {}  # who holds a slot: node -> attempt, running or abandoned
        self.flights: dict[int, int] = {}  # node -> attempt that runs
        self.abandoned: dict[int, tuple[int, float]] = {}  # node -> attempt that holds the slot and since when
        self.done: set[int] = set()  # recorded as finished before this session
        self.begun: set[int] = set()  # have run, and wait for nothing but a retry
        self.spent: Counter[tuple[str, bool]] = Counter()  # attempts: the task's own failures, and lost workers
        self.threads: set[tuple[int, int]] = set()
        self.due: dict[int, float] = {}
        self.terminal: Counter[int] = Counter()  # how often each task ended in this session
        self.settled: set[int] = set()  # had ended before it, and do not run again
        self.draining = self.closing = self.ended = self.look = False
        self.stopping: s.EndRun | None = None
        self.verdicts: dict[int, str] | None = None
        self.order: list[int] | None = None  # every node after what it depends on, for the graph as it is
        self.paths: list[float] = []
        world.runs.append(self)

    def select(self) -> None:
        """Choose some of the tasks."""
        rng = self.world.rng
        nodes = frozenset(node for node in self.graph.tasks() if rng.random() < 0.6)
        asks = [node for node in self.graph.tasks() if self.graph.expandable(node)]
        labels = {label for node in asks for label in sorted(self.graph.labels_of(node)) if rng.random() < 0.3}
        origins = frozenset(node for node in asks if node in nodes and rng.random() < 0.5)
        self.selection = Selection(nodes, frozenset(labels), origins)

    def begin(self, luck: Luck) -> None:
        """The first session."""
        self.luck, self.look = luck, True
        self.session = 1
        self.scheduler = self.decide()
        facts: tuple[Any, ...] = (e.SCHEMA_VERSION, "0", "host", 1, self.tree.record(), "digest", "code", {"x": 1})
        self.put(e.RunStarted(*self.header(), *facts))

    def resume(self, lines: Sequence[bytes], luck: Luck) -> None:
        """Another session after `lines`: what was interrupted is settled, and what has not finished runs again."""
        self.luck, self.look = luck, True
        self.lines = list(lines)
        self.state = State.from_events(map(e.decode, lines))
        self.mirror = State.from_events(map(e.decode, lines))
        self.session = self.state.session + 1
        last = e.decode(lines[-1])
        for event in map(e.decode, lines):
            self.count(event)
        gap_s = self.world.rng.choice((0.0, 1.0, 50.0, 5000.0, -86400.0))
        self.shift = parse_rfc3339(last.timestamp) + gap_s - self.world.now
        facts: tuple[Any, ...] = (e.SCHEMA_VERSION, "0", "host", 1, self.tree.record(), "digest", "code", {}, [])
        self.record(e.RunResumed(*self.header(), *facts))
        self.graph, self.order = self.state.graph, None
        finished = {node for node in self.graph.tasks() if self.state.status[node] == FINISHED}
        causes = resets(self.state, {}, selection=self.selection)
        left_out = {node for node in self.graph.tasks() if not self.is_selected(node)}
        assert sorted(causes) == sorted(again(self.state, left_out))
        for node, cause in causes.items():
            if self.state.status[node] == RUNNING:
                lost: tuple[Any, ...] = (1, "sim", "thread", 0.0, "interrupted", "Interrupted", "gone")
                self.record(e.TaskFailed(*self.about(node), *lost))
            self.record(e.TaskReset(*self.about(node), cause))
        self.terminal.clear()
        self.settled = {node for node in self.graph.tasks() if self.state.status[node] in ENDED}
        self.done = finished - set(causes)
        for node, failure in self.state.error.items():
            if isinstance(failure, e.TaskRetrying) and self.state.status[node] == RETRYING:
                due = parse_rfc3339(failure.timestamp) + failure.delay_s - self.shift
                self.due[node] = min(due, self.world.now + failure.delay_s)
        self.scheduler = self.decide()

    def decide(self) -> s.Scheduler:
        now = self.world.now

        def on_limit_free() -> None:
            self.look = True

        scheduler = s.Scheduler(
            self.state,
            concurrency=self.concurrency,
            limits=self.world.limits,
            shared=self.shared,
            on_failure=self.on_failure,
            selection=self.selection,
            now=now,
            wall=now + self.shift,
        )
        scheduler.on_limit_free = on_limit_free
        return scheduler

    # What an engine does.

    def header(self) -> tuple[int, int, str, str, str, str]:
        return len(self.lines) + 1, self.session, rfc3339(self.world.now + self.shift), "info", self.run_id, "dag"

    def about(self, node: int) -> tuple[int, int, str, str, str, str, str, int]:
        return (*self.header(), self.graph.task_id(node), self.state.attempt[node])

    def put(self, event: e.Event) -> None:
        """Append, then observe."""
        self.lines.append(e.encode(event))
        node = self.scheduler.observe(event, self.world.now)
        self.audit(event, node)

    def record(self, event: e.Event) -> None:
        """Append and fold, before there is a scheduler."""
        self.lines.append(e.encode(event))
        self.audit(event, self.state.apply(event))

    def pump(self) -> None:
        for _ in range(20 * len(self.graph) + 100):
            command = self.scheduler.next(self.world.now)
            match command:
                case None:
                    self.scheduler.validate()
                    self.state.validate()
                    self.check_nothing_can_start()
                    return
                case s.Start():
                    self.start(command)
                case s.SkipTask(node, reason):
                    self.check_skip(node, reason)
                    self.put(e.TaskSkipped(*self.about(node), reason))
                case s.BlockTask(node, causes):
                    self.check_causes(node, causes)
                    self.put(e.TaskBlocked(*self.about(node), [self.graph.task_id(cause) for cause in causes]))
                case s.CancelTask(node):
                    assert self.stopping or (self.draining and self.on_failure == "cancel")
                    self.put(e.TaskCancelled(*self.about(node)))
                case s.StopTask(node):
                    self.interrupt(node)
                case s.EndRun():
                    self.end(command)
        raise AssertionError("the scheduler never stops wanting something")

    def start(self, start: s.Start) -> None:
        node, number = start.node, start.attempt
        self.check_start(node, number)
        if node not in self.slots:
            self.world.taken.update(self.needs(node))
        self.slots[node] = self.flights[node] = number
        self.abandoned.pop(node, None)
        for name, amount in self.world.limits.capacity.items():
            assert self.world.taken[name] <= amount, f"{self.world.taken[name]} of {amount} {name} are taken"
        assert len(self.slots) <= self.concurrency, f"{len(self.slots)} of {self.concurrency} slots are taken"
        spec = self.graph.spec(node)
        facts = (self.scheduler.max_attempts(node), "sim", spec.pool or "thread", "host", 1, start.queued_s)
        self.put(e.TaskStarted(*self.header(), self.graph.task_id(node), number, *facts))
        end = self.luck.end()
        self.world.at(self.luck.duration_s(), lambda: self.over(node, number, end))

    def over(self, node: int, number: int, end: str) -> None:
        """The attempt has ended by itself."""
        self.look = True
        if self.flights.get(node) != number:
            return  # it was stopped before
        task = (self.graph.task_id(node), number)
        rng = self.world.rng
        if rng.random() < 0.1:
            self.put(e.TaskMetric(*self.header(), *task, "m", rng.random()))
            self.put(e.TaskProgress(*self.header(), *task, 1.0, 2.0))
        rows: list[list[JSON]] | None = None
        if end == "finished" and self.graph.spec(node).expands and self.graph.expandable(node):
            rows = [[value] for value in range(rng.choice((0, 1, 2, 4)))]
            before = fingerprint(self.state)
            clash = self.graph.clash(node, rows)
            assert fingerprint(self.state) == before, "clash changed the graph"
            if clash is not None and self.luck.bad:
                end = "exception"
            elif clash is not None:
                rows = rows[:1]
        if end == "finished":
            if rows is not None:
                self.put(e.TaskExpanded(*self.header(), *task, rows))
            self.put(e.TaskFinished(*self.header(), *task, "sim", "thread", 0.5))
        elif end == "skip":
            self.put(e.TaskSkipped(*self.header(), *task, "skip", "why", 0.5))
        else:
            self.fail(node, number, end)

    def fail(self, node: int, number: int, end: str) -> None:
        abandoned = end == "abandoned"
        reason: Reason = {"final": "exception", "abandoned": "timeout"}.get(end, end)  # type: ignore[assignment]
        left = self.graph.spec(node).retry.attempts - self.spent[self.graph.task_id(node), reason == "lost"] - 1
        delay_s = self.scheduler.retry_delay(node, reason, end != "final", self.run_id)
        given_up = end == "final" or self.stopping or (self.draining and self.on_failure == "cancel")
        assert (delay_s is not None) == (left > 0 and not given_up)
        facts = (self.scheduler.max_attempts(node), "sim", "thread", 0.5)
        if abandoned:
            self.abandon(node, number)
        if delay_s is not None:
            self.due[node] = self.world.now + delay_s
            event: e.Event = e.TaskRetrying(
                *self.header(), self.graph.task_id(node), number, *facts, delay_s, reason, "E", "m", abandoned=abandoned
            )
        else:
            event = e.TaskFailed(
                *self.header(), self.graph.task_id(node), number, *facts, reason, "E", "m", abandoned=abandoned
            )
        self.put(event)

    def abandon(self, node: int, number: int) -> None:
        self.abandoned[node] = (number, self.world.now)
        self.threads.add((node, number))
        if self.world.rng.random() < 0.7:
            self.world.at(self.world.rng.choice((0.0, 1.0, 9.0, 11.0, 60.0)), lambda: self.release(node, number))

    def release(self, node: int, number: int) -> None:
        """A thread that could not be stopped has ended."""
        self.look = True
        self.threads.remove((node, number))
        if self.abandoned.get(node, (0, 0.0))[0] == number:
            self.abandoned.pop(node)
            self.leave(node)
        self.scheduler.release(node, number)

    def interrupt(self, node: int) -> None:
        """The scheduler wants the attempt stopped; it may end by itself before that, or never have begun."""
        number = self.flights[node]
        rng = self.world.rng
        if rng.random() < 0.2:
            self.put(e.TaskCancelled(*self.about(node)))
            return

        def stopped() -> None:
            self.look = True
            if self.flights.get(node) == number:
                abandoned = rng.random() < 0.2
                if abandoned:
                    self.abandon(node, number)
                self.put(e.TaskCancelled(*self.about(node), 0.5, abandoned))

        self.world.at(rng.choice((0.0, 0.1, 5.0)), stopped)

    def stop(self, end: s.EndRun) -> None:
        """Somebody cancels the run."""
        self.look = True
        if not self.ended:
            self.stopping = self.stopping or end
            self.scheduler.stop(end)

    def end(self, end: s.EndRun) -> None:
        assert not self.flights, "the run ended while something ran"
        failed = [self.graph.task_id(node) for node in self.graph.tasks() if self.state.status[node] == FAILED]
        if self.stopping:
            assert end == self.stopping
        else:
            bad = {FAILED, CANCELLED, BLOCKED} & set(self.state.status)
            assert end.status == ("failed" if bad else "finished"), (end, failed)
        for node in self.graph.tasks():
            assert self.state.status[node] in ENDED, f"{self.graph.task_id(node)} has not ended"
            times = self.terminal[node] + (node in self.settled)
            assert times == 1, f"{self.graph.task_id(node)} ended {times} times"
        counts = self.state.counts()
        header = self.header()
        match end.status:
            case "finished":
                self.put(e.RunFinished(*header, 1.0, counts))
            case "failed":
                self.put(e.RunFailed(*header, 1.0, counts, failed, end.reason))
            case "cancelled":
                self.put(e.RunCancelled(*header, 1.0, counts))
        self.ended = True
        assert self.scheduler.next(self.world.now) is None
        assert self.scheduler.next_wake() == math.inf

    # What an auditor does.

    def audit(self, event: e.Event, node: int) -> None:
        """The state is the fold over the lines so far; each task ends once."""
        copy = e.decode(self.lines[-1])
        assert e.encode(copy) == self.lines[-1], f"{copy} was {event}"
        if self.mirror is None:
            self.mirror = State.from_events([copy])
        else:
            self.mirror.apply(copy)
        assert fingerprint(self.mirror) == fingerprint(self.state), f"the fold differs after {event}"
        self.count(event)
        if node < 0 or self.graph.ids[node] is None:
            return
        match event:
            case e.TaskStarted() | e.TaskProgress() | e.TaskMetric():
                pass
            case e.TaskExpanded():
                self.order = None
            case e.TaskRetrying():
                self.begun.add(node)
                self.landed(node)
            case e.TaskReset():
                self.landed(node)
            case _:
                self.terminal[node] += 1
                self.landed(node)
                if isinstance(event, e.TaskFailed) and self.on_failure != "continue" and event.reason != "interrupted":
                    self.draining = True
        if not isinstance(event, (e.TaskProgress, e.TaskMetric)):
            self.verdicts = None

    def count(self, event: e.Event) -> None:
        match event:
            case e.TaskRetrying():
                self.spent[event.task, event.reason == "lost"] += 1
            case e.TaskReset():
                self.spent[event.task, True] = self.spent[event.task, False] = 0

    def landed(self, node: int) -> None:
        self.flights.pop(node, None)
        if node in self.slots and node not in self.abandoned:
            self.leave(node)

    def leave(self, node: int) -> None:
        if self.slots.pop(node, None) is not None:
            self.world.taken.subtract(self.needs(node))

    def needs(self, node: int) -> dict[str, int]:
        return {**dict(self.shared), **self.graph.spec(node).uses}

    def verdict(self, node: int) -> str:
        """What the model says about a task that has not ended."""
        verdicts = self.judged()
        assert node in verdicts, f"{self.graph.task_id(node)} has ended already: {STATUS[self.state.status[node]]}"
        return verdicts[node]

    def judged(self) -> dict[int, str]:
        """For each task that has not ended: "wait", "start", "drained", "block", or why to skip it."""
        if self.verdicts is None:
            self.verdicts = self.judge()
        return self.verdicts

    def judge(self) -> dict[int, str]:
        graph, status, why = self.graph, self.state.status, self.state.skip_reason
        if self.order is None:
            self.order = in_order(graph)
            self.paths = graph.longest_paths(lambda node: 1.0)
        hands: list[int | None] = [None] * len(graph)  # what a node hands on; None: it has not ended
        past = [0] * len(graph)  # whether a failure lies somewhere before a node, itself included
        came = [0] * len(graph)  # what was handed to a node
        verdicts: dict[int, str] = {}
        asked = set(graph.origin.values())  # what an `each` found counts, and not that it found it
        for node in self.order:
            dependencies = graph.dependencies[node]
            got = before = 0
            open_ = False
            for other in dependencies:
                handed = hands[other]
                if handed is None:
                    open_ = True
                else:
                    got |= handed
                before |= past[other]
            if graph.origin.get(node) in dependencies:  # as if it had always stood where its `each` stands
                got |= came[graph.origin[node]]
            past[node], came[node] = before, got
            state = status[node]
            if graph.ids[node] is None:
                hands[node] = None if open_ else got
            elif state in (FAILED, BLOCKED, CANCELLED):
                hands[node] = past[node] = BAD
            elif state == SKIPPED and why[node] == "unselected":
                hands[node] = None if open_ else got & BAD | DONE
            elif state == SKIPPED:
                hands[node] = LEFT
            elif state == FINISHED:
                hands[node] = 0 if node in asked else DONE
            else:
                verdicts[node] = "wait" if open_ else self.trigger(node, got)
                if verdicts[node] == "start" and state == RETRYING and not self.draining:
                    self.begun.add(node)
                if verdicts[node] == "start" and self.draining and node not in self.begun and not before:
                    verdicts[node] = "drained"
        return verdicts

    def trigger(self, node: int, got: int) -> str:
        if not self.is_selected(node):
            return "unselected"
        trigger = self.graph.spec(node).trigger
        if got & BAD and trigger not in ("all_done", "one_failed"):
            return "block"
        if got & LEFT and trigger == "none_failed_min_one_success" and not got & DONE:
            return "upstream"
        if got & LEFT and trigger == "all_success":
            return "upstream"
        return "trigger" if trigger == "one_failed" and not got & BAD else "start"

    def is_selected(self, node: int) -> bool:
        selection = self.selection
        if selection is None:
            return True
        origin = self.graph.origin.get(node)
        if origin is None:
            return node in selection.nodes
        return origin in selection.origins or self.graph.spec(node).label in selection.labels

    def ready(self) -> list[int]:
        """What the model would start, the longest path first, as far as slots and limits go."""
        now = self.world.now
        ready = []
        for node, status in enumerate(self.state.status):
            if status in (PENDING, RETRYING) and self.graph.ids[node] is not None and self.verdict(node) == "start":
                if status == RETRYING and (self.due[node] > now + 1e-6 or node in self.abandoned):
                    continue
                if self.fits(node):
                    ready.append(node)
        return sorted(ready, key=lambda node: (-self.paths[node], node))

    def fits(self, node: int) -> bool:
        free = self.world.limits.capacity
        taken = self.world.taken
        needs = self.needs(node).items()
        return len(self.slots) < self.concurrency and all(taken[name] + amount <= free[name] for name, amount in needs)

    def check_start(self, node: int, number: int) -> None:
        assert not self.stopping
        assert self.verdict(node) == "start", f"{self.graph.task_id(node)} was started: {self.verdict(node)}"
        assert number == self.state.attempt[node] + 1
        assert node not in self.flights
        assert node not in self.done, "a finished task runs again"
        if self.state.status[node] == RETRYING:
            assert self.due[node] <= self.world.now + 1e-6
            stopped = self.draining and self.on_failure == "cancel" and node in self.begun
            assert not stopped, "a retry after the run was to stop"
        if node in self.abandoned:
            assert self.world.now >= self.abandoned[node][1] + s.GRACE_S, "the retry did not wait for the thread"
        else:
            ready = self.ready()
            assert ready, f"{self.graph.task_id(node)} was started, though slots or limits are used up"
            assert ready[0] == node, f"{self.graph.task_id(node)} was started before {self.graph.task_id(ready[0])}"

    def check_nothing_can_start(self) -> None:
        if self.ended or self.stopping:
            return
        ready = self.ready()
        assert not ready, f"nothing starts, yet {[self.graph.task_id(node) for node in ready]} could"
        for node, (_, since) in self.abandoned.items():
            if self.state.status[node] == RETRYING and self.verdict(node) == "start":
                assert self.world.now < max(since + s.GRACE_S, self.due[node]), "a retry waits for its thread for ever"
        for node, verdict in self.judged().items():
            assert verdict in ("wait", "start", "drained") or self.state.status[node] == RUNNING, f"{node}: {verdict}"

    def check_skip(self, node: int, reason: str) -> None:
        if reason == "unselected" and (self.stopping or self.draining or self.abandoned) and not self.flights:
            assert not self.is_selected(node)  # the run is over
            self.closing |= self.verdict(node) != reason
        else:
            assert self.verdict(node) == reason, f"{reason}, yet {self.verdict(node)}"

    def check_causes(self, node: int, causes: Sequence[int]) -> None:
        status = self.state.status
        assert causes, f"{self.graph.task_id(node)} is blocked by nothing"
        assert len(causes) == len(set(causes))
        if self.verdict(node) == "block" and not self.closing:
            ancestors = self.graph.ancestors([node])
            for cause in causes:
                assert status[cause] in (FAILED, CANCELLED), f"{STATUS[status[cause]]} is no root of a failure"
                assert cause in ancestors, "what blocks a task lies before it"
            return
        assert not self.flights, "a task was given up while something ran"
        if self.draining:
            self.closing = True
            assert any(status[cause] in (FAILED, CANCELLED) for cause in causes)
            return
        assert self.abandoned, f"{self.graph.task_id(node)} was given up: {self.verdict(node)}"
        doomed = all(status[cause] in (FAILED, CANCELLED) and cause in self.graph.ancestors([node]) for cause in causes)
        assert set(causes) & set(self.abandoned) or doomed
        if not self.closing:
            for other, verdict in self.judged().items():
                if verdict == "start":
                    assert not self.could_start_alone(other), "given up, though only another run was in the way"
        self.closing = True

    def could_start_alone(self, node: int) -> bool:
        """Whether the task could start if no other run existed, and what cannot be stopped went on."""
        held: Counter[str] = Counter()
        for other in self.slots:
            held.update(self.needs(other))
        capacity = self.world.limits.capacity
        fits = all(held[name] + amount <= capacity[name] for name, amount in self.needs(node).items())
        return fits and len(self.slots) < self.concurrency


def again(state: State, left_out: set[int]) -> list[int]:
    """What a resumed run has to reset, as the contract says it."""
    graph, status = state.graph, state.status
    marked: set[int] = set()
    found = []
    for node in in_order(graph):
        behind = any(other in marked for other in graph.dependencies[node])
        if graph.ids[node] is None or node in left_out:
            if behind:
                marked.add(node)
        elif status[node] in (PENDING, RETRYING):
            marked.add(node)
        elif behind or status[node] != FINISHED or graph.expandable(node):
            marked.add(node)
            found.append(node)
    return found


def in_order(graph: Graph) -> list[int]:
    """Every node after what it depends on, by looking at nothing but `dependencies`."""
    waiting = [len(nodes) for nodes in graph.dependencies]
    dependents: list[list[int]] = [[] for _ in graph.dependencies]
    for node, nodes in enumerate(graph.dependencies):
        for other in nodes:
            dependents[other].append(node)
    order = [node for node, count in enumerate(waiting) if not count]
    for node in order:
        for other in dependents[node]:
            waiting[other] -= 1
            if not waiting[other]:
                order.append(other)
    assert len(order) == len(graph), "a circle"
    return order


def fingerprint(state: State) -> tuple[Any, ...]:
    """All that a state knows, comparable."""
    facts = {name: value for name, value in vars(state).items() if name != "graph"}
    facts["status"], facts["attempt"], facts["duration_s"] = (
        bytes(state.status), state.attempt.tobytes(), state.duration_s.tobytes(),
    )  # fmt: skip
    graph = state.graph
    shape = (
        tuple(graph.ids),
        graph.values,
        [tuple(nodes) for nodes in graph.dependencies],
        len(graph.index),
        graph.origin,
    )
    return facts, shape, [tuple(nodes) for nodes in graph.dependents]
