"""Many runs in one runtime: isolated from each other, bounded together; and the ways to start one."""

from __future__ import annotations

import json
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
from pools import (
    Looks,
    LoopLooks,
    LoopNests,
    Nests,
    ProcessLooks,
    ProcessNests,
    ProcessNothing,
    RuntimeNests,
    StreamNests,
)
from steps import Go, LoopStep, Notes, Step, ThreadWaits, dag_of, statuses

import gluepy
from gluepy import DAG, Task, parallel
from gluepy.conf import default_context
from gluepy.conf import settings as current_settings
from gluepy.conf.schema import Settings
from gluepy.core.events import TaskFinished
from gluepy.errors import NestedRun, OptionError, RunError
from gluepy.exec.executors.local import LocalExecutor
from gluepy.runtime import RunResult, Runtime, run_dag, run_dag_sync
from gluepy.testing import HELD, ScriptedExecutor, events_of, outline, until
from gluepy.testing import Step as Ends


@pytest.mark.parametrize("kind", [Looks, LoopLooks, ProcessLooks])
async def test_runs_at_once_in_one_loop_see_their_own_context_settings_and_task(go: Go, kind: type[Task]) -> None:
    results: dict[str, RunResult] = {}

    async def run(runtime: Runtime, who: str) -> None:
        results[who] = await runtime.run_dag(dag_of(kind), params={"who": who, "of": 3})

    async with go.runtime() as runtime, anyio.create_task_group() as tasks:
        for who in "abc":
            tasks.start_soon(run, runtime, who)
    for who, result in results.items():
        found = json.loads((Path(result.files) / "found.json").read_text())
        assert (found["context"], found["own"], found["run"]) == (who, who, result.run_id)
        assert found["storage"] == "data"


async def test_runs_of_two_runtimes_have_settings_of_their_own(folder: Path) -> None:
    results: dict[str, RunResult] = {}

    async def run(who: str) -> None:
        settings = Settings(RUNS_ROOT=f"runs-{who}", STORAGE_ROOT=f"data-{who}")
        async with Runtime(settings) as runtime:
            results[who] = await runtime.run_dag(dag_of(LoopLooks), params={"who": who, "of": 1})

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, "a")
        tasks.start_soon(run, "b")
    for who, result in results.items():
        assert json.loads((Path(result.files) / "found.json").read_text())["storage"] == f"data-{who}"
        assert result.path.parent == folder / f"runs-{who}"


async def test_what_a_task_sets_in_its_context_variables_stays_with_it(go: Go) -> None:
    mark: ContextVar[str] = ContextVar("mark", default="unset")
    seen: list[str] = []

    class Sets(Task):
        async def run(self) -> None:
            mark.set("set")
            await anyio.lowlevel.checkpoint()
            assert mark.get() == "set"

    class Sees(Task):
        async def run(self) -> None:
            seen.append(mark.get())

    await go(Sets, Sees, concurrency=1)
    assert seen == ["unset"]
    assert mark.get() == "unset"


async def test_driver_sees_no_run_while_its_tasks_do(go: Go, folder: Path) -> None:
    (folder / "context.yaml").write_text("who: project\n")
    executor = ScriptedExecutor({"a": HELD})
    dag = dag_of(Step(id="a"))
    async with go.runtime(executor=executor) as runtime, runtime.stream_dag(dag, params={"who": "run"}):
        await executor.wait_for("a")
        assert default_context.who == "project"
        assert current_settings.RUNS_ROOT == ".gluepy/runs"
        executor.release()


# Bounds


async def test_concurrency_of_a_run_bounds_its_tasks(go: Go) -> None:
    executor = ScriptedExecutor({"step": HELD})
    async with go.runtime(executor=executor) as runtime:
        dag = dag_of(parallel(*(Step(id=str(number)) for number in range(10))))
        async with runtime.stream_dag(dag, concurrency=3) as run:
            await until(lambda: len(executor.running) == 3)
            executor.release()
            await run.result()
    assert executor.most == 3


async def test_concurrency_of_the_settings_is_the_default(go: Go) -> None:
    executor = ScriptedExecutor({"step": Ends(lasts_s=0.01)})
    await go(parallel(*(Step(id=str(number)) for number in range(10))), executor=executor)
    assert executor.most == go.settings.CONCURRENCY == 4


