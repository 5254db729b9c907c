"""What is told about a run when it is over, or later: as JSON, and in plain text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gluepy.cli.text import (
    STYLE_OF,
    amount,
    count,
    damage,
    duration,
    error_line,
    first_line,
    moment,
    printable,
    printable_block,
    styled,
    table,
)
from gluepy.clock import seconds_of
from gluepy.core import events as e
from gluepy.core.events import JSON
from gluepy.core.state import BLOCKED, FAILED, RUNNING, SKIPPED, STATUS
from gluepy.errors import TaskError
from gluepy.runs.reading import read_run
from gluepy.runs.record import Record
from gluepy.traces import without_our_frames

_ORDER = (
    "finished",
    "failed",
    "blocked",
    "cancelled",
    "skipped",
    "running",
    "interrupted",
    "retrying",
    "pending",
    "not selected",
)
_URGENCY = {"failed": 0, "running": 1, "retrying": 1, "finished": 3}
_ROWS = 60  # tasks in a table
_LOG_LINES = 10  # of a log file, behind a failure that has no traceback
_TRACEBACKS = 20  # shown whole; further failures are one line each


@dataclass(frozen=True, slots=True)
class Failure:
    """One task that failed: what a person needs to know of it."""

    task: str
    attempt: int
    max_attempts: int
    reason: str
    type: str
    message: str
    stack: str
    log: str

    @classmethod
    def of(cls, event: e.TaskFailed, folder: Path) -> Failure:
        """The failure that `event` tells of, in the run whose record is `folder`."""
        log = str(folder / event.log) if event.log else ""
        tries, stack = (event.attempt, event.max_attempts), event.error_stack or ""
        return cls(event.task, *tries, event.reason, event.error_type, event.error_message, stack, log)

    @classmethod
    def told_by(cls, error: TaskError) -> Failure:
        """The failure that `error` is."""
        tries = (error.attempt, error.max_attempts)
        return cls(error.task, *tries, error.reason, error.type, error.message, error.stack, error.log)


class Story:
    """A run as its record tells it: its `state`, and what is wrong with the log (`damage`).

    Raises `UnreadableLog`, and `UnknownRun` for a run that was deleted meanwhile. `see` is called with each event.
    """

    def __init__(self, record: Record, see: Callable[[e.Event], object] | None = None) -> None:
        self.record = record
        self._said: dict[str, str] = {}  # what tasks that skipped themselves gave as a reason

        def note(event: e.Event) -> None:
            if isinstance(event, e.TaskSkipped) and event.why:
                self._said[event.task] = event.why
            if see is not None:
                see(event)

        reader = read_run(record, see=note)
        self.state = reader.state
        self.damage = damage(reader.bad, reader.gaps, reader.doubled)

    @property
    def status(self) -> str:
        """`finished`, `failed`, `cancelled`, `running`, or `interrupted` when its driver is gone."""
        status: str = self.state.run
        return "interrupted" if status == "running" and not self.record.is_held() else status

    @property
    def duration_s(self) -> float:
        """How long its sessions took together, or have taken until now, or until the last that is known."""
        since_s = 0.0
        if self.status == "running":
            since_s = time.time() - (seconds_of(self.state.last_at) or time.time())
        return self.state.lasted_s() + max(0.0, since_s)

    def failures(self) -> list[Failure]:
        """The tasks that failed, in the order of the graph."""
        errors = self.state.error
        failed = (errors[node] for node in sorted(errors) if self.state.status[node] == FAILED)
        return [Failure.of(event, self.record.path) for event in failed if isinstance(event, e.TaskFailed)]

    def record_of(self) -> dict[str, JSON]:
        """The run as one JSON object."""
        state, status = self.state, self.status
        return {
            "run_id": self.record.run_id,
            "dag": state.dag,
            "status": status,
            "reason": state.reason,
            "path": str(self.record.path),
            "started_at": state.started_at,
            "duration_s": round(self.duration_s, 6),
            "code_version": state.code_version,
            "first_code_version": state.first_code_version,
            "options": state.options,
            "counts": self.counts(status),
            "tasks": {state.graph.id(node): self._task(node, status) for node in state.graph.tasks()},
        }

    def counts(self, status: str) -> dict[str, int]:
        """The number of tasks by how they are, as the `status` of their run has it."""
        return {self._word(word, status): number for word, number in self.state.counts().items()}

    def text(self, colour: bool) -> Iterator[str]:
        """The run in plain text: header, tasks, metrics. Failures and what to do next are `failure_text`."""
        state, status = self.state, self.status
        facts = [
            ("run", self.record.run_id),
            ("dag", printable(state.dag)),
            ("status", styled(status, STYLE_OF.get(status, "bold"), colour) + printable(self._why())),
            ("started", moment(state.started_at)),
            ("took", duration(self.duration_s)),
            ("code", state.code_version + self._began_with()),
            ("options", _options(state.options)),
            ("record", str(self.record.path)),
        ]
        yield from table((name, printable(value) if name != "status" else value) for name, value in facts if value)
        if self.damage:
            yield f"the log is damaged: {', '.join(self.damage)}"
        yield ""
        chosen = [(STATUS[state.status[node]], node) for node in state.graph.tasks() if not self._unselected(node)]
        rows = _worth_showing(chosen)
        cells = [
            (
                printable(state.graph.id(node)),
                self._word(word, status),
                self._tries(node),
                duration(state.duration_s[node]) if state.attempt[node] and state.status[node] != RUNNING else "",
                self._what(node),
            )
            for word, node in rows
        ]
        lines = table([("task", "status", "attempts", "took", ""), *cells])
        yield styled(lines[0], "dim", colour)
        for line, (word, _) in zip(lines[1:], rows, strict=True):
            style = STYLE_OF.get(word, "")
            yield styled(line, style, colour and word not in ("finished", "pending"))
        if len(rows) < len(chosen):
            yield styled(f"… and {len(chosen) - len(rows):,} more; --json has all", "dim", colour)
        unselected = len(state.graph.index) - len(chosen)
        if unselected:
            yield styled(f"and {count(unselected, 'task')} that the run's selection left out", "dim", colour)
        metrics = [
            (printable(state.graph.id(node)), printable(name), amount(value))
            for node in sorted(state.metrics)
            for name, value in state.metrics[node].items()
        ]
        if metrics:
            yield ""
            yield from table([("metric", "", ""), *metrics[:_ROWS]])
            if len(metrics) > _ROWS:
                yield styled(f"… and {len(metrics) - _ROWS:,} more; --json has all", "dim", colour)

    def _task(self, node: int, status: str) -> dict[str, JSON]:
        state = self.state
        task: dict[str, JSON] = {
            "status": self._word(STATUS[state.status[node]], status),
            "attempts": state.attempt[node],
            "duration_s": state.duration_s[node],
        }
        if state.status[node] == SKIPPED:
            task["reason"] = state.why.get(node, "")
            if (said := self._said.get(state.graph.id(node))) is not None:
                task["why"] = said
        if state.status[node] == BLOCKED:
            task["blocked_by"] = state.blocked_by.get(node, [])
        error = state.error.get(node)
        if error is not None and state.status[node] == FAILED:
            told = {
                "reason": error.reason,
                "type": error.error_type,
                "message": error.error_message,
                "stack": error.error_stack,
            }
            task["error"] = {**told, "log": str(self.record.path / error.log) if error.log else None}
        if node in state.metrics:
            task["metrics"] = state.metrics[node]
        return task

    def _why(self) -> str:
        limit = self.state.options.get("timeout_s")
        if self.state.reason == "timeout" and isinstance(limit, (int, float)):
            return f": it took longer than its timeout_s of {limit:g} s"
        return f": {self.state.reason}" if self.state.reason else ""

    def _began_with(self) -> str:
        first = self.state.first_code_version
        return f"; it began with {first}" if first != self.state.code_version else ""

    def _unselected(self, node: int) -> bool:
        return self.state.why.get(node) == "unselected" and self.state.status[node] == SKIPPED

    def _word(self, word: str, status: str) -> str:
        return "interrupted" if word == "running" and status == "interrupted" else word

    def _tries(self, node: int) -> str:
        attempts = self.state.attempt[node]
        limit = max(self.state.graph.spec(node).retry.attempts + self.state.earlier.get(node, 0), attempts)
        return f"{attempts} of {limit}" if attempts and limit > 1 else str(attempts or "")

    def _what(self, node: int) -> str:
        state = self.state
        if state.status[node] == BLOCKED:
            return f"by {', '.join(map(printable, state.blocked_by.get(node, ())))}"
        if state.status[node] == SKIPPED:
            reason = state.why.get(node, "")
            said = first_line(self._said.get(state.graph.id(node), ""))
            return {"upstream": "what it depends on was skipped", "trigger": "its trigger was not met"}.get(
                reason, said
            )
        error = state.error.get(node)
        if error is None or state.status[node] != FAILED:
            return ""
        return error_line(error.error_type, error.error_message, error.reason)


def failure_text(failures: Sequence[Failure], colour: bool) -> Iterator[str]:
    """Each failure: task, attempt, error, the whole traceback without gluepy's frames, the log file."""
    seen: dict[str, str] = {}
    for number, failure in enumerate(failures):
        if 0 < number <= _TRACEBACKS:
            yield ""
        of = f" of {failure.max_attempts}" if failure.max_attempts > 1 else ""
        title = f"{printable(failure.task)} failed in attempt {failure.attempt}{of}"
        text = error_line(failure.type, failure.message, failure.reason)
        yield styled(f"{title}: {text}", "red", colour)
        same = seen.get(failure.stack) if failure.stack else None
        if same is not None:
            yield f"  with the same traceback as {same}"
        elif number >= _TRACEBACKS:
            pass
        elif failure.stack:
            seen[failure.stack] = printable(failure.task)
            yield from _indented(failure.stack)
        else:
            if len(failure.message.splitlines()) > 1:
                yield from _indented(failure.message)
            yield from _indented(_last_lines(failure))
        if failure.log:
            yield f"  log: {printable(failure.log)}"


