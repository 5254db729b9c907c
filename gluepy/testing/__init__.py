"""The kit for tests of pipelines and executors, with pytest or without. Only `ExecutorContract` needs pytest.

- `task_run`: one task, without a run.
- `ScriptedExecutor` (`Step`, `failed`, `skipped`, `HELD`): how each attempt goes, as data.
- `VirtualClock`: hours in no time.
- `until`, `settle`: wait for something, without guessing how long it takes.
- `events_of`, `outline`, `assert_events` (`happened`): what a run told.
- `ExecutorContract`: what every task-level executor has to do, as tests.

A run in a test, whose tasks are never called:

    clock = VirtualClock()
    executor = ScriptedExecutor({"load": [failed(), Step(lasts_s=5)]}, clock=clock)
    async with clock.autojump(), Runtime(settings, executor=executor, clock=clock) as runtime:
        result = await runtime.run_dag(TrainDAG)
    assert_events(events_of(result), "task.retrying load", "task.started load #2", "run.finished")
"""

from typing import TYPE_CHECKING, Any

from gluepy.testing.clock import VirtualClock
from gluepy.testing.events import Happened, assert_events, events_of, happened, name_of, outline
from gluepy.testing.run import TaskRun, task_run
from gluepy.testing.script import HELD, ScriptedExecutor, Step, failed, skipped
from gluepy.testing.wait import settle, until

if TYPE_CHECKING:
    from gluepy.testing.contract import ExecutorContract

__all__ = [
    "HELD",
    "ExecutorContract",
    "Happened",
    "ScriptedExecutor",
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
]


def __getattr__(name: str) -> Any:
    if name == "ExecutorContract":
        import pytest

        pytest.register_assert_rewrite("gluepy.testing.contract")
        from gluepy.testing.contract import ExecutorContract

        return ExecutorContract
    raise AttributeError(f"module 'gluepy.testing' has no attribute {name!r}")
