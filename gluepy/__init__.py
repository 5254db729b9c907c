"""gluepy runs pipelines: plain `Task` classes, a `DAG` that names them, one runtime for script, service and cluster.

    from gluepy import DAG, Task, run_dag

Every name is imported when it is first used, so that a module of tasks is cheap to import, and so is the command line.

Public is what `gluepy`, `gluepy.asgi`, `gluepy.conf`, `gluepy.core.events`, `gluepy.errors`, `gluepy.exec.executors`,
`gluepy.exec.port`, `gluepy.report`, `gluepy.sinks` and `gluepy.testing` export. Everything else may change at any time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gluepy.errors import (
        ExecutorBroken,
        GluepyError,
        NestedRun,
        RunError,
        RunStopped,
        SinkFailed,
        TaskError,
        UsageError,
    )
    from gluepy.exec import DAG, Goal, Retry, Skip, Task, current_task, each, parallel
    from gluepy.exec.port import Attempt, Executor, Outcome
    from gluepy.report import read_run, read_runs
    from gluepy.runtime import Run, RunResult, Runtime, TaskResult, resume_run, run_dag, run_dag_sync, stream_dag
    from gluepy.runtime.export import export_run
    from gluepy.sinks import Sink

_HOME = {
    "gluepy.errors": (
        "ExecutorBroken",
        "GluepyError",
        "NestedRun",
        "RunError",
        "RunStopped",
        "SinkFailed",
        "TaskError",
        "UsageError",
    ),
    "gluepy.exec": ("DAG", "Goal", "Retry", "Skip", "Task", "current_task", "each", "parallel"),
    "gluepy.exec.port": ("Attempt", "Executor", "Outcome"),
    "gluepy.report": ("read_run", "read_runs"),
    "gluepy.sinks": ("Sink",),
    "gluepy.runtime.export": ("export_run",),
    "gluepy.runtime": (
        "Run",
        "RunResult",
        "Runtime",
        "TaskResult",
        "resume_run",
        "run_dag",
        "run_dag_sync",
        "stream_dag",
    ),
}

__all__ = [
    "DAG",
    "Attempt",
    "Executor",
    "ExecutorBroken",
    "GluepyError",
    "Goal",
    "NestedRun",
    "Outcome",
    "Retry",
    "Run",
    "RunError",
    "RunResult",
    "RunStopped",
    "Runtime",
    "Sink",
    "SinkFailed",
    "Skip",
    "Task",
    "TaskError",
    "TaskResult",
    "UsageError",
    "current_task",
    "each",
    "export_run",
    "parallel",
    "read_run",
    "read_runs",
    "resume_run",
    "run_dag",
    "run_dag_sync",
    "stream_dag",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(module), name)
    if name == "__version__":
        return import_module("gluepy.version").VERSION
    raise AttributeError(f"module 'gluepy' has no attribute {name!r}")
