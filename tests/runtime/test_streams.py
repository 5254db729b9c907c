"""Whoever watches a run sees every event, once and in order, and can neither slow nor change it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.lowlevel
import msgspec
import pytest
import structlog
from steps import Fails, Go, LoopStep, Step, dag_of

from gluepy import Retry, Task, parallel
from gluepy.core.events import Event, RunFinished, TaskMetric, TaskOutput, encode
from gluepy.runtime import Runtime
from gluepy.sinks.feed import BUFFER, Feed, Subscription
from gluepy.testing import HELD, ScriptedExecutor, VirtualClock, events_of, failed, name_of, outline, until
from gluepy.testing import Step as Ends


class Measures(Task):
    """Tells more than a subscriber's buffer holds."""

    async def run(self) -> None:
        for number in range(BUFFER * 2):
            self.metric("number", number)
            if number % 1000 == 0:
                await anyio.lowlevel.checkpoint()


async def test_stream_gives_every_event_of_the_log_once_and_in_order(go: Go) -> None:
    dag = dag_of(parallel(*(LoopStep(id=str(number)) for number in range(50))), Step(id="end"))
    async with go.runtime() as runtime, runtime.stream_dag(dag) as run:
        seen = [event async for event in run]
        await run.result()
    assert [event.seq for event in seen] == list(range(1, 2 + 2 * 51 + 1))
    assert b"".join(map(encode, seen)) == (run.path / "events.jsonl").read_bytes()


async def test_slow_reader_misses_nothing_and_holds_nobody_up(go: Go) -> None:
    async with go.runtime() as runtime, runtime.stream_dag(dag_of(Measures)) as run:
        first = await anext(aiter(run))
        result = await run.result()  # the run has ended, and its reader has seen one event
        assert result.status == "finished"
        rest = [event async for event in run]
    seen = [first, *rest]
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert sum(isinstance(event, TaskMetric) for event in seen) == BUFFER * 2
    assert isinstance(seen[-1], RunFinished)


async def test_reader_sees_events_while_the_run_goes_on(go: Go) -> None:
    executor = ScriptedExecutor({"a": HELD})
    async with go.runtime(executor=executor) as runtime, runtime.stream_dag(dag_of(Step(id="a"))) as run:
        with anyio.fail_after(120):
            async for event in run:
                if name_of(event) == "task.started":
                    executor.release()
        assert (await run.result()).status == "finished"


async def test_event_is_stored_before_it_is_told_and_before_it_has_effects(go: Go) -> None:
    stored: list[list[str]] = []

    class Watching(ScriptedExecutor):
        async def run(self, attempt: Any, emit: Any) -> Any:
            stored.append(outline(events_of(go.settings.runs_root / "run")))
            return await super().run(attempt, emit)

    dag = dag_of(Step(id="a"), Step(id="b"))
    async with go.runtime(executor=Watching()) as runtime, runtime.stream_dag(dag, run_id="run") as run:
        async for event in run:
            assert event in events_of(run) or event.seq == 1
    assert stored == [
        ["run.started", "task.started a"],
        ["run.started", "task.started a", "task.finished a", "task.started b"],
    ]


async def test_result_comes_without_reading_any_event(go: Go) -> None:
    async with go.runtime() as runtime, runtime.stream_dag(dag_of(Step(id="a"))) as run:
        with anyio.fail_after(120):
            assert (await run.result()).status == "finished"


async def test_failed_run_is_streamed_to_its_end_and_raised_by_its_result(go: Go) -> None:
    async with go.runtime() as runtime, runtime.stream_dag(dag_of(Fails(id="a"))) as run:
        assert [name_of(event) async for event in run][-1] == "run.failed"
        with pytest.raises(ExceptionGroup):
            await run.result()


async def test_run_id_and_path_are_known_at_once(go: Go) -> None:
    async with go.runtime() as runtime, runtime.stream_dag(dag_of(Step(id="a")), run_id="mine") as run:
        assert (run.id, run.path) == ("mine", go.settings.runs_root / "mine")
        await run.result()


# Sinks


