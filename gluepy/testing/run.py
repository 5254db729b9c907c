"""One task in a test, without a run: `task_run`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gluepy.conf import discovered_project
from gluepy.conf.context import Context
from gluepy.conf.parameters import load_context
from gluepy.core.events import JSON
from gluepy.core.graph import Spec
from gluepy.exec import forks
from gluepy.exec.port import Attempt, Emission, Metric, Progress, RunInfo
from gluepy.exec.scope import RunScope, Scope, enter_scope, leave_scope
from gluepy.exec.task import Task

if TYPE_CHECKING:
    from upath import UPath

    from gluepy.conf.schema import Settings

RUN_ID = "test"


class TaskRun:
    """What `task_run` gives: where the task's files are, and what it told.

    `metrics` has the last value of each metric by name, `progress` every `(done, total)`, `logs` each line that went to
    `self.log`, as a dict with `event`, `log_level` and what was bound or given. `emissions` are metrics and progress in
    the order in which they came.
    """

    def __init__(self, scope: RunScope) -> None:
        self._scope = scope
        self.emissions: list[Emission] = []
        self.logs: list[dict[str, Any]] = []

    @property
    def path(self) -> UPath:
        """The task's `self.path`."""
        return self._scope.path

    @property
    def storage(self) -> UPath:
        """The task's `self.storage`."""
        return self._scope.storage

    @property
    def context(self) -> Context:
        """The task's `self.context`."""
        return cast("Context", self._scope.context)

    @property
    def settings(self) -> Settings:
        """What `gluepy.conf.settings` are inside."""
        return cast("Settings", self._scope.settings)

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric, by name; NaN for one that is recorded as null."""
        told = [each for each in self.emissions if isinstance(each, Metric)]
        return {each.name: math.nan if each.value is None else each.value for each in told}

    @property
    def progress(self) -> list[tuple[float, float]]:
        """Every `(done, total)` that the task told, in order."""
        return [(each.done, each.total) for each in self.emissions if isinstance(each, Progress)]


@contextmanager
def task_run(
    tmp_path: Path,
    context: Mapping[str, JSON] | None = None,
    *,
    settings: Settings | Mapping[str, object] | None = None,
) -> Iterator[TaskRun]:
    """What a task has in a run, in a test: inside the block `TrainRegion(region="eu").run()` works, async ones too.

        with task_run(tmp_path, context={"depth": 3}) as run:
            TrainRegion(region="eu").run()
        assert run.metrics["accuracy"] > 0.8
        assert (run.path / "model-eu.json").exists()

    `self.storage` is `tmp_path`, `self.path` a folder in it. `context` are the parameters, these and no others; None
    for those of the project around the current folder. `settings` are a `Settings`, a mapping of some over those of
    that project, or None for just those; they are read when the code asks for them. `gluepy.conf`'s `settings` and
    `default_context` are this run's too. `run()` is called as it is: `Skip` and errors come out, declared `outputs`
    are not checked, nothing is retried. `current_task()` is a plain `Task`, for code below to tell metrics and log.
    """

    def load() -> Settings:
        from gluepy.conf.schema import Settings
        from gluepy.conf.sources import load_settings  # brings pydantic, which a task may never need

        if isinstance(settings, Settings):
            return settings
        places = {"STORAGE_ROOT": str(tmp_path), "RUNS_ROOT": str(tmp_path / "records")}
        return load_settings(discovered_project(), {**places, **(settings or {})})

    def parameters() -> Context:
        return load_context(scope.settings) if context is None else Context(context)

    info = RunInfo(
        run_id=RUN_ID,
        dag=RUN_ID,
        path=str(tmp_path / "runs" / RUN_ID),
        storage=str(tmp_path),
        context=dict(context or {}),
    )
    scope = RunScope(info, parameters, load)
    run = TaskRun(scope)
    attempt = Attempt(info, Spec(cls=f"{__name__}:Task", label="task"), "task", 1, 1, {}, "thread", Task)
    log = _recording(run.logs, run_id=RUN_ID, task="task", attempt=1)
    inner = Scope(scope, attempt, run.emissions.append, None, log)
    inner.task = Task()
    inner.task._scope = inner
    forks.install()
    forks.attach(inner)
    token = enter_scope(inner)
    try:
        yield run
    finally:
        inner.close()
        leave_scope(token)
        forks.detach(inner)


def _recording(logs: list[dict[str, Any]], **bound: object) -> Any:
    """A structlog logger whose lines end up in `logs`."""
    import structlog

    def record(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        logs.append(dict(event))
        raise structlog.DropEvent

    return structlog.wrap_logger(
        None,
        processors=[structlog.contextvars.merge_contextvars, _level, record],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        cache_logger_on_first_use=False,
    ).bind(**bound)


def _level(_: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # As structlog.testing.capture_logs names it, so that tests written for that go on.
    event["log_level"] = "error" if method == "exception" else method
    return event
