"""The scheduler, one decision at a time (`test_simulation.py` has the many)."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import msgspec
import pytest

from gluepy.core import events as e
from gluepy.core import scheduler as s
from gluepy.core.forecast import forecast
from gluepy.core.graph import Deps, Each, Element, Graph, Leaf, Par, Seq, Spec, Tree
from gluepy.core.policy import OnFailure, Retry, Trigger
from gluepy.core.selection import Selection
from gluepy.core.state import STATUS, State

HEADER = ("2026-01-01T00:00:00.000000Z", "info", "run", "dag")


def task(label: str, **facts: Any) -> Spec:
    return Spec(cls=f"m:{label}", label=label, **facts)


class Bench:
    """A run in the hands of a test: `go()` carries out what the scheduler wants, and tells what it was."""

    def __init__(self, specs: Iterable[Spec], root: Element, **options: Any) -> None:
        self.state = State(Graph(Tree(tuple(specs), root)))
        self.graph = self.state.graph
        self.now = 0.0
        self.seq = 0
        self.wall = 0.0
        self.validates = True
        self.options = {"concurrency": 100, **options}
        self.scheduler = s.Scheduler(self.state, **self.options)

    @classmethod
    def sequence(cls, *specs: Spec, **options: Any) -> Bench:
        return cls(specs, Seq(tuple(map(Leaf, range(len(specs))))), **options)

    @classmethod
    def parallel(cls, *specs: Spec, **options: Any) -> Bench:
        return cls(specs, Par(tuple(map(Leaf, range(len(specs))))), **options)

    @classmethod
    def mapping(cls, *tasks: tuple[Spec, tuple[int, ...]], **options: Any) -> Bench:
        deps = Deps(tuple(map(Leaf, range(len(tasks)))), tuple(after for _, after in tasks))
        return cls([spec for spec, _ in tasks], deps, **options)

    def restart(self, **options: Any) -> None:
        """Another scheduler for the same state."""
        self.scheduler = s.Scheduler(self.state, **{**self.options, **options})

    def go(self) -> list[str]:
        """What starts now is given by its id; of what ends otherwise, how: `b: blocked by a`."""
        told = []
        while (command := self.scheduler.next(self.now)) is not None:
            match command:
                case s.Start(node, attempt, queued_s):
                    told.append(self.graph.task_id(node))
                    facts = (self.scheduler.max_attempts(node), "x", "thread", "host", 1, queued_s)
                    self.see(e.TaskStarted(*self.about(node, attempt), *facts))
                case s.SkipTask(node, reason):
                    told.append(f"{self.graph.task_id(node)}: skipped, {reason}")
                    self.see(e.TaskSkipped(*self.about(node), reason))
                case s.BlockTask(node, causes):
                    names = [self.graph.task_id(cause) for cause in causes]
                    told.append(f"{self.graph.task_id(node)}: blocked by {' '.join(names)}")
                    self.see(e.TaskBlocked(*self.about(node), names))
                case s.CancelTask(node):
                    told.append(f"{self.graph.task_id(node)}: cancelled")
                    self.see(e.TaskCancelled(*self.about(node)))
                case s.StopTask(node):
                    told.append(f"{self.graph.task_id(node)}: stop")
                case s.EndRun(status, reason):
                    told.append(f"run {status}" + (f" ({reason})" if reason else ""))
                    break
        if self.validates:
            self.scheduler.validate()
            self.state.validate()
        return told

    def about(self, node: int, attempt: int | None = None) -> tuple[int, int, str, str, str, str, str, int]:
        self.seq += 1
        number = self.state.attempt[node] if attempt is None else attempt
        return self.seq, 1, *HEADER, self.graph.task_id(node), number

    def see(self, event: e.Event) -> None:
        self.scheduler.observe(event, self.now)

    def node(self, task: str) -> int:
        return self.graph.index[task]

    def finish(self, task: str) -> list[str]:
        self.see(e.TaskFinished(*self.about(self.node(task)), "x", "thread", 1.0))
        return self.go()

    def skip(self, task: str) -> list[str]:
        self.see(e.TaskSkipped(*self.about(self.node(task)), "skip", "why", 1.0))
        return self.go()

    def fail(self, task: str, abandoned: bool = False) -> list[str]:
        reason: e.Reason = "timeout" if abandoned else "exception"
        about = self.about(self.node(task))
        self.see(e.TaskFailed(*about, 1, "x", "thread", 1.0, reason, "E", "m", abandoned=abandoned))
        return self.go()

    def retry(self, task: str, delay_s: float, abandoned: bool = False, reason: e.Reason = "exception") -> list[str]:
        facts = (1, "x", "thread", 1.0, delay_s, reason, "E", "m")
        self.see(e.TaskRetrying(*self.about(self.node(task)), *facts, abandoned=abandoned))
        return self.go()

    def cancelled(self, task: str, abandoned: bool = False) -> list[str]:
        self.see(e.TaskCancelled(*self.about(self.node(task)), 1.0, abandoned))
        return self.go()

    def expand(self, task: str, rows: list[list[e.JSON]]) -> list[str]:
        self.see(e.TaskExpanded(*self.about(self.node(task)), rows))
        return self.finish(task)

    def release(self, task: str, attempt: int) -> list[str]:
        self.scheduler.release(self.node(task), attempt)
        return self.go()

    def status(self) -> dict[str, str]:
        return {self.graph.task_id(node): STATUS[self.state.status[node]] for node in self.graph.tasks()}


A, B, C, D = (task(label) for label in "abcd")


# ---- triggers

TABLE: dict[tuple[Trigger, str], str] = {
    ("all_success", "finished"): "starts",
    ("all_success", "skipped"): "skipped, upstream",
    ("all_success", "failed"): "blocked",
    ("all_success", "blocked"): "blocked",
    ("all_success", "cancelled"): "blocked",
    ("none_failed", "finished"): "starts",
    ("none_failed", "skipped"): "starts",
    ("none_failed", "failed"): "blocked",
    ("none_failed", "blocked"): "blocked",
    ("none_failed", "cancelled"): "blocked",
    ("none_failed_min_one_success", "finished"): "starts",
    ("none_failed_min_one_success", "skipped"): "starts",
    ("none_failed_min_one_success", "failed"): "blocked",
    ("none_failed_min_one_success", "blocked"): "blocked",
    ("none_failed_min_one_success", "cancelled"): "blocked",
    ("all_done", "finished"): "starts",
    ("all_done", "skipped"): "starts",
    ("all_done", "failed"): "starts",
    ("all_done", "blocked"): "starts",
    ("all_done", "cancelled"): "starts",
    ("one_failed", "finished"): "skipped, trigger",
    ("one_failed", "skipped"): "skipped, trigger",
    ("one_failed", "failed"): "starts",
    ("one_failed", "blocked"): "starts",
    ("one_failed", "cancelled"): "starts",
}


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(("trigger", "ended"), TABLE)
def test_a_trigger_is_judged_by_how_the_direct_predecessors_ended(trigger: Trigger, ended: str, joined: bool) -> None:
    last = task("last", trigger=trigger)
    others = (Leaf(3), Leaf(4)) if joined else (Leaf(3),)  # two: with a join between the groups
    root = Seq((Par((Leaf(0), Seq((Leaf(1), Leaf(2))))), Par(others)))
    bench = Bench((A, B, C, last, task("beside", trigger="all_done")), root, on_failure="continue")
    bench.go()
    if ended == "blocked":
        bench.fail("b")
    else:
        bench.finish("b")
        {"finished": bench.finish, "skipped": bench.skip, "failed": bench.fail, "cancelled": bench.cancelled}[ended](
            "c"
        )
    told = bench.finish("a")
    root_cause = "b" if ended == "blocked" else "c"
    expected = {"starts": "last", "blocked": f"last: blocked by {root_cause}"}.get(
        TABLE[trigger, ended], f"last: {TABLE[trigger, ended]}"
    )
    assert [line for line in told if line.startswith("last")] == [expected]


LIVELY: Trigger = "none_failed_min_one_success"


def test_a_task_that_wants_a_success_is_skipped_if_all_before_it_were() -> None:
    bench = Bench((A, B, task("last", trigger=LIVELY)), Seq((Par((Leaf(0), Leaf(1))), Leaf(2))))
    bench.go()
    bench.skip("a")
    assert bench.skip("b") == ["last: skipped, upstream", "run finished"]


def test_a_first_task_that_wants_a_success_starts() -> None:
    assert Bench.sequence(task("a", trigger=LIVELY)).go() == ["a"]


@pytest.mark.parametrize(("values", "last"), [([], "last"), ([[1]], "last: skipped, upstream")])
def test_a_task_that_wants_a_success_looks_at_what_an_each_found(values: list[list[int]], last: str) -> None:
    specs = (task("t", params=("x",)), task("each-t", expands=True), task("last", trigger=LIVELY))
    bench = Bench(specs, Seq((Each(Leaf(0), ("x",), expander=1), Leaf(2))))
    bench.go()
    told = bench.expand("each-t", values)
    if values:
        told = bench.skip("t[x=1]")
    assert told[0] == last


def test_a_task_that_wants_a_success_takes_what_was_not_selected_for_one() -> None:
    specs = (A, B, task("last", trigger=LIVELY))
    chosen = Selection(frozenset({1, 3}))
    bench = Bench(specs, Seq((Par((Leaf(0), Leaf(1))), Leaf(2))), selection=chosen)
    bench.go()
    assert bench.skip("b")[0].startswith("last")


def test_a_first_task_that_wants_a_failure_is_skipped() -> None:
    assert Bench.sequence(task("a", trigger="one_failed")).go() == ["a: skipped, trigger", "run finished"]


def test_a_failed_task_blocks_only_its_descendants_and_names_itself() -> None:
    bench = Bench.mapping((A, ()), (B, (0,)), (C, (1,)), (D, ()), on_failure="continue")
    assert bench.go() == ["a", "d"]
    assert bench.fail("a") == ["b: blocked by a", "c: blocked by a"]
    assert bench.finish("d") == ["run failed"]


def test_a_blocked_task_names_every_failure_before_it_but_no_more_than_eight() -> None:
    specs = [task(f"t{number:02}") for number in range(12)]
    bench = Bench((*specs, D), Seq((Par(tuple(map(Leaf, range(12)))), Leaf(12))), on_failure="continue")
    bench.go()
    told = [line for spec in specs for line in bench.fail(spec.label)]
    assert told == ["d: blocked by t00 t01 t02 t03 t04 t05 t06 t07", "run failed"]


def test_a_failure_before_makes_the_run_fail_whatever_runs_after_it() -> None:
    bench = Bench.sequence(A, task("b", trigger="all_done"), C)
    bench.go()
    assert bench.fail("a") == ["b"]
    assert bench.finish("b") == ["c"]
    assert bench.finish("c") == ["run failed"]


def test_a_run_whose_tasks_were_skipped_is_finished() -> None:
    bench = Bench.sequence(A, B, C)
    bench.go()
    assert bench.skip("a") == ["b: skipped, upstream", "c: skipped, upstream", "run finished"]
    assert bench.scheduler.next(0.0) is None
    assert bench.scheduler.next_wake() == math.inf


# ---- what a failure does to the rest


def test_drain_starts_only_what_the_failure_lets_start_and_lets_the_running_finish() -> None:
    cleanup = task("cleanup", trigger="one_failed")
    bench = Bench.mapping((A, ()), (B, ()), (C, (1,)), (cleanup, (0,)), (D, (3,)))
    assert bench.go() == ["a", "b"]
    assert bench.fail("a") == ["cleanup"]
    assert bench.finish("b") == []  # c could start, were it not for the failure
    assert bench.finish("cleanup") == ["d"]
    assert bench.finish("d") == ["c: blocked by a", "run failed"]


def test_drain_leaves_what_waits_for_a_slot_where_it_is() -> None:
    bench = Bench.parallel(A, B, C, concurrency=2)
    assert bench.go() == ["a", "b"]
    assert bench.fail("a") == []
    assert bench.finish("b") == ["c: blocked by a", "run failed"]


def test_drain_lets_retries_go_on() -> None:
    bench = Bench.parallel(A, B, C, concurrency=2)
    bench.go()
    assert bench.retry("b", 5.0) == ["c"]
    assert bench.fail("a") == []
    bench.now = 5.0
    assert bench.go() == ["b"]
    bench.finish("b")
    assert bench.finish("c") == ["run failed"]


def test_drain_keeps_a_retry_that_waits_for_a_slot() -> None:
    bench = Bench.parallel(A, B, C, concurrency=2)
    bench.go()
    bench.retry("b", 0.5)
    bench.now = 1.0
    assert bench.go() == []
    assert bench.fail("a") == ["b"]


def test_a_task_drained_behind_a_failure_and_something_else_names_the_failure_before_it() -> None:
    bench = Bench.mapping((A, ()), (B, ()), (C, ()), (D, (1, 2)), concurrency=2)
    assert bench.go() == ["b", "c"]  # they have more behind them
    assert bench.fail("c") == []
    assert bench.fail("b") == ["d: blocked by c b", "a: blocked by c b", "run failed"]


def test_a_task_whose_own_predecessor_failed_names_that_one_when_the_run_ends() -> None:
    e_, f_ = task("e"), task("f")
    bench = Bench.mapping((A, ()), (e_, (0,)), (f_, (1,)), (B, ()), (C, ()), (D, (3, 4)), concurrency=2)
    assert bench.go() == ["a", "b"]
    assert bench.fail("a") == ["e: blocked by a", "f: blocked by a"]
    assert bench.fail("b") == ["c: blocked by a b", "d: blocked by b", "run failed"]


def test_continue_starts_what_does_not_depend_on_the_failure() -> None:
    bench = Bench.parallel(A, B, concurrency=1, on_failure="continue")
    bench.go()
    assert bench.fail("a") == ["b"]
    assert bench.finish("b") == ["run failed"]


def test_cancel_stops_what_runs_and_what_waits_for_a_retry() -> None:
    bench = Bench.parallel(A, B, C, D, concurrency=3, on_failure="cancel")
    assert bench.go() == ["a", "b", "c"]
    assert bench.retry("b", 5.0) == ["d"]
    assert bench.fail("a") == ["c: stop", "d: stop", "b: cancelled"]
    assert bench.scheduler.retry_delay(bench.node("c"), "exception", True, "k") is None
    assert bench.cancelled("c") == []
    assert bench.retry("d", 1.0) == ["d: cancelled", "run failed"]


def test_cancel_does_not_start_a_retry_that_waits_for_a_slot() -> None:
    bench = Bench.parallel(A, B, C, concurrency=2, on_failure="cancel")
    bench.go()
    assert bench.retry("b", 0.5) == ["c"]
    bench.now = 1.0
    assert bench.go() == []
    assert bench.fail("a") == ["c: stop", "b: cancelled"]
    assert bench.cancelled("c") == ["run failed"]


def test_cancel_still_starts_what_the_failure_lets_start() -> None:
    bench = Bench.sequence(A, task("b", trigger="one_failed"), on_failure="cancel")
    bench.go()
    assert bench.fail("a") == ["b"]
    assert bench.finish("b") == ["run failed"]


# ---- stopping


@pytest.mark.parametrize("end", [s.EndRun("cancelled"), s.EndRun("failed", "timeout")])
def test_stopping_stops_what_runs_and_cancels_the_rest(end: s.EndRun) -> None:
    bench = Bench.mapping((A, ()), (B, ()), (C, (0,)), (D, ()), concurrency=2)
    assert bench.go() == ["a", "b"]
    bench.scheduler.stop(end)
    assert bench.go() == ["a: stop", "b: stop"]
    assert bench.scheduler.next_wake() == math.inf
    assert bench.cancelled("a") == []
    last = "run cancelled" if end.status == "cancelled" else "run failed (timeout)"
    assert bench.finish("b") == ["c: cancelled", "d: cancelled", last]


def test_a_retry_that_comes_while_the_run_stops_is_cancelled() -> None:
    bench = Bench.sequence(task("a", retry=Retry(attempts=3)))
    bench.go()
    bench.scheduler.stop(s.EndRun("cancelled"))
    bench.scheduler.stop(s.EndRun("failed"))  # the first one counts
    assert bench.scheduler.retry_delay(0, "exception", True, "k") is None
    assert bench.go() == ["a: stop"]
    assert bench.retry("a", 0.0) == ["a: cancelled", "run cancelled"]
    bench.scheduler.stop(s.EndRun("failed"))
    assert bench.go() == []


def test_a_failure_while_the_run_stops_stops_nothing_twice() -> None:
    bench = Bench.parallel(A, B, on_failure="cancel")
    bench.go()
    bench.scheduler.stop(s.EndRun("cancelled"))
    assert bench.go() == ["a: stop", "b: stop"]
    assert bench.fail("a") == []
    assert bench.cancelled("b") == ["run cancelled"]


# ---- retries


def test_a_retry_starts_when_it_is_due_and_not_before() -> None:
    bench = Bench.sequence(A)
    bench.go()
    bench.now = 10.0
    assert bench.retry("a", 2.5) == []
    assert bench.scheduler.next_wake() == 12.5
    bench.now = 12.4
    assert bench.go() == []
    bench.now = 12.5
    assert bench.go() == ["a"]
    assert bench.state.attempt[0] == 2


def test_lost_workers_and_own_failures_have_budgets_of_their_own() -> None:
    bench = Bench.sequence(task("a", retry=Retry(attempts=2, wait_s=0.0)))
    bench.go()
    delay: Callable[[e.Reason], float | None] = lambda reason: bench.scheduler.retry_delay(0, reason, True, "k")  # noqa: E731
    assert delay("lost") is not None
    bench.retry("a", 0.0, reason="lost")
    assert bench.scheduler.max_attempts(0) == 2
    assert delay("lost") is None
    assert delay("exception") is not None
    bench.retry("a", 0.0, reason="exception")
    assert bench.scheduler.max_attempts(0) == 3
    assert delay("exception") is None
    assert delay("timeout") is None
    assert bench.scheduler.retry_delay(0, "exception", False, "k") is None


@pytest.mark.parametrize("kinds", list(itertools.product(["lost", "exception"], repeat=5)))
def test_the_last_attempt_is_n_of_n_whatever_the_ones_before_died_of(kinds: tuple[e.Reason, ...]) -> None:
    bench = Bench.sequence(task("a", retry=Retry(attempts=3, wait_s=0.0)))
    bench.go()
    for attempt, reason in enumerate(kinds, 1):
        assert attempt <= bench.scheduler.max_attempts(0)
        if bench.scheduler.retry_delay(0, reason, True, "k") is None:
            assert attempt == bench.scheduler.max_attempts(0)
            return
        bench.retry("a", 0.0, reason=reason)
        bench.go()
    raise AssertionError("five attempts, and neither budget of three is spent")


def test_an_error_that_is_not_worth_it_is_not_retried() -> None:
    bench = Bench.sequence(task("a", retry=Retry(attempts=2)))
    bench.go()
    assert bench.scheduler.retry_delay(0, "exception", False, "k") is None
    assert bench.scheduler.retry_delay(0, "exception", True, "k") is not None


# ---- concurrency, limits, order


def test_no_more_tasks_run_than_the_run_may() -> None:
    bench = Bench.parallel(A, B, C, concurrency=2)
    assert bench.go() == ["a", "b"]
    assert bench.finish("b") == ["c"]


def test_a_task_takes_all_that_it_uses_or_nothing() -> None:
    limits = s.Limits({"gpu": 1, "disk": 1})
    both = task("both", uses={"gpu": 1, "disk": 1})
    bench = Bench.parallel(task("disk", uses={"disk": 1}), both, task("gpu", uses={"gpu": 1}), limits=limits)
    assert bench.go() == ["disk", "gpu"]
    assert limits.free == {"gpu": 0, "disk": 0}
    assert bench.finish("disk") == []
    assert limits.free == {"gpu": 0, "disk": 1}
    assert bench.finish("gpu") == ["both"]
    bench.finish("both")
    assert limits.free == limits.capacity


def test_a_task_that_lacks_a_limit_does_not_hold_up_the_others() -> None:
    bench = Bench.parallel(
        task("a", uses={"gpu": 1}), task("b", uses={"gpu": 1}), C, limits=s.Limits({"gpu": 1}), concurrency=2
    )
    assert bench.go() == ["a", "c"]


def test_limits_are_taken_whole_or_not_at_all() -> None:
    limits = s.Limits({"a": 2, "b": 1})
    assert limits.take([("a", 1), ("b", 1)])
    assert not limits.take([("a", 1), ("b", 1)])
    assert limits.free == {"a": 1, "b": 0}


def test_runs_that_share_limits_are_called_when_one_comes_free() -> None:
    limits = s.Limits({"gpu": 1})
    called: list[str] = []
    gpu = task("a", uses={"gpu": 1})
    first = Bench.sequence(gpu, limits=limits)
    second, third = Bench.sequence(gpu, limits=limits), Bench.sequence(gpu, limits=limits)
    second.scheduler.on_limit_free = lambda: called.append("second")
    third.scheduler.on_limit_free = lambda: called.append("third")
    assert (first.go(), second.go(), third.go()) == (["a"], [], [])
    assert second.scheduler.next_wake() == math.inf
    first.finish("a")
    assert called == ["second", "third"]  # in the order in which they came
    assert second.go() == ["a"]
    second.finish("a")
    assert called == ["second", "third"]  # once


def test_a_run_that_has_gone_is_not_called() -> None:
    limits = s.Limits({"gpu": 1})
    call = lambda: pytest.fail("it has gone")  # noqa: E731
    limits.take([("gpu", 1)])
    limits.wait(call)
    limits.stop_waiting(call)
    limits.stop_waiting(call)
    limits.give([("gpu", 1)])


def test_units_that_all_tasks_of_a_runtime_share_bound_all_its_runs() -> None:
    limits = s.Limits({"slot": 2})
    runs = [Bench.parallel(A, B, limits=limits, shared=(("slot", 1),)) for _ in range(2)]
    assert [run.go() for run in runs] == [["a", "b"], []]
    runs[0].finish("a")
    assert runs[1].go() == ["a"]


def makespan(
    specs: list[Spec], root: Element, workers: int, seconds: Callable[[str], float], by: str = "path"
) -> float:
    """How long a run takes. `by` "author": as if all paths were equally long, first in first out."""
    weight = (lambda node: 0.0) if by == "author" else (lambda node: 1.0)
    bench = Bench(specs, root, concurrency=workers, weight=weight)
    running: list[tuple[float, str]] = []
    told = bench.go()
    while True:
        running += [(bench.now + seconds(task), task) for task in told if " " not in task]
        if not running:
            return bench.now
        running.sort()
        bench.now, done = running.pop(0)
        told = bench.finish(done)


def chain_and_crowd(workers: int) -> tuple[list[Spec], Element]:
    specs = [task(f"c{number}") for number in range(10)] + [task(f"w{number}") for number in range(10 * (workers - 1))]
    crowd = tuple(map(Leaf, range(10, len(specs))))
    return specs, Par((*crowd, Seq(tuple(map(Leaf, range(10))))))


def chains_of_falling_length(workers: int) -> tuple[list[Spec], Element]:
    specs: list[Spec] = []
    chains: list[Element] = []
    for length in (*[1] * workers * 3, 2 * workers, 3 * workers):
        first = len(specs)
        specs += [task(f"t{number}") for number in range(first, first + length)]
        chains.append(Seq(tuple(map(Leaf, range(first, first + length)))))
    return specs, Par(tuple(chains))


def wide_then_deep(workers: int) -> tuple[list[Spec], Element]:
    specs = [task(f"t{number}") for number in range(4 * workers + 4 * workers)]
    wide = tuple(map(Leaf, range(4 * workers)))
    return specs, Par((*wide, Seq(tuple(map(Leaf, range(4 * workers, len(specs)))))))


@pytest.mark.parametrize("family", [chain_and_crowd, chains_of_falling_length, wide_then_deep])
@pytest.mark.parametrize("workers", [2, 4])
def test_the_longest_path_first_beats_first_come_first_served(family: Any, workers: int) -> None:
    specs, root = family(workers)
    ours = makespan(specs, root, workers, lambda task: 1.0)
    theirs = makespan(specs, root, workers, lambda task: 1.0, by="author")
    longest = max(Graph(Tree(tuple(specs), root)).longest_paths(lambda node: 1.0))
    assert ours == max(longest, math.ceil(len(specs) / workers)) < theirs  # it could not be shorter


def test_learned_durations_order_what_unit_durations_would_not() -> None:
    weights = {"a": 1.0, "b": 5.0, "c": 3.0}
    bench = Bench.parallel(A, B, C, concurrency=1, weight=lambda node: weights["abc"[node]])
    assert bench.go() + bench.finish("b") + bench.finish("c") == ["b", "c", "a"]


def test_ties_keep_the_authors_order() -> None:
    specs = [task(f"t{number}") for number in range(50)]
    assert Bench.parallel(*specs).go() == [spec.label for spec in specs]
    uses = [task(f"t{number}", uses={"ab"[number % 2]: 1}) for number in range(50)]
    assert Bench.parallel(*uses, limits=s.Limits({"a": 25, "b": 25})).go() == [spec.label for spec in uses]


def test_how_long_a_task_was_ready_is_told() -> None:
    bench = Bench.parallel(A, B, concurrency=1)
    bench.now = 5.0
    assert bench.scheduler.next(7.0) == s.Start(0, 1, 7.0)
    bench.see(e.TaskStarted(*bench.about(0, 1), 1, "x", "thread", "host", 1, 0.0))
    bench.now = 9.0
    bench.see(e.TaskFinished(*bench.about(0), "x", "thread", 1.0))
    assert bench.scheduler.next(9.0) == s.Start(1, 1, 9.0)


# ---- threads that cannot be stopped


def test_an_abandoned_thread_holds_its_slot_and_its_limits_until_it_ends() -> None:
    limits = s.Limits({"gpu": 1})
    bench = Bench.parallel(task("a", uses={"gpu": 1}), task("b", uses={"gpu": 1}), C, limits=limits, concurrency=2,
                           on_failure="continue")  # fmt: skip
    assert bench.go() == ["a", "c"]
    assert bench.fail("a", abandoned=True) == []
    assert bench.finish("c") == []
    assert limits.free == {"gpu": 0}
    assert bench.release("a", 1) == ["b"]
    assert bench.release("a", 1) == []  # once
    assert limits.free == {"gpu": 0}


def test_a_retry_waits_for_its_abandoned_thread_but_not_for_ever() -> None:
    bench = Bench.sequence(A)
    bench.go()
    bench.now = 100.0
    assert bench.retry("a", 2.0, abandoned=True) == []
    bench.now = 102.0
    assert bench.go() == []
    assert bench.scheduler.next_wake() == 100.0 + s.GRACE_S
    bench.now = 100.0 + s.GRACE_S
    assert bench.go() == ["a"]
    assert bench.release("a", 1) == []  # the slot is the second attempt's now
    assert bench.finish("a") == ["run finished"]


def test_a_retry_whose_thread_ends_in_time_starts_when_it_is_due() -> None:
    bench = Bench.sequence(A)
    bench.go()
    bench.retry("a", 5.0, abandoned=True)
    bench.now = 1.0
    assert bench.release("a", 1) == []
    bench.now = 5.0
    assert bench.go() == ["a"]


def test_a_retry_that_only_waited_for_its_thread_starts_with_its_end() -> None:
    bench = Bench.sequence(A)
    bench.go()
    bench.retry("a", 1.0, abandoned=True)
    bench.now = 2.0
    assert bench.go() == []
    assert bench.release("a", 1) == ["a"]


def test_a_retry_takes_its_own_slot_over_when_others_wait_for_one() -> None:
    bench = Bench.mapping((A, ()), (B, (0,)), (C, (0,)), (D, ()), concurrency=2, on_failure="continue")
    assert bench.go() == ["a", "d"]
    bench.retry("d", 1.0, abandoned=True)
    assert bench.finish("a") == ["b"]
    assert bench.fail("b", abandoned=True) == []  # both slots are held, and c is before d in the queue
    bench.now = s.GRACE_S
    assert bench.go() == ["d"]
    assert bench.finish("d") == ["c"]


def test_a_second_abandoned_attempt_waits_for_its_own_thread() -> None:
    bench = Bench.sequence(A)
    bench.go()
    bench.retry("a", 0.0, abandoned=True)
    bench.now = s.GRACE_S
    assert bench.go() == ["a"]
    bench.retry("a", 0.0, abandoned=True)
    assert bench.release("a", 1) == []
    assert bench.release("a", 2) == ["a"]


def test_a_run_ends_without_waiting_for_threads_that_hold_nothing_it_needs() -> None:
    bench = Bench.sequence(A)
    bench.go()
    assert bench.fail("a", abandoned=True) == ["run failed"]
    assert bench.release("a", 1) == []


def test_a_run_gives_up_when_threads_that_cannot_be_stopped_hold_all_it_needs() -> None:
    bench = Bench.parallel(A, B, C, concurrency=1, on_failure="continue")
    bench.go()
    assert bench.fail("a", abandoned=True) == []
    assert bench.scheduler.next_wake() == s.GRACE_S
    bench.now = s.GRACE_S - 0.1
    assert bench.go() == []
    bench.now = s.GRACE_S
    assert bench.go() == ["b: blocked by a", "c: blocked by a", "run failed"]


def test_a_run_that_gives_up_names_the_threads_first() -> None:
    bench = Bench.parallel(A, B, C, concurrency=1, on_failure="continue")
    bench.go()
    bench.fail("a")
    bench.fail("b", abandoned=True)
    bench.now = s.GRACE_S
    assert bench.go() == ["c: blocked by b a", "run failed"]


def test_a_run_waits_for_a_limit_that_another_run_holds_whatever_threads_it_has_abandoned() -> None:
    limits = s.Limits({"gpu": 1})
    other = Bench.sequence(task("g", uses={"gpu": 1}), limits=limits)
    assert other.go() == ["g"]
    called: list[bool] = []
    bench = Bench.parallel(A, task("b", uses={"gpu": 1}), limits=limits, on_failure="continue", concurrency=2)
    bench.scheduler.on_limit_free = lambda: called.append(True)
    bench.go()
    bench.fail("a", abandoned=True)
    bench.now = 10 * s.GRACE_S
    assert bench.go() == []
    assert bench.scheduler.next_wake() == math.inf
    other.finish("g")
    assert called
    assert bench.go() == ["b"]


def test_a_run_gives_up_a_limit_that_its_own_thread_holds() -> None:
    bench = Bench.parallel(task("a", uses={"gpu": 1}), task("b", uses={"gpu": 1}), limits=s.Limits({"gpu": 1}),
                           on_failure="continue")  # fmt: skip
    bench.go()
    bench.fail("a", abandoned=True)
    bench.now = s.GRACE_S
    assert bench.go() == ["b: blocked by a", "run failed"]


def test_next_wake_names_no_time_that_has_gone_while_a_retry_is_due_later() -> None:
    bench = Bench.parallel(A, B, C, concurrency=2, on_failure="continue")
    bench.go()
    bench.fail("a", abandoned=True)
    bench.retry("b", 60.0)
    bench.fail("c", abandoned=True)
    bench.now = 30.0
    assert bench.go() == []
    assert bench.scheduler.next_wake() == 60.0


# ---- each over a callable

ASK = (task("t", params=("x",)), task("each-t", expands=True), D)


def test_what_an_each_finds_runs_before_what_follows() -> None:
    bench = Bench(ASK, Seq((Each(Leaf(0), ("x",), expander=1), Leaf(2))))
    assert bench.go() == ["each-t"]
    assert bench.expand("each-t", [[1], [2]]) == ["t[x=1]", "t[x=2]"]
    assert bench.finish("t[x=1]") == []
    assert bench.finish("t[x=2]") == ["d"]


def test_an_each_that_finds_nothing_satisfies_what_follows() -> None:
    bench = Bench(ASK, Seq((Each(Leaf(0), ("x",), expander=1), Leaf(2))))
    bench.go()
    assert bench.expand("each-t", []) == ["d"]


def test_an_empty_branch_in_what_an_each_finds_opens_nothing_early() -> None:
    item = Par((Each(Leaf(0), ("y",), rows=[]), Leaf(0)))
    bench = Bench(ASK, Seq((Each(item, ("x",), expander=1), Leaf(2))))
    bench.go()
    assert bench.expand("each-t", [[1], [2]]) == ["t[x=1]", "t[x=2]"]
    assert bench.finish("t[x=1]") == []
    assert bench.finish("t[x=2]") == ["d"]


def test_a_failed_each_blocks_what_follows_and_a_failed_instance_too() -> None:
    bench = Bench(ASK, Seq((Each(Leaf(0), ("x",), expander=1), Leaf(2))))
    bench.go()
    assert bench.fail("each-t") == ["d: blocked by each-t", "run failed"]
    bench = Bench(ASK, Seq((Each(Leaf(0), ("x",), expander=1), Leaf(2))))
    bench.go()
    bench.expand("each-t", [[1], [2]])
    bench.fail("t[x=1]")
    assert bench.finish("t[x=2]") == ["d: blocked by t[x=1]", "run failed"]


# ---- selections


def test_what_is_not_selected_counts_as_satisfied() -> None:
    bench = Bench.sequence(A, B, C, D, selection=Selection(frozenset({1, 2})))
    assert bench.go() == ["a: skipped, unselected", "b"]
    assert bench.finish("b") == ["c"]
    assert bench.finish("c") == ["d: skipped, unselected", "run finished"]


def test_what_is_not_selected_hides_no_failure_before_it() -> None:
    bench = Bench.sequence(A, B, C, selection=Selection(frozenset({0, 2})))
    bench.go()
    assert bench.fail("a") == ["b: skipped, unselected", "c: blocked by a", "run failed"]


def test_what_is_not_selected_is_not_blocked_when_the_run_ends_early() -> None:
    bench = Bench.mapping((A, ()), (B, ()), (C, (1,)), (D, (2,)), selection=Selection(frozenset({0, 1, 2})))
    bench.go()
    bench.fail("a")
    assert bench.finish("b") == ["c: blocked by a", "d: skipped, unselected", "run failed"]
    bench = Bench.sequence(A, B, selection=Selection(frozenset({0})))
    bench.go()
    bench.scheduler.stop(s.EndRun("cancelled"))
    bench.go()
    assert bench.cancelled("a") == ["b: skipped, unselected", "run cancelled"]


@pytest.mark.parametrize(
    ("selection", "told"),
    [
        (Selection(frozenset({0})), "skipped, unselected"),
        (Selection(frozenset({0}), labels=frozenset({"t"})), ""),
        (Selection(frozenset({0}), origins=frozenset({0})), ""),
        (Selection(frozenset({0}), labels=frozenset({"other"}), origins=frozenset({9})), "skipped, unselected"),
    ],
)
def test_what_an_each_finds_is_selected_by_label_or_by_what_asked(selection: Selection, told: str) -> None:
    bench = Bench(ASK[:2], Each(Leaf(0), ("x",), expander=1), selection=selection)
    bench.go()
    assert bench.expand("each-t", [[1]])[0] == f"t[x=1]{': ' + told if told else ''}"


@pytest.mark.parametrize(
    ("selection", "told"),
    [
        (Selection(frozenset({1}), ids=frozenset({"t[x=1]"})), ["t[x=1]", "t[x=2]: skipped, unselected"]),
        (Selection(frozenset({1}), parts={0: frozenset({"t"})}), ["t[x=1]", "t[x=2]"]),
        (
            Selection(frozenset({1}), parts={5: frozenset({"t"})}),
            ["t[x=1]: skipped, unselected", "t[x=2]: skipped, unselected"],
        ),
    ],
)
def test_single_instances_and_parts_of_a_chain_can_be_selected(selection: Selection, told: list[str]) -> None:
    bench = Bench(ASK, Seq((Each(Leaf(0), ("x",), expander=1), Leaf(2))), selection=selection)
    node = bench.node("each-t")
    bench.restart(selection=msgspec.structs.replace(selection, nodes=frozenset({node})))
    bench.go()
    assert sorted(line for line in bench.expand("each-t", [[1], [2]]) if line.startswith("t[")) == told


@pytest.mark.parametrize("trigger", ["all_success", "none_failed", "all_done", "one_failed"])
@pytest.mark.parametrize("ended", ["finished", "skipped", "failed"])
def test_what_an_each_finds_is_judged_by_what_came_before_the_each(trigger: Trigger, ended: str) -> None:
    specs = (A, task("t", params=("x",), trigger=trigger), task("each-t", expands=True, trigger=trigger))
    bench = Bench(specs, Seq((Leaf(0), Each(Leaf(1), ("x",), expander=2))), on_failure="continue")
    bench.go()
    told = {"finished": bench.finish, "skipped": bench.skip, "failed": bench.fail}[ended]("a")
    if TABLE[trigger, ended] != "starts":
        assert told[0].startswith(f"each-t: {TABLE[trigger, ended]}")
    else:
        assert told == ["each-t"]
        assert bench.expand("each-t", [[1]]) == ["t[x=1]"]


# ---- forecasts


def test_a_forecast_is_how_long_the_run_would_take() -> None:
    seconds = [1.0, 2.0, 3.0, 4.0]
    bench = Bench.mapping((A, ()), (B, (0,)), (C, (0,)), (D, (1, 2)))
    foreseen = forecast(bench.graph, lambda node: seconds[node], concurrency=2)
    assert (foreseen.makespan_s, foreseen.critical_path_s, foreseen.work_s) == (8.0, 8.0, 10.0)
    assert foreseen.starts == {"a": 0.0, "b": 1.0, "c": 1.0, "d": 4.0}
    assert forecast(bench.graph, lambda node: seconds[node], concurrency=1).makespan_s == 10.0


def test_a_forecast_heeds_limits_and_selections_and_what_would_be_skipped() -> None:
    gpu = [task(label, uses={"gpu": 1}) for label in "abc"]
    graph = Bench.parallel(*gpu, limits=s.Limits({"gpu": 1})).graph
    assert forecast(graph, lambda node: 2.0, concurrency=9, limits={"gpu": 1}).makespan_s == 6.0
    one = forecast(graph, lambda node: 2.0, concurrency=9, limits={"gpu": 1}, selection=Selection(frozenset({1})))
    assert (one.makespan_s, one.starts) == (2.0, {"b": 0.0})
    failed = Bench.sequence(A, task("b", trigger="one_failed")).graph
    assert forecast(failed, lambda node: 1.0, concurrency=1).starts == {"a": 0.0}
    ask = Bench(ASK, Seq((Each(Leaf(0), ("x",), expander=1), Leaf(2)))).graph
    assert forecast(ask, lambda node: 1.0, concurrency=1).starts == {"each-t": 0.0, "d": 1.0}


# ---- another session


def test_a_restored_run_goes_on_where_it_was() -> None:
    bench = Bench.mapping((A, ()), (B, (0,)), (C, (0,)), (D, (1, 2)))
    bench.go()
    bench.finish("a")
    bench.finish("b")
    bench.see(e.TaskReset(*bench.about(bench.node("c")), "it was interrupted"))
    bench.restart()
    assert bench.go() == ["c"]
    assert bench.state.attempt[bench.node("c")] == 2
    assert bench.finish("c") == ["d"]
    assert bench.finish("d") == ["run finished"]


@pytest.mark.parametrize(
    ("past_s", "due"),
    [(0.0, 60.0), (20.0, 40.0), (100.0, 0.0), (-86400.0, 60.0)],  # the clock was put back a day
)
def test_a_pending_delay_survives_a_restart_and_a_jump_of_the_clock(past_s: float, due: float) -> None:
    bench = Bench.sequence(A)
    bench.go()
    bench.retry("a", 60.0)
    at = bench.state.retry_at[0] - 60.0
    bench.restart(now=5000.0, wall=at + past_s)
    bench.now = 5000.0
    if due:
        assert bench.go() == []
        assert bench.scheduler.next_wake() == pytest.approx(5000.0 + due)
    bench.now = 5000.0 + due + 1e-6
    assert bench.go() == ["a"]


def test_a_pending_retry_whose_predecessor_runs_again_waits_for_it() -> None:
    bench = Bench.sequence(A, B)
    bench.go()
    bench.finish("a")
    bench.retry("b", 5.0)
    bench.state.apply(e.TaskReset(*bench.about(0), "its declared outputs are gone"))
    bench.now = 20.0
    bench.restart(now=20.0)
    assert bench.go() == ["a"]
    assert bench.finish("a") == []
    assert bench.scheduler.next_wake() == 25.0
    bench.now = 25.0
    assert bench.go() == ["b"]


def test_a_delay_does_not_begin_again_when_a_predecessor_has_run_again() -> None:
    bench = Bench.sequence(A, B)
    bench.go()
    bench.finish("a")
    bench.retry("b", 30.0)
    bench.state.apply(e.TaskReset(*bench.about(0), "its declared outputs are gone"))
    bench.now = 1000.0
    bench.restart(now=1000.0, wall=0.0)  # the clock was put back by years
    bench.go()
    bench.now = 1020.0
    assert bench.finish("a") == []
    assert bench.scheduler.next_wake() == 1030.0


def test_a_restored_run_knows_its_skips_and_its_failures() -> None:
    bench = Bench.mapping((A, ()), (B, ()), (C, (0,)), (D, (1,)), on_failure="continue")
    bench.go()
    bench.state.apply(e.TaskSkipped(*bench.about(0), "skip", "why", 1.0))
    bench.state.apply(e.TaskFailed(*bench.about(1), 1, "x", "thread", 1.0, "exception", "E", "m"))
    bench.restart()
    assert bench.go() == ["c: skipped, upstream", "d: blocked by b", "run failed"]


def test_a_restored_run_knows_what_blocked_a_task_that_was_drained() -> None:
    bench = Bench.mapping((A, ()), (B, ()), (C, (1,)), (D, (2,)), on_failure="continue")
    bench.state.apply(e.TaskFinished(*bench.about(1), "x", "thread", 1.0))
    bench.state.apply(e.TaskBlocked(*bench.about(2), ["a"]))
    bench.restart()
    assert bench.go() == ["d: blocked by a", "a"]
    bench.state.apply(e.TaskReset(*bench.about(3), "x"))
    bench.state.blocked_by[2] = ["gone"]
    bench.restart()
    assert bench.go()[0] == "d: blocked by c"


def test_a_restored_run_knows_which_failures_lie_behind_an_each() -> None:
    specs = (*ASK[:2], task("d", trigger="all_done"), A, B, C)
    root = Par((Seq((Par((Seq((Each(Leaf(0), ("x",), expander=1), Leaf(2))), Leaf(3))), Leaf(4))), Leaf(5)))
    bench = Bench(specs, root)
    node = bench.node("each-t")
    bench.state.apply(e.TaskExpanded(*bench.about(node), [[1]]))
    bench.state.apply(e.TaskFinished(*bench.about(node), "x", "thread", 1.0))
    bench.state.apply(e.TaskFailed(*bench.about(bench.node("t[x=1]")), 1, "x", "thread", 1.0, "exception", "E", "m"))
    bench.state.apply(e.TaskFinished(*bench.about(bench.node("d")), "x", "thread", 1.0))
    bench.restart()
    assert bench.go() == ["a", "c"]
    assert bench.fail("c") == []  # from now on only what has a failure behind it starts
    assert bench.finish("a") == ["b"]


def test_what_was_left_out_before_hands_on_a_failure_of_this_session() -> None:
    bench = Bench.sequence(A, B, C, on_failure="continue")
    bench.state.apply(e.TaskSkipped(*bench.about(1), "unselected"))
    bench.restart()
    assert bench.go() == ["a"]
    assert bench.fail("a") == ["c: blocked by a", "run failed"]


# ---- what must not be


def test_tasks_that_wait_for_nothing_and_cannot_start_are_a_bug_and_said_so() -> None:
    bench = Bench.sequence(A, B)
    bench.scheduler._clear_heaps()
    with pytest.raises(AssertionError, match="nothing can start, yet 2 tasks wait, among them a"):
        bench.go()


# ---- what it costs


def played(size: int, policy: OnFailure) -> None:
    count = size // 2
    rows: list[list[Any]] = [[number] for number in range(count)]
    specs = (task("p", params=("x",), retry=Retry(attempts=2)), task("q", params=("x",), trigger="all_done"))
    root = Seq((Each(Leaf(0), ("x",), rows=rows), Each(Leaf(1), ("x",), rows=rows)))
    bench = Bench(specs, root, on_failure=policy, concurrency=count)
    bench.validates = False  # that costs as much as the graph is large
    started = bench.go()
    for number, name in enumerate(started):
        if number % 3 == 0:
            bench.retry(name, 1.0, abandoned=number % 2 == 0)
        elif number % 3 == 1:
            bench.fail(name)
        else:
            bench.finish(name)
    bench.now = 100.0
    for name in bench.go():
        bench.fail(name)
    while bench.scheduler.running:
        for node in list(bench.scheduler.running):
            bench.finish(bench.graph.task_id(node))


@pytest.mark.parametrize("policy", ["drain", "continue", "cancel"])
def test_ten_times_the_tasks_cost_about_ten_times_as_much(policy: OnFailure) -> None:
    def cost(size: int) -> int:
        lines = 0  # of Python that are run through: the same on every machine

        def count(_frame: FrameType, _event: str, _argument: object) -> Any:
            nonlocal lines
            lines += 1
            return count

        before = sys.gettrace()
        sys.settrace(count)
        try:
            played(size, policy)
        finally:
            sys.settrace(before)
        return lines

    small, large = cost(100), cost(1_000)
    assert large < 20 * small, f"{large / small:.0f} times"  # 100 times, were it quadratic