async def test_sink_of_each_kind_gets_every_event(go: Go) -> None:
    plain: list[Event] = []
    in_loop: list[Event] = []
    threads: set[int] = set()

    def sink(event: Event) -> None:
        threads.add(threading.get_ident())
        plain.append(event)

    async def async_sink(event: Event) -> None:
        in_loop.append(event)

    result = await go(Step(id="a"), sinks=[sink, async_sink, Collects, "test_streams.Collects"])
    expected = (result.path / "events.jsonl").read_bytes()
    for seen in (plain, in_loop, *Collects.taken[-2:]):
        assert b"".join(map(encode, seen)) == expected
    assert threading.get_ident() not in threads
    assert Collects.left >= 2


class Collects:
    """A sink that is a context manager."""

    taken: list[list[Event]] = []  # noqa: RUF012
    left = 0

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __enter__(self) -> Self:
        Collects.taken.append(self.events)
        return self

    def __exit__(self, *exc: object) -> None:
        Collects.left += 1

    def __call__(self, event: Event) -> None:
        self.events.append(event)


async def test_sink_of_the_settings_gets_the_events_of_every_run(go: Go) -> None:
    before = len(Collects.taken)
    go.settings = go.settings.replaced(SINKS=["test_streams.Collects"])
    result = await go(Step(id="a"))
    assert len(Collects.taken) == before + 1
    assert [event.run_id for event in Collects.taken[-1]] == [result.run_id] * 4


async def test_async_context_manager_is_entered_before_the_first_and_left_after_the_last_event(go: Go) -> None:
    told: list[str] = []

    class Connects:
        async def __aenter__(self) -> Self:
            told.append("enter")
            return self

        async def __aexit__(self, *exc: object) -> None:
            told.append("exit")

        async def __call__(self, event: Event) -> None:
            told.append(name_of(event))

    await go(Step(id="a"), sinks=[Connects()])
    assert told == ["enter", "run.started", "task.started", "task.finished", "run.finished", "exit"]


@pytest.mark.parametrize("where", ["plain", "async", "enter", "exit"])
async def test_sink_that_raises_is_told_and_left_out_and_the_run_goes_on(go: Go, where: str) -> None:
    others: list[Event] = []

    def plain(event: Event) -> None:
        raise ValueError("sink broke")

    async def in_loop(event: Event) -> None:
        raise ValueError("sink broke")

    class Enters:
        def __enter__(self) -> None:
            raise ValueError("sink broke")

        def __exit__(self, *exc: object) -> None:
            pass

        def __call__(self, event: Event) -> None:
            pass

    def exits(event: Event) -> None:
        sys.exit("sink broke")

    sink: Any = {"plain": plain, "async": in_loop, "enter": Enters(), "exit": exits}[where]
    with structlog.testing.capture_logs() as logs:
        result = await go(Step(id="a"), Step(id="b"), sinks=[sink, others.append])
    assert result.status == "finished"
    assert len(others) == 6
    error = "SystemExit" if where == "exit" else "ValueError"
    assert [line["error"] for line in logs if "sink failed" in line["event"]] == [f"{error}: sink broke"]


