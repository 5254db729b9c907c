"""How long the tasks of a DAG took in its latest runs: what the order of starting is learned from.

One small JSON file a DAG beside the records, rewritten whole at the end of each session. It only steers the order of
starting and forecasts: deleting it, or losing a race for it, does no harm.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from gluepy.core.graph import slug_of
from gluepy.core.state import FINISHED, State
from gluepy.runs.record import write_private

_KEPT = 9  # durations of each task
_WORTH_S = 0.05  # of shorter tasks only what their label takes is remembered


class Durations(msgspec.Struct):
    """Seconds of the latest finished attempts, newest last, by task id and by label. `runs` counts sessions."""

    runs: int = 0
    tasks: dict[str, list[float]] = {}
    labels: dict[str, list[float]] = {}

    def median(self, task: str, label: str) -> float | None:
        """The typical seconds of a task: its own median, or that of its label; None for one never seen."""
        seen = self.tasks.get(task) or self.labels.get(label)
        return typical(seen) if seen else None

    def spread(self, task: str, label: str) -> tuple[float, float] | None:
        """The shortest and the longest seconds seen of a task."""
        seen = self.tasks.get(task) or self.labels.get(label)
        return (min(seen), max(seen)) if seen else None


def typical(seconds: Iterable[float]) -> float:
    """The median of `seconds`, of which there is at least one. (The statistics module takes 5 ms to import.)"""
    ranked = sorted(seconds)
    half = len(ranked) // 2
    return ranked[half] if len(ranked) % 2 else (ranked[half - 1] + ranked[half]) / 2


def durations_file(root: Path, dag: str) -> Path:
    """Where the durations of `dag` are kept."""
    return root / "durations" / f"{slug_of(dag)}.json"


def read_durations(root: Path, dag: str) -> Durations:
    """What is known of `dag`; nothing, where the file is missing or damaged."""
    try:
        return msgspec.json.decode(durations_file(root, dag).read_bytes(), type=Durations)
    except (OSError, msgspec.DecodeError):
        return Durations()


def learn_durations(root: Path, dag: str, state: State, since: set[int]) -> None:
    """Remember how long the tasks that finished took, but for those that had before this session (`since`)."""
    graph = state.graph
    known = read_durations(root, dag)
    by_spec: list[list[float]] = [[] for _ in graph.specs]
    for node, status in enumerate(state.status):
        if status == FINISHED and node not in since:
            duration_s = state.duration_s[node]
            by_spec[graph.spec_of[node]].append(duration_s)
            if duration_s >= _WORTH_S:
                durations = known.tasks.setdefault(graph.task_id(node), [])
                durations.append(duration_s)
                del durations[:-_KEPT]
    if not any(by_spec):
        return
    known.runs += 1
    by_label: dict[str, list[float]] = {}
    for spec, seconds in zip(graph.specs, by_spec, strict=True):
        if seconds:
            by_label.setdefault(spec.label, []).extend(seconds)
    for label, seconds in by_label.items():
        durations = known.labels.setdefault(label, [])
        durations.append(typical(seconds))
        del durations[:-_KEPT]
    for task in [task for task in known.tasks if task not in graph.index]:
        del known.tasks[task]
    file = durations_file(root, dag)
    try:
        file.parent.mkdir(0o700, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        write_private(draft, msgspec.json.encode(known).decode())
        draft.replace(file)
    except OSError:
        return  # the run itself is recorded: this only helps the next one
