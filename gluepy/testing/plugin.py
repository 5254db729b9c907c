"""Fixtures for tests of pipelines. pytest finds them by itself (`-p no:gluepy` leaves them out).

Nothing else of gluepy is imported before a test asks for a fixture: tests without any pay nothing, and what measures
coverage sees modules from their first line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gluepy.core.events import JSON
    from gluepy.exec.dag import DAG
    from gluepy.exec.port import Outcome
    from gluepy.runtime import RunResult
    from gluepy.testing.run import TaskRun
    from gluepy.testing.script import Step

    Script = Mapping[str, Outcome | Step | Sequence[Outcome | Step]]


@pytest.fixture
def gluepy_settings(tmp_path: Path) -> dict[str, object]:
    """What the settings of a test's runs differ in from those of the project: records and files are the test's own.

    Change it in the test, or override it in a conftest.py; an async test hands it to `Runtime`.
    """
    return {"RUNS_ROOT": str(tmp_path / "runs"), "STORAGE_ROOT": str(tmp_path / "data")}


@pytest.fixture
def gluepy_context() -> Mapping[str, JSON] | None:
    """The parameters that `gluepy_task` gives a task; None for those of the project. To be overridden."""
    return None


@pytest.fixture
def gluepy_task(
    tmp_path: Path, gluepy_context: Mapping[str, JSON] | None, gluepy_settings: dict[str, object]
) -> Iterator[TaskRun]:
    """What a task has in a run: in the test `TrainRegion(region="eu").run()` works, and this tells what it told.

    It is an entered `task_run`. An async test enters one itself.
    """
    from gluepy.testing.run import task_run

    storage = tmp_path / "data"
    storage.mkdir(exist_ok=True)
    with task_run(storage, gluepy_context, settings=gluepy_settings) as run:
        yield run


@pytest.fixture
def gluepy_run(gluepy_settings: dict[str, object]) -> Callable[..., RunResult]:
    """Runs a DAG to its end: `result = gluepy_run(TrainDAG, params={"depth": 3})`, with the options of `run_dag`.

    With a `script`, attempts that it names go as it says (`{"load": [failed(), RUNS]}`), as `ScriptedExecutor` has it;
    the others do their work. `work=False` has no task called at all, and time passes by itself. For tests that are not
    async; those open a `Runtime(gluepy_settings)`.
    """

    def run(
        dag: str | type[DAG], *, script: Script | None = None, work: bool = True, check: bool = True, **options: Any
    ) -> RunResult:
        import anyio

        from gluepy.clock import SystemClock
        from gluepy.exec.executors import LocalExecutor
        from gluepy.runtime import Runtime
        from gluepy.testing.clock import VirtualClock
        from gluepy.testing.script import ScriptedExecutor

        async def main() -> RunResult:
            async with AsyncExitStack() as stack:
                clock = SystemClock() if work else await stack.enter_async_context(VirtualClock().autojump())
                executor = ScriptedExecutor(script, clock=clock, real=LocalExecutor() if work else None, strict=True)
                runtime = Runtime(gluepy_settings, executor=executor, clock=clock)
                runtime = await stack.enter_async_context(runtime)
                return await runtime.run_dag(dag, check=check, **options)

        return anyio.run(main)

    return run
