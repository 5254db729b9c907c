"""What a task knows about the run it runs in, and how code below it finds out: one context variable."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from gluepy.exec.port import Attempt, Emission, RunInfo
from gluepy.redact import Redactor, secrets_in

if TYPE_CHECKING:
    from upath import UPath

    from gluepy.exec.drafts import Room

_KNOWN = 64  # so many redactors are kept


class RunScope:
    """What the attempts of one run share in one process. `context` and `settings` are made when first asked for."""

    def __init__(self, run: RunInfo, context: Callable[[], Any], settings: Callable[[], Any]) -> None:
        self.run = run
        self._context, self._settings = context, settings
        _redactor(
            run.redact, run.masked
        )  # takes milliseconds the first time: a signal handler that reports could interrupt itself

    @cached_property
    def context(self) -> Any:
        """The run's parameters, a `gluepy.conf.context.Context`."""
        return self._context()

    @cached_property
    def settings(self) -> Any:
        """The run's settings, a `gluepy.conf.schema.Settings`."""
        return self._settings()

    @cached_property
    def path(self) -> UPath:
        """The folder of this run's files; it exists."""
        return _folder(self.run.path)

    @cached_property
    def storage(self) -> UPath:
        """The folder of what outlives a run; it exists."""
        return _folder(self.run.storage)


@lru_cache(_KNOWN)
def _redactor(patterns: tuple[str, ...], secrets: tuple[str, ...]) -> Redactor | None:
    return Redactor(patterns, secrets) if patterns or secrets else None


def redactor_of(attempt: Attempt) -> Redactor | None:
    """What masks the texts of `attempt` before anybody sees them; None if there is nothing to mask."""
    redactor = _redactor(attempt.run.redact, attempt.run.masked)
    if attempt.params and redactor is not None:
        own = list(secrets_in("", attempt.params, attempt.run.redact))
        if own:
            return redactor.plus(own)
    return redactor


class LineWriter(Protocol):
    """Where an attempt's output goes: `stdout`, `stderr` and `log`."""

    def write(self, stream: str, text: str) -> None:
        """Take text, of which every newline ends a line."""
        ...


class Scope:
    """One attempt as its task sees it. `emit` may be called from any thread; `output` is None when nothing is
    captured; `log` is a logger to be used whatever the program has configured; `task` is the instance that runs.
    `forked`: this is a copy, in a process that the task has forked (see `gluepy.exec.forks`); `fork_key` names the
    attempt between such processes, 0 as long as there is none."""

    __slots__ = (
        "_log",
        "_log_configured",
        "_redactor",
        "attempt",
        "emit",
        "fork_key",
        "forked",
        "output",
        "rooms",
        "run",
        "task",
    )

    def __init__(
        self,
        run: RunScope,
        attempt: Attempt,
        emit: Callable[[Emission], None],
        output: LineWriter | None,
        log: Any = None,
    ) -> None:
        self._redactor: Redactor | None
        self.run, self.attempt, self.emit, self.output = run, attempt, emit, output
        self.task: Any = None
        self.forked, self.fork_key = False, 0
        self._log = log
        self._log_configured: bool | None = None  # whether structlog was when `_log` was made; None: it was given
        self.rooms: list[Room] | None = None  # with copies of remote files, for as long as the attempt runs

    def close(self) -> None:
        """The attempt has ended."""
        while self.rooms:
            self.rooms.pop().close()

    def masked(self, text: str) -> str:
        """`text` without the secrets of the attempt."""
        try:
            redactor = self._redactor
        except AttributeError:  # few attempts need one
            redactor = self._redactor = redactor_of(self.attempt)
        return text if redactor is None else redactor(text)

    @property
    def context(self) -> Any:
        """The run's parameters."""
        return self.run.context

    @property
    def settings(self) -> Any:
        """The run's settings."""
        return self.run.settings

    @property
    def log(self) -> Any:
        """A structlog logger bound to run, task and attempt: as the program has configured structlog, or else to the
        attempt's log file while the run captures."""
        configured = _structlog_is_configured()
        if self._log is None or self._log_configured not in (None, configured):
            self._log, self._log_configured = _logger(self), configured
        return self._log


_current: ContextVar[Scope | None] = ContextVar("gluepy_scope", default=None)
current_scope = _current.get
enter_scope = _current.set
leave_scope = _current.reset


def _folder(where: str) -> UPath:
    from gluepy.exec.files import opened

    path = opened(where)
    path.mkdir(parents=True, exist_ok=True)
    return path


class _LogLines:
    """What structlog writes to while the run captures."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope  # not its output, which is another one in a forked process

    def msg(self, message: str) -> None:
        if self._scope.output is not None:
            self._scope.output.write("log", message + "\n")

    log = debug = info = warn = warning = error = err = critical = fatal = failure = exception = msg


_as_it_was: dict[str, Any] = {}  # structlog's configuration before the program had one


def _structlog_is_configured() -> bool:
    import structlog  # brings rich; most small tasks never log

    if not structlog.is_configured():
        config = structlog.get_config()
        _as_it_was.update(config, processors=[*config["processors"]])
        return False
    return structlog.get_config() != _as_it_was  # `capture_logs` of a test leaves behind that it was configured


class _Number(int):
    """The number of an attempt, which is not mistaken for an equal one that a task logs as `attempt`."""


def _logger(scope: Scope) -> Any:
    import structlog

    attempt = scope.attempt
    bound: dict[str, Any] = {
        "run_id": attempt.run.run_id,
        "task": attempt.task,
        "attempt": _Number(attempt.number),
    }
    if (trace := attempt.run.trace) is not None:
        bound |= {"trace_id": trace.trace_id, "span_id": trace.span_of(attempt.task, attempt.number)}
    if scope.output is None or _structlog_is_configured():
        # by the name that the logger of the task's module has
        return structlog.get_logger(attempt.spec.cls.partition(":")[0], **bound)
    json = attempt.run.log_format == "json"
    render: list[Any] = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(default=repr)]
    if not json:  # the file is the attempt's own: repeating its names on every line would hide the message
        render = [
            lambda logger, name, event: {
                key: value for key, value in event.items() if value is not bound.get(key, ...)
            },
            structlog.dev.ConsoleRenderer(
                colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    return structlog.wrap_logger(
        _LogLines(scope),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.StackInfoRenderer(),
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(0),  # the class that a program without a configuration has
        cache_logger_on_first_use=False,
    ).bind(**bound)
