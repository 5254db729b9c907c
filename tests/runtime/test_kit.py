"""The kit for tests is to be trusted: the clock, the scripted executor, the assertions on events."""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from steps import Fails, Go, LoopStep, Notes, Region, Step, dag_of, statuses

from gluepy import Retry, each, parallel
from gluepy.core.events import TaskExpanded, TaskMetric
from gluepy.errors import OptionError, RunStopped
from gluepy.exec.executors import LocalExecutor
from gluepy.exec.port import Metric
from gluepy.testing import (
    HELD,
    RUNS,
    ScriptedExecutor,
    VirtualClock,
    assert_events,
    events_of,
    failed,
    happened,
    outline,
    settle,
    until,
    values,
)
from gluepy.testing import Step as Ends


async def test_clock_stands_still_until_it_is_moved() -> None:
    clock = VirtualClock(wall=1000)
    woken: list[float] = []

    async def sleep(until: float) -> None:
        await clock.sleep_until(until)
        woken.append(clock.now())

    async with anyio.create_task_group() as tasks:
        for when in (30, 10, 20, math.inf):
            tasks.start_soon(sleep, when)
        await settle()
        assert (woken, clock.now(), clock.wall()) == ([], 0, 1000)
        await clock.advance(20)
        assert (woken, clock.now(), clock.wall()) == ([10, 20], 20, 1020)
        await clock.advance(5)
        assert (woken, clock.now()) == ([10, 20], 25)
        await clock.advance(1000)
        assert (woken, clock.now()) == ([10, 20, 30], 1025)
        tasks.cancel_scope.cancel()


async def test_what_a_woken_task_awaits_next_is_awaited_in_the_same_move() -> None:
    clock = VirtualClock()
    times: list[float] = []

    async def tick() -> None:
        while True:
            await clock.sleep_until(clock.now() + 10)
            times.append(clock.now())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        await clock.advance(35)
        tasks.cancel_scope.cancel()
    assert times == [10, 20, 30]


async def test_clock_jumps_by_itself_when_everything_waits() -> None:
    clock = VirtualClock()
    seen: list[tuple[str, float]] = []

    async def tick(name: str, every: float, times: int) -> None:
        for _ in range(times):
            await clock.sleep_until(clock.now() + every)
            for _ in range(30):  # some work of its own before it waits again
                await anyio.lowlevel.checkpoint()
            seen.append((name, clock.now()))

    async with clock.autojump(), anyio.create_task_group() as tasks:
        tasks.start_soon(tick, "day", 86_400, 2)
        tasks.start_soon(tick, "half", 43_200, 3)
    assert [moment for _, moment in seen] == [43_200, 86_400, 86_400, 129_600, 172_800]
    assert [name for name, moment in seen if moment != 86_400] == ["half", "half", "day"]


async def test_what_the_block_of_a_jumping_clock_raises_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with VirtualClock().autojump():
            raise ZeroDivisionError
    with anyio.CancelScope() as scope:
        async with VirtualClock().autojump():
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught


async def test_two_who_wait_for_everybody_else_do_not_wait_for_each_other() -> None:
    done: list[str] = []

    async def work() -> None:
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        done.append("work")

    async def wait() -> None:
        await settle()
        done.append("settled")

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            for each in (work, wait, wait):
                tasks.start_soon(each)
    assert done == ["work", "settled", "settled"]


async def test_wall_clock_may_be_set_and_now_is_not_touched() -> None:
    clock = VirtualClock()
    await clock.advance(10)
    clock.set_wall(5)
    assert (clock.now(), clock.wall()) == (10, 5)
    await clock.advance(1)
    assert (clock.now(), clock.wall()) == (11, 6)


async def test_cancelled_sleeper_is_forgotten() -> None:
    clock = VirtualClock()
    with anyio.move_on_after(0.01):
        await clock.sleep_until(10)
    assert clock._sleepers == {}


async def test_script_may_name_tasks_by_id_or_label_and_attempts_one_by_one(go: Go) -> None:
    class Again(Step):
        label = "again"
        retries = 5

    clock = VirtualClock()
    executor = ScriptedExecutor({"again": [failed(), failed(), Ends()], "own": [failed(), Ends()]}, clock=clock)
    async with clock.autojump():
        result = await go(Again, Again(id="own"), Step, executor=executor, clock=clock)
    assert {id: task.attempts for id, task in result.tasks.items()} == {"again": 3, "own": 2, "step": 1}
    assert executor.started == [("again", 1), ("again", 2), ("again", 3), ("own", 1), ("own", 2), ("step", 1)]


