"""What a task knows about the run it runs in, and how code below it finds out: one context variable."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gluepy.exec.port import Attempt, Emission, RunInfo

if TYPE_CHECKING:
    from upath import UPath


class RunScope:
    """What the attempts of one run share in one process. `context` and `settings` are made when first asked for."""

    def __init__(self, run: RunInfo, context: Callable[[], Any], settings: Callable[[], Any]) -> None:
        self.run = run
        self._context, self._settings = context, settings

    @cached_property
    def context(self) -> Any:
        """The run's parameters, a `gluepy.conf.context.Context`."""
        return self._context()

    @cached_property
    def settings(self) -> Any:
        """The run's settings, a `gluepy.conf.settings.Settings`."""
        return self._settings()

    @cached_property
    def path(self) -> UPath:
        """The folder of this run's files; it exists."""
        return _folder(self.run.path)

    @cached_property
    def storage(self) -> UPath:
        """The folder of what outlives a run; it exists."""
        return _folder(self.run.storage)


class Scope:
    """One attempt as its task sees it. `emit` may be called from any thread; `write` takes rendered log lines."""

    __slots__ = ("attempt", "emit", "log", "run", "task")

    def __init__(self, run: RunScope, attempt: Attempt, emit: Callable[[Emission], None]) -> None:
        self.run, self.attempt, self.emit = run, attempt, emit
        self.task: Any = None
        self.log: Any = None

    @property
    def context(self) -> Any:
        """The run's parameters."""
        return self.run.context

    @property
    def settings(self) -> Any:
        """The run's settings."""
        return self.run.settings


_current: ContextVar[Scope | None] = ContextVar("gluepy_scope", default=None)
current_scope = _current.get
enter_scope = _current.set
leave_scope = _current.reset


def _folder(where: str) -> UPath:
    from upath import UPath  # brings fsspec, which most runs of small tasks never need

    path = UPath(where)
    path.mkdir(parents=True, exist_ok=True)
    return path
