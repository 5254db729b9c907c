"""What the log of any run must be, whatever happened to it: `check_log`. Reads events alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gluepy.core import events as e
from gluepy.core.state import State

ENDS = {
    e.TaskFinished: "finished",
    e.TaskFailed: "failed",
    e.TaskSkipped: "skipped",
    e.TaskBlocked: "blocked",
    e.TaskCancelled: "cancelled",
}
OVER = {e.RunFinished: "finished", e.RunFailed: "failed", e.RunCancelled: "cancelled"}
WAITS = ("pending", "retrying")


def check_log(events: Sequence[e.Event]) -> dict[str, str]:
    """Assert that `events` are those of a run that has ended, and that each task ended once in each session in which it
    did anything; returns how the tasks ended, by id."""
    assert isinstance(events[0], e.RunStarted)
    assert type(events[-1]) in OVER, f"the last event is {events[-1]}"
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    tasks: dict[str, str] = {}
    attempts: dict[str, int] = {}
    absent: set[str] = set()
    session, open_ = 0, False
    for event in events:
        if isinstance(event, (e.RunStarted, e.RunResumed)):
            session += 1
            open_ = True
            if isinstance(event, e.RunResumed) and event.changes:  # what was taken out of the DAG may come back
                absent = tasks.keys() - State.from_events(events[: event.seq]).graph.index
        assert open_, f"after the end of its session: {event}"
        assert event.session == session, event
        if isinstance(event, e.TaskEvent):
            _check_task(event, tasks, attempts)
        elif type(event) in OVER:
            open_ = False
            waits = (*WAITS, "running")
            unended = {task: status for task, status in tasks.items() if status in waits and task not in absent}
            assert not unended, f"{unended} when the session ended"
    return {task: status for task, status in tasks.items() if task not in absent}


def _check_task(event: e.TaskEvent, tasks: dict[str, str], attempts: dict[str, int]) -> None:
    task, status = event.task, tasks.get(event.task, "pending")
    last = attempts.get(task, 0)
    match event:
        case e.TaskStarted():
            assert status in WAITS, f"{status} before {event}"
            assert event.attempt == last + 1, f"attempt {last} before {event}"
            tasks[task], attempts[task] = "running", event.attempt
            return
        case e.TaskReset():
            assert status != "running", event
            tasks[task] = "pending"
        case e.TaskRetrying():
            assert status == "running", f"{status} before {event}"
            tasks[task] = "retrying"
        case e.TaskFinished() | e.TaskFailed():
            assert status == "running", f"{status} before {event}"
            tasks[task] = ENDS[type(event)]
        case e.TaskSkipped():
            assert status in (("running",) if event.reason == "skip" else WAITS), f"{status} before {event}"
            tasks[task] = "skipped"
        case e.TaskBlocked():
            assert status in WAITS, f"{status} before {event}"
            tasks[task] = "blocked"
        case e.TaskCancelled():
            assert status in (*WAITS, "running"), f"{status} before {event}"
            tasks[task] = "cancelled"
        case _:
            assert status == "running", f"{status} before {event}"
    assert event.attempt == last, f"attempt {last} before {event}"


def started_in(events: Iterable[e.Event], session: int) -> list[str]:
    """The tasks of which an attempt started in that session."""
    return [event.task for event in events if isinstance(event, e.TaskStarted) and event.session == session]
