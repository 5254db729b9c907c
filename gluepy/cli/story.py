"""What is told about a run when it is over, or later: as JSON, and in plain text."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

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
    waited_thing,
)
from gluepy.clock import seconds_of
from gluepy.conf.places import flat
from gluepy.core import events as e
from gluepy.core.events import JSON
from gluepy.core.graph import compact
from gluepy.core.state import BLOCKED, FAILED, FINISHED, RETRYING, RUNNING, SKIPPED, STATUS
from gluepy.errors import TaskError
from gluepy.redact import masked
from gluepy.runs.durations import typical
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
_URGENT = ("failed", "running", "retrying")  # told one by one, however many tasks there are
_NONE: Mapping[Any, Any] = MappingProxyType({})
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
    def of(cls, event: e.TaskFailed | e.TaskRetrying, folder: Path) -> Failure:
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
        self.state = state = reader.state
        # What an `each` found at run time stands where its block stands.
        ordered = [node for node in state.graph.order() if state.graph.ids[node] is not None]
        self.nodes = ordered if len(ordered) == len(state.graph.index) else list(state.graph.tasks())
        self.damage = damage(reader.bad, reader.gaps, reader.doubled)

    @cached_property
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
        failed = (errors[node] for node in self.nodes if node in errors and self.state.status[node] == FAILED)
        return [Failure.of(event, self.record.path) for event in failed if isinstance(event, e.TaskFailed)]

    def parameters(self, mask: Callable[[str, JSON], JSON]) -> dict[str, JSON]:
        """The run's context, flat, by dotted names; what `mask` knows as secret is masked."""
        try:
            values = msgspec.json.decode(self.record.context.read_bytes())
        except (OSError, msgspec.DecodeError, UnicodeError, RecursionError):
            return {}
        named = flat(values) if isinstance(values, dict) else {}
        return {name: mask(name.rpartition(".")[2], value) for name, value in named.items()}

    def record_of(self, held_back: Mapping[int, str] = _NONE) -> dict[str, JSON]:
        """The run as one JSON object. `held_back` are the ready tasks that do not run, by node, with the limit that
        they wait for ("": a slot)."""
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
            "options": masked("", state.options),  # drivers of earlier versions recorded parameters as they were
            "counts": self.counts(status),
            "tasks": {state.graph.task_id(node): self.task(node, held_back) for node in self.nodes},
        }

    def counts(self, status: str) -> dict[str, int]:
        """The number of tasks by how they are, as the `status` of their run has it."""
        return {
            "interrupted" if word == "running" and status == "interrupted" else word: number
            for word, number in self.state.counts().items()
        }

    def text(
        self, colour: bool, parameters: Mapping[str, JSON] = _NONE, held_back: Mapping[int, str] = _NONE
    ) -> Iterator[str]:
        """The run in plain text: header, parameters, tasks, metrics. Failures are `failure_text`."""
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
        if parameters:
            yield ""
            shown = list(parameters.items())[:_ROWS]
            yield from table([("parameter", ""), *((printable(name), value_text(value)) for name, value in shown)])
            if len(parameters) > len(shown):
                yield styled(f"… and {len(parameters) - len(shown):,} more; --json has all", "dim", colour)
        yield ""
        chosen = [node for node in self.nodes if not self._unselected(node)]
        yield from self.table_of(chosen, held_back, colour)
        unselected = len(state.graph.index) - len(chosen)
        if unselected:
            yield styled(f"and {count(unselected, 'task')} that the run's selection left out", "dim", colour)
        metrics = list(self._metrics())
        if metrics:
            yield ""
            yield from table([("metric", "", ""), *metrics[:_ROWS]])
            if len(metrics) > _ROWS:
                yield styled(f"… and {len(metrics) - _ROWS:,} more; --json has all", "dim", colour)

    def table_of(self, nodes: Sequence[int], held_back: Mapping[int, str], colour: bool) -> Iterator[str]:
        """The tasks `nodes` as a table."""
        rows = list(self._rows(nodes, held_back))
        shown = rows if len(rows) <= _ROWS else rows[: _ROWS - 1]
        lines = table([("task", "status", "attempts", "took", ""), *(cells for _, cells in shown)])
        yield styled(lines[0], "dim", colour)
        for line, (word, _) in zip(lines[1:], shown, strict=True):
            yield styled(line, STYLE_OF.get(word, ""), colour and word not in ("finished", "pending"))
        if len(shown) < len(rows):
            yield styled(f"… and {len(rows) - len(shown):,} more; --json has all", "dim", colour)

    def _rows(self, nodes: Sequence[int], held_back: Mapping[int, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The rows of the table of tasks, each with the word that it is coloured by. Of very many tasks, those with a
        label are one row, and rows of their own have only those that failed or that run."""
        state = self.state
        if len(nodes) <= _ROWS:
            yield from (self._row(node, held_back) for node in nodes)
            return
        by_label: dict[str, list[int]] = {}
        for node in nodes:
            by_label.setdefault(state.graph.spec(node).label, []).append(node)
        room = max(0, _ROWS - len(by_label))
        for label, members in by_label.items():
            if len(members) == 1:
                yield self._row(members[0], held_back)
                continue
            words = Counter(self._word(STATUS[state.status[node]]) for node in members)
            told = ", ".join(f"{words[word]:,} {word}" for word in _ORDER if words[word])
            took = sorted(state.duration_s[node] for node in members if state.status[node] == FINISHED)
            span = f"{duration(took[0])} to {duration(took[-1])}" if took else ""
            waiting = Counter(held_back[node] for node in members if node in held_back)
            waits = ", ".join(f"{number:,} waiting for {waited_thing(name)}" for name, number in waiting.items())
            if len(words) == 1 and len(said := {self.what(node) for node in members}) == 1:
                waits = waits or said.pop()
            group = f"{printable(label)} × {len(members):,}"
            yield next(iter(words)) if len(words) == 1 else "", (group, told, "", span, waits)
            urgent = [node for node in members if STATUS[state.status[node]] in _URGENT]
            urgent.sort(key=lambda node: _URGENT.index(STATUS[state.status[node]]))
            for node in urgent[: room if len(urgent) <= room else max(0, room - 1)]:
                word, (task, *cells) = self._row(node, held_back)
                yield word, (f"  {task}", *cells)
            if len(urgent) > room > 0:
                rest = Counter(self._word(STATUS[state.status[node]]) for node in urgent[room - 1 :])
                left = ", ".join(f"{number:,} {word}" for word, number in rest.items())
                yield "", (f"  … and {left}", "", "", "", "")
            room -= min(room, len(urgent))

    def _row(self, node: int, held_back: Mapping[int, str]) -> tuple[str, tuple[str, ...]]:
        state = self.state
        word = STATUS[state.status[node]]
        took = duration(state.duration_s[node]) if state.attempt[node] and state.status[node] != RUNNING else ""
        what = self.what(node, held_back)
        return word, (printable(state.graph.task_id(node)), self._word(word), self.tries(node), took, what)

    def _metrics(self) -> Iterator[tuple[str, str, str]]:
        state = self.state
        having = [node for node in self.nodes if node in state.metrics]
        if sum(len(state.metrics[node]) for node in having) <= _ROWS:
            for node in having:
                for name, value in state.metrics[node].items():
                    yield printable(state.graph.task_id(node)), printable(name), amount(value)
            return
        groups: dict[tuple[str, str], list[tuple[int, float | None]]] = {}
        for node in having:
            for name, value in state.metrics[node].items():
                groups.setdefault((state.graph.spec(node).label, name), []).append((node, value))
        for (label, name), found in groups.items():
            if len(found) == 1:
                yield printable(state.graph.task_id(found[0][0])), printable(name), amount(found[0][1])
                continue
            values = [value for _, value in found if value is not None] or [math.nan]
            span = f"{amount(min(values))} to {amount(max(values))}, mostly about {amount(typical(values))}"
            yield f"{printable(label)} × {len(found):,}", printable(name), span

    def task(self, node: int, held_back: Mapping[int, str] = _NONE) -> dict[str, JSON]:
        """One task, as JSON."""
        state = self.state
        task: dict[str, JSON] = {
            "status": self._word(STATUS[state.status[node]]),
            "attempts": state.attempt[node],
            "duration_s": state.duration_s[node],
        }
        if state.status[node] == SKIPPED:
            task["reason"] = state.skip_reason.get(node, "")
            if (said := self._said.get(state.graph.task_id(node))) is not None:
                task["why"] = said
        if node in held_back:
            task["waiting_for"] = waited_thing(held_back[node])
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
        return self.state.skip_reason.get(node) == "unselected" and self.state.status[node] == SKIPPED

    def _word(self, word: str) -> str:
        return "interrupted" if word == "running" and self.status == "interrupted" else word

    def tries(self, node: int) -> str:
        """How often the task was tried, of how often it may be."""
        attempts = self.state.attempt[node]
        limit = max(
            self.state.graph.spec(node).retry.attempts + self.state.attempts_before_reset.get(node, 0), attempts
        )
        return f"{attempts} of {limit}" if attempts and limit > 1 else str(attempts or "")

    def what(self, node: int, held_back: Mapping[int, str] = _NONE) -> str:
        """Why the task is as it is, in a few words; empty where there is nothing to say."""
        state = self.state
        if node in held_back:
            return f"waiting for {waited_thing(held_back[node])}"
        if state.status[node] == BLOCKED:
            return f"by {', '.join(map(printable, state.blocked_by.get(node, ())))}"
        if state.status[node] == SKIPPED:
            reason = state.skip_reason.get(node, "")
            said = first_line(self._said.get(state.graph.task_id(node), ""))
            return {"upstream": "what it depends on was skipped", "trigger": "its trigger was not met"}.get(
                reason, said
            )
        error = state.error.get(node)
        if error is None or state.status[node] not in (FAILED, RETRYING):
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


def value_text(value: JSON) -> str:
    """A value on one line: text as it is, unless it would read as something else."""
    return printable(compact(value))


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
