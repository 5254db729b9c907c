"""How runs end, for those who started them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gluepy.core.events import JSON
from gluepy.core.state import BLOCKED, FAILED, SKIPPED, STATUS, State
from gluepy.errors import GluepyError, TaskError


class RunCancelledError(GluepyError):
    """The run was cancelled from elsewhere, by `run.cancel()` or `gluepy cancel`."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"run {self.run_id} was cancelled"


class RunTimedOutError(GluepyError):
    """The run took longer than its `timeout_s`."""

    def __init__(self, run_id: str, timeout_s: float | None) -> None:
        super().__init__(run_id, timeout_s)
        self.run_id, self.timeout_s = run_id, timeout_s

    def __str__(self) -> str:
        return f"run {self.run_id} took longer than its timeout_s of {self.timeout_s:g} s"


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How a task ended. `status` is finished, failed, skipped, cancelled or blocked; `attempts` how often it began;
    `duration_s` of the last attempt; `error` its `TaskError` when it failed in this session.

    `reason` is why it failed (one of `core.events.Reason`) or was skipped (`skip`, `upstream`, `trigger`,
    `unselected`), `blocked_by` are the tasks whose failure blocked it, `metrics` the last value of each.
    """

    status: str
    attempts: int
    duration_s: float
    error: TaskError | None = None
    reason: str | None = None
    blocked_by: Sequence[str] = ()
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """In a word or two why it has not finished, empty if it has."""
        if self.blocked_by:
            return f"blocked by {', '.join(self.blocked_by)}"
        return self.reason or ("" if self.status == "finished" else self.status)


class TaskResults(Mapping[str, TaskResult]):
    """Results by task id, made when they are asked for: a run may have a million."""

    def __init__(self, state: State, errors: Mapping[int, TaskError]) -> None:
        self._state, self._errors = state, errors

    def __getitem__(self, task: str) -> TaskResult:
        state, node = self._state, self._state.graph.index[task]
        status, error = state.status[node], state.error.get(node)
        reason = error.reason if status == FAILED and error is not None else None
        return TaskResult(
            STATUS[status],
            state.attempt[node],
            state.duration_s[node],
            self._errors.get(node),
            state.skip_reason.get(node) if status == SKIPPED else reason,
            state.blocked_by.get(node, ()) if status == BLOCKED else (),
            state.metrics.get(node, {}),
        )

    def __iter__(self) -> Iterator[str]:
        return (self._state.graph.task_id(node) for node in self._state.graph.tasks())

    def __len__(self) -> int:
        return len(self._state.graph.index)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(frozen=True, slots=True, repr=False)
class RunResult:
    """How a run ended. `status` is finished, failed or cancelled; `path` the folder of its record (with `record=False`
    there is none), `files` where its tasks' files are (`self.path`); `started_at` a timestamp in RFC 3339; `duration_s`
    how long it took: of a run that was resumed all its sessions, without the time between them; `tasks` maps each
    task's id to its result."""

    run_id: str
    dag: str
    status: str
    path: Path
    files: str
    started_at: str
    duration_s: float
    tasks: Mapping[str, TaskResult]

    @property
    def metrics(self) -> dict[str, Mapping[str, float | None]]:
        """What tasks have measured, by their ids and the names of the metrics: the last values."""
        return {task: result.metrics for task, result in self.tasks.items() if result.metrics}

    @property
    def reasons(self) -> dict[str, str]:
        """Why tasks have not finished, by their ids: the reason of a failure or a skip, what blocked them, or only that
        they were cancelled."""
        return {task: result.why for task, result in self.tasks.items() if result.status != "finished"}

    def __repr__(self) -> str:
        number = len(self.tasks)
        tasks = f"{number:,} task{'' if number == 1 else 's'}"
        return f"<RunResult {self.dag} {self.status}, {tasks}, {self.duration_s:.3g} s, run {self.run_id}>"


@dataclass(frozen=True, slots=True)
class ResumePlan:
    """What a resumed run does: `again` maps each task that finished or began before and runs again to the cause,
    `waiting` are the tasks that have still to begin, `retrying` those that are due for another attempt, `kept` the
    finished ones that do not run; `changes` tell how the DAG differs from that of the run's last session, and
    `code_before` and `code_version` which code that session had and this one has; `bad_lines`, `gaps` and
    `doubled` count what could not be read of the log, events that it lacks, and events with a number that was there
    before; `none_of` are the names that were to run again and mean no task as yet, with the reason; `left_out` counts
    the tasks that were skipped since the run's selection lacks them; `params_changed` are the parameters that differ
    from the last session's, before and after, and `stale` the kept tasks that finished with others than this session's.
    """

    run_id: str
    session: int
    again: Mapping[str, str]
    waiting: Sequence[str]
    kept: Sequence[str]
    changes: list[str]
    code_before: str
    code_version: str
    bad_lines: int
    gaps: int
    none_of: Mapping[str, str] = field(default_factory=dict)
    retrying: Sequence[str] = ()
    left_out: int = 0
    doubled: int = 0
    params_changed: Mapping[str, tuple[JSON, JSON]] = field(default_factory=dict)
    stale: Sequence[str] = ()
