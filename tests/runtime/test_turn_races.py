"""Turns that come at bad moments: between any two steps of the event loop, while it is held up, while the disk fails,
while somebody holds a lock. Each of these went wrong once, or would without a line that is easily lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import anyio
import anyio.lowlevel
import pytest
from steps import PATIENCE_S, Go, LoopStep, Notes, Step, Waits, dag_of, statuses
from turns import Turns, in_worker_thread, taking_turns

from gluepy import Task, parallel
from gluepy.clock import SystemClock
from gluepy.conf.schema import Settings
from gluepy.core import events as e
from gluepy.errors import RunStopped
from gluepy.exec.engine import Engine
from gluepy.exec.executors.capture import AttemptOutput
from gluepy.exec.port import Abandoned, Attempt, Emission, Emit, Executor, Outcome, Output, Released
from gluepy.exec.slots import Slot
from gluepy.runs.log import FileLog, LogBroken, LogReader
from gluepy.sinks.feed import Feed
from gluepy.testing import VirtualClock, events_of, until

Append = Callable[[FileLog, bytes], None]


@pytest.fixture
def appends(monkeypatch: pytest.MonkeyPatch) -> Callable[[Append], Append]:
    """Has logs write as the test says, who is given how they would."""

    def set_to(append: Append) -> Append:
        was = FileLog.append
        monkeypatch.setattr(FileLog, "append", append)
        return was

    return set_to


def full() -> LogBroken:
    return LogBroken("events.jsonl", "as told")


class HoldsUp(Task):
    """Holds the event loop up, from when `hold_up` is called in a thread until `end` is set."""

    begin: ClassVar[threading.Event]
    held: ClassVar[threading.Event]
    end: ClassVar[threading.Event]

    async def run(self) -> None:
        await until(self.begin.is_set)
        self.held.set()
        assert self.end.wait(PATIENCE_S)


@pytest.fixture
def hold_up() -> Callable[[], None]:
    """Returns once the event loop is held up by the task `HoldsUp`."""
    HoldsUp.begin, HoldsUp.held, HoldsUp.end = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        HoldsUp.begin.set()
        assert HoldsUp.held.wait(PATIENCE_S)

    return hold


class Interruption:
    """A task in a thread that ends just when the event loop is about to take its n-th turn since then, and whose own
    turn fails: the log cannot be written any more."""

    def __init__(self, nth: int, notes: Notes) -> None:
        self.nth, self.came = nth, 0
        self.begun = -1  # how many attempts had begun when the write failed
        self.turns = Turns()
        self.turns.coming = self.coming
        self._notes = notes
        self.at_work, self._end, self._failed = threading.Event(), threading.Event(), threading.Event()

    def wait(self) -> None:
        self.at_work.set()
        assert self._end.wait(PATIENCE_S)

    def coming(self) -> None:
        if self.at_work.is_set() and not in_worker_thread():
            self.came += 1
            if self.came == self.nth:
                self._end.set()
                assert self._failed.wait(PATIENCE_S)

    def append(self, log: FileLog, line: bytes, really: Append) -> None:
        if self._end.is_set():
            if self.begun < 0:
                self.begun = len(self._notes.of("begin"))
            self._failed.set()
            raise full()
        really(log, line)

    def give_up(self) -> None:
        """The event loop took fewer turns."""
        self._end.set()


async def test_nothing_begins_after_a_write_that_failed_wherever_the_event_loop_was(
    go: Go, notes: Notes, appends: Callable[[Append], Append]
) -> None:
    class Ends(Step):
        def run(self) -> None:
            interruption.wait()

    class First(Task):
        async def run(self) -> None:
            await until(interruption.at_work.is_set)

    class Last(LoopStep):
        async def run(self) -> None:
            await super().run()
            interruption.give_up()

    chain = (First, *(LoopStep(id=name) for name in "abc"), Step(id="d"), Last(id="e"))
    then = parallel(Step(id="x"), LoopStep(id="y"), LoopStep(id="z"))
    really = appends(lambda log, line: interruption.append(log, line, really))
    nth = 0
    while True:
        nth += 1
        interruption = Interruption(nth, notes)
        with pytest.raises(RunStopped), anyio.fail_after(PATIENCE_S):
            async with taking_turns(go, interruption.turns) as runtime:
                await runtime.run_dag(dag_of(parallel((Ends, then), chain)))
        await until(lambda: not any(each.name.startswith("gluepy-thread") for each in threading.enumerate()))
        assert len(notes.of("begin")) == interruption.begun, f"something began after the failure, {nth}"
        if interruption.came < nth:
            break
    assert nth > 5


async def test_subscribers_are_told_only_what_is_stored_when_a_write_fails_in_a_threads_turn(
    go: Go, appends: Callable[[Append], Append], hold_up: Callable[[], None]
) -> None:
    class First(Step):
        def run(self) -> None:
            hold_up()
            self.metric("rows", 1)  # stored, and the event loop will hand it on

    def append(self: FileLog, line: bytes) -> None:
        if b'"task.finished"' in line and in_worker_thread():
            HoldsUp.end.set()
            raise full()
        real(self, line)

    real = appends(append)
    async with go.runtime() as runtime, runtime.stream_dag(dag_of(parallel(HoldsUp, (First, Step)))) as run:
        told = [event async for event in run]
        with pytest.raises(RunStopped):
            await run.result()
    assert isinstance(told[-1], e.TaskMetric)
    assert b"".join(map(e.encode, told)) == (run.path / "events.jsonl").read_bytes()


async def test_whoever_prints_while_holding_a_lock_does_not_wait_for_a_turn(
    go: Go, appends: Callable[[Append], Append]
) -> None:
    """Logging holds a lock while it prints, and what is collected in somebody's turn may log."""
    lock, held, in_turn = threading.Lock(), threading.Event(), threading.Event()
    got: list[bool] = []

    class Prints(Task):
        def run(self) -> None:
            with lock:
                held.set()
                assert in_turn.wait(PATIENCE_S)
                print("a line")

    class Ends(Task):
        def run(self) -> None:
            assert held.wait(PATIENCE_S)

    def append(self: FileLog, line: bytes) -> None:
        if in_worker_thread() and not in_turn.is_set():
            in_turn.set()
            got.append(lock.acquire(timeout=30))
            lock.release()
        real(self, line)

    real = appends(append)
    dag = dag_of(parallel(Prints, (Ends, Step)))
    async with go.runtime() as runtime, runtime.stream_dag(dag, capture=True) as run:
        told = [event async for event in run]
        assert (await run.result()).status == "finished"
    assert got == [True]
    assert [event.line for event in told if isinstance(event, e.TaskOutput)] == ["a line"]


