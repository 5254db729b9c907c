"""How long the tasks of a DAG took in its latest runs: what the order of starting is learned from.

One small JSON file a DAG beside the records, rewritten whole at the end of a session, at most once a second. It only
steers the order of starting and forecasts: deleting it, or losing a race for it, does no harm.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from gluepy.core.graph import slug_of
from gluepy.core.state import FINISHED, State
from gluepy.runs.record import write_private

_KEPT = 9  # durations of each task
_PAUSE_S = 1.0  # between two writes
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

    def learn(self, state: State, since: set[int]) -> bool:
        """Take in how long the tasks that finished took, but for those that had before this session (`since`). False
        if none did."""
        graph = state.graph
        by_spec: list[list[float]] = [[] for _ in graph.specs]
        for node, status in enumerate(state.status):
            if status == FINISHED and node not in since:
                duration_s = state.duration_s[node]
                by_spec[graph.spec_of[node]].append(duration_s)
                if duration_s >= _WORTH_S:
                    durations = self.tasks.setdefault(graph.task_id(node), [])
                    durations.append(duration_s)
                    del durations[:-_KEPT]
        if not any(by_spec):
            return False
        self.runs += 1
        by_label: dict[str, list[float]] = {}
        for spec, seconds in zip(graph.specs, by_spec, strict=True):
            if seconds:
                by_label.setdefault(spec.label, []).extend(seconds)
        for label, seconds in by_label.items():
            durations = self.labels.setdefault(label, [])
            durations.append(typical(seconds))
            del durations[:-_KEPT]
        for task in [task for task in self.tasks if task not in graph.index]:
            del self.tasks[task]
        return True


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
    return _read(durations_file(root, dag))


class LearnedDurations:
    """The durations of the DAGs that one process runs, in `root`: read once, and written at most once a second.

    What other processes learn meanwhile is read before the next write. `write` writes what has not been.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, _Known] = {}

    def of(self, dag: str) -> Durations:
        """What is known of `dag`."""
        return self._known_of(dag).durations

    def learn(self, dag: str, state: State, since: set[int]) -> None:
        """Remember how long the tasks that finished took, but for those that had before this session (`since`)."""
        known, now = self._known_of(dag), time.monotonic()
        is_due = now >= known.due
        if is_due and not known.is_new and known.stamp != _stamp(known.file):
            known.durations, known.stamp = _read(known.file), _stamp(known.file)
        known.is_new = known.durations.learn(state, since) or known.is_new
        if is_due and known.is_new:
            known.write(now)

    def write(self) -> None:
        """Write what has been learned since the last time."""
        for known in self._known.values():
            if known.is_new:
                known.write(time.monotonic())

    def _known_of(self, dag: str) -> _Known:
        known = self._known.get(dag)
        if known is None:
            known = self._known[dag] = _Known(durations_file(self._root, dag))
        return known


class _Known:
    def __init__(self, file: Path) -> None:
        self.file, self.stamp = file, _stamp(file)
        self.durations = _read(file)
        self.is_new = False  # whether something is not written
        self.due = -math.inf  # when it may be

    def write(self, now: float) -> None:
        self.due, self.is_new = now + _PAUSE_S, False
        try:
            self.file.parent.mkdir(0o700, exist_ok=True)
            draft = self.file.with_suffix(f".{os.getpid()}")
            write_private(draft, msgspec.json.encode(self.durations).decode())
            draft.replace(self.file)
        except OSError:
            return  # the run itself is recorded: this only helps the next one
        self.stamp = _stamp(self.file)


def _read(file: Path) -> Durations:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Durations)
    except (OSError, msgspec.DecodeError):
        return Durations()


def _stamp(file: Path) -> tuple[int, int]:
    """By what it is known whether a file is another one."""
    try:
        found = os.stat(file)
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino
