"""The Executor port: what the engine hands to an executor, and what it gets back.

A task-level executor is one method, `run`, and a lifetime, `async with`:

    async with executor:
        outcome = await executor.run(attempt, emit)

`run` carries out one attempt and returns its `Outcome`. A task that failed is a returned outcome; broken infrastructure
is raised (`ExecutorBroken`), and stops the run. The engine watches the deadline: it cancels the call, and `run` must
then stop the work, shielded and bounded, before it lets the cancellation through. Work that cannot be stopped (a
thread) is told to the engine by `emit(Abandoned())` before that, and by `emit(Released())` when it has really ended;
where work has been stopped, `emit(Stopped(…))` may tell where it ran and what it has cost.

For work in another process or on another machine all that travels is JSON: `Attempt.message` and
`Attempt.from_message` on the way there, `Outcome.message`, `emission_message` and their inverses on the way back.
There, `gluepy.exec.executors.run_attempt` runs the task. What an `each` asks comes only to an executor that `asks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from gluepy.core.events import JSON, Reason
from gluepy.core.graph import Graph, Spec, slug_of
from gluepy.core.spans import TraceContext
from gluepy.errors import ExecutorBroken
from gluepy.extension import Extension

__all__ = [
    "FINISHED",
    "Abandoned",
    "Attempt",
    "Begun",
    "Dataset",
    "Emission",
    "Emit",
    "Executor",
    "ExecutorBroken",
    "Metric",
    "Outcome",
    "Output",
    "Progress",
    "Queued",
    "Released",
    "RunInfo",
    "Stopped",
    "emission_message",
    "emission_of",
    "local_path",
]


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What every attempt of a run shares. All of it is JSON, so that it can travel to another machine.

    `path` and `storage` are where the run's files and what outlives it go (a local folder or an object store's URL),
    `record` the folder with the run's log files (None: no log files are wanted), `context` the run's parameters,
    `secrets` where those of them are that must not be written down (keys and indices that lead there), `project` the
    folder to put on `sys.path`, `settings` what the settings of this run differ in from the defaults.
    `redact` are the patterns of REDACT, `masked` what is known to be secret: neither logs nor events tell it.
    `code_version` says which code the driver has of `modules`, those of the DAG and its tasks. `trace` is the trace
    that the run is in, if it is in one.
    """

    run_id: str
    dag: str
    path: str
    storage: str
    record: str | None = None
    context: Mapping[str, JSON] = {}
    secrets: Sequence[Sequence[str | int]] = ()
    project: str | None = None
    settings: Mapping[str, JSON] = {}
    capture: bool = False
    log_format: str = "console"
    redact: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    code_version: str = ""
    modules: tuple[str, ...] = ()
    trace: TraceContext | None = None


def local_path(place: str) -> str | None:
    """The path on this machine that `place`, a path or URL, means; None if it is elsewhere."""
    scheme, is_url, path = place.rpartition("://")
    return path if not is_url or scheme in ("file", "local") else None


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One attempt at one task: all that an executor needs to know. `params` are the task's parameters by name.

    `target` is what to run, in the process that compiled the DAG; elsewhere it is None and `spec.cls` says.
    """

    run: RunInfo
    spec: Spec
    task: str
    number: int
    max_attempts: int
    params: Mapping[str, JSON]
    pool: str
    target: Any = None

    @property
    def slug(self) -> str:
        """The task's id as file names have it."""
        return slug_of(self.task)

    @property
    def log(self) -> str:
        """The attempt's log file, relative to the run's record."""
        return f"logs/{self.slug}.{self.number}.log"

    @property
    def traceparent(self) -> str | None:
        """The W3C `traceparent` that what the attempt does is below; None if the run is not traced."""
        trace = self.run.trace
        return None if trace is None else trace.header(trace.span_of(self.task, self.number))

    def message(self) -> dict[str, JSON]:
        """This attempt as JSON-able data, for another process or machine; `Attempt.from_message` is its inverse."""
        return {
            "run": msgspec.to_builtins(self.run),
            "spec": msgspec.to_builtins(self.spec),
            "task": self.task,
            "number": self.number,
            "max_attempts": self.max_attempts,
            "params": dict(self.params),
            "pool": self.pool,
        }

    @classmethod
    def from_message(cls, message: Mapping[str, JSON]) -> Attempt:
        """The attempt that `message` describes. Raises `msgspec.ValidationError` for anything else."""
        return msgspec.convert(dict(message), cls)


class RanAt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where an attempt ran, if not in the driver, and what it cost: processor time in seconds, memory in megabytes."""

    worker: str | None = None
    pid: int | None = None
    host: str | None = None
    cpu_s: float | None = None
    peak_rss_mb: float | None = None


class Outcome(RanAt, frozen=True, kw_only=True, omit_defaults=True):
    """How an attempt ended.

    `finished` comes with a `warning` if something about it was odd, `skipped` with `error_message` (what `Skip` said),
    `failed` with `reason` and the error's fields; `retryable`
    is False when the task's `Retry.on` does not name the error, `missing` are the declared inputs that were not there.
    `value` is what an `each` callable returned, as a list of lists of parameter values. `exception` is the user's own
    exception, if it could be carried over. `duration_s` is for an executor that knows better than the engine, which
    counts from when it was told that the attempt has begun.
    """

    status: Literal["finished", "skipped", "failed"]
    reason: Reason | None = None
    error_type: str = ""
    error_message: str = ""
    error_stack: str = ""
    retryable: bool = True
    missing: tuple[str, ...] = ()
    value: JSON = None
    warning: str = ""
    exception: BaseException | None = None
    duration_s: float | None = None

    def message(self) -> dict[str, JSON]:
        """This outcome as JSON-able data, without the exception object; `Outcome.from_message` is its inverse."""
        message: dict[str, JSON] = msgspec.to_builtins(msgspec.structs.replace(self, exception=None))
        return message

    @classmethod
    def from_message(cls, message: Mapping[str, JSON]) -> Outcome:
        """The outcome that `message` describes. Raises `msgspec.ValidationError` for anything else."""
        return msgspec.convert(dict(message), cls)


FINISHED = Outcome(status="finished")


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """`self.progress(done, total)`"""

    done: float
    total: float


class Metric(msgspec.Struct, frozen=True, tag="metric"):
    """`self.metric(name, value)`"""

    name: str
    value: float | None  # null for what is not finite


class Dataset(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="dataset"):
    """`self.read(name)` or `self.write(name, value)`; the fields are those of the event."""

    written: bool
    dataset: str
    url: str
    bytes: int
    fingerprint: str
    rows: int | None = None
    columns: dict[str, str] | None = None


class Output(msgspec.Struct, frozen=True, tag="output"):
    """A line that the attempt printed (`stream` is `stdout` or `stderr`) or logged (`log`), without its newline.

    One that ends in a carriage return is still being drawn, as progress bars are: it is shown, and not kept.
    """

    stream: str
    line: str


class Queued(msgspec.Struct, frozen=True, tag="queued"):
    """The attempt waits in a queue of the executor's engine: its `timeout_s` and `duration_s` count from `Begun`."""


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """The attempt, which was `Queued`, has begun."""


class Abandoned(msgspec.Struct, frozen=True, tag="abandoned"):
    """The call was cancelled, but the work goes on: it cannot be stopped."""


class Released(msgspec.Struct, frozen=True, tag="released"):
    """Abandoned work has ended; what it held is free."""


class Stopped(RanAt, frozen=True, kw_only=True, omit_defaults=True, tag="stopped"):
    """The call was cancelled, and the work has been stopped."""


Emission = Progress | Metric | Dataset | Output | Queued | Begun | Abandoned | Released | Stopped
Emit = Callable[[Emission], None]  # called from any thread, in the order in which things happened


def emission_message(emission: Emission) -> dict[str, JSON]:
    """`emission` as JSON-able data; `emission_of` is the inverse."""
    message: dict[str, JSON] = msgspec.to_builtins(emission)
    return message


def emission_of(message: Mapping[str, JSON]) -> Emission:
    """The emission that `message` describes. Raises `msgspec.ValidationError` for anything else."""
    return msgspec.convert(dict(message), Emission)  # type: ignore[no-any-return]


class Executor(Extension):
    """Base of task-level executors. A subclass writes `run`; `__aenter__` and `__aexit__` where it has a lifetime.

    One executor may serve many runs at once (`Runtime`). `name` is what events call it. With `continues` the `emit`
    that its `run` gets is a `gluepy.exec.continuation.Continuation`. Neither is inherited: what a subclass does to
    outcomes would not be done to those that its base hands to the engine itself.
    """

    name: str
    continues: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        if "continues" not in cls.__dict__:
            cls.continues = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return None

    def check(self, graph: Graph) -> None:
        """Look at what a run is about, before it begins. Raises `UsageError` for what cannot be run."""

    def asks(self, spec: Spec) -> bool:
        """Whether it runs, in this process, what this task asks for an `each`; else gluepy does."""
        return False

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        """Carry `attempt` out and return how it ended; see this module's text for what is raised and when."""
        raise TypeError(f"{type(self).__name__} does not define run(attempt, emit)")
