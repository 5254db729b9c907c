"""The events of a run: a closed union of frozen structs, one JSON object a line of `events.jsonl`.

Every event has the header `seq, session, timestamp, level, run_id, dag`; `event` is the tag. Optional fields that are
None are left out of the line. Field names are flat snake_case, except `error.type`, `error.message`, `error.stack`
(`error_type` … in Python). `task.output` is live only: it is never written to the file.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

SCHEMA_VERSION = 1

Reason = Literal["exception", "timeout", "memory", "lost", "outputs", "interrupted"]
JSON = Any  # a JSON value: None, bool, int, float, str, list, dict with str keys

_ERRORS = {"error_type": "error.type", "error_message": "error.message", "error_stack": "error.stack"}


class Spanned(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Of a run that is traced: the trace, and the span that the event is about (of the session, the task, the attempt,
    or the one that the whole run is in), as hexadecimal numbers."""

    trace_id: str | None = None
    span_id: str | None = None


class Header(Spanned, frozen=True, gc=False, omit_defaults=True):
    """What every event begins with. `seq` counts from 1 without gaps; `session` from 1, one more with each resume."""

    seq: int
    session: int
    timestamp: str
    level: str
    run_id: str
    dag: str


class TaskHeader(Header, frozen=True, gc=False):
    """What every event about a task begins with: its id, and the attempt, counted from 1 (0: before any)."""

    task: str
    attempt: int


class RunStarted(Header, tag="run.started", tag_field="event", frozen=True):
    """The run exists. `graph` is the compiled graph as `core.graph.Graph.record` gives it, `parent_span_id` the span
    that the run's own is below, `sampled` whether its trace is kept."""

    schema_version: int
    gluepy_version: str
    host: str
    pid: int
    graph: dict[str, JSON]
    params_digest: str
    code_version: str
    options: dict[str, JSON]
    parent_span_id: str | None = None
    sampled: bool = True


class RunResumed(Header, tag="run.resumed", tag_field="event", frozen=True):
    """Another session of the run began. `changes` tells how the DAG differs from that of the session before,
    `params_changed` which parameters do: by their dotted names the values before and after; `previous_trace_id` is the
    trace of the session before."""

    schema_version: int
    gluepy_version: str
    host: str
    pid: int
    graph: dict[str, JSON]
    params_digest: str
    code_version: str
    options: dict[str, JSON]
    changes: list[str]
    params_changed: dict[str, list[JSON]] | None = None
    parent_span_id: str | None = None
    previous_trace_id: str | None = None
    sampled: bool = True


class RunFinished(Header, tag="run.finished", tag_field="event", frozen=True):
    """Every task ended and none failed. `counts` has the number of tasks by status, `output_dropped` the output lines
    that live subscribers were too slow for."""

    duration_s: float
    counts: dict[str, int]
    output_dropped: int | None = None


class RunFailed(Header, tag="run.failed", tag_field="event", frozen=True):
    """Every task ended and some failed; or the run was out of time (`reason` is `timeout`)."""

    duration_s: float
    counts: dict[str, int]
    failed: list[str]
    reason: str | None = None
    output_dropped: int | None = None


class RunCancelled(Header, tag="run.cancelled", tag_field="event", frozen=True):
    """The run was stopped from outside."""

    duration_s: float
    counts: dict[str, int]
    output_dropped: int | None = None


class TaskStarted(TaskHeader, tag="task.started", tag_field="event", frozen=True, gc=False):
    """Attempt `attempt` is about to be given to the executor. `queued_s` is how long the task was ready."""

    max_attempts: int
    executor: str
    pool: str
    host: str
    pid: int
    queued_s: float


class TaskFinished(TaskHeader, tag="task.finished", tag_field="event", frozen=True, gc=False):
    """The attempt succeeded, its declared outputs exist. `warning` tells what was odd about it, in the first attempt of
    a class in a session."""

    executor: str
    pool: str
    duration_s: float
    worker: str | None = None
    pid: int | None = None
    host: str | None = None
    cpu_s: float | None = None
    peak_rss_mb: float | None = None
    max_attempts: int | None = None
    warning: str | None = None


class TaskFailed(TaskHeader, tag="task.failed", tag_field="event", frozen=True, gc=False, rename=_ERRORS):
    """The task failed for good: no attempt is left. `log` is its log file, relative to the run's folder."""

    max_attempts: int
    executor: str
    pool: str
    duration_s: float
    reason: Reason
    error_type: str
    error_message: str
    error_stack: str | None = None
    worker: str | None = None
    pid: int | None = None
    host: str | None = None
    cpu_s: float | None = None
    peak_rss_mb: float | None = None
    abandoned: bool = False
    log: str | None = None