async def test_concurrency_of_a_runtime_bounds_all_its_runs_together(go: Go) -> None:
    executor = ScriptedExecutor({"step": Ends(lasts_s=0.01)})
    dag = dag_of(parallel(*(Step(id=str(number)) for number in range(6))))
    async with go.runtime(executor=executor, concurrency=3) as runtime, anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(runtime.run_dag, dag)
    assert executor.most == 3
    assert len(executor.started) == 24


async def test_runtime_lets_every_run_go_on_when_a_slot_comes_free(go: Go) -> None:
    executor = ScriptedExecutor({"first": HELD})
    runtime = go.runtime(executor=executor, concurrency=1)
    async with runtime, runtime.stream_dag(dag_of(Step(id="first"))) as first:
        await executor.wait_for("first")
        async with runtime.stream_dag(dag_of(Step(id="second"), Step(id="third"))) as second:
            await until(lambda: outline(events_of(second)) == ["run.started"])
            assert executor.started == [("first", 1)]
            executor.release()
            with anyio.fail_after(120):
                assert (await second.result()).status == "finished"
                assert (await first.result()).status == "finished"


class Gpu(Step):
    uses: ClassVar = {"gpu": 1}


class BothGpus(Step):
    uses: ClassVar = {"gpu": 2}


class GpuAndDisk(Step):
    uses: ClassVar = {"gpu": 1, "disk": 1}


async def test_limits_bound_the_tasks_that_use_them_in_all_runs_together(go: Go) -> None:
    go.settings = go.settings.replaced(LIMITS={"gpu": 2, "disk": 1})
    using: list[int] = []
    executor = ScriptedExecutor({"step": Ends(lasts_s=0.01), "gpu": Ends(lasts_s=0.01), "bothgpus": Ends(lasts_s=0.01)})
    dag = dag_of(parallel(*(Gpu(id=f"gpu{n}") for n in range(3)), BothGpus(id="both"), GpuAndDisk(id="disk")))

    async def watch() -> None:
        weights = {"gpu0": 1, "gpu1": 1, "gpu2": 1, "both": 2, "disk": 1}
        while True:
            using.append(sum(weights[task] for task, _ in executor.running))
            await anyio.lowlevel.checkpoint()

    async with go.runtime(executor=executor) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        async with anyio.create_task_group() as runs:
            for _ in range(3):
                runs.start_soon(runtime.run_dag, dag)
        tasks.cancel_scope.cancel()
    assert max(using) == 2
    assert len(executor.started) == 15


async def test_task_that_waits_for_a_limit_keeps_no_slot_from_others(go: Go) -> None:
    go.settings = go.settings.replaced(LIMITS={"gpu": 1})
    executor = ScriptedExecutor({"first": HELD})
    dag = dag_of(parallel(Gpu(id="first"), Gpu(id="second"), (Step(id="a"), Step(id="b"))))
    async with go.runtime(executor=executor) as runtime, runtime.stream_dag(dag, concurrency=2) as run:
        await executor.wait_for("first")
        await executor.wait_for("b")
        assert ("second", 1) not in executor.started
        executor.release()
        assert (await run.result()).status == "finished"


# Starting runs


@pytest.mark.parametrize("kind", [Nests, ProcessNests, LoopNests, StreamNests, RuntimeNests])
async def test_run_inside_a_task_is_refused_by_name(go: Go, kind: type[Task]) -> None:
    result = await go(kind(id="nests"))
    assert statuses(result) == {"nests": "failed"}
    error = result.tasks["nests"].error
    assert error is not None
    assert isinstance(error.__cause__, NestedRun)
    assert error.__cause__.task == "nests"
    assert "one DAG" in error.message


async def test_sync_run_in_a_running_loop_names_the_async_one(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"await gluepy\.run_dag"):
        run_dag_sync(dag_of(Step))


def test_sync_run_works_in_a_script(folder: Path) -> None:
    result = run_dag_sync(dag_of(Step(id="a"), LoopStep(id="b")), run_id="mine")
    assert result.status == "finished"
    assert result.path == folder / ".gluepy" / "runs" / "mine"
    assert Notes(folder / "data").of("end") == ["a", "b"]


def test_sync_run_raises_like_the_async_one(folder: Path) -> None:
    class Broken(Task):
        def run(self) -> None:
            raise ValueError("no")

    with pytest.raises(RunError) as caught:
        run_dag_sync(dag_of(Broken))
    assert caught.value.exceptions[0].__cause__ is not None
    assert run_dag_sync(dag_of(Broken), check=False).status == "failed"


