"""What a user writes, checked by mypy --strict; it need not run."""

# A user writes `uses = {…}` without ClassVar:
# ruff: noqa: RUF012

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, assert_type

import pytest

import gluepy
from gluepy import (
    DAG,
    Attempt,
    Executor,
    Outcome,
    Retry,
    Run,
    RunError,
    RunResult,
    Runtime,
    Sink,
    Skip,
    Task,
    TaskError,
    TaskResult,
    current_task,
    each,
    parallel,
)
from gluepy.clock import Clock
from gluepy.conf import default_context, settings
from gluepy.core.events import Event, TaskFailed
from gluepy.exec.port import Emit, Metric
from gluepy.testing import (
    HELD,
    ExecutorContract,
    ScriptedExecutor,
    Step,
    VirtualClock,
    assert_events,
    events_of,
    failed,
    happened,
    outline,
    task_run,
)


class Load(Task):
    outputs = ("rows.parquet",)
    inputs = ("s3://bucket/rows",)
    retries = Retry(attempts=3, on=(ConnectionError, TimeoutError))
    timeout_s = 30

    def run(self) -> None:
        with self.atomic("rows.parquet") as file:
            assert_type(file, Path)
            file.write_bytes(b"")
        assert_type(self.local(self.storage / "raw.csv"), Path)
        self.log.info("loaded", rows=3)
        self.progress(1, 2)
        self.metric("rows", 3)
        if self.context.skip:
            raise Skip("nothing new")


class Fetch(Task):
    retries = 2

    async def run(self) -> None:
        (self.path / "rates.json").write_text(str(settings.CONCURRENCY))


class Train(Task):
    pool = "process"
    uses = {"gpu": 1}
    memory_mb = 4096
    trigger = "none_failed"
    region: str
    depth: int = 3

    @property
    def outputs(self) -> tuple[str, ...]:
        return (f"model-{self.region}.json",)

    def run(self) -> None:
        assert_type(self.region, str)
        assert_type(self.depth, int)
        assert_type(self.id, str | None)


class Score(Train):
    day: date | None = None
    tags: list[str] = []
    names: list[str] = field(default_factory=list)


class Sized(Task):
    def __init__(self, size: int, id: str | None = None) -> None:
        super().__init__(id=id)
        self.size = size

    def run(self) -> None: ...


@dataclass
class Weighted(Task):
    weight: float = 1.0

    def run(self) -> None: ...


def regions() -> list[str]:
    found: list[str] = default_context.regions
    current_task().metric("regions", len(found))
    return found


class TrainDAG(DAG):
    label = "train"
    tasks = (Load, parallel(Fetch, (Load, Fetch)), each(Train, region=["eu"]), each(Train, region=regions), "Last")


class Last(Task):
    def run(self) -> None: ...


class Diamond(DAG):
    tasks = {Load: (), Fetch: Load, Last: (Load, Fetch), Train(region="all", id="final"): ()}


async def sink(event: Event) -> None: ...


class Told(Sink):
    settings_group = None

    async def __call__(self, event: Event) -> None: ...


class Mine(Executor):
    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        emit(Metric("one", 1.0))
        assert_type(attempt.params, Mapping[str, Any])
        return Outcome(status="finished")


async def run() -> None:
    result = await gluepy.run_dag(
        "train", params={"date": "2026-01-01"}, concurrency=4, sinks=[sink, print, Told, Told(), "jsonlines"]
    )
    assert_type(result, RunResult)
    assert_type(result.tasks["load"], TaskResult)
    assert_type(result.tasks["load"].error, TaskError | None)
    assert_type(result.path, Path)
    async with gluepy.stream_dag(TrainDAG, on_failure="continue", executor=Mine, timeout_s=3) as watched:
        assert_type(watched, Run)
        async for event in watched:
            if isinstance(event, TaskFailed):
                assert_type(event.error_message, str)
        watched.cancel()
        assert_type(await watched.result(), RunResult)
    async with Runtime({"CONCURRENCY": 2}, concurrency=16) as runtime:
        assert_type(runtime, Runtime)
        await runtime.run_dag(TrainDAG, check=False)
    try:
        gluepy.run_dag_sync(TrainDAG)
    except RunError as error:
        assert_type(error.run_id, str)
        assert_type(error.exceptions, tuple[Exception | ExceptionGroup[Exception], ...])


async def mistakes() -> None:
    await gluepy.run_dag("train", concurency=4)  # type: ignore[call-arg]
    await gluepy.run_dag("train", concurrency="4")  # type: ignore[arg-type]
    await gluepy.run_dag("train", on_failure="stop")  # type: ignore[arg-type]
    Retry(3)  # type: ignore[call-arg]


def parameters() -> None:
    Train(region="eu")
    Train(region="eu", depth=4, id="final")
    Score(region="eu", day=date(2026, 1, 1), tags=["new"])
    Sized(3, id="three")
    Weighted(weight=0.5)
    Load(id="again")
    Train(regon="eu", region="eu")  # type: ignore[call-arg]
    Train(depth=4)  # type: ignore[call-arg]
    Train("eu")  # type: ignore[call-arg]
    Train(region=3)  # type: ignore[arg-type]
    Train(region="eu").depth = "deep"  # type: ignore[assignment]
    Score(region="eu", day="2026-01-01")  # type: ignore[arg-type]
    Load(depth=3)  # type: ignore[call-arg]


class WrongExecutor(Executor):
    async def run(self, attempt: Attempt) -> Outcome:  # type: ignore[override]
        return Outcome(status="finished")


class WrongTask(Task):
    trigger = "all_failed"  # type: ignore[assignment]

    def run(self) -> None: ...


def test_train(tmp_path: Path) -> None:
    with task_run(tmp_path, context={"skip": False}) as run:
        Train(region="eu").run()
    assert_type(run.metrics, dict[str, float])


async def test_dag(tmp_path: Path) -> None:
    clock = VirtualClock()
    a_clock: Clock = clock
    executor = ScriptedExecutor({"load": [failed(), Step(lasts_s=3)], "fetch": HELD}, clock=a_clock)
    async with clock.autojump(), Runtime(executor=executor, clock=clock) as runtime:
        result = await runtime.run_dag(TrainDAG)
    assert_events(events_of(result), "run.started", happened("task.failed", task="load"))
    assert_type(outline(events_of(result)), list[str])


class TestMine(ExecutorContract):
    @pytest.fixture
    def executor(self) -> Executor:
        return Mine()


def contexts(runtime: Runtime, watched: Run) -> None:
    one: AbstractAsyncContextManager[Runtime] = runtime
    two: AbstractAsyncContextManager[Run] = runtime.stream_dag("train")
    three: AbstractContextManager[Path] = Load().atomic("x")
    four: AsyncIterator[Event] = aiter(watched)
    five: Iterator[str] = iter({}.keys())
    assert all((one, two, three, four, five))
