"""The state of a run: the fold over its events, and nothing else."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, assert_never

from gluepy.core import events as e
from gluepy.core.events import JSON, Event
from gluepy.core.graph import Graph, Tree

PENDING: Final = 0
RUNNING: Final = 1
RETRYING: Final = 2
FINISHED: Final = 3
SKIPPED: Final = 4
FAILED: Final = 5
CANCELLED: Final = 6
BLOCKED: Final = 7

STATUS = ("pending", "running", "retrying", "finished", "skipped", "failed", "cancelled", "blocked")
RunStatus = Literal["pending", "running", "finished", "failed", "cancelled"]


class TaskFacts(NamedTuple):
    """What is known of one task, wherever it stands: `facts` by the names that they have in a `State`, and the `rows`
    that an `each` found."""

    status: int
    attempt: int
    duration_s: float
    facts: dict[str, Any]
    rows: Sequence[Sequence[JSON]] | None


class State:
    """What is known about a run after some of its events.

    Per node: `status` (a code; its name is `STATUS[code]`), `attempt` (the last one started, 0 before any),
    `duration_s` (of the last one ended). Where there is something to tell: `failures` and `losses` (attempts used up by
    the task itself and by lost workers), `retry_at` (seconds since 1970), `error` (the last failure), `skip_reason`,
    `blocked_by`, `rows` (what an `each` found), `metrics` (the last value of each), `datasets` (the last
    of each, by whether it was written and by name), `attempts_before_reset` (before the
    last one). `removed_tasks` has, by id, the facts of tasks that the DAG had in an earlier session and no longer has.
    `stale` are the tasks that finished before the run was given other parameters.

    Of the run: `started_at`, `began_at` and `last_at` are the timestamps of its first event, of its last session's
    first one, and of its last one; `run_duration_s` is how long those of its sessions took that are over: by their own
    clock, or by these timestamps where the driver was lost. `first_code_version` and `code_version` are those of its
    first and of its last session, `params_digest` is that of its first.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.status = bytearray(len(graph))
        self.attempt = array("l", bytes(array("l").itemsize * len(graph)))
        self.duration_s = array("d", bytes(8 * len(graph)))
        self.failures: dict[int, int] = {}
        self.losses: dict[int, int] = {}
        self.retry_at: dict[int, float] = {}
        self.error: dict[int, e.TaskFailed | e.TaskRetrying] = {}
        self.skip_reason: dict[int, str] = {}
        self.blocked_by: dict[int, list[str]] = {}
        self.rows: dict[int, Sequence[Sequence[JSON]]] = {}
        self.metrics: dict[int, dict[str, float | None]] = {}
        self.datasets: dict[int, dict[tuple[bool, str], e.DatasetRead | e.DatasetWritten]] = {}
        self.attempts_before_reset: dict[int, int] = {}
        self.removed_tasks: dict[str, TaskFacts] = {}
        self.stale: set[str] = set()
        self.run: RunStatus = "pending"
        self.run_id = ""
        self.dag = ""
        self.started_at = self.began_at = self.last_at = ""
        self.run_duration_s = 0.0
        self.reason: str | None = None  # why the run failed, where no task's failure is the reason
        self.session = 0
        self.seq = 0
        self.options: dict[str, JSON] = {}
        self.first_code_version = self.code_version = self.params_digest = ""
        self.trace_id: str | None = None  # that the latest session is in

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> State:
        """The state after `events`, of which the first is `run.started`. Raises `ValueError` where it is not."""
        stream = iter(events)
        first = next(stream, None)
        if not isinstance(first, e.RunStarted):
            raise ValueError("a run's events begin with run.started")
        state = cls(Graph(Tree.from_record(first.graph)))
        state.apply(first)
        for event in stream:
            state.apply(event)
        return state

    def counts(self) -> dict[str, int]:
        """The number of tasks by status, without the statuses that no task has."""
        counts = dict.fromkeys(STATUS, 0)
        for code, status in enumerate(STATUS):
            counts[status] = self.status.count(code)
        counts["pending"] -= self.graph.ids.count(None)  # joins are pending for ever
        return {status: count for status, count in counts.items() if count}

    def lasted_s(self) -> float:
        """How long the run has taken up to its last event: all its sessions, without the time between them."""
        return self.run_duration_s + (_between(self.began_at, self.last_at) if self.run == "running" else 0.0)

    def validate(self) -> None:
        """Check that what is known fits together. Raises `AssertionError`; takes time for every node."""
        graph, attempt = self.graph, self.attempt
        assert len(self.status) == len(attempt) == len(self.duration_s) == len(graph), "columns of several lengths"
        for node, code in enumerate(self.status):
            name, error = graph.ids[node], self.error.get(node)
            what = f"{name} is {STATUS[code]}"
            if name is None:
                assert code == PENDING, f"the join {node} is {STATUS[code]}"
            elif code == FAILED:
                assert isinstance(error, e.TaskFailed), f"{what}, after {error}"
            elif code == RETRYING:
                assert isinstance(error, e.TaskRetrying) and node in self.retry_at, f"{what}, after {error}"
                assert self.failures.get(node, 0) + self.losses.get(node, 0) > 0, f"{what}, and has not failed"
            elif code == SKIPPED:
                assert node in self.skip_reason, f"{what} for no reason"
            elif code == BLOCKED:
                assert self.blocked_by.get(node), f"{what} by nothing"
            if code in (RUNNING, RETRYING):
                assert attempt[node] > 0, f"{what}, and has never begun"
            assert self.attempts_before_reset.get(node, 0) <= attempt[node], f"{what}, attempt {attempt[node]}"
        assert not self.removed_tasks.keys() & graph.index.keys(), "a task is in the DAG and removed from it"

    def apply(self, event: Event) -> int:
        """Take `event` in; returns the node it is about, -1 for an event about the run.

        Raises `KeyError` for a task that the graph does not have.
        """
        match event:
            case e.TaskStarted():
                return self.begin(event, self.graph.index[event.task])
            case e.TaskFinished():
                return self.finish(event, self.graph.index[event.task])
        if event.seq > self.seq:  # in a damaged log one may be out of its place
            self.seq = event.seq
        before, self.last_at = self.last_at, event.timestamp
        match event:
            case e.TaskMetric():
                node = self.graph.index[event.task]
                self.metrics.setdefault(node, {})[event.name] = event.value
                return node
            case e.DatasetRead() | e.DatasetWritten():
                node = self.graph.index[event.task]
                self.datasets.setdefault(node, {})[isinstance(event, e.DatasetWritten), event.dataset] = event
                return node
            case e.TaskProgress() | e.TaskOutput():
                return self.graph.index[event.task]
            case e.TaskFailed():
                node = self._ended(event, FAILED, event.duration_s)
                self.error[node] = event
                return node
            case e.TaskRetrying():
                node = self._ended(event, RETRYING, event.duration_s)
                spent = self.losses if event.reason == "lost" else self.failures
                spent[node] = spent.get(node, 0) + 1
                self.error[node] = event
                self.retry_at[node] = _seconds(event.timestamp) + event.delay_s
                return node
            case e.TaskSkipped():
                node = self._ended(event, SKIPPED, event.duration_s)
                self.skip_reason[node] = event.reason
                return node
            case e.TaskBlocked():
                node = self._ended(event, BLOCKED, None)
                self.blocked_by[node] = event.blocked_by
                return node
            case e.TaskCancelled():
                return self._ended(event, CANCELLED, event.duration_s)
            case e.TaskReset():
                self.stale.discard(event.task)
                return self._reset(self.graph.index[event.task])
            case e.TaskExpanded():
                return self._expanded(event)
            case e.RunStarted() | e.RunResumed():
                if isinstance(event, e.RunResumed) and (tree := Tree.from_record(event.graph)) != self.graph.tree:
                    self.carry_over(Graph(tree))
                if self.run == "running":  # the session before has no end
                    self.run_duration_s += _between(self.began_at, before)
                self.run, self.session, self.began_at = "running", event.session, event.timestamp
                self.run_id, self.dag = event.run_id, event.dag
                self.started_at = self.started_at or event.timestamp
                self.code_version, self.trace_id = event.code_version, event.trace_id
                self.first_code_version = self.first_code_version or event.code_version
                self.params_digest = self.params_digest or event.params_digest
                self.options, self.reason = event.options, None
                if isinstance(event, e.RunResumed) and event.params_changed:
                    index = self.graph.index
                    self.stale.update(task for task, node in index.items() if self.status[node] == FINISHED)
                return -1
            case e.RunFinished():
                return self._over("finished", event.duration_s)
            case e.RunFailed():
                self.reason = event.reason
                return self._over("failed", event.duration_s)
            case e.RunCancelled():
                return self._over("cancelled", event.duration_s)
            case _:
                assert_never(event)

    def begin(self, event: e.TaskStarted, node: int) -> int:
        """`apply`, where it is known which `node` the event is about."""
        if event.seq > self.seq:
            self.seq = event.seq
        self.last_at = event.timestamp
        self.status[node] = RUNNING
        self.attempt[node] = event.attempt
        return node

    def finish(self, event: e.TaskFinished, node: int) -> int:
        """`apply`, where it is known which `node` the event is about."""
        if event.seq > self.seq:
            self.seq = event.seq
        self.last_at = event.timestamp
        self.status[node] = FINISHED
        self.duration_s[node] = event.duration_s
        return node

    def _ended(self, event: e.TaskEvent, status: int, duration_s: float | None) -> int:
        node = self.graph.index[event.task]
        self.status[node] = status
        if duration_s is not None:
            self.duration_s[node] = duration_s
        return node

    def _expanded(self, event: e.TaskExpanded) -> int:
        node = self.graph.index[event.task]
        self.rows[node] = event.values
        added = self.graph.expand(node, event.values)
        self._grow(len(added))
        if self.removed_tasks:
            for new in added:
                if (known := self.removed_tasks.pop(self.graph.ids[new] or "", None)) is not None:
                    self._restore(new, known)
                    self._reset(new)  # what it follows has just run
        return node

    def _reset(self, node: int) -> int:
        self.status[node] = PENDING
        for facts in (self.failures, self.losses, self.retry_at, self.error, self.skip_reason, self.blocked_by):
            facts.pop(node, None)
        self.attempts_before_reset[node] = self.attempt[node]
        return node

    def carry_over(self, graph: Graph) -> None:
        """The DAG has changed: what is known about its tasks, by id, is known of the new graph, and what is known about
        tasks that this one lacks is kept for a DAG that has them again."""
        old = State.__new__(State)
        old.__dict__.update(self.__dict__)
        State.__init__(self, graph)
        for name in _OF_THE_RUN:
            setattr(self, name, getattr(old, name))
        found = {old.graph.task_id(node): rows for node, rows in old.rows.items()}
        found.update((task, known.rows) for task, known in old.removed_tasks.items() if known.rows is not None)
        for task, rows in found.items():
            here = graph.index.get(task, -1)
            each = graph.expandable(here)
            if each is not None and all(len(row) == len(each.names) for row in rows) and not graph.clash(here, rows):
                self.rows[here] = rows
                self._grow(len(graph.expand(here, rows)))
        for task, node in old.graph.index.items():
            self._restore_or_park(task, old._facts_of(node))
        for task, known in old.removed_tasks.items():
            self._restore_or_park(task, known)

    def _facts_of(self, node: int) -> TaskFacts:
        facts = {name: facts[node] for name in _FACTS if node in (facts := getattr(self, name))}
        return TaskFacts(self.status[node], self.attempt[node], self.duration_s[node], facts, self.rows.get(node))

    def _restore_or_park(self, task: str, known: TaskFacts) -> None:
        here = self.graph.index.get(task, -1)
        if here >= 0:
            self._restore(here, known)
        elif known.attempt or known.status != PENDING:
            self.removed_tasks[task] = known

    def _restore(self, node: int, known: TaskFacts) -> None:
        self.status[node], self.attempt[node], self.duration_s[node] = known.status, known.attempt, known.duration_s
        for name, fact in known.facts.items():
            getattr(self, name)[node] = fact

    def _grow(self, added: int) -> None:
        self.status.extend(bytes(added))
        self.attempt.extend([0] * added)
        self.duration_s.extend([0.0] * added)

    def _over(self, status: RunStatus, duration_s: float) -> int:
        self.run = status
        self.run_duration_s += duration_s
        return -1


_OF_THE_RUN = (
    "run", "run_id", "dag", "started_at", "began_at", "last_at", "run_duration_s", "reason", "session", "seq",
    "options", "first_code_version", "code_version", "params_digest", "stale", "trace_id",
)  # fmt: skip
_FACTS = (
    "failures",
    "losses",
    "retry_at",
    "error",
    "skip_reason",
    "blocked_by",
    "metrics",
    "datasets",
    "attempts_before_reset",
)


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def _between(begin: str, end: str) -> float:
    try:
        return max(0.0, _seconds(end) - _seconds(begin))  # somebody may have set the clock back
    except (ValueError, OverflowError):
        return 0.0  # a damaged timestamp is no reason to refuse a log
