"""How a task ends decides what starts after it: triggers, `Skip`, `on_failure`, and what the run says in the end."""

from __future__ import annotations

from typing import Any

import pytest
from steps import Boom, Fails, Go, LoopFails, Notes, Step, dag_of, statuses

from gluepy import Retry, Skip, Task, each, parallel
from gluepy.core.events import RunFailed, TaskBlocked, TaskFailed, TaskRetrying, TaskSkipped
from gluepy.testing import HELD, ScriptedExecutor, assert_events, events_of, failed, happened, skipped
from gluepy.testing import Step as Ends

FAILED, SKIPPED = failed(), skipped("nothing new")


class AllSuccess(Step):
    label = "after"


class NoneFailed(AllSuccess):
    label = "after"
    trigger = "none_failed"


class MinOneSuccess(AllSuccess):
    label = "after"
    trigger = "none_failed_min_one_success"


class AllDone(AllSuccess):
    label = "after"
    trigger = "all_done"


class OneFailed(AllSuccess):
    label = "after"
    trigger = "one_failed"


class Retried(Step):
    retries = Retry(attempts=2, wait_s=0.2, jitter=0)


# The end of the task before (blocked: it never started, because the one before it failed), and that of the task after.
TABLE: dict[type[Task], dict[str, str]] = {
    AllSuccess: {"finished": "finished", "failed": "blocked", "skipped": "skipped", "blocked": "blocked"},
    NoneFailed: {"finished": "finished", "failed": "blocked", "skipped": "finished", "blocked": "blocked"},
    MinOneSuccess: {"finished": "finished", "failed": "blocked", "skipped": "skipped", "blocked": "blocked"},
    AllDone: {"finished": "finished", "failed": "finished", "skipped": "finished", "blocked": "finished"},
    OneFailed: {"finished": "skipped", "failed": "finished", "skipped": "skipped", "blocked": "finished"},
}


@pytest.mark.parametrize("on_failure", ["drain", "continue"])
@pytest.mark.parametrize("before", ["finished", "failed", "skipped", "blocked"])
@pytest.mark.parametrize("after", TABLE)
async def test_trigger_decides_what_follows_an_end(go: Go, after: type[Task], before: str, on_failure: Any) -> None:
    ends: dict[str, Any] = {"failed": {"b": FAILED}, "skipped": {"b": SKIPPED}, "blocked": {"a": FAILED}}
    executor = ScriptedExecutor(ends.get(before, {}))
    result = await go(Step(id="a"), Step(id="b"), after, executor=executor, on_failure=on_failure)
    assert statuses(result)["b"] == before
    assert statuses(result)["after"] == TABLE[after][before]
    assert (("after", 1) in executor.started) == (TABLE[after][before] == "finished")
    assert result.status == ("failed" if before in ("failed", "blocked") else "finished")


@pytest.mark.parametrize(
    ("after", "ends", "expected"),
    [
        (AllSuccess, {"b": SKIPPED, "c": FAILED}, "blocked"),
        (NoneFailed, {"b": SKIPPED}, "finished"),
        (NoneFailed, {"b": SKIPPED, "c": FAILED}, "blocked"),
        (AllDone, {"b": SKIPPED, "c": FAILED}, "finished"),
        (OneFailed, {"b": SKIPPED}, "skipped"),
        (OneFailed, {"b": SKIPPED, "c": FAILED}, "finished"),
    ],
)
async def test_trigger_looks_at_all_tasks_before(go: Go, after: type[Task], ends: Any, expected: str) -> None:
    result = await go(parallel(Step(id="b"), Step(id="c")), after, executor=ScriptedExecutor(ends))
    assert statuses(result)["after"] == expected


