"""What is known of a run without gluepy: notes that its tasks write themselves, and its log, read as plain JSON.

`Evidence.check` holds the two against each other:

- events are numbered 1, 2, 3 …, sessions too, and each session but the first begins with `run.resumed`;
- a task's attempts are numbered 1, 2, 3 …, whatever happened between them;
- no attempt begins that is not in the log as started by the same process (or for another one), and none begins twice;
- what the log has as finished has ended, and does not start again unless the log has a `task.reset` of it;
- what an `each` has found is not asked for again once it is in the log.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gluepy.exec.scope import current_scope

_ENDS = {
    "task.finished": "finished",
    "task.failed": "failed",
    "task.retrying": "retrying",
    "task.skipped": "skipped",
    "task.blocked": "blocked",
    "task.cancelled": "cancelled",
    "task.reset": "pending",
    "task.started": "running",
}


class Noted:
    """What to call after each note of this process, with what was noted."""

    call: Callable[[str], None] = staticmethod(lambda what: None)


class Note(NamedTuple):
    what: str
    task: str
    attempt: int
    pid: int


def note(what: str) -> None:
    """Have the attempt that runs here write down what happens to it, so that not even a power cut takes it back."""
    scope = current_scope()
    assert scope is not None
    attempt = scope.attempt
    file = os.open(f"{attempt.run.storage}/notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"{what} {attempt.task} {attempt.number} {os.getpid()}\n".encode())
        os.fsync(file)
    finally:
        os.close(file)
    Noted.call(what)


class Outcome(NamedTuple):
    """How a run has ended, or stands, by its log: its status, and each task's."""

    run: str
    tasks: dict[str, str]


class Evidence:
    """The log of one run, in its record, and the notes of its tasks, in the storage folder, which is the run's own."""

    def __init__(self, record: Path, storage: Path) -> None:
        self.log, self._notes = record / "events.jsonl", storage / "notes"

    def notes(self) -> list[Note]:
        if not self._notes.exists():
            return []
        lines = [line.split() for line in self._notes.read_text().splitlines()]
        return [Note(what, task, int(attempt), int(pid)) for what, task, attempt, pid in lines]

    def events(self) -> list[dict[str, Any]]:
        """Whatever is JSON in the log, also what lacks its newline."""
        events = []
        for line in self.log.read_bytes().split(b"\n") if self.log.exists() else ():
            try:
                events.append(json.loads(line))
            except ValueError:
                assert line.count(b'{"event":"') <= 1, f"an event was written on a torn line: {line!r}"
        return events

    def finished(self) -> set[str]:
        """The tasks that the log has as finished, and that it has not reset since."""
        return {task for task, status in self.outcome().tasks.items() if status == "finished"}

    def outcome(self) -> Outcome:
        run, tasks = "none", {}
        for event in self.events():
            if event["event"] in _ENDS:
                tasks[event["task"]] = _ENDS[event["event"]]
            elif event["event"].startswith("run."):
                run = event["event"].removeprefix("run.")
        return Outcome(run, tasks)

    def check(self) -> None:
        events, notes = self.events(), self.notes()
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1)), (
            "events are not numbered one by one"
        )
        session, status, last, expanded = 0, dict[str, str](), dict[str, int](), dict[str, int]()
        started, finished = set[tuple[str, int, int]](), set[tuple[str, int]]()
        for event in events:
            name, task, attempt = event["event"], event.get("task", ""), event.get("attempt", 0)
            opens = name in ("run.started", "run.resumed")
            assert event["session"] == session + opens, f"{name} {task} is of session {event['session']}"
            assert not opens or (name == "run.started") == (session == 0), (
                f"session {event['session']} began with {name}"
            )
            session = event["session"]
            if name == "task.started":
                assert attempt == last.get(task, 0) + 1, f"attempt {attempt} of {task} came after {last.get(task, 0)}"
                assert status.get(task) != "finished", f"{task} had finished, and started again"
                started.add((task, attempt, 0 if event["pool"] == "process" else event["pid"]))
                last[task] = attempt
            elif name == "task.finished":
                finished.add((task, attempt))
            elif name == "task.expanded":
                expanded.setdefault(task, attempt)
            status[task] = _ENDS.get(name, status.get(task, ""))
        begun = [(note.task, note.attempt, note.pid) for note in notes if note.what == "begins"]
        assert len(begun) == len({key[:2] for key in begun}), f"an attempt began twice: {begun}"
        assert all(attempt <= expanded.get(task, attempt) for task, attempt, _ in begun), "an `each` was asked again"
        unasked = {key for key in begun if not {key, (*key[:2], 0)} & started}
        assert not unasked, f"began without being started: {unasked}"
        ended = {(note.task, note.attempt) for note in notes if note.what == "ends"}
        unfounded = {
            key for key in finished - ended if not key[0].startswith("each-")
        }  # those may be taken from the log
        assert not unfounded, f"recorded as finished, but never ended: {unfounded}"
