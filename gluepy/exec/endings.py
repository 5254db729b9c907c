"""How an attempt ended, or the run, as events: finished, expanded, skipped, retrying, failed, cancelled, and why.

The engine asks once for each, and stores what it gets. A field of these events is given its value here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import TypedDict

import msgspec

from gluepy.core import events as e
from gluepy.core.scheduler import EndRun, Scheduler
from gluepy.errors import TaskError, UnknownInstance
from gluepy.exec.boundary import is_worth_retrying, task_error
from gluepy.exec.journal import Journal
from gluepy.exec.port import Attempt, Outcome, RanAt, RunInfo
from gluepy.exec.slots import Place, Slot
from gluepy.exec.task import outputs_of

HOST = socket.gethostname()


class Endings:
    """Makes the events of how attempts of one session end. Only while holding the turn.

    `places` are those of the graph's specs. `errors` gets the `TaskError` of each task that has failed for good.
    `mistaken` becomes true when a task that the caller named is not among those that its `each` made: the run must end.
    """

    def __init__(
        self,
        run: RunInfo,
        journal: Journal,
        scheduler: Scheduler,
        places: Sequence[Place],
        errors: dict[int, TaskError],
    ) -> None:
        self._run, self._journal, self._scheduler = run, journal, scheduler
        self._graph, self._places, self._errors = scheduler.state.graph, places, errors
        self._pid = os.getpid()
        self._declares: dict[str, str] = {}  # outputs, by the tasks that declare them, of the first `_declared` nodes
        self._declared = 0
        self._warned = frozenset[int]()  # specs of which a finished task has had a warning in this session
        self.mistaken = False

    def ended(
        self, slot: Slot, attempt: Attempt, outcome: Outcome, duration_s: float, abandoned: bool = False
    ) -> Sequence[e.TaskEvent]:
        """The events of an attempt that ended as `outcome`; `abandoned` if its code goes on nevertheless."""
        duration_s = rounded(duration_s if outcome.duration_s is None else outcome.duration_s)
        if outcome.status == "finished":
            if not attempt.spec.expands:
                return (self._finished(slot, attempt, outcome, duration_s),)
            rows = outcome.value
            if not self._graph.expandable(slot.node):
                return (self._finished(slot, attempt, outcome, duration_s),)
            if (wrong := self._graph.clash(slot.node, rows) or self._unknown(slot.node, rows)) is None:
                header = (*self._journal.header("info"), attempt.task, attempt.number)
                finished = self._finished(slot, attempt, outcome, duration_s, ahead=1)
                return (e.TaskExpanded(*header, rows), finished)
            self.mistaken = isinstance(wrong, UnknownInstance)
            outcome = Outcome(
                status="failed",
                reason="exception",
                error_type=wrong.__class__.__name__,
                error_message=str(wrong),
                retryable=not self.mistaken,
                exception=wrong,
            )
        if outcome.status == "skipped":
            header = (*self._journal.header("info"), attempt.task, attempt.number)
            return (e.TaskSkipped(*header, reason="skip", why=outcome.error_message, duration_s=duration_s),)
        return (self._failed(slot, attempt, outcome, duration_s, abandoned),)

    def interrupted(self, slot: Slot, attempt: Attempt, duration_s: float) -> Sequence[e.TaskEvent]:
        """The events of an attempt that was stopped, at its deadline or because the run is."""
        if slot.timed_out:
            outcome = timed_out(attempt, slot.ran_at, slot.abandoned)
            return self.ended(slot, attempt, outcome, duration_s, slot.abandoned)
        return (
            e.TaskCancelled(
                *self._journal.header("warning"),
                attempt.task,
                attempt.number,
                duration_s=rounded(duration_s),
                abandoned=slot.abandoned,
                **_where(slot.ran_at or RanAt()),
            ),
        )

    def run_ended(
        self, end: EndRun, duration_s: float, dropped: int | None
    ) -> e.RunFinished | e.RunFailed | e.RunCancelled:
        """The event of the end of the run; `dropped` lines of output did not reach all who watched."""
        counts = self._scheduler.state.counts()
        match end.status:
            case "finished":
                return e.RunFinished(*self._journal.header("info"), duration_s, counts, dropped)
            case "failed":
                failed = [self._graph.task_id(node) for node in self._errors]
                return e.RunFailed(*self._journal.header("error"), duration_s, counts, failed, end.reason, dropped)
            case "cancelled":
                return e.RunCancelled(*self._journal.header("warning"), duration_s, counts, dropped)

    def _finished(
        self, slot: Slot, attempt: Attempt, outcome: Outcome, duration_s: float, ahead: int = 0
    ) -> e.TaskFinished:
        """`ahead`: how many events are stored before this one that `Journal.seq` does not count yet."""
        journal = self._journal
        return e.TaskFinished(
            seq=journal.seq + 1 + ahead,
            session=journal.session,
            timestamp=journal.timestamp,
            level="info",
            run_id=journal.run_id,
            dag=journal.dag,
            task=attempt.task,
            attempt=attempt.number,
            executor=slot.place.executor.name,
            pool=attempt.pool,
            duration_s=duration_s,
            worker=outcome.worker,
            pid=outcome.pid or self._pid,
            host=outcome.host or HOST,
            cpu_s=outcome.cpu_s,
            peak_rss_mb=outcome.peak_rss_mb,
            max_attempts=attempt.max_attempts,
            warning=self._warning(slot.node, outcome) if outcome.warning else None,
        )

    def _failed(
        self, slot: Slot, attempt: Attempt, outcome: Outcome, duration_s: float, abandoned: bool
    ) -> e.TaskRetrying | e.TaskFailed:
        message = self._inputs_missing(outcome.missing) if outcome.missing else outcome.error_message
        reason = outcome.reason or "exception"
        delay_s = self._scheduler.retry_delay(slot.node, reason, outcome.retryable, self._run.run_id)
        log = self._log_of(attempt)
        if delay_s is not None:
            return e.TaskRetrying(
                *self._journal.header("warning"),
                attempt.task,
                attempt.number,
                # One more than was known when it began, if it was tried again because its worker was lost.
                max_attempts=max(attempt.max_attempts, attempt.number + 1),
                executor=slot.place.executor.name,
                pool=attempt.pool,
                duration_s=duration_s,
                delay_s=rounded(delay_s),
                reason=reason,
                error_type=outcome.error_type,
                error_message=message,
                error_stack=outcome.error_stack or None,
                **_where(outcome),
                abandoned=abandoned,
                log=log,
            )
        file = os.path.join(self._run.record, log) if log and self._run.record else ""
        told = msgspec.structs.replace(outcome, error_message=message)
        self._errors[slot.node] = task_error(attempt, told, file)
        return e.TaskFailed(
            *self._journal.header("error"),
            attempt.task,
            attempt.number,
            max_attempts=attempt.max_attempts,
            executor=slot.place.executor.name,
            pool=attempt.pool,
            duration_s=duration_s,
            reason=reason,
            error_type=outcome.error_type,
            error_message=message,
            error_stack=outcome.error_stack or None,
            **_where(outcome),
            abandoned=abandoned,
            log=log,
        )

    def _inputs_missing(self, missing: Sequence[str]) -> str:
        """That declared inputs are missing, and which tasks declare them as outputs."""
        graph, declares = self._graph, self._declares
        while self._declared < len(graph.ids):  # an `each` may have added some since the last time
            node, self._declared = self._declared, self._declared + 1
            if graph.ids[node] is None:
                continue
            target = self._places[graph.spec_of[node]].target
            if isinstance(target, type):
                for name in outputs_of(target, graph.spec(node), graph.params(node)):
                    declares.setdefault(os.path.normpath(name), graph.task_id(node))
        of = ((name, declares.get(os.path.normpath(name), "no task of this DAG")) for name in missing)
        return f"its declared inputs are missing: {', '.join(f'{name} (an output of {task})' for name, task in of)}"

    def _unknown(self, node: int, rows: Sequence[Sequence[e.JSON]]) -> UnknownInstance | None:
        """The error if a task that the caller named is not among what the `each` of `node` makes of `rows`."""
        if not self._scheduler.awaits(node):
            return None
        ids = self._graph.ids_of(node, rows)
        task = self._scheduler.missing(node, ids)
        if task is None:
            return None
        known = [id for id in ids if id.partition("[")[0] == task.partition("[")[0]]
        return UnknownInstance(task, self._run.dag, known, self._graph.task_id(node))

    def _warning(self, node: int, outcome: Outcome) -> str | None:
        """What was odd about an attempt, once for all tasks of a class; their logs have it each time."""
        spec = self._graph.spec_of[node]
        is_told, self._warned = spec in self._warned, self._warned | {spec}
        return None if is_told else outcome.warning

    def _log_of(self, attempt: Attempt) -> str | None:
        """The attempt's log file, relative to the record, if anything was written to it."""
        run = self._run
        there = run.capture and run.record is not None and os.path.exists(os.path.join(run.record, attempt.log))
        return attempt.log if there else None


