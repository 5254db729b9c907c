"""The kit for tests of pipelines and executors, with pytest or without. Only the two contracts need pytest.

- `task_run`: one task, without a run.
- `ScriptedExecutor` (`Step`, `failed`, `skipped`, `values`, `HELD`, `RUNS`): how each attempt goes, as data; without
  any work, or with failures among attempts that do theirs.
- `VirtualClock`: hours in no time.
- `until`, `settle`: wait for something, without guessing how long it takes.
- `events_of`, `outline`, `assert_events` (`happened`): what a run told.
- `ExecutorContract`: what every task-level executor has to do, as tests; `SinkContract`: what every sink has to do.
- `gluepy.testing.plugin`: fixtures; pytest knows them by itself.

A run in a test, whose tasks are never called:

    clock = VirtualClock()
    executor = ScriptedExecutor({"load": [failed(), Step(lasts_s=5)]}, clock=clock)
    async with clock.autojump(), Runtime(settings, executor=executor, clock=clock) as runtime:
        result = await runtime.run_dag(TrainDAG)
    assert_events(events_of(result), "task.retrying load", "task.started load #2", "run.finished")

Every name is imported when it is first used: pytest imports this package at its start, in each project.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gluepy.testing.clock import VirtualClock
    from gluepy.testing.contract import ExecutorContract
    from gluepy.testing.events import Happened, assert_events, events_of, happened, name_of, outline
    from gluepy.testing.run import TaskRun, task_run
    from gluepy.testing.script import HELD, RUNS, ScriptedExecutor, Step, failed, skipped, values
    from gluepy.testing.sinks import SinkContract
    from gluepy.testing.wait import settle, until

_HOME = {
    "gluepy.testing.clock": ("VirtualClock",),
    "gluepy.testing.contract": ("ExecutorContract",),
    "gluepy.testing.events": ("Happened", "assert_events", "events_of", "happened", "name_of", "outline"),
    "gluepy.testing.run": ("TaskRun", "task_run"),
    "gluepy.testing.script": ("HELD", "RUNS", "ScriptedExecutor", "Step", "failed", "skipped", "values"),
    "gluepy.testing.sinks": ("SinkContract",),
    "gluepy.testing.wait": ("settle", "until"),
}

__all__ = [
    "HELD",
    "RUNS",
    "ExecutorContract",
    "Happened",
    "ScriptedExecutor",
    "SinkContract",
    "Step",
    "TaskRun",
    "VirtualClock",
    "assert_events",
    "events_of",
    "failed",
    "happened",
    "name_of",
    "outline",
    "settle",
    "skipped",
    "task_run",
    "until",
    "values",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            if name in ("ExecutorContract", "SinkContract"):
                import pytest

                pytest.register_assert_rewrite(module)
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'gluepy.testing' has no attribute {name!r}")
