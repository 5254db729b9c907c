"""The thread that has ended an attempt takes the engine's next turn: tasks in threads follow one another without the
event loop, and are told, stopped and recorded as all others are."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar, Self

import anyio
import anyio.lowlevel
import pytest
from log_rules import check_log
from steps import PATIENCE_S, Go, LoopStep, Notes, Step, dag_of, note, statuses
from turns import Turns, in_worker_thread, taking_turns

from gluepy import DAG, Retry, Task, current_task, parallel
from gluepy.conf.schema import Settings
from gluepy.core import events as e
from gluepy.core.scheduler import Scheduler
from gluepy.errors import RunStopped
from gluepy.exec.executors import LocalExecutor
from gluepy.exec.port import Attempt, Emit, Executor, Outcome
from gluepy.runtime import RunResult, Runtime
from gluepy.testing import events_of, outline, until


class Gate:
    """A thread waits at it, and says so."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.open.wait(PATIENCE_S)


async def no_thread_is_left() -> None:
    await until(lambda: not any(thread.name.startswith("gluepy-thread") for thread in threading.enumerate()))


async def test_tasks_in_threads_go_on_while_the_event_loop_is_held_up(go: Go) -> None:
    first, last = Gate(), threading.Event()

    class First(Step):
        def run(self) -> None:
            first.wait()

    class Last(Step):
        def run(self) -> None:
            last.set()

    class HoldsUp(Task):
        async def run(self) -> None:
            await until(first.reached.is_set)
            first.open.set()
            assert last.wait(PATIENCE_S)  # without giving the event loop back

    result = await go(parallel(HoldsUp, (First, Step, Last)))
    assert result.status == "finished"


async def test_tasks_in_one_thread_see_their_own_context(go: Go) -> None:
    ambient: ContextVar[str] = ContextVar("ambient", default="unset")
    seen: list[tuple[str, str, int]] = []

    class Sets(Task):
        number: int

        def run(self) -> None:
            seen.append((ambient.get(), current_task().log._context["task"], threading.get_ident()))
            ambient.set(f"by {self.number}")

    await go(*(Sets(number=number) for number in range(3)))
    assert [value for value, _, _ in seen] == ["unset"] * 3
    assert [task for _, task, _ in seen] == [f"sets[number={number}]" for number in range(3)]
    assert len({thread for _, _, thread in seen}) == 1


async def test_each_of_the_attempts_in_a_thread_has_its_own_log_file_and_is_heard_before_it_ends(go: Go) -> None:
    heard = {word: threading.Event() for word in "abc"}
    threads: set[int] = set()

    class Says(Task):
        word: str

        def run(self) -> None:
            print(f"word {self.word}")
            threads.add(threading.get_ident())
            assert heard[self.word].wait(PATIENCE_S)

    dag = dag_of(*(Says(word=word) for word in heard))
    async with go.runtime() as runtime, runtime.stream_dag(dag, capture=True) as run:
        async for event in run:
            if isinstance(event, e.TaskOutput):
                heard[event.line[-1]].set()
        assert (await run.result()).status == "finished"
    logs = sorted(file.read_text() for file in (run.path / "logs").iterdir())
    assert (logs, len(threads)) == (["word a\n", "word b\n", "word c\n"], 1)


class Waits(Step):
    gate: ClassVar[Gate]

    def run(self) -> None:
        note(self.storage, "begin")
        self.gate.wait()
        note(self.storage, "end")


class WaitsDAG(DAG):
    tasks = (Step(id="a"), Waits(id="b"), Step(id="c"))


async def by_the_run(go: Go, dag: Any, when: Callable[[], Awaitable[None]]) -> Any:
    async with go.runtime() as runtime, runtime.stream_dag(dag, check=False) as run:
        await when()
        run.cancel()
        await run.result()
    return run


async def by_the_scope(go: Go, dag: Any, when: Callable[[], Awaitable[None]]) -> Any:
    run: Any = None
    with anyio.CancelScope() as scope:
        async with go.runtime() as runtime, runtime.stream_dag(dag, check=False) as run:
            await when()
            scope.cancel()
            await run.result()
    return run


CANCELLING = pytest.mark.parametrize("cancelled", [by_the_run, by_the_scope])