class _Place(TypedDict):
    worker: str | None
    pid: int | None
    host: str | None
    cpu_s: float | None
    peak_rss_mb: float | None


def _where(ran: RanAt) -> _Place:
    return {
        "worker": ran.worker,
        "pid": ran.pid,
        "host": ran.host,
        "cpu_s": ran.cpu_s,
        "peak_rss_mb": ran.peak_rss_mb,
    }


def rounded(seconds: float) -> float:
    """To microseconds, cut off: a quarter of what `round` takes."""
    return int(seconds * 1e6) / 1e6


def timed_out(attempt: Attempt, ran: RanAt | None, abandoned: bool = False) -> Outcome:
    """The outcome of an attempt that took longer than its `timeout_s`; `abandoned` if it could not be stopped."""
    message = f"it took longer than its timeout_s of {attempt.spec.timeout_s:g} s"
    if abandoned and attempt.pool == "loop":
        message += "; it swallows its cancellation, so it goes on (let CancelledError pass)"
    elif abandoned:
        message += "; a thread cannot be stopped, so it goes on (pool = 'process' can be)"
    return Outcome(
        status="failed",
        reason="timeout",
        error_type="TimeoutError",
        error_message=message,
        retryable=is_worth_retrying(attempt, TimeoutError),
        exception=TimeoutError(message),
        **_where(ran or RanAt()),
    )