async def test_script_tells_what_it_is_told_to(go: Go) -> None:
    executor = ScriptedExecutor({"step": Ends(emits=[Metric("rows", 3.0)])})
    result = await go(Step, executor=executor)
    assert [(each.name, each.value) for each in events_of(result) if isinstance(each, TaskMetric)] == [("rows", 3.0)]


async def test_attempts_fail_as_told_among_others_that_do_their_work(go: Go, notes: Notes) -> None:
    class Again(Step):
        label = "again"
        retries = Retry(attempts=3, wait_s=0)

    lost = Ends(failed(reason="lost"), runs=True)  # after its work was done
    executor = ScriptedExecutor({"again": [failed(), lost, RUNS]}, real=LocalExecutor())
    result = await go(LoopStep, Again, executor=executor)
    assert {id: task.attempts for id, task in result.tasks.items()} == {"loopstep": 1, "again": 3}
    assert notes.lines() == [
        [what, task, attempt, str(os.getpid())]
        for task, attempt in (("loopstep", "1"), ("again", "2"), ("again", "3"))
        for what in ("begin", "end")
    ]


async def test_work_that_ends_badly_is_not_glossed_over(go: Go) -> None:
    for told in (RUNS, Ends(failed(reason="lost"), runs=True)):
        result = await go(Fails, executor=ScriptedExecutor({"fails": told}, real=LocalExecutor()))
        error = result.tasks["fails"].error
        assert error is not None
        assert (error.reason, error.type) == ("exception", "steps.Boom")


async def test_held_attempts_wait_for_their_release_and_stay_open(go: Go) -> None:
    executor = ScriptedExecutor({"a": HELD, "b": HELD})
    dag = dag_of(parallel(Step(id="a"), (Step(id="b"), Step(id="c"))))
    async with go.runtime(executor=executor) as runtime, runtime.stream_dag(dag) as run:
        await executor.wait_for("a")
        await executor.wait_for("b")
        assert sorted(executor.running) == [("a", 1), ("b", 1)]
        executor.release("b")
        await executor.wait_for("c")
        assert executor.running[0] == ("a", 1)
        executor.release()
        assert (await run.result()).status == "finished"
    assert executor.most == 2


async def test_until_gives_up_in_the_end() -> None:
    with pytest.raises(TimeoutError):
        await until(lambda: False, 0.02)


async def test_assertion_on_events_takes_them_in_order_and_others_between(go: Go) -> None:
    class Again(Step):
        retries = 1

    clock = VirtualClock()
    executor = ScriptedExecutor({"a": [failed(), Ends()]}, clock=clock)
    async with clock.autojump():
        events = events_of(await go(Again(id="a"), executor=executor, clock=clock))
    assert outline(events) == [
        "run.started",
        "task.started a",
        "task.retrying a",
        "task.started a #2",
        "task.finished a #2",
        "run.finished",
    ]
    assert outline(events, without=["task.started", "task.retrying"]) == [
        "run.started",
        "task.finished a #2",
        "run.finished",
    ]
    assert_events(events)
    assert_events(events, "run.started", "task.started a #2", "run.finished")
    assert_events(events, "task.started", happened("task.started", task="a", attempt=2))
    assert_events(events, happened("task.retrying", error_message="as told", reason="exception"))
    for wrong in (
        ["task.finished a"],
        ["run.finished", "run.started"],
        ["run.started", "run.started"],
        [happened("task.retrying", reason="timeout")],
        [happened("task.started", nosuch=None)],
    ):
        with pytest.raises(AssertionError, match="the events were:"):
            assert_events(events, *wrong)


async def test_failed_assertion_shows_what_was_missed_after_what_and_what_happened(go: Go) -> None:
    events = events_of(await go(Step(id="a"), executor=ScriptedExecutor()))
    with pytest.raises(AssertionError) as caught:
        assert_events(events, "task.started a", "task.failed a")
    text = str(caught.value)
    assert text.startswith("no event 'task.failed a' after task.started a (event 2); the events were:")
    assert text.splitlines()[1:] == [
        "     1 run.started",
        "     2 task.started a",
        "     3 task.finished a",
        "     4 run.finished",
    ]


