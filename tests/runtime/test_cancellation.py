"""Whoever cancels a run stops its work, wherever it runs; nothing is left running, and the log says how it ended."""

from __future__ import annotations

import anyio
import psutil
import pytest
from pools import Parent
from steps import WAITERS, Go, Notes, Step, dag_of, statuses

from gluepy import Retry, Task, parallel
from gluepy.core.events import RunCancelled, TaskCancelled, TaskRetrying
from gluepy.errors import RunError
from gluepy.runtime import RunCancelledError, Runtime
from gluepy.testing import HELD, ScriptedExecutor, assert_events, events_of, failed, outline, until

POOLS = pytest.mark.parametrize("pool", WAITERS)


async def let_threads_go(go: Go, notes: Notes, pool: str) -> None:
    if pool == "thread":
        (go.settings.runs_root.parent / "data" / "go").touch()
        await until(lambda: notes.of("end") == ["wait"])


def assert_nothing_runs(notes: Notes, pool: str) -> None:
    match pool:
        case "loop":
            assert notes.of("stopped") == ["wait"]
        case "process":
            assert not [pid for pid in notes.pids("wait") if psutil.pid_exists(pid)]
    assert notes.of("end") == []


@POOLS
async def test_cancelled_scope_cancels_the_run_and_the_cancellation_passes(go: Go, notes: Notes, pool: str) -> None:
    passed = False
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def cancel() -> None:
                await until(lambda: notes.of("begin") == ["wait"])
                scope.cancel()

            tasks.start_soon(cancel)
            await go(WAITERS[pool](id="wait"), Step(id="never"), run_id="run")
            passed = True
    assert scope.cancelled_caught
    assert not passed
    assert_nothing_runs(notes, pool)
    assert outline(events_of(go.settings.runs_root / "run")) == [
        "run.started", "task.started wait", "task.cancelled wait", "task.cancelled never", "run.cancelled"
    ]  # fmt: skip
    cancelled = [each for each in events_of(go.settings.runs_root / "run") if isinstance(each, TaskCancelled)]
    assert [(each.task, each.attempt, each.abandoned) for each in cancelled] == [
        ("wait", 1, pool == "thread"),
        ("never", 0, False),
    ]
    await let_threads_go(go, notes, pool)


@POOLS
async def test_cancelled_run_ends_as_cancelled_and_its_runtime_goes_on(go: Go, notes: Notes, pool: str) -> None:
    async with go.runtime() as runtime:
        async with runtime.stream_dag(dag_of(WAITERS[pool](id="wait"), Step(id="never")), check=False) as run:
            await until(lambda: notes.of("begin") == ["wait"])
            run.cancel()
            run.cancel()
            result = await run.result()
        assert_nothing_runs(notes, pool)
        assert result.status == "cancelled"
        assert statuses(result) == {"wait": "cancelled", "never": "cancelled"}
        assert sum(isinstance(event, RunCancelled) for event in events_of(result)) == 1
        assert (await runtime.run_dag(dag_of(Step(id="next")))).status == "finished"
    if pool == "thread":
        (go.settings.runs_root.parent / "data" / "go").touch()
        await until(lambda: "wait" in notes.of("end"))


@POOLS
async def test_leaving_a_stream_early_cancels_its_run(go: Go, notes: Notes, pool: str) -> None:
    async with go.runtime() as runtime:
        async with runtime.stream_dag(dag_of(WAITERS[pool](id="wait"))) as run:
            await until(lambda: notes.of("begin") == ["wait"])
        assert_nothing_runs(notes, pool)
        assert_events(events_of(run), "task.cancelled wait", "run.cancelled")
    await let_threads_go(go, notes, pool)


async def test_error_in_the_block_of_a_stream_cancels_its_run_and_comes_out_as_it_is(go: Go, notes: Notes) -> None:
    with pytest.raises(ZeroDivisionError):
        async with go.runtime() as runtime, runtime.stream_dag(dag_of(WAITERS["loop"](id="wait")), run_id="run"):
            await until(lambda: notes.of("begin") == ["wait"])
            raise ZeroDivisionError
    assert_events(events_of(go.settings.runs_root / "run"), "task.cancelled wait", "run.cancelled")


async def test_scope_that_is_cancelled_from_the_start_starts_nothing(go: Go) -> None:
    executor = ScriptedExecutor()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await go(Step(id="a"), executor=executor)
    assert scope.cancelled_caught
    assert executor.started == []


