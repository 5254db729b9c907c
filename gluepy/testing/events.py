"""What a run told, in a form that tests can compare: `events_of`, `outline`, `happened`, `assert_events`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gluepy.core.events import Event, TaskOutput
from gluepy.runs.log import LogReader


class HasRecord(Protocol):
    """A `Run` or a `RunResult`."""

    @property
    def path(self) -> Path:
        """The folder of the run's record."""
        ...


def events_of(run: HasRecord | Path) -> list[Event]:
    """The events in the record of `run`, a `RunResult`, a `Run` or the folder itself; none before the first is there.

    Raises `AssertionError` for unreadable lines, and for gaps and doubles among their numbers.
    """
    reader = LogReader((run if isinstance(run, Path) else run.path) / "events.jsonl")
    events = list(reader.events()) if reader.path.exists() else []
    assert reader.bad == 0, f"unreadable lines in {reader.path}: {reader.bad}"
    assert reader.gaps == 0, f"events that are missing from {reader.path}: {reader.gaps}"
    assert reader.doubled == 0, f"events that stand twice in {reader.path}: {reader.doubled}"
    return events


def name_of(event: Event) -> str:
    """The name of an event as the log has it: `task.started`."""
    return str(type(event).__struct_config__.tag)


def outline(events: Iterable[Event], *, without: Iterable[str] = ("task.output",)) -> list[str]:
    """One line an event, its name and its task, to be compared as a whole: `["run.started", "task.started load", …]`.

    An attempt beyond the first is told: `task.started load #2`. `without` are names to leave out.
    """
    left_out = frozenset(without)
    return [_line(event) for event in events if name_of(event) not in left_out]


@dataclass(frozen=True)
class Happened:
    """An event with that name and at least these fields. `happened` makes it."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)

    def fits(self, event: Event) -> bool:
        """Whether `event` is one."""
        return name_of(event) == self.name and all(
            getattr(event, name, _NOTHING) == value for name, value in self.fields.items()
        )

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{name}={value!r}" for name, value in self.fields.items())])


def happened(name: str, /, **fields: Any) -> Happened:
    """For `assert_events`: an event called `name` with these fields, named as in Python (`error_type`)."""
    return Happened(name, fields)


def assert_events(events: Iterable[Event], *expected: str | Happened) -> None:
    """Assert that the `expected` happened in this order; other events may lie between them.

    Each is a line as `outline` has it, or the event's name alone, or `happened("task.retrying", task="load",
    delay_s=1.0)`. The error names the first that is missing, and shows what happened instead.
    """
    seen = list(events)
    position = 0
    for number, wanted in enumerate(expected):
        start = position
        while position < len(seen) and not _fits(wanted, seen[position]):
            position += 1
        if position == len(seen):
            before = f"after {expected[number - 1]} (event {start})" if number else "in the run"
            told = os.linesep.join(f"  {event.seq:4} {_line(event)}" for event in seen)
            raise AssertionError(f"no event '{wanted}' {before}; the events were:{os.linesep}{told}")
        position += 1


_NOTHING = object()


def _fits(wanted: str | Happened, event: Event) -> bool:
    if isinstance(wanted, Happened):
        return wanted.fits(event)
    return wanted in (_line(event), name_of(event))


def _line(event: Event) -> str:
    task, attempt = getattr(event, "task", None), getattr(event, "attempt", 0)
    line = name_of(event) if task is None else f"{name_of(event)} {task}"
    if isinstance(event, TaskOutput):
        line += f": {event.line}"
    return f"{line} #{attempt}" if attempt > 1 else line