async def test_skip_is_handed_down_a_chain_until_a_trigger_takes_it(go: Go) -> None:
    executor = ScriptedExecutor({"a": SKIPPED})
    result = await go(Step(id="a"), Step(id="b"), NoneFailed(id="c"), Step(id="d"), executor=executor)
    assert statuses(result) == {"a": "skipped", "b": "skipped", "c": "finished", "d": "finished"}
    told = {event.task: (event.reason, event.why) for event in events_of(result) if isinstance(event, TaskSkipped)}
    assert told == {"a": ("skip", "nothing new"), "b": ("upstream", "")}
    assert result.status == "finished"


@pytest.mark.parametrize("is_async", [False, True])
async def test_raised_skip_ends_a_real_task_as_skipped(go: Go, is_async: bool) -> None:
    class Plain(Task):
        label = "picky"

        def run(self) -> None:
            raise Skip("nothing new")

    class Async(Task):
        label = "picky"

        async def run(self) -> None:
            raise Skip("nothing new")

    result = await go(Async if is_async else Plain)
    assert statuses(result) == {"picky": "skipped"}
    assert_events(events_of(result), happened("task.skipped", task="picky", reason="skip", why="nothing new"))


async def test_failed_task_blocks_only_its_descendants(go: Go) -> None:
    executor = ScriptedExecutor({"a": FAILED})
    left = (Step(id="a"), Step(id="b"), Step(id="c"))
    right = (Step(id="x"), Step(id="y"))
    result = await go(parallel(left, right), Step(id="end"), executor=executor, on_failure="continue")
    ended = {"a": "failed", "b": "blocked", "c": "blocked", "x": "finished", "y": "finished", "end": "blocked"}
    assert statuses(result) == ended
    blocked = {event.task: event.blocked_by for event in events_of(result) if isinstance(event, TaskBlocked)}
    assert blocked == {"b": ["a"], "c": ["a"], "end": ["a"]}


async def test_blocked_task_names_every_failure_before_it(go: Go) -> None:
    executor = ScriptedExecutor({"a": FAILED, "b": FAILED})
    tasks = (parallel(Step(id="a"), Step(id="b"), Step(id="c")), Step(id="end"))
    result = await go(*tasks, executor=executor, on_failure="continue")
    (blocked,) = (event for event in events_of(result) if isinstance(event, TaskBlocked))
    assert (blocked.task, sorted(blocked.blocked_by)) == ("end", ["a", "b"])


async def test_after_a_failure_drain_lets_finish_what_runs_and_starts_nothing(go: Go) -> None:
    executor = ScriptedExecutor({"a": FAILED, "b": HELD})
    tasks = parallel((Step(id="b"), Step(id="c")), Step(id="a"))
    async with go.runtime(executor=executor) as runtime, runtime.stream_dag(dag_of(tasks), check=False) as run:
        async for event in run:
            if isinstance(event, TaskFailed):
                assert executor.running == [("b", 1)]
                executor.release("b")
        result = await run.result()
    assert statuses(result) == {"a": "failed", "b": "finished", "c": "blocked"}
    assert ("c", 1) not in executor.started


async def test_drain_lets_a_task_that_began_have_its_next_attempt(go: Go) -> None:
    executor = ScriptedExecutor({"a": Ends(FAILED, held=True), "twice": [FAILED, Ends()]})
    tasks = parallel(Step(id="a"), Retried(id="twice"))
    async with go.runtime(executor=executor) as runtime, runtime.stream_dag(dag_of(tasks), check=False) as run:
        async for event in run:
            if isinstance(event, TaskRetrying):
                executor.release("a")
        result = await run.result()
    assert statuses(result) == {"a": "failed", "twice": "finished"}


async def test_drain_still_starts_what_the_failure_is_for(go: Go) -> None:
    executor = ScriptedExecutor({"a": FAILED})
    tasks = parallel((Step(id="a"), OneFailed(id="mend"), Step(id="tidy")), (Step(id="x"), Step(id="y")))
    result = await go(tasks, executor=executor, concurrency=1)
    assert statuses(result) == {"a": "failed", "mend": "finished", "tidy": "finished", "x": "blocked", "y": "blocked"}
    assert result.status == "failed"