class TaskRetrying(TaskHeader, tag="task.retrying", tag_field="event", frozen=True, gc=False, rename=_ERRORS):
    """Attempt `attempt` failed; another one starts in `delay_s` seconds or later."""

    max_attempts: int
    executor: str
    pool: str
    duration_s: float
    delay_s: float
    reason: Reason
    error_type: str
    error_message: str
    error_stack: str | None = None
    worker: str | None = None
    pid: int | None = None
    host: str | None = None
    cpu_s: float | None = None
    peak_rss_mb: float | None = None
    abandoned: bool = False
    log: str | None = None


class TaskSkipped(TaskHeader, tag="task.skipped", tag_field="event", frozen=True, gc=False):
    """The task is skipped: it raised `Skip` (`why` is what it said), a task before it was (`upstream`), its trigger
    was not met (`trigger`), or it was not selected (`unselected`)."""

    reason: Literal["skip", "upstream", "trigger", "unselected"]
    why: str = ""
    duration_s: float | None = None


class TaskBlocked(TaskHeader, tag="task.blocked", tag_field="event", frozen=True, gc=False):
    """The task cannot start in this session: `blocked_by` names the tasks whose failure is the cause."""

    blocked_by: list[str]


class TaskCancelled(TaskHeader, tag="task.cancelled", tag_field="event", frozen=True, gc=False):
    """The task was stopped, or never started (attempt 0), because its run was cancelled."""

    duration_s: float | None = None
    abandoned: bool = False
    worker: str | None = None
    pid: int | None = None
    host: str | None = None
    cpu_s: float | None = None
    peak_rss_mb: float | None = None


class TaskReset(TaskHeader, tag="task.reset", tag_field="event", frozen=True, gc=False):
    """A resumed run will run the task again, for `cause`."""

    cause: str


class TaskExpanded(TaskHeader, tag="task.expanded", tag_field="event", frozen=True, gc=False):
    """An `each` asked its callable and got `values`: one list of parameter values an instance."""

    values: list[list[JSON]]


class TaskProgress(TaskHeader, tag="task.progress", tag_field="event", frozen=True, gc=False):
    """The task has done `done` of `total` (0: unknown)."""

    done: float
    total: float


class TaskMetric(TaskHeader, tag="task.metric", tag_field="event", frozen=True, gc=False):
    """The task measured `value`: null for a NaN or an infinity, which JSON cannot hold."""

    name: str
    value: float | None


class DatasetEvent(TaskHeader, frozen=True, gc=False):
    """A dataset by `dataset`, what the task calls it, at `url`: how large it is, as far as is known without reading it
    how many rows it has and its columns with their types, and a fingerprint of its contents."""

    dataset: str
    url: str
    bytes: int
    fingerprint: str
    rows: int | None = None
    columns: dict[str, str] | None = None


class DatasetRead(DatasetEvent, tag="dataset.read", tag_field="event", frozen=True, gc=False):
    """The task read a dataset by its name."""


class DatasetWritten(DatasetEvent, tag="dataset.written", tag_field="event", frozen=True, gc=False):
    """The task wrote a dataset by its name, and published it."""


class TaskOutput(TaskHeader, tag="task.output", tag_field="event", frozen=True, gc=False):
    """One line that the attempt printed or logged. Live only. `stream` is `stdout`, `stderr` or `log`.

    One that ends in a carriage return is still being drawn, as progress bars are, and comes again.
    """

    stream: str
    line: str


Event = (
    RunStarted
    | RunResumed
    | RunFinished
    | RunFailed
    | RunCancelled
    | TaskStarted
    | TaskFinished
    | TaskFailed
    | TaskRetrying
    | TaskSkipped
    | TaskBlocked
    | TaskCancelled
    | TaskReset
    | TaskExpanded
    | TaskProgress
    | TaskMetric
    | DatasetRead
    | DatasetWritten
    | TaskOutput
)
TaskEvent = (
    TaskStarted
    | TaskFinished
    | TaskFailed
    | TaskRetrying
    | TaskSkipped
    | TaskBlocked
    | TaskCancelled
    | TaskReset
    | TaskExpanded
    | TaskProgress
    | TaskMetric
    | DatasetRead
    | DatasetWritten
    | TaskOutput
)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode(event: Event) -> bytes:
    """`event` as one line of `events.jsonl`, with its newline."""
    return _encoder.encode(event) + b"\n"


def decode(line: bytes | str) -> Event:
    """The event that `line` holds. Raises `msgspec.DecodeError` (its child `ValidationError` included) for anything
    else; fields that this version does not know are passed over."""
    return _decoder.decode(line)


def recordable(text: object) -> str:
    """`text` as a string that can be written down: what cannot be encoded (as in odd file names) becomes `?`."""
    if isinstance(text, str) and text.isascii():
        return text
    return str(text).encode("utf-8", "replace").decode()


def json_schema() -> dict[str, JSON]:
    """The JSON Schema of one line, generated from the types above; it is shipped as `core/events.schema.json`."""
    schema = msgspec.json.schema(Event)
    for kind in schema["$defs"].values():  # Python 3.13 and later indent docstrings otherwise than those before
        kind["description"] = " ".join(kind["description"].split())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "gluepy event", **schema}