@CANCELLING
async def test_the_attempt_that_a_thread_has_gone_on_to_is_the_one_that_a_cancelled_run_abandons(
    go: Go, notes: Notes, cancelled: Callable[..., Awaitable[Any]]
) -> None:
    gate = Waits.gate = Gate()
    run = await cancelled(go, WaitsDAG, lambda: until(gate.reached.is_set))
    gate.open.set()
    await no_thread_is_left()
    events = events_of(run)
    assert outline(events)[1:] == [
        "task.started a",
        "task.finished a",
        "task.started b",
        "task.cancelled b",
        "task.cancelled c",
        "run.cancelled",
    ]
    assert [event.abandoned for event in events if isinstance(event, e.TaskCancelled)] == [True, False]
    assert notes.of("begin") == notes.of("end") == ["a", "b"]
    async with go.runtime() as runtime, runtime.stream_resume() as again:
        assert statuses(await again.result()) == {"a": "finished", "b": "finished", "c": "finished"}
    assert notes.of("begin") == ["a", "b", "b", "c"]


@CANCELLING
async def test_an_attempt_that_was_taken_up_and_is_cancelled_before_it_begins_never_begins(
    go: Go, notes: Notes, cancelled: Callable[..., Awaitable[Any]]
) -> None:
    turns, gate, due = Turns(), Gate(), threading.Event()

    class Ends(Step):
        def run(self) -> None:
            super().run()
            due.set()

    def left() -> None:
        if due.is_set() and in_worker_thread():
            due.clear()
            gate.wait()  # it has taken `b` up, and is held back

    turns.left = left

    class Held(Go):
        def runtime(self, **arguments: Any) -> Any:
            return taking_turns(go, turns, **arguments)

    dag = dag_of(Ends(id="a"), Step(id="b"), Step(id="c"))
    run = await cancelled(Held(go.settings), dag, lambda: until(gate.reached.is_set))
    gate.open.set()
    await no_thread_is_left()
    events = events_of(run)
    assert outline(events)[2:] == [
        "task.finished a",
        "task.started b",
        "task.cancelled b",
        "task.cancelled c",
        "run.cancelled",
    ]
    assert [event.abandoned for event in events if isinstance(event, e.TaskCancelled)] == [False, False]
    assert notes.of("begin") == ["a"]


async def test_a_later_attempt_of_a_thread_times_out_and_its_retry_waits_until_it_has_ended(go: Go) -> None:
    gate = Gate()
    begun: list[int] = []

    class TooLong(Step):
        timeout_s = 0.03
        retries = Retry(attempts=2, wait_s=0, jitter=0)

        def run(self) -> None:
            begun.append(threading.active_count())
            if len(begun) == 1:
                gate.wait()
                begun.append(0)

    async with go.runtime() as runtime, runtime.stream_dag(dag_of(Step(id="a"), TooLong, Step(id="z"))) as run:
        async for event in run:
            if isinstance(event, e.TaskRetrying):
                assert (event.task, event.attempt, event.reason, event.abandoned) == ("toolong", 1, "timeout", True)
                assert len(begun) == 1
                gate.open.set()
        result = await run.result()
    assert {task: told.attempts for task, told in result.tasks.items()} == {"a": 1, "toolong": 2, "z": 1}
    assert begun[1] == 0, "the retry began before"
    assert len(begun) == 3


