"""Simulated runs: whatever the DAG and the luck, the rules hold (`simulation.py` has the rules)."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from simulation import World

from gluepy.core import scheduler
from gluepy.core.events import Event, TaskFailed
from gluepy.core.graph import Graph
from gluepy.core.scheduler import Command, EndRun, Scheduler, SkipTask
from gluepy.core.state import State

WORLDS = int(os.environ.get("GLUEPY_SIMULATIONS", "600"))
EXHAUSTIVE = int(os.environ.get("GLUEPY_SIMULATIONS_EXHAUSTIVE", "100000"))
CHUNK = 1000


def play(seed: int) -> World:
    try:
        return World(seed).play()
    except Exception as error:
        error.add_note(f"World({seed}).play()")
        raise


def resume_twice(world: World, seed: int) -> None:
    """Cut the log of the first run anywhere and go on from there with bad luck; do that again, with good luck."""
    run = world.runs[0]
    for unkind in (True, False):
        cut = random.Random(seed + unkind).randint(1, len(run.lines))
        try:
            run = World(seed).resume(run, cut, unkind)
        except Exception as error:
            error.add_note(f"World({seed}).play(), resumed at {cut}, {unkind=}")
            raise
    assert run.state.run == "finished", seed


def logs(seeds: Iterable[int]) -> str:
    """A digest of all the logs of these worlds."""
    digest = hashlib.sha256()
    for seed in seeds:
        for run in play(seed).runs:
            digest.update(b"".join(run.lines))
    return digest.hexdigest()


def test_simulated_runs_keep_every_rule_to_their_end() -> None:
    events = sum(len(run.lines) for seed in range(WORLDS) for run in play(seed).runs)
    assert events > 10 * WORLDS  # they did something


def test_a_run_goes_on_from_wherever_its_log_was_cut() -> None:
    for seed in range(WORLDS // 3):
        resume_twice(play(seed), seed)


def test_a_run_goes_on_from_every_event_of_its_log() -> None:
    for seed in range(WORLDS // 100):
        world = play(seed)
        for cut in range(1, len(world.runs[0].lines) + 1):
            assert World(seed).resume(world.runs[0], cut, unkind=False).state.run == "finished", (seed, cut)


def test_the_same_seed_gives_the_same_log() -> None:
    for seed in range(WORLDS // 30):
        assert [run.lines for run in play(seed).runs] == [run.lines for run in play(seed).runs], seed


def test_the_same_seed_gives_the_same_log_whatever_the_hashes_of_strings_are() -> None:
    here = logs(range(WORLDS // 30))
    for hash_seed in ("1", "2"):
        told = f"from test_simulation import logs; print(logs(range({WORLDS // 30})))"
        path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
        there = subprocess.run(
            [sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True
        )
        assert there.stdout.strip() == here


def test_simulated_runs_meet_everything_that_can_happen() -> None:
    met: set[str] = set()
    for seed in range(150):
        for run in play(seed).runs:
            for line in run.lines:
                for word in (b"run.finished", b"run.failed", b"run.cancelled", b"task.expanded", b"task.retrying",
                             b'"abandoned":true', b'"reason":"lost"', b'"upstream"', b'"unselected"', b'"trigger"',
                             b"task.blocked", b"task.cancelled", b'"timeout"}'):  # fmt: skip
                    if word in line:
                        met.add(word.decode())
    assert len(met) == 13, met


@pytest.mark.exhaustive
@pytest.mark.parametrize("first", range(WORLDS, EXHAUSTIVE, CHUNK))
def test_many_simulated_runs_keep_every_rule(first: int) -> None:
    for seed in range(first, min(first + CHUNK, EXHAUSTIVE)):
        world = play(seed)
        if seed % 3 == 0:
            resume_twice(world, seed)
        if seed % 100 == 0:
            assert [run.lines for run in play(seed).runs] == [run.lines for run in world.runs], seed


# ---- the simulation has teeth: it finds bugs that are planted


def slot_released_before_the_thread_ends(patch: pytest.MonkeyPatch) -> None:
    leave = Scheduler._vacate
    patch.setattr(
        Scheduler, "_vacate", lambda self, node, attempt, abandoned, now: leave(self, node, attempt, False, now)
    )


def retry_that_does_not_wait_for_its_thread(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scheduler, "GRACE_S", 0.5)
    patch.setattr("simulation.s", type("S", (), {**vars(scheduler), "GRACE_S": 10.0}))


def limits_that_are_not_taken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scheduler.Limits, "take", lambda self, uses: True)
    patch.setattr(scheduler.Limits, "give", lambda self, uses: None)


def first_in_first_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Graph, "longest_paths", _flat(Graph.longest_paths))


def _flat(longest_paths: Callable[..., list[float]]) -> Callable[..., list[float]]:
    def paths(self: Graph, weight: Callable[[int], float], since: int = 0, known: Iterable[float] = ()) -> list[float]:
        if getattr(weight, "__module__", "") == "simulation":  # the model knows better
            return longest_paths(self, weight)
        return [1.0] * len(self)

    return paths


def failure_that_is_forgotten_behind_a_join(patch: pytest.MonkeyPatch) -> None:
    resolve = Scheduler._resolve

    def _resolve(self: Scheduler, node: int, flags: int, now: float) -> None:
        resolve(self, node, flags & ~1 if len(self.graph.dependents[node]) > 1 else flags, now)

    patch.setattr(Scheduler, "_resolve", _resolve)


def drain_that_lets_everything_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "_drain", lambda self: None)


def starved_run_that_is_not_called(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scheduler.Limits, "wait", lambda self, call: None)


def lost_workers_that_use_up_the_tasks_own_attempts(patch: pytest.MonkeyPatch) -> None:
    delay = Scheduler.retry_delay
    patch.setattr(
        Scheduler, "retry_delay", lambda self, node, _, retryable, key: delay(self, node, "x", retryable, key)
    )


def delay_that_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    restore = Scheduler._restore

    def _restore(self: Scheduler, now: float) -> None:
        restore(self, now)
        self._delayed = [(now, node) for _, node in self._delayed]

    patch.setattr(Scheduler, "_restore", _restore)


def each_that_hides_what_came_before_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "_see_through", lambda self, node, instance: None)


def barrier_that_an_empty_branch_opens(patch: pytest.MonkeyPatch) -> None:
    expand = Graph.expand

    def too_many(self: Graph, node: int, rows: Sequence[Sequence[Any]]) -> range:
        join = self._open[node][1]
        new = expand(self, node, rows)
        if any(self.ids[other] is None for other in self.dependents[node] if other != join):
            return new
        self._link((node,), join)
        return new

    patch.setattr(Graph, "expand", too_many)


def retry_that_starves_behind_others(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "_reclaim", lambda self, node: self._queue(node, 0.0))


def finished_tasks_that_run_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("simulation.resets", lambda state, forced, **_: dict.fromkeys(state.graph.tasks(), "again"))


def one_task_too_many(patch: pytest.MonkeyPatch) -> None:
    init = Scheduler.__init__

    def __init__(self: Scheduler, state: State, *, concurrency: int, **rest: Any) -> None:
        init(self, state, concurrency=concurrency + 1, **rest)

    patch.setattr(Scheduler, "__init__", __init__)


def dependency_that_is_dropped(patch: pytest.MonkeyPatch) -> None:
    restore = Scheduler._restore

    def _restore(self: Scheduler, now: float) -> None:
        self._waiting = [max(1, count - 1) if count > 2 else count for count in self._waiting]
        restore(self, now)

    patch.setattr(Scheduler, "_restore", _restore)


def selection_that_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "_is_selected", lambda self, node: True)


def skip_that_is_not_handed_on(patch: pytest.MonkeyPatch) -> None:
    hands_on = Scheduler._hands_on
    patch.setattr(Scheduler, "_hands_on", lambda self, node: hands_on(self, node) & ~2)


def task_that_ends_twice(patch: pytest.MonkeyPatch) -> None:
    end = Scheduler._end

    def _end(self: Scheduler, how: EndRun) -> Command:
        self._commands.extend(SkipTask(node, "unselected") for node in list(self.graph.tasks())[:1])
        return end(self, how)

    patch.setattr(Scheduler, "_end", _end)


def state_that_knows_more_than_the_log(patch: pytest.MonkeyPatch) -> None:
    observe = Scheduler.observe

    def _observe(self: Scheduler, event: Event, now: float) -> int:
        node = observe(self, event, now)
        if isinstance(event, TaskFailed):
            self.state.failures[node] = self.state.failures.get(node, 0) + 1
        return node

    patch.setattr(Scheduler, "observe", _observe)


PLANTED = (
    one_task_too_many,
    dependency_that_is_dropped,
    selection_that_is_ignored,
    skip_that_is_not_handed_on,
    task_that_ends_twice,
    state_that_knows_more_than_the_log,
    each_that_hides_what_came_before_it,
    barrier_that_an_empty_branch_opens,
    retry_that_starves_behind_others,
    finished_tasks_that_run_again,
    slot_released_before_the_thread_ends,
    retry_that_does_not_wait_for_its_thread,
    limits_that_are_not_taken,
    first_in_first_out,
    failure_that_is_forgotten_behind_a_join,
    drain_that_lets_everything_start,
    starved_run_that_is_not_called,
    lost_workers_that_use_up_the_tasks_own_attempts,
    delay_that_is_forgotten,
)


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        for seed in range(WORLDS):
            resume_twice(play(seed), seed)
