"""What differs between two runs."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gluepy.core.events import JSON
from gluepy.report.datasets import DatasetReport, dataset_change
from gluepy.report.run import RunReport

_WORTH_S = 0.05  # a shorter difference of two durations is nothing
_WORTH = 0.1
_NOT_CHOSEN = ("dag", "run_id", "params", "capture")

Pairs = dict[str, tuple[JSON, JSON]]


class RunDifference(msgspec.Struct, frozen=True, kw_only=True):
    """What differs between the two `runs`: by name the values in the first and in the second, None if it has none.

    `run` compares the DAG, the status and the code version; `options` what the runs were started with; `context` the
    parameters, by dotted names, secrets masked; `tasks` the statuses; `durations` those of tasks that finished in both,
    if they differ by a tenth and by 50 ms, the biggest difference first; `metrics` has the names `TASK METRIC`;
    `datasets` tells the rows, columns and bytes of those that were written with other contents.
    """

    runs: list[str]
    run: Pairs
    options: Pairs
    context: Pairs
    tasks: Pairs
    durations: Pairs
    metrics: Pairs
    datasets: Pairs = {}

    def to_json(self) -> dict[str, JSON]:
        """What `gluepy diff --json` prints."""
        differing = {name: getattr(self, name) for name in self.__struct_fields__[1:]}
        return {
            "runs": self.runs,
            **{part: {name: list(pair) for name, pair in pairs.items()} for part, pairs in differing.items()},
        }


def compare_runs(first: RunReport, second: RunReport) -> RunDifference:
    """The difference of two runs, of the same DAG or of two."""
    runs = (first, second)
    before, after = (run.context for run in runs)
    context = _differences(before, after)
    return RunDifference(
        runs=[run.run_id for run in runs],
        run=_differences(*({"dag": run.dag, "status": run.status, "code_version": run.code_version} for run in runs)),
        options=_differences(
            *({name: value for name, value in run.options.items() if name not in _NOT_CHOSEN} for run in runs)
        ),
        context={name: (first.parameters.get(name), second.parameters.get(name)) for name in context},
        tasks=_differences(*({task.task: task.status for task in run.tasks.values()} for run in runs)),
        durations=_durations(*map(_finished, runs)),
        metrics=_differences(
            *(
                {f"{task.task} {name}": value for task in run.tasks.values() for name, value in task.metrics.items()}
                for run in runs
            )
        ),
        datasets=_datasets(first, second),
    )


def _datasets(first: RunReport, second: RunReport) -> Pairs:
    before, after = ({each.dataset: each for each in run.datasets if each.written} for run in (first, second))
    differing = [name for name in dict.fromkeys((*before, *after)) if dataset_change(before.get(name), after.get(name))]
    return {name: (_contents(before.get(name)), _contents(after.get(name))) for name in differing}


def _contents(dataset: DatasetReport | None) -> JSON:
    if dataset is None:
        return None
    return {name: getattr(dataset, name) for name in ("rows", "columns", "bytes", "fingerprint")}


def _differences(before: Mapping[str, JSON], after: Mapping[str, JSON]) -> Pairs:
    names = dict.fromkeys((*before, *after))
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def _finished(run: RunReport) -> dict[str, float]:
    return {task.task: task.duration_s for task in run.tasks.values() if task.status == "finished"}


def _durations(before: Mapping[str, float], after: Mapping[str, float]) -> Pairs:
    both = [(task, seconds, after[task]) for task, seconds in before.items() if task in after]
    worth = [
        (task, seconds, other)
        for task, seconds, other in both
        if abs(other - seconds) >= max(_WORTH_S, _WORTH * min(seconds, other))
    ]
    return {task: (seconds, other) for task, seconds, other in sorted(worth, key=lambda row: -abs(row[2] - row[1]))}