async def test_continue_runs_whatever_does_not_depend_on_the_failure(go: Go) -> None:
    executor = ScriptedExecutor({"a": FAILED})
    tasks = parallel((Step(id="a"), Step(id="b")), (Step(id="x"), Step(id="y")))
    result = await go(tasks, executor=executor, concurrency=1, on_failure="continue")
    assert statuses(result) == {"a": "failed", "b": "blocked", "x": "finished", "y": "finished"}


async def test_cancel_stops_what_runs_and_starts_nothing(go: Go) -> None:
    executor = ScriptedExecutor({"a": FAILED, "b": HELD, "d": HELD})
    tasks = parallel((Step(id="b"), Step(id="c")), Step(id="d"), Step(id="a"))
    result = await go(tasks, executor=executor, on_failure="cancel", concurrency=3)
    assert statuses(result) == {"a": "failed", "b": "cancelled", "c": "blocked", "d": "cancelled"}
    assert sorted(executor.stopped) == [("b", 1), ("d", 1)]
    assert result.status == "failed"
    (ended,) = (event for event in events_of(result) if isinstance(event, RunFailed))
    assert ended.failed == ["a"]


async def test_cancel_ends_a_task_that_waits_for_its_next_attempt(go: Go) -> None:
    executor = ScriptedExecutor({"a": Ends(FAILED, held=True), "twice": [FAILED, Ends()]})
    dag = dag_of(parallel(Step(id="a"), Retried(id="twice")))
    runtime = go.runtime(executor=executor)
    async with runtime, runtime.stream_dag(dag, check=False, on_failure="cancel") as run:
        async for event in run:
            if isinstance(event, TaskRetrying):
                executor.release("a")
        result = await run.result()
    assert statuses(result) == {"a": "failed", "twice": "cancelled"}
    assert ("twice", 2) not in executor.started


@pytest.mark.parametrize("kind", [Fails, LoopFails])
async def test_real_failure_in_each_place_ends_the_run_as_failed(go: Go, notes: Notes, kind: type[Task]) -> None:
    result = await go(kind(id="a"), Step(id="b"), AllDone(id="c"))
    assert statuses(result) == {"a": "failed", "b": "blocked", "c": "finished"}
    assert result.status == "failed"
    error = result.tasks["a"].error
    assert error is not None
    assert isinstance(error.__cause__, Boom)
    assert (error.type, error.message) == ("steps.Boom", "as told")
    assert notes.of("end") == ["c"]


async def test_failed_instance_of_an_each_leaves_the_others_alone(go: Go) -> None:
    class Region(Task):
        region: str

        def run(self) -> None:
            if self.region == "us":
                raise Boom(self.region)

    result = await go(each(Region, region=["eu", "us", "asia"]), AllDone(id="after"), on_failure="continue")
    assert statuses(result) == {
        "region[region=eu]": "finished",
        "region[region=us]": "failed",
        "region[region=asia]": "finished",
        "after": "finished",
    }


class Measures(Task):
    def run(self) -> None:
        self.metric("rows", 1)
        self.metric("rows", 2)


class SkipsItself(Task):
    def run(self) -> None:
        raise Skip("nothing new")


async def test_result_says_what_was_measured_and_why_tasks_have_not_finished(go: Go) -> None:
    result = await go(parallel(Measures, SkipsItself, Fails), AllSuccess)
    assert result.metrics == {"measures": {"rows": 2.0}}
    assert result.reasons == {"skipsitself": "skip", "fails": "exception", "after": "blocked by fails"}
    assert result.tasks["fails"].reason == "exception"
    assert list(result.tasks["after"].blocked_by) == ["fails"]
    assert repr(result).startswith("<RunResult dag failed, 4 tasks, ")
    assert repr(result).endswith(f" s, run {result.run_id}>")