class Sees(LocalExecutor):
    """Sees how every attempt ends."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        outcome = await super().run(attempt, emit)
        self.seen.append(f"{attempt.task} {outcome.status}")
        return outcome


class Delegates(Executor):
    """The same, by having one instead of being one."""

    def __init__(self) -> None:
        self.local = LocalExecutor()
        self.seen: list[str] = []

    async def __aenter__(self) -> Self:
        await self.local.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.local.__aexit__(None, None, None)

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        outcome = await self.local.run(attempt, emit)
        self.seen.append(f"{attempt.task} {outcome.status}")
        return outcome


@pytest.mark.parametrize("kind", [Sees, Delegates])
async def test_an_executor_that_has_the_local_one_do_its_work_sees_every_outcome(
    go: Go, kind: type[Sees | Delegates]
) -> None:
    executor = kind()
    result = await go(*(Step(id=str(number)) for number in range(4)), LoopStep(id="4"), executor=executor)
    assert executor.seen == [f"{number} finished" for number in range(5)]
    assert result.status == "finished"


async def test_an_error_of_the_engine_in_a_threads_turn_stops_the_run(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Scheduler.finish

    def fails(self: Scheduler, event: e.TaskFinished, node: int, now: float) -> int:
        if in_worker_thread():
            raise ZeroDivisionError
        return finish(self, event, node, now)

    monkeypatch.setattr(Scheduler, "finish", fails)
    with pytest.raises(RunStopped, match="ZeroDivisionError"), anyio.fail_after(PATIENCE_S):
        await go(Step(id="a"), Step(id="b"))


async def test_a_run_that_ends_in_a_thread_is_told_whole(go: Go) -> None:
    for _ in range(20):
        async with go.runtime() as runtime, runtime.stream_dag(dag_of(Step(id="a"), Step(id="b"))) as run:
            told = [event async for event in run]
            result: RunResult = await run.result()
        assert isinstance(told[-1], e.RunFinished)
        assert b"".join(map(e.encode, told)) == (result.path / "events.jsonl").read_bytes()


class Count:
    """How many are inside at once, and were at most."""

    def __init__(self) -> None:
        self.now = self.most = self.all = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.all += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self.now -= 1


class Counted(Task):
    """In a thread; one of all tasks, and of those that use a GPU."""

    number: int
    everyone: ClassVar[Count]
    on_gpu: ClassVar[Count]

    def run(self) -> None:
        with self.everyone:
            print(self.number)
            self.metric("number", self.number)


class CountedOnLoop(Counted):
    async def run(self) -> None:  # type: ignore[override]
        with self.everyone:
            print(self.number)
            if self.number % 3:
                await anyio.lowlevel.checkpoint()


class OnGpu(Counted):
    uses: ClassVar = {"gpu": 1}

    def run(self) -> None:
        with self.on_gpu:
            super().run()


class OnGpuOnLoop(CountedOnLoop):
    uses: ClassVar = {"gpu": 1}

    async def run(self) -> None:  # type: ignore[override]
        with self.on_gpu:
            await super().run()


def mixed(seed: int, count: int) -> dict[Task, tuple[Task, ...]]:
    """A graph of tasks of all these kinds, in threads above all; each after a few of those just before it."""
    draw = random.Random(seed)
    kinds = draw.choices([Counted, OnGpu, CountedOnLoop, OnGpuOnLoop], [6, 2, 2, 1], k=count)
    tasks: list[Task] = [kind(number=number) for number, kind in enumerate(kinds)]
    reach = draw.choice([2, 6, 20])  # a deep graph, or a wide one
    return {
        task: tuple(draw.sample(tasks[max(0, at - reach) : at], min(at, draw.randrange(3))))
        for at, task in enumerate(tasks)
    }


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads give way to each other a hundred times as often as usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 100)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("sync", ["batch", "commit"])
async def test_many_runs_of_threads_and_the_loop_keep_their_order_and_their_limits(folder: Path, sync: str) -> None:
    Counted.everyone, Counted.on_gpu = Count(), Count()
    settings = Settings(RUNS_ROOT="runs", STORAGE_ROOT="data", LIMITS={"gpu": 2}, EVENT_SYNC=sync)
    count, runs = (120, 6) if sync == "batch" else (40, 4)

    async def watch(runtime: Runtime, seed: int) -> None:
        dag = dag_of(mixed(seed, count))
        async with runtime.stream_dag(dag, concurrency=4, capture=True) as run:
            told = [event async for event in run]
            assert (await run.result()).status == "finished"
        stored = [event for event in told if not isinstance(event, e.TaskOutput)]
        assert b"".join(map(e.encode, stored)) == (run.path / "events.jsonl").read_bytes()
        assert set(check_log(stored).values()) == {"finished"}
        running: set[str] = set()
        for event in told:
            match event:
                case e.TaskStarted():
                    running.add(event.task)
                    assert len(running) <= 4
                case e.TaskFinished():
                    running.remove(event.task)
                case e.TaskOutput():
                    assert event.task in running
        assert sum(isinstance(event, e.TaskOutput) for event in told) == count

    async with Runtime(settings, concurrency=6) as runtime, anyio.create_task_group() as tasks:
        for seed in range(runs):
            tasks.start_soon(watch, runtime, seed)
    assert Counted.everyone.all == count * runs
    assert 1 < Counted.everyone.most <= 6
    assert Counted.on_gpu.most <= 2
