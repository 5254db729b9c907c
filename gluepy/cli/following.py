"""Runs of other processes: `watch` them, follow their logs, `cancel` them."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import IO

from gluepy.cli.invocation import Invocation
from gluepy.cli.progress import view_of
from gluepy.cli.story import failure_text, summary
from gluepy.cli.text import RESET, count, for_terminal, printable, say, styled, tell, wants_colour
from gluepy.conf.schema import Settings
from gluepy.core import events as e
from gluepy.core.graph import slug_of
from gluepy.core.selection import expanders, resolve_name
from gluepy.core.state import RUNNING
from gluepy.errors import GluepyError, NotRunning
from gluepy.report import RunFollower, RunReport
from gluepy.runs.reading import find_record, read_record
from gluepy.runs.record import Record

_POLL_S = 0.2
_CANCEL_S = 30.0  # how long a driver may take to stop what runs
_CODES = {"finished": 0, "failed": 1, "cancelled": 1, "interrupted": 3}
_LIVE = ("running", "retrying")


class StillRunning(GluepyError):
    """A run was asked to stop and has not. `holder` says which process drives it."""

    def __init__(self, run_id: str, seconds: float, holder: str) -> None:
        super().__init__(run_id, seconds, holder)
        self.run_id, self.seconds, self.holder = run_id, seconds, holder

    def __str__(self) -> str:
        return (
            f"run {self.run_id} has not stopped within {self.seconds:g} s; it was asked to, and may still: "
            f"its driver is {self.holder or 'unknown'}"
        )


def watch(invocation: Invocation, run: str, progress: str, quiet: bool) -> int:
    """`gluepy watch`"""
    settings = invocation.settings()
    record = find_record(settings.runs_root, run)
    read_record(record)  # raises for a log that cannot be followed
    followed = RunFollower(record, settings)
    with closing(view_of(progress, quiet, False, settings)) as view:
        past = followed.poll()
        if past and not followed.over:
            opening, lines, done, total, running = _so_far(followed.report(), past)
            view.say(lines, done, total)
            view.show([opening, *running])
            while not followed.over:
                time.sleep(view.pause_s or _POLL_S)
                if events := followed.poll():
                    view.show(events)
    found = RunReport.from_record(record, settings)
    colour = wants_colour(sys.stderr)
    failures = found.failures
    if failures:
        tell("", *failure_text(failures, colour), "")
    status = found.status if found.status != "running" else "interrupted"  # it is not held, or is being let go
    if not (quiet and status == "finished"):
        say(_ending(found, status))
    if status != "finished":
        tell(f"resume it with: {invocation.resume_command(record)}")
    return _CODES[status]


def _so_far(run: RunReport, past: list[e.Event]) -> tuple[e.Event, list[str], dict[str, int], int, list[e.Event]]:
    """What has happened before one began to watch: the event that opened the session, how it stands in words and in
    numbers, the number of tasks, and the attempts that run."""
    opening = next(event for event in reversed(past) if isinstance(event, (e.RunStarted, e.RunResumed)))
    done = {word: number for word, number in run.counts_as("running").items() if word not in (*_LIVE, "pending")}
    started = {event.task: event for event in past if isinstance(event, e.TaskStarted)}
    graph, status = run.state.graph, run.state.status
    running = [started[graph.task_id(node)] for node in graph.tasks() if status[node] == RUNNING]
    total = len(graph.index)
    told = ", ".join(f"{number:,} {word}" for word, number in done.items()) or "nothing has ended yet"
    done_of = f"so far: {told}, of {count(total, 'task')}"
    lines = [f"watching run {printable(run.run_id)}; {done_of}; Ctrl-C stops watching only"]
    return opening, lines, done, total, list(running)


def follow_logs(invocation: Invocation, run: str, task: str | None) -> int:
    """`gluepy logs --follow`"""
    settings = invocation.settings()
    record = find_record(settings.runs_root, run)
    state = read_record(record).state
    if task is not None:
        resolve_name(state.graph, state.dag, task, expanders(state.graph))  # raises for an unknown one
    followed = _Followed(RunFollower(record, settings), task)
    over = False
    while not over:
        over = followed.look()
        followed.copy(last=over)
        if not over:
            time.sleep(_POLL_S)
    return 0


class _Followed:
    """The log files of a run's attempts, as they grow. Lines of one attempt stay together as far as they are known."""

    def __init__(self, run: RunFollower, task: str | None) -> None:
        self._run, self._task = run, task
        self._files: dict[str, tuple[str, Path]] = {}
        self._open: dict[str, IO[bytes]] = {}
        self._shown = ""
        self._colour, self._terminal = wants_colour(sys.stdout), sys.stdout.isatty()

    def look(self) -> bool:
        """Take in the attempts that have begun; True when the run is over."""
        for event in self._run.poll():
            if isinstance(event, e.TaskStarted) and self._wanted(event.task):
                name = f"{slug_of(event.task)}.{event.attempt}.log"
                self._files[name] = (f"{printable(event.task)}, attempt {event.attempt}", self._run.record.logs / name)
        return self._run.over

    def copy(self, *, last: bool) -> None:
        """Write what the files have that was not written yet: whole lines, unless it is the `last` call."""
        out = sys.stdout.buffer
        for name, (title, path) in self._files.items():
            text = self._grown(name, path, last)
            if not text:
                continue
            if name != self._shown:
                blank = "\n" if self._shown else ""
                out.write(f"{blank}{styled(f'==> {title} <==', 'bold', self._colour)}\n".encode())
                self._shown = name
            out.write(for_terminal(text, self._colour) if self._terminal else text)
            if self._terminal and self._colour:
                out.write(RESET)
        out.flush()

    def _grown(self, name: str, path: Path, last: bool) -> bytes:
        if name not in self._open:
            try:
                self._open[name] = path.open("rb")
            except OSError:
                return b""  # nothing was printed yet
        file = self._open[name]
        text = file.read()
        if not last and not text.endswith(b"\n"):
            whole = text.rfind(b"\n") + 1
            file.seek(whole - len(text), 1)
            text = text[:whole]
        return text

    def _wanted(self, task: str) -> bool:
        if self._task is None or task == self._task:
            return True
        graph = self._run.state.graph
        return graph.spec(graph.index[task]).label == self._task and self._task not in graph.index


def cancel(invocation: Invocation, run: str) -> int:
    """`gluepy cancel`"""
    settings = invocation.settings()
    record = _running(settings, run)
    record.ask_to_stop()
    tell(f"cancelling run {record.run_id}…")
    end = time.monotonic() + _CANCEL_S
    while record.is_held():
        if time.monotonic() > end:
            raise StillRunning(record.run_id, _CANCEL_S, record.holder())
        time.sleep(_POLL_S / 4)
    found = RunReport.from_record(record, settings)
    say(_ending(found, found.status))
    if found.status != "finished":
        tell(f"resume it with: {invocation.resume_command(record)}")
    return 0


def _running(settings: Settings, run: str) -> Record:
    record = find_record(settings.runs_root, run)
    if not record.is_held():
        raise NotRunning(record.run_id, RunReport.from_record(record, settings).status)
    return record


def _ending(run: RunReport, status: str) -> str:
    return summary(run.dag, run.run_id, _ENDED.get(status, status), run.counts_as(status), run.duration_s)


_ENDED = {"finished": "finished", "failed": "failed", "cancelled": "was cancelled", "interrupted": "was interrupted"}