async def test_whatever_prints_while_a_line_is_taken_is_taken_too(tmp_path: Path) -> None:
    """As a `__del__` may, anywhere."""
    told: list[str] = []

    def emit(emission: Emission) -> None:
        assert isinstance(emission, Output)
        told.append(emission.line)
        if emission.line == "first":
            output.write("stdout", "second\n")

    output = AttemptOutput(tmp_path / "log", emit)
    writing = threading.Thread(target=output.write, args=("stdout", "first\n"), daemon=True)
    writing.start()
    writing.join(30)
    assert not writing.is_alive(), "it waits for itself"
    output.close()
    assert (told, (tmp_path / "log").read_text()) == (["first", "second"], "first\nsecond\n")


class Remaining(SystemClock):
    """A clock that a task may put ahead, from any thread."""

    by = 0.0

    def now(self) -> float:
        return time.monotonic() + self.by


async def test_a_time_out_that_a_thread_finds_out_stops_the_rest_of_the_run(go: Go) -> None:
    clock, begun, end = Remaining(), threading.Event(), threading.Event()

    class Waiting(Task):
        def run(self) -> None:
            begun.set()
            assert end.wait(PATIENCE_S)

    class Overruns(Task):
        timeout_s = 60

        def run(self) -> None:
            assert begun.wait(PATIENCE_S)
            clock.by = 100.0  # the event loop sleeps on

    result = await go(parallel(Waiting, Overruns), clock=clock, on_failure="cancel")
    end.set()
    assert statuses(result) == {"waiting": "cancelled", "overruns": "failed"}
    cancelled = [event for event in events_of(result) if isinstance(event, e.TaskCancelled)]
    assert [event.abandoned for event in cancelled] == [True]