def summary(dag: str, run_id: str, status: str, counts: dict[str, int], duration_s: float) -> str:
    """One line about a run that is over."""
    rest = {word: counts[word] for word in _ORDER if counts.get(word)}
    total = sum(rest.values())
    if status == "finished" and set(rest) <= {"finished"}:
        tasks = count(total, "task")
    else:
        tasks = ", ".join(f"{number:,} {word}" for word, number in rest.items())
    return f"run {printable(run_id)} of {printable(dag)} {status} in {duration(duration_s)}: {tasks}"


def _worth_showing(rows: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """All of `rows`, or of very many the first that failed, then of the others, in their order."""
    if len(rows) <= _ROWS:
        return rows
    first = sorted(rows, key=lambda row: _URGENCY.get(row[0], 2))[: _ROWS - 1]
    kept = {node for _, node in first}
    return [row for row in rows if row[1] in kept]


def _options(options: dict[str, JSON]) -> str:
    shown = {name: value for name, value in options.items() if name not in ("capture", "dag", "run_id", "params")}
    return ", ".join(f"{name} = {value}" for name, value in shown.items())


def _indented(text: str) -> Iterator[str]:
    for line in printable_block(text).splitlines():
        yield f"  {line}".rstrip()


def _last_lines(failure: Failure) -> str:
    """The end of the log file of an attempt that has no traceback, without what its title says already."""
    if not failure.log:
        return ""
    try:
        with open(failure.log, "rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - 20_000))
            text = log.read().decode("utf-8", "replace").rstrip()
    except OSError:
        return ""
    text = text.removesuffix(f"{failure.type}: {failure.message}")
    return "\n".join(without_our_frames(text.splitlines())[-_LOG_LINES:])