async def test_run_cancelled_before_anything_started_starts_nothing(go: Go, notes: Notes) -> None:
    async with go.runtime() as runtime, runtime.stream_dag(dag_of(Step(id="a"), Step(id="b")), check=False) as run:
        run.cancel()
        result = await run.result()
    assert statuses(result) == {"a": "cancelled", "b": "cancelled"}
    assert notes.lines() == []


async def test_cancel_after_the_end_changes_nothing(go: Go) -> None:
    async with go.runtime() as runtime, runtime.stream_dag(dag_of(Step(id="a"))) as run:
        assert (await run.result()).status == "finished"
        run.cancel()
        assert (await run.result()).status == "finished"
    assert outline(events_of(run))[-1] == "run.finished"


async def test_cancelled_run_says_so_to_whoever_waits_for_its_result(go: Go) -> None:
    executor = ScriptedExecutor({"a": HELD})
    async with go.runtime(executor=executor) as runtime, runtime.stream_dag(dag_of(Step(id="a"))) as run:
        await executor.wait_for("a")
        run.cancel()
        with pytest.raises(RunError) as caught:
            await run.result()
    (error,) = caught.value.exceptions
    assert isinstance(error, RunCancelledError)
    assert error.run_id == run.id


async def test_task_that_waits_for_its_next_attempt_is_cancelled_too(go: Go) -> None:
    class Again(Step):
        retries = Retry(attempts=2, wait_s=3600)

    executor = ScriptedExecutor({"again": failed()})
    async with go.runtime(executor=executor) as runtime, runtime.stream_dag(dag_of(Again), check=False) as run:
        async for event in run:
            if isinstance(event, TaskRetrying):
                run.cancel()
        result = await run.result()
    assert statuses(result) == {"again": "cancelled"}


async def test_failures_before_the_cancellation_are_kept(go: Go) -> None:
    executor = ScriptedExecutor({"a": failed(), "b": HELD})
    dag = dag_of(parallel(Step(id="a"), Step(id="b")))
    async with go.runtime(executor=executor) as runtime, runtime.stream_dag(dag) as run:
        await executor.wait_for("b")
        await until(lambda: "task.failed a" in outline(events_of(run)))
        run.cancel()
        with pytest.raises(RunError) as caught:
            await run.result()
    assert [type(error).__name__ for error in caught.value.exceptions] == ["TaskError", "RunCancelledError"]
    assert caught.value.result.status == "cancelled"  # type: ignore[attr-defined]


async def test_loop_task_that_cleans_up_slowly_is_waited_for(go: Go, notes: Notes) -> None:
    class Tidy(Task):
        async def run(self) -> None:
            (self.storage / "began").touch()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.1)
                    (self.storage / "tidied").touch()

    data = go.settings.runs_root.parent / "data"
    async with go.runtime() as runtime, runtime.stream_dag(dag_of(Tidy)):
        await until((data / "began").exists)
    assert (data / "tidied").exists()


async def test_process_is_killed_with_all_that_it_started(go: Go, notes: Notes) -> None:
    data = go.settings.runs_root.parent / "data"
    async with go.runtime() as runtime, runtime.stream_dag(dag_of(Parent(id="parent"))):
        await until((data / "family").exists)
        family = [int(pid) for pid in (data / "family").read_text().split()]
        assert len(family) == 3
        assert all(psutil.pid_exists(pid) for pid in family)
    await until(lambda: not any(psutil.pid_exists(pid) for pid in family), 120)


async def test_many_runs_are_cancelled_by_one_scope(go: Go) -> None:
    executor = ScriptedExecutor({"a": HELD})

    async def run(runtime: Runtime, number: int) -> None:
        await runtime.run_dag(dag_of(Step(id="a")), run_id=f"run{number}")

    async with go.runtime(executor=executor) as runtime:
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(run, runtime, number)
            await until(lambda: len(executor.running) == 5)
            tasks.cancel_scope.cancel()
        assert executor.running == []
    for number in range(5):
        assert_events(events_of(go.settings.runs_root / f"run{number}"), "task.cancelled a", "run.cancelled")


async def test_cancelling_one_run_leaves_the_others_alone(go: Go) -> None:
    executor = ScriptedExecutor({"a": HELD})
    dag = dag_of(Step(id="a"))
    async with go.runtime(executor=executor) as runtime, runtime.stream_dag(dag, check=False) as first:
        second = runtime.stream_dag(dag, check=False)
        async with second as run:
            await until(lambda: len(executor.running) == 2)
            first.cancel()
            assert (await first.result()).status == "cancelled"
            assert executor.running == [("a", 1)]
            executor.release()
            assert (await run.result()).status == "finished"
