"""Many runs side by side, and whether one is worse than another by the goals of its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from gluepy.core.events import JSON
from gluepy.core.policy import Goal
from gluepy.report.rows import Rows
from gluepy.report.run import RunReport

Verdict = Literal["better", "same", "tolerated", "worse", "missing"]


class RunComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Runs side by side. Each list has one value a run, in the order of `runs`, None where one has none.

    `parameters` are those that differ, secrets masked; `metrics` all, by `TASK.METRIC`; `best` has the positions of the
    runs with the best value of each metric that has a goal.
    """

    runs: list[str]
    dags: list[str]
    statuses: list[str]
    durations_s: list[float]
    parameters: dict[str, list[JSON]]
    metrics: dict[str, list[float | None]]
    best: dict[str, list[int]]

    def to_json(self) -> dict[str, JSON]:
        """What `gluepy compare --json` prints."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """A metric with a goal, in a run and in its `baseline`. `verdict` is better, same, tolerated (worse, but not beyond
    the `tolerance`), worse, or missing (the run has no value of it)."""

    metric: str
    better: str
    tolerance: float
    baseline: float
    value: float | None
    verdict: Verdict

    @property
    def is_bad(self) -> bool:
        """Whether a check fails by it."""
        return self.verdict in ("worse", "missing")

    def to_dict(self) -> dict[str, JSON]:
        """All fields."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


def compare_many(runs: Sequence[RunReport], goals: Mapping[str, Goal] | None = None) -> RunComparison:
    """`runs` side by side. `goals` are by `TASK.METRIC`; those that tasks declare, if omitted."""
    metrics = [_metrics(run) for run in runs]
    contexts = [run.context for run in runs]
    shown = [run.parameters for run in runs]
    differ = [
        name
        for name in dict.fromkeys(name for context in contexts for name in context)
        if any(name not in context or context[name] != contexts[0].get(name) for context in contexts)
    ]
    table = {name: [each.get(name) for each in metrics] for name in dict.fromkeys(name for m in metrics for name in m)}
    if goals is None:
        goals = {name: goal for run in runs for name, goal in _goals(run).items()}
    return RunComparison(
        runs=[run.run_id for run in runs],
        dags=[run.dag for run in runs],
        statuses=[run.status for run in runs],
        durations_s=[round(run.duration_s, 6) for run in runs],
        parameters={name: [each.get(name) for each in shown] for name in differ},
        metrics=table,
        best={name: _best(values, goals[name]) for name, values in table.items() if name in goals},
    )


def check_run(run: RunReport, baseline: RunReport) -> Rows[Judgement]:
    """Each metric with a goal that `baseline` has measured, and how it is in `run`. The goals are those of `run`, or
    those of `baseline` for what `run` knows nothing of."""
    now, before = _metrics(run), _metrics(baseline)
    goals = {**_goals(baseline), **_goals(run)}
    found: Rows[Judgement] = Rows()
    for name, was in before.items():
        if was is not None and name in goals:
            goal, value = goals[name], now.get(name)
            found.append(
                Judgement(
                    metric=name,
                    better=goal.better,
                    tolerance=goal.tolerance,
                    baseline=was,
                    value=value,
                    verdict=_verdict(goal, value, was),
                )
            )
    return found


def _verdict(goal: Goal, value: float | None, was: float) -> Verdict:
    if value is None:
        return "missing"
    if value == was:
        return "same"
    if (value < was) == (goal.better == "lower"):
        return "better"
    return "worse" if goal.is_worse(value, was) else "tolerated"


def _best(values: Sequence[float | None], goal: Goal) -> list[int]:
    known = [value for value in values if value is not None]
    if not known:
        return []
    best = min(known) if goal.better == "lower" else max(known)
    return [number for number, value in enumerate(values) if value == best]


def _metrics(run: RunReport) -> dict[str, float | None]:
    return {f"{task.task}.{name}": value for task in run.tasks.values() for name, value in task.metrics.items()}


def _goals(run: RunReport) -> dict[str, Goal]:
    graph = run.state.graph
    if not any(spec.goals for spec in graph.specs):
        return {}
    return {
        f"{graph.task_id(node)}.{name}": goal for node in run.nodes for name, goal in graph.spec(node).goals.items()
    }
