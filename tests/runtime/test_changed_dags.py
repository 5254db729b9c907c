"""Runs that go on after their DAG was edited: what is known of a task is known by its id, also when it was away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steps import Go, Region, Step, dag_of, statuses

from gluepy import each
from gluepy.core.events import TaskStarted
from gluepy.runtime import RunResult
from gluepy.testing import ScriptedExecutor, events_of, failed


async def sessions(go: Go, executor: ScriptedExecutor, *dags: Sequence[Any], **options: Any) -> RunResult:
    """One run, of another of the `dags` in each session."""
    async with go.runtime(executor=executor) as runtime:
        result = await runtime.run_dag(dag_of(*dags[0]), check=False, run_id="run", **options)
        for tasks in dags[1:]:
            result = await runtime.resume_run("run", dag=dag_of(*tasks), check=False)
    return result


async def test_a_task_that_was_taken_out_and_put_back_goes_on_where_it_was(go: Go) -> None:
    a, b, c = (Step(id=name) for name in "abc")
    executor = ScriptedExecutor({"b": failed()})
    last = await sessions(go, executor, (a, b, c), (a, c), (a, b, c), on_failure="continue")
    # `a` has finished for good; `c` follows `b`, which has not
    assert executor.started == [("a", 1), ("b", 1), ("c", 1), ("b", 2)]
    assert {task: result.attempts for task, result in last.tasks.items()} == {"a": 1, "b": 2, "c": 1}
    assert statuses(last) == {"a": "finished", "b": "failed", "c": "blocked"}
    started = [event for event in events_of(last) if isinstance(event, TaskStarted) and event.task == "b"]
    assert [(event.session, event.attempt) for event in started] == [(1, 1), (3, 2)]


async def test_a_finished_task_that_was_taken_out_and_put_back_does_not_run_again(go: Go) -> None:
    a, b, c = (Step(id=name) for name in "abc")
    executor = ScriptedExecutor()
    last = await sessions(go, executor, (a, b), (a, c), (a, b))
    assert executor.started == [("a", 1), ("b", 1), ("c", 1)]
    assert statuses(last) == {"a": "finished", "b": "finished"}


async def test_an_each_that_was_taken_out_and_put_back_is_not_asked_again(go: Go) -> None:
    asked: list[str] = []

    def regions() -> list[str]:
        asked.append("regions")
        return ["eu", "us"]

    executor = ScriptedExecutor({"region[region=us]": failed()})
    a, found = Step(id="a"), each(Region, region=regions)
    last = await sessions(go, executor, (a, found), (a,), (a, found))
    assert asked == ["regions"]
    assert executor.started == [
        ("a", 1), ("region[region=eu]", 1), ("region[region=us]", 1), ("region[region=us]", 2)
    ]  # fmt: skip
    assert {task: result.status for task, result in last.tasks.items() if result.attempts == 1} == {
        "a": "finished",
        "each-region": "finished",
        "region[region=eu]": "finished",
    }


async def test_what_an_each_finds_that_was_a_task_before_runs_again_in_a_new_attempt(go: Go) -> None:
    executor = ScriptedExecutor()
    last = await sessions(go, executor, (Region(region="eu"),), (each(Region, region=lambda: ["eu"]),))
    assert executor.started == [("region[region=eu]", 1), ("region[region=eu]", 2)]
    assert statuses(last) == {"each-region": "finished", "region[region=eu]": "finished"}


async def test_a_new_task_that_the_run_is_not_about_makes_nothing_run_again(go: Go) -> None:
    a, b, c = (Step(id=name) for name in "abc")
    executor = ScriptedExecutor()
    last = await sessions(go, executor, (a, c), (a, b, c), tasks=["a", "c"])
    assert executor.started == [("a", 1), ("c", 1)]
    assert statuses(last) == {"a": "finished", "b": "skipped", "c": "finished"}


async def test_a_task_that_the_run_is_not_about_any_more_is_left_out_and_not_told_of_as_running_again(go: Go) -> None:
    a, b, c = (Step(id=name) for name in "abc")
    executor = ScriptedExecutor({"c": failed()})
    async with go.runtime(executor=executor) as runtime:
        await runtime.run_dag(dag_of(a, b, c), check=False, run_id="run", from_task="b")
        async with runtime.stream_resume("run", dag=dag_of(c, b)) as run:
            assert run.plan is not None
            assert (run.plan.again, run.plan.waiting, run.plan.kept) == ({}, [], ["b"])
            last = await run.result()
    assert executor.started == [("b", 1), ("c", 1)]
    assert statuses(last) == {"c": "skipped", "b": "finished"}
