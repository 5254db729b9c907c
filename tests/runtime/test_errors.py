"""How a failed run is raised, and what its error tells."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from steps import Boom, Fails, Go, LoopFails, ProcessFails, Step, dag_of

from gluepy import Task, parallel
from gluepy.errors import ExecutorBroken, RunError, RunStopped, TaskError
from gluepy.exec.port import Attempt, Emit, Executor, Outcome
from gluepy.runtime import RunResult
from gluepy.testing import HELD, ScriptedExecutor, assert_events, events_of, failed
from gluepy.testing import Step as Ends


class Deep(Task):
    """Fails because of something else, some calls down."""

    def run(self) -> None:
        try:
            helper({})
        except KeyError as error:
            error.add_note("the table is empty")
            raise Boom("no column") from error


class ProcessDeep(Deep):
    pool = "process"


def helper(table: dict[str, int]) -> int:
    secret = "hunter2"  # a local variable, which no traceback may show
    return table[secret[:0] + "price"]


async def test_run_error_groups_the_errors_of_all_failed_tasks(go: Go) -> None:
    with pytest.raises(RunError) as caught:
        await go(parallel(Fails(id="a"), LoopFails(id="b"), Step(id="c")), check=True, on_failure="continue")
    error = caught.value
    assert isinstance(error, ExceptionGroup)
    assert [each.task for each in error.exceptions if isinstance(each, TaskError)] == ["a", "b"]
    assert all(isinstance(each.__cause__, Boom) for each in error.exceptions)
    assert isinstance(error.result, RunResult)
    assert error.result.status == "failed"
    assert error.result.run_id == error.run_id
    assert str(error).startswith("2 tasks of DAG 'dag' failed")
    assert error.run_id in str(error)


async def test_except_star_takes_the_errors_of_users_apart(go: Go) -> None:
    caught: list[str] = []
    try:
        await go(Fails(id="a"), check=True)
    except* TaskError as group:
        assert isinstance(group, RunError)
        caught = [each.task for each in group.exceptions if isinstance(each, TaskError)]
    assert caught == ["a"]


async def test_parts_of_a_run_error_are_run_errors_of_the_same_run(go: Go) -> None:
    with pytest.raises(RunError) as caught:
        await go(parallel(Fails(id="a"), Fails(id="b")), check=True, on_failure="continue")
    match, rest = caught.value.split(lambda error: isinstance(error, TaskError) and error.task == "a")
    assert isinstance(match, RunError)
    assert isinstance(rest, RunError)
    assert match.run_id == rest.run_id == caught.value.run_id
    assert match.result is caught.value.result


async def test_run_error_and_its_task_errors_survive_pickling(go: Go) -> None:
    with pytest.raises(RunError) as caught:
        await go(Deep(id="a"), check=True)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copy, RunError)
    assert copy.run_id == caught.value.run_id
    assert str(copy) == str(caught.value)
    (error,), (original,) = copy.exceptions, caught.value.exceptions
    assert isinstance(error, TaskError)
    assert isinstance(original, TaskError)
    assert (error.task, error.type, error.message, error.stack) == (
        original.task,
        original.type,
        original.message,
        original.stack,
    )


@pytest.mark.parametrize("kind", [Deep, ProcessDeep])
async def test_task_error_has_the_users_frames_and_causes_and_no_others(go: Go, kind: type[Task]) -> None:
    result = await go(kind(id="a"))
    error = result.tasks["a"].error
    assert error is not None
    assert (error.type, error.message, error.attempt, error.reason) == ("steps.Boom", "no column", 1, "exception")
    assert "in helper" in error.stack
    assert 'return table[secret[:0] + "price"]' in error.stack
    assert "KeyError: 'price'" in error.stack
    assert "the table is empty" in error.stack
    assert "direct cause" in error.stack
    assert "hunter2" not in error.stack.replace('secret = "hunter2"', "")
    assert "gluepy/exec" not in error.stack
    assert isinstance(error.__cause__, Boom)
    assert str(error) == "task 'a', attempt 1: steps.Boom: no column"


@pytest.mark.parametrize("kind", [Fails, ProcessFails])
async def test_users_exception_is_the_cause_also_from_a_process(go: Go, kind: type[Task]) -> None:
    result = await go(kind(id="a"))
    error = result.tasks["a"].error
    assert error is not None
    assert isinstance(error.__cause__, Boom)
    assert error.__cause__.args == ("as told",)


async def test_error_names_the_log_file_where_there_is_one(go: Go) -> None:
    result = await go(Fails(id="a"), capture=True)
    error = result.tasks["a"].error
    assert error is not None
    assert error.log == str(result.path / "logs" / "a.1.log")
    assert "as told" in (result.path / "logs" / "a.1.log").read_text()
    result = await go(Fails(id="a"))
    error = result.tasks["a"].error
    assert error is not None
    assert error.log == ""


async def test_without_check_the_result_tells(go: Go) -> None:
    result = await go(Fails(id="a"), Step(id="b"), check=False)
    assert result.status == "failed"
    assert result.tasks["a"].attempts == 1
    assert result.tasks["b"].status == "blocked"
    assert result.tasks["b"].attempts == 0
    assert dict(result.tasks).keys() == {"a", "b"}
    with pytest.raises(KeyError):
        result.tasks["c"]


# Broken infrastructure is not a failed task


async def test_broken_executor_stops_the_run_and_all_that_runs(go: Go) -> None:
    broken = ExecutorBroken("Engine", "it is unreachable", "start it")
    executor = ScriptedExecutor({"a": Ends(breaks=broken), "b": HELD})
    with pytest.raises(RunStopped) as caught:
        await go(parallel(Step(id="b"), Step(id="a")), Step(id="c"), executor=executor, run_id="run")
    assert (caught.value.run_id, caught.value.why, caught.value.hint) == (
        "run",
        "Engine: it is unreachable",
        "start it",
    )
    assert caught.value.__cause__ is broken
    assert executor.running == []
    events = events_of(go.settings.runs_root / "run")
    assert_events(events, "run.started", "run.failed")
    ended = [event for event in events if type(event).__name__ == "TaskCancelled"]
    assert {getattr(event, "task", "") for event in ended} == {"a", "b", "c"}


async def test_executor_that_raises_anything_else_stops_the_run_too(go: Go) -> None:
    executor = ScriptedExecutor({"a": Ends(breaks=ZeroDivisionError("oops"))})
    with pytest.raises(RunStopped, match="ScriptedExecutor raised ZeroDivisionError: oops") as caught:
        await go(Step(id="a"), executor=executor)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_executor_that_cannot_start_stops_the_run_before_anything_runs(go: Go) -> None:
    class Closed(Executor):
        async def __aenter__(self) -> Any:
            raise ExecutorBroken("Closed", "no workers")

        async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
            raise AssertionError

    with pytest.raises(ExecutorBroken, match="no workers"):
        await go(Step(id="a"), executor=Closed())


async def test_broken_executor_in_a_stream_is_raised_by_its_result(go: Go) -> None:
    executor = ScriptedExecutor({"a": Ends(breaks=ExecutorBroken("Engine", "gone"))})
    async with go.runtime(executor=executor) as runtime, runtime.stream_dag(dag_of(Step(id="a"))) as run:
        names = [type(event).__name__ async for event in run]
        with pytest.raises(RunStopped):
            await run.result()
    assert names[-1] == "RunFailed"


async def test_runtime_goes_on_after_a_stopped_run(go: Go) -> None:
    executor = ScriptedExecutor({"a": Ends(breaks=ExecutorBroken("Engine", "gone")), "b": failed()})
    async with go.runtime(executor=executor, concurrency=1) as runtime:
        with pytest.raises(RunStopped):
            await runtime.run_dag(dag_of(parallel(Step(id="a"), Step(id="x"))))
        assert (await runtime.run_dag(dag_of(Step(id="c")))).status == "finished"