async def test_sink_that_blocks_does_not_hold_up_the_run_nor_its_end_for_long(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    go.settings = go.settings.replaced(SINK_TIMEOUT_S=0.1)
    go_on = threading.Event()
    others: list[Event] = []

    def blocks(event: Event) -> None:
        go_on.wait(240)

    began = time.monotonic()
    result = await go(parallel(*(Step(id=str(number)) for number in range(20))), sinks=[blocks, others.append])
    assert time.monotonic() - began < 10
    assert result.duration_s < 5
    assert len(others) == 42
    go_on.set()


async def test_async_sink_that_never_returns_is_left_behind_at_the_end(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    go.settings = go.settings.replaced(SINK_TIMEOUT_S=0.1)
    stopped: list[bool] = []

    async def never(event: Event) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.append(True)

    with anyio.fail_after(120):
        result = await go(Step(id="a"), sinks=[never])
    assert result.status == "finished"
    assert stopped == [True]


async def test_slow_sink_is_waited_for_at_the_end(go: Go) -> None:
    seen: list[str] = []

    def slow(event: Event) -> None:
        time.sleep(0.05)
        seen.append(name_of(event))

    await go(Step(id="a"), sinks=[slow])
    assert seen == ["run.started", "task.started", "task.finished", "run.finished"]


async def test_sink_that_lags_by_more_than_its_buffer_reads_the_rest_from_the_log(go: Go) -> None:
    seen: list[int] = []
    go_on = threading.Event()

    def lags(event: Event) -> None:
        go_on.wait(240)
        seen.append(event.seq)

    class Opens(Task):
        async def run(self) -> None:
            go_on.set()

    await go(Measures, Opens, sinks=[lags])
    assert seen == list(range(1, BUFFER * 2 + 6 + 1))


@pytest.mark.parametrize("how", ["sleeps", "raises", "never returns"])
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_no_sink_slows_or_changes_a_run(go: Go, kind: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    go.settings = go.settings.replaced(SINK_TIMEOUT_S=0.01)
    over = threading.Event()

    async def sink(event: Event) -> None:
        match how:
            case "sleeps":
                await anyio.sleep(0.002)
            case "raises":
                raise ValueError("sink broke")
            case _:
                await anyio.sleep_forever()

    def plain(event: Event) -> None:
        match how:
            case "sleeps":
                time.sleep(0.002)
            case "raises":
                raise ValueError("sink broke")
            case _:
                over.wait(240)

    dag = dag_of(parallel(*(Again(id=str(number)) for number in range(20))), Step(id="end"))

    async def run(run_id: str, **options: Any) -> list[bytes]:
        clock = VirtualClock()
        executor = ScriptedExecutor({"again": [Ends(failed(), lasts_s=1), Ends(lasts_s=2)]}, clock=clock)
        settings = go.settings.replaced(RUNS_ROOT=run_id)  # each learns nothing from the other
        runtime = Runtime(settings, executor=executor, clock=clock)
        async with clock.autojump(), runtime, runtime.stream_dag(dag, run_id="run", **options) as stream:
            result = await stream.result()  # and nobody reads the stream
        assert result.duration_s > 60
        # which of several that end at the same moment is told first is up to the event loop
        return sorted(encode(msgspec.structs.replace(event, seq=0)) for event in events_of(result))

    with structlog.testing.capture_logs():
        alone = await run("alone")
        watched = await run("watched", sinks=[sink if kind == "async" else plain])
    over.set()
    assert watched == alone


class Again(Step):
    retries = Retry(attempts=2, wait_s=60, jitter=0)


async def test_memory_for_those_who_do_not_read_is_bounded(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    go.settings = go.settings.replaced(SINK_TIMEOUT_S=0.01)
    over = threading.Event()
    subscriptions: list[Subscription] = []
    most: list[int] = []
    subscribe = Feed.subscribe

    def noting(self: Feed) -> Subscription:
        subscriptions.append(subscribe(self))
        return subscriptions[-1]

    class Tells(Task):
        async def run(self) -> None:
            for number in range(BUFFER * 3):
                self.metric("number", number)
                if number % 1000 == 0:
                    most.extend(len(each._buffer) for each in subscriptions)
                    await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(Feed, "subscribe", noting)
    blocked = lambda event: over.wait(240)  # noqa: E731
    async with go.runtime() as runtime, runtime.stream_dag(dag_of(Tells), sinks=[blocked]) as run:
        await run.result()
    over.set()
    assert len(subscriptions) == 2
    assert max(most) == BUFFER


@pytest.mark.parametrize("held_up", [False, True], ids=["never-reads", "loop-held-up"])
async def test_lines_for_those_who_do_not_read_are_bounded_by_their_size(
    go: Go, monkeypatch: pytest.MonkeyPatch, held_up: bool
) -> None:
    go.settings = go.settings.replaced(SINK_TIMEOUT_S=0.01)
    monkeypatch.setattr("gluepy.sinks.feed.ROOM", 1_000_000)
    monkeypatch.setattr("gluepy.exec.journal.ROOM", 1_000_000)
    over, printed, begun, held = (threading.Event() for _ in range(4))
    sinks = [] if held_up else [lambda event: over.wait(240)]

    class Prints(Task):
        def run(self) -> None:
            begun.set()
            assert held.wait(240)
            for _ in range(300):
                print("x" * 10_000)
            printed.set()

    class HoldsTheLoop(Task):
        async def run(self) -> None:
            await until(begun.is_set)
            held.set()
            if held_up:
                assert printed.wait(240)

    dag = dag_of(parallel(HoldsTheLoop, Prints))
    async with go.runtime() as runtime, runtime.stream_dag(dag, sinks=sinks, capture=True) as run:
        result = await run.result()
        lines = [event.line for event in await run.events.take() if isinstance(event, TaskOutput)]
    over.set()
    assert 50 <= len(lines) <= 102
    assert run.events.dropped == 300 - len(lines)
    finished = events_of(result)[-1]
    assert isinstance(finished, RunFinished)
    assert finished.output_dropped is not None
    assert finished.output_dropped >= run.events.dropped
    assert (result.path / "logs" / "prints.1.log").stat().st_size >= 3_000_000, "the file has all"


async def test_large_events_for_those_who_do_not_read_are_read_again_from_the_log(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gluepy.sinks.feed.ROOM", 20_000)
    monkeypatch.setattr("gluepy.sinks.feed._CHUNK_ROOM", 5_000)
    most: list[int] = []

    class Tells(Task):
        async def run(self) -> None:
            for number in range(300):
                self.metric("n" * 1000, number)
                if number % 10 == 0:
                    most.append(len(run.events._buffer))
                    await anyio.lowlevel.checkpoint()

    async with go.runtime() as runtime, runtime.stream_dag(dag_of(Tells)) as run:
        result = await run.result()
        told, sizes = [], []
        while events := await run.events.take():
            told += events
            sizes.append(len(events))
    assert b"".join(map(encode, told)) == (result.path / "events.jsonl").read_bytes()
    assert 10 < max(most) < 20
    assert max(sizes[1:]) < 10


async def test_sink_is_left_in_its_thread_where_it_may_take_its_time(go: Go) -> None:
    """Were it left in the event loop, nothing else could go on meanwhile."""
    leaving, go_on = threading.Event(), threading.Event()

    class Slow(Collects):
        def __exit__(self, *exc: object) -> None:
            leaving.set()
            assert go_on.wait(240)
            super().__exit__(*exc)

    async def let_it_go_on() -> None:
        await until(leaving.is_set)
        go_on.set()

    left = Collects.left
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(let_it_go_on)
        await go(Step(id="a"), sinks=[Slow()])
    assert Collects.left == left + 1


async def test_sink_that_is_left_behind_is_left_when_it_returns(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    go.settings = go.settings.replaced(SINK_TIMEOUT_S=0.05)
    go_on = threading.Event()
    told: list[str] = []

    class Blocks:
        def __enter__(self) -> None:
            told.append("enter")

        def __exit__(self, *exc: object) -> None:
            told.append("exit")

        def __call__(self, event: Event) -> None:
            assert go_on.wait(240)
            told.append(name_of(event))

    await go(Step(id="a"), sinks=[Blocks()])
    assert told == ["enter"]
    go_on.set()
    await until(lambda: told[-1] == "exit")
    assert told.count("exit") == 1


def test_sink_that_never_returns_does_not_keep_the_process_alive(folder: Path) -> None:
    script = folder / "script.py"
    script.write_text(NEVER_RETURNS)
    environment = {**os.environ, "GLUEPY_SINK_TIMEOUT_S": "0.05"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240, env=environment)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "finished"), done.stderr


NEVER_RETURNS = """
import threading
import gluepy

class Load(gluepy.Task):
    async def run(self):
        pass

class LoadDAG(gluepy.DAG):
    tasks = (Load,)

def never_returns(event):
    threading.Event().wait()

if __name__ == "__main__":
    print(gluepy.run_dag_sync(LoadDAG, sinks=[never_returns]).status, flush=True)
"""


async def test_cancelled_run_still_tells_its_sinks_how_it_ended(go: Go) -> None:
    seen: list[str] = []
    executor = ScriptedExecutor({"a": HELD})
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def cancel() -> None:
                await executor.wait_for("a")
                scope.cancel()

            tasks.start_soon(cancel)
            await go(Step(id="a"), executor=executor, sinks=[lambda event: seen.append(name_of(event))])
    assert seen[-2:] == ["task.cancelled", "run.cancelled"]


async def test_stream_may_be_combined_with_other_context_managers(go: Go) -> None:
    @contextmanager
    def outer() -> Any:
        yield

    @asynccontextmanager
    async def inner() -> Any:
        yield

    async with go.runtime() as runtime:
        with outer():
            async with runtime.stream_dag(dag_of(Step(id="a"))) as run, inner():
                result = await run.result()
    assert result.status == "finished"
    await until(lambda: outline(events_of(run))[-1] == "run.finished")