async def test_run_dag_of_the_package_uses_the_project_around_the_folder(folder: Path) -> None:
    (folder / "settings.py").write_text("RUNS_ROOT = 'here'\nINSTALLED_MODULES = []\n")
    result = await gluepy.run_dag(dag_of(Step))
    assert result.path.parent == folder / "here"


async def test_stream_of_the_package_gives_id_path_events_and_result(folder: Path) -> None:
    async with gluepy.stream_dag(dag_of(Step(id="a"))) as run:
        names = [type(event).__name__ async for event in run]
        result = await run.result()
    assert names == ["RunStarted", "TaskStarted", "TaskFinished", "RunFinished"]
    assert (run.id, run.path) == (result.run_id, result.path)


async def test_closed_runtime_says_so(settings: Settings) -> None:
    runtime = Runtime(settings)
    with pytest.raises(OptionError, match="not open"):
        await runtime.run_dag(dag_of(Step))
    async with runtime:
        pass
    with pytest.raises(OptionError, match="not open"):
        await runtime.run_dag(dag_of(Step))


async def test_runtime_keeps_its_worker_processes_from_run_to_run(go: Go, notes: Notes) -> None:
    class Dag(DAG):
        tasks = (ProcessNothing,)

    async with go.runtime() as runtime:
        first = await runtime.run_dag(Dag)
        second = await runtime.run_dag(Dag)
    pids = [pid for result in (first, second) for pid in _pids(result)]
    assert len(pids) == 2
    assert len(set(pids)) == 1


def _pids(result: RunResult) -> list[Any]:
    return [event.pid for event in events_of(result) if isinstance(event, TaskFinished)]


async def test_leaving_a_runtime_is_quick_though_a_thread_goes_on(go: Go, notes: Notes) -> None:
    async with go.runtime() as runtime:
        async with runtime.stream_dag(dag_of(ThreadWaits(id="wait"))):
            await until(lambda: notes.of("begin") == ["wait"])
        began = time.monotonic()
    assert time.monotonic() - began < 2
    (go.settings.runs_root.parent / "data" / "go").touch()
    await until(lambda: notes.of("end") == ["wait"])


async def test_package_level_run_dag_closes_what_it_opened(folder: Path) -> None:
    for _ in range(3):
        assert (await run_dag(dag_of(Step))).status == "finished"


@pytest.fixture(params=["asyncio", "trio"])
def both_loops(request: pytest.FixtureRequest) -> dict[str, str]:
    return {"backend": request.param}


class OneStep(DAG):
    tasks = (LoopStep,)


def test_a_runtime_is_refused_in_another_event_loop_than_its_own(go: Go, both_loops: dict[str, str]) -> None:
    runtime, dag = go.runtime(), OneStep
    refused: list[str] = []

    async def elsewhere() -> None:
        for call in (runtime.run_dag(dag), runtime.resume_run(), runtime.stream_dag(dag).__aenter__()):
            with pytest.raises(OptionError, match="opened in another event loop") as caught:
                await call
            refused.append(str(caught.value))
        with pytest.raises(OptionError, match="opened in another event loop"):
            await runtime.__aexit__(None, None, None)

    async def main() -> None:
        async with runtime:
            assert statuses(await runtime.run_dag(dag)) == {"loopstep": "finished"}
            await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere, **both_loops))  # type: ignore[arg-type]
            assert statuses(await runtime.run_dag(dag)) == {"loopstep": "finished"}, "it has not suffered"
            assert (await anyio.to_thread.run_sync(runtime.plan_resume)).kept == ["loopstep"], "it needs no loop"

    anyio.run(main, **both_loops)  # type: ignore[arg-type]
    said = "Runtime: it was opened in another event loop; open a Runtime in each event loop that runs DAGs"
    assert refused == [said] * 3


async def test_a_runtime_is_open_once_at_a_time_and_may_be_opened_again(go: Go) -> None:
    runtime = go.runtime()
    for _ in range(2):
        async with runtime:
            with pytest.raises(OptionError, match="open already"):
                await runtime.__aenter__()
            assert statuses(await runtime.run_dag(dag_of(Step))) == {"step": "finished"}


async def test_one_executor_cannot_serve_two_runtimes_at_once_but_one_after_another(go: Go) -> None:
    executor = LocalExecutor()
    for _ in range(2):
        async with go.runtime(executor=executor) as runtime:
            with pytest.raises(OptionError, match="in use already"):
                await go.runtime(executor=executor).__aenter__()
            assert statuses(await runtime.run_dag(dag_of(Step, ProcessNothing)))["step"] == "finished"
