"""Runs at once, under a limit of open files that does not allow them all: some wait, none fails for it."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from steps import PATIENCE_S, Go, LoopStep, Notes, Step, Waits, dag_of, statuses

from gluepy import Task
from gluepy.errors import OptionError, RunStopped
from gluepy.runs.log import FileLog
from gluepy.runs.record import Record
from gluepy.runtime import RunResult, Runtime
from gluepy.runtime.descriptors import OF_RUN
from gluepy.testing import until


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """So many files can be opened besides those that are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    *_, highest = sorted(int(name) for name in os.listdir("/dev/fd") if os.path.exists(f"/dev/fd/{name}"))
    with ExitStack() as holes:
        while (file := os.open(os.devnull, os.O_RDONLY)) < highest:
            holes.callback(os.close, file)
        os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (file + count, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_runs_that_the_limit_of_open_files_does_not_allow_wait_and_none_fails(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[RunResult] = []
    open_now, most = 0, 0
    enter, leave = FileLog.__aenter__, FileLog.__aexit__

    async def entering(log: FileLog) -> FileLog:
        nonlocal open_now, most
        await enter(log)
        open_now += 1
        most = max(most, open_now)
        return log

    async def leaving(log: FileLog, *exc: object) -> None:
        nonlocal open_now
        open_now -= 1
        await leave(log, *exc)

    monkeypatch.setattr(FileLog, "__aenter__", entering)
    monkeypatch.setattr(FileLog, "__aexit__", leaving)

    async def run(runtime: Runtime, number: int) -> None:
        if number % 2:
            results.append(await runtime.run_dag(dag_of(LoopStep, Step), run_id=f"run{number}"))
        else:
            async with runtime.stream_dag(dag_of(LoopStep, Step)) as stream:
                results.append(await stream.result())

    with descriptors_left(80):
        async with go.runtime(concurrency=4) as runtime, anyio.create_task_group() as tasks:
            for number in range(80):
                tasks.start_soon(run, runtime, number)
    assert [result.status for result in results] == ["finished"] * 80
    assert 1 < most <= 40, most


@pytest.mark.exhaustive
async def test_ten_thousand_runs_at_once_all_finish_with_a_thousand_descriptors(go: Go) -> None:
    statuses: list[str] = []

    async def run(runtime: Runtime) -> None:
        statuses.append((await runtime.run_dag(dag)).status)

    dag = dag_of(OpensNothing)
    with descriptors_left(1000):
        async with go.runtime() as runtime, anyio.create_task_group() as tasks:
            for _ in range(10_000):
                tasks.start_soon(run, runtime)
    assert statuses == ["finished"] * 10_000


async def waiting(runtime: Runtime) -> None:
    assert runtime._shared is not None
    descriptors = runtime._shared.descriptors
    await until(lambda: descriptors._waiting)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors for one run."""
    monkeypatch.setattr("gluepy.runtime.descriptors._allowed", lambda: OF_RUN)


@pytest.mark.usefixtures("narrow")
async def test_a_run_that_waits_for_descriptors_can_be_cancelled_and_leaves_no_trace(
    go: Go, notes: Notes, folder: Path
) -> None:
    async with go.runtime() as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run_dag, dag_of(Waits))
        await until(lambda: notes.of("begin"))
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as others:
                others.start_soon(runtime.run_dag, dag_of(Step))
                await waiting(runtime)
                scope.cancel()
        assert scope.cancelled_caught
        assert len(list((folder / "runs").iterdir())) == 1
        tasks.start_soon(runtime.run_dag, dag_of(LoopStep))
        await waiting(runtime)
        (folder / "data" / "go").touch()
    assert notes.of("end") == ["waits", "loopstep"]


@pytest.mark.usefixtures("narrow")
async def test_mistakes_and_runs_that_fail_give_their_descriptors_back(go: Go) -> None:
    async with go.runtime() as runtime:
        for _ in range(3):
            with pytest.raises(OptionError):
                await runtime.run_dag(dag_of(Step), run_id="not/a/name")
            with pytest.raises(OptionError):
                async with runtime.stream_dag(dag_of(Step), run_id="not/a/name"):
                    pass
            assert statuses(await runtime.run_dag(dag_of(Step), capture=True)) == {"step": "finished"}, "it needs more"


class OpensNothing(Task):
    async def run(self) -> None:
        """End."""


@pytest.mark.parametrize("left", range(5))
async def test_a_run_waits_for_descriptors_that_somebody_else_has(
    go: Go, left: int, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """However far it comes before it needs one that it cannot have."""
    tried: list[object] = []
    create, enter = Record.create, FileLog.__aenter__

    def creating(cls: type[Record], *arguments: Any) -> Record:
        tried.append(cls)
        return create(*arguments)

    async def entering(log: FileLog) -> FileLog:
        tried.append(log)
        return await enter(log)

    monkeypatch.setattr(Record, "create", classmethod(creating))
    monkeypatch.setattr(FileLog, "__aenter__", entering)
    results: list[RunResult] = []

    async def run(runtime: Runtime) -> None:
        results.append(await runtime.run_dag(dag_of(OpensNothing), run_id="mine"))

    async with go.runtime() as runtime:
        await runtime.run_dag(dag_of(LoopStep, Step))  # has all imported that a run needs
        tried.clear()
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                with descriptors_left(left):
                    tasks.start_soon(run, runtime)
                    await until(lambda: len(tried) > 3 or results)
    assert results[0].status == "finished"
    records = [{file.name for file in log.parent.iterdir()} for log in (folder / "runs").glob("*/events.jsonl")]
    assert records[0] == records[1]
    assert left or len(tried) > 3, "it was not for want of a descriptor"


async def test_a_run_does_not_wait_for_ever_for_descriptors_of_others(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gluepy.runtime.descriptors._PATIENCE_S", 0.1)
    async with go.runtime() as runtime:
        await runtime.run_dag(dag_of(LoopStep))
        with descriptors_left(0), pytest.raises(RunStopped, match="Too many open files"):
            await runtime.run_dag(dag_of(LoopStep), run_id="mine")
        assert threading.active_count() < 100
        assert statuses(await runtime.run_dag(dag_of(LoopStep), run_id="mine")) == {"loopstep": "finished"}