async def test_events_of_a_record_with_a_gap_or_a_bad_line_are_refused(go: Go) -> None:
    result = await go(Step(id="a"), executor=ScriptedExecutor())
    file = result.path / "events.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:1], *lines[2:]]))
    with pytest.raises(AssertionError, match=r"missing from .*: 1"):
        events_of(result)
    file.write_bytes(b"".join([*lines, lines[-1]]))
    with pytest.raises(AssertionError, match=r"twice in .*: 1"):
        events_of(result)
    file.write_bytes(b"".join([*lines, b"nonsense\n"]))
    with pytest.raises(AssertionError, match=r"unreadable lines in .*: 1"):
        events_of(result)


class Hasty(Region):
    timeout_s = 5


@pytest.mark.parametrize("real", [False, True])
async def test_clock_stands_still_while_a_function_finds_values(go: Go, real: bool) -> None:
    clock, asked, answer = VirtualClock(), threading.Event(), threading.Event()
    executor: Any = LocalExecutor() if real else ScriptedExecutor(clock=clock)

    def regions() -> list[str]:
        asked.set()
        assert answer.wait(240)
        return ["eu"]

    dag = dag_of(each(Hasty, region=regions))
    async with (
        clock.autojump(),
        go.runtime(executor=executor, clock=clock) as runtime,
        runtime.stream_dag(dag) as run,
    ):
        await until(asked.is_set)
        for _ in range(5):
            await settle()
        assert clock.now() == 0
        answer.set()
        result = await run.result()
    assert statuses(result) == {"each-hasty": "finished", "hasty[region=eu]": "finished"}


async def test_values_of_an_each_are_scripted(go: Go) -> None:
    def regions() -> list[str]:
        raise AssertionError("nobody asks it")

    clock = VirtualClock()
    script: Any = {"each-folded": [failed(), Ends(values={"region": ["eu", "us"]}, lasts_s=3)]}

    class Folded(Hasty):
        fold: int
        retries = Retry(attempts=3, wait_s=60, jitter=0)

    tasks = each(Folded, region=regions, fold=[0, 1]), Step(id="z")
    executor = ScriptedExecutor(script, clock=clock)
    async with clock.autojump(), go.runtime(executor=executor, clock=clock) as runtime:
        result = await runtime.run_dag(dag_of(*tasks))
    assert result.duration_s == 63
    (found,) = (event.values for event in events_of(result) if isinstance(event, TaskExpanded))
    assert found == [["eu", 0], ["eu", 1], ["us", 0], ["us", 1]]
    assert [task for task, _ in executor.started if task != "z"] == [
        *("each-folded", "each-folded"), *(f"folded[region={r},fold={f}]" for r in ("eu", "us") for f in (0, 1))
    ]  # fmt: skip


async def test_scripted_values_are_held_to_what_the_parameters_take(go: Go) -> None:
    class Counted(Step):
        n: int

    def found() -> list[int]:
        return [1]

    result = await go(each(Counted, n=found), executor=ScriptedExecutor({"each-counted": values(n=["x"])}))
    error = result.tasks["each-counted"].error
    assert error is not None
    assert "a value for 'n' is 'x'; expected int" in error.message
    with pytest.raises(RunStopped, match="values of 'each-counted' are of m; give n"):
        await go(each(Counted, n=found), executor=ScriptedExecutor({"each-counted": values(m=[1])}))
    with pytest.raises(RunStopped, match="'a' asks for no values"):
        await go(Step(id="a"), executor=ScriptedExecutor({"a": values(m=[1])}))


@pytest.mark.parametrize(
    ("script", "strict", "told"),
    [
        ({"wrok": failed()}, False, "script: the DAG has no task 'wrok'; did you mean 'work'?"),
        ({"each-regoin": failed()}, False, "did you mean 'each-region'?"),
        ({"regoin[region=eu]": failed()}, True, "did you mean"),
        ({"other": failed()}, True, "the DAG has no task 'other'; its tasks are each-region, region, work"),
        ({"x[region=eu]": failed()}, True, "the DAG has no task 'x[region=eu]'"),
        ({"other": failed()}, False, ""),
        ({"work": HELD, "x": HELD, "region[region=eu]": failed(), "each-region": failed()}, True, ""),
    ],
)
async def test_script_that_names_what_is_not_there_is_refused(go: Go, script: Any, strict: bool, told: str) -> None:
    class Work(Step):
        pass

    executor = ScriptedExecutor(script, strict=strict)
    executor.release()
    tasks = parallel(Work, Work(id="x")), each(Region, region=lambda: ["eu"])
    if told:
        with pytest.raises(OptionError) as caught:
            await go(*tasks, executor=executor)
        assert told in str(caught.value)
        assert executor.started == []
    else:
        await go(*tasks, executor=executor)