async def test_a_thread_does_not_go_on_from_an_attempt_that_has_just_timed_out(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the time-out would hit what the thread has gone on to."""
    turns = Turns()
    late, end, turn = threading.Event(), threading.Event(), threading.Event()

    class TooLong(Task):
        timeout_s = 0.01

        def run(self) -> None:
            assert end.wait(PATIENCE_S)

    def interrupted(self: Engine, slot: Slot) -> None:
        interrupt(self, slot)
        late.set()

    def left() -> None:
        if in_worker_thread():
            turn.set()
        elif late.is_set() and not end.is_set():
            turn.clear()
            end.set()
            assert turn.wait(PATIENCE_S)

    interrupt, turns.left = Engine._interrupt, left
    monkeypatch.setattr(Engine, "_interrupt", interrupted)
    async with taking_turns(go, turns) as runtime:
        dag = dag_of(parallel((TooLong(id="a"), Step(id="after")), Step(id="b"), Step(id="c")))
        result = await runtime.run_dag(dag, concurrency=1, on_failure="continue", check=False)
    assert statuses(result) == {"a": "failed", "after": "blocked", "b": "finished", "c": "finished"}


class ReleasesLate(Executor):
    """Attempts wait until they are stopped, which they cannot be; then they end, and so does the first one."""

    def __init__(self) -> None:
        self.first: Emit | None = None

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        if attempt.task == "c":
            return Outcome(status="finished")
        try:
            await anyio.sleep_forever()
        finally:
            emit(Abandoned())
            if self.first is None:
                self.first = emit
            else:
                emit(Released())
                self.first(Released())
        raise AssertionError


async def test_abandoned_work_that_ends_late_does_not_hide_that_the_next_has_ended_too(settings: Settings) -> None:
    class TimesOut(Task):
        timeout_s = 1
        trigger = "all_done"
        uses: ClassVar = {"slot": 2}

        def run(self) -> None: ...

    class Last(TimesOut):
        timeout_s = 1000
        uses: ClassVar = {"slot": 4}

    go = Go(Settings(RUNS_ROOT="runs", STORAGE_ROOT="data", LIMITS={"slot": 4}))
    async with VirtualClock().autojump() as clock:
        dag = dag_of(TimesOut(id="a"), TimesOut(id="b"), Last(id="c"))
        result = await go(dag.tasks, executor=ReleasesLate(), clock=clock, on_failure="continue", concurrency=2)
    assert statuses(result) == {"a": "failed", "b": "failed", "c": "finished"}
    assert result.duration_s < 3, "it waited for what had ended"


async def test_a_run_that_could_not_go_on_gives_its_limits_back(
    folder: Path, appends: Callable[[Append], Append]
) -> None:
    class Uses(Waits):
        uses: ClassVar = {"gpu": 1}

    def append(self: FileLog, line: bytes) -> None:
        if b'"task.finished"' in line and not broken:
            broken.append(True)
            raise full()
        real(self, line)

    broken: list[bool] = []
    real = appends(append)
    go = Go(Settings(RUNS_ROOT="runs", STORAGE_ROOT="data", LIMITS={"gpu": 1}))
    dag = dag_of(parallel(Uses, Step(id="a"), LoopStep(id="b")))
    async with go.runtime(concurrency=3) as runtime:
        with pytest.raises(RunStopped):
            await runtime.run_dag(dag)
        (folder / "data" / "go").touch()
        with anyio.fail_after(PATIENCE_S):
            assert (await runtime.run_dag(dag)).status == "finished"


async def test_a_reader_who_has_caught_up_is_not_told_again_what_the_log_had_before_it_was_published(
    tmp_path: Path,
) -> None:
    def event(seq: int) -> e.TaskMetric:
        return e.TaskMetric(seq, 1, "2026-01-01T00:00:00.000000Z", "info", "run", "dag", "task", 1, "rows", seq)

    lines = [e.encode(event(seq)) for seq in range(1, 6)]
    feed = Feed(lambda offset: LogReader(tmp_path / "log", offset))
    reader = feed.subscribe(buffer=1)
    (tmp_path / "log").write_bytes(b"".join(lines[:4]))
    for seq in (1, 2, 3):
        feed.publish(event(seq), sum(map(len, lines[: seq - 1])), len(lines[seq - 1]))
    seen = [*await reader.take(), *await reader.take()]  # with the fourth, which a thread has written by now
    feed.publish(event(4), sum(map(len, lines[:3])), len(lines[3]))
    feed.publish(event(5), sum(map(len, lines[:4])), len(lines[4]))
    feed.close()
    seen += await reader.take()
    assert [each.seq for each in seen] == [1, 2, 3, 4, 5]


async def test_a_sleep_that_is_over_lets_others_go_on() -> None:
    """An engine that is told again and again to look anew must not keep the event loop."""
    went_on = False

    async def other() -> None:
        nonlocal went_on
        await anyio.lowlevel.checkpoint()
        went_on = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        for _ in range(10):
            await SystemClock().sleep_until(0.0)
        assert went_on
