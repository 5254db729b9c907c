"""Simulated runs: whatever the DAG and the luck, the rules hold (`simulation.py` has the rules)."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from simulation import World

from gluepy.core import scheduler
from gluepy.core.graph import Graph
from gluepy.core.scheduler import Scheduler

WORLDS = int(os.environ.get("GLUEPY_SIMULATIONS", "300"))
EXHAUSTIVE = int(os.environ.get("GLUEPY_SIMULATIONS_EXHAUSTIVE", "100000"))
CHUNK = 1000


def play(seed: int) -> World:
    try:
        return World(seed).play()
    except Exception as error:
        error.add_note(f"World({seed}).play()")
        raise


def resume_somewhere(world: World, seed: int) -> None:
    """Cut the log of the first run anywhere and go on from there, once with bad luck and once with good."""
    run = world.runs[0]
    for unkind in (True, False):
        cut = random.Random(seed + unkind).randint(1, len(run.lines))
        try:
            again = World(seed).resume(run, cut, unkind)
        except Exception as error:
            error.add_note(f"World({seed}).resume(World({seed}).play().runs[0], {cut}, {unkind})")
            raise
        assert unkind or again.state.run == "finished", (seed, cut)


def test_simulated_runs_keep_every_rule_to_their_end() -> None:
    events = sum(len(run.lines) for seed in range(WORLDS) for run in play(seed).runs)
    assert events > 10 * WORLDS  # they did something


def test_a_run_goes_on_from_wherever_its_log_was_cut() -> None:
    for seed in range(WORLDS):
        resume_somewhere(play(seed), seed)


def test_a_run_goes_on_from_every_event_of_its_log() -> None:
    for seed in range(WORLDS // 30):
        world = play(seed)
        for cut in range(1, len(world.runs[0].lines) + 1):
            assert World(seed).resume(world.runs[0], cut, unkind=False).state.run == "finished", (seed, cut)


def test_the_same_seed_gives_the_same_log() -> None:
    for seed in range(WORLDS // 3):
        assert [run.lines for run in play(seed).runs] == [run.lines for run in play(seed).runs], seed


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
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(WORLDS, EXHAUSTIVE, CHUNK))
def test_many_simulated_runs_keep_every_rule(first: int) -> None:
    for seed in range(first, min(first + CHUNK, EXHAUSTIVE)):
        world = play(seed)
        if seed % 10 == 0:
            resume_somewhere(world, seed)
            assert [run.lines for run in play(seed).runs] == [run.lines for run in world.runs], seed


# ---- the simulation has teeth: it finds bugs that are planted


def slot_released_before_the_thread_ends(patch: pytest.MonkeyPatch) -> None:
    leave = Scheduler._leave
    patch.setattr(
        Scheduler, "_leave", lambda self, node, attempt, abandoned, now: leave(self, node, attempt, False, now)
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
        resolve(self, node, flags & ~1 if len(self.graph.before[node]) > 1 else flags, now)

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
        if any(self.ids[after] is None for after in self.before[node] if after != join):
            return new
        self._link((node,), join)
        return new

    patch.setattr(Graph, "expand", too_many)


def retry_that_starves_behind_others(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "_take_over", lambda self, node: self._queue(node, 0.0))


def finished_tasks_that_run_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("simulation.resets", lambda state, forced: dict.fromkeys(state.graph.tasks(), "again"))


PLANTED = (
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
            resume_somewhere(play(seed), seed)
