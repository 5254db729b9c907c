"""Many runs in one `Runtime`, as in a service: what they share, and what is looked at again when it has changed."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import anyio
import msgspec
import pytest
from steps import Go, LoopStep, Notes, Region, Step, Waits, dag_of, statuses

from gluepy import DAG, Task, each, read_runs
from gluepy.core import events as e
from gluepy.core.state import State
from gluepy.errors import DagError
from gluepy.runs.durations import LearnedDurations, durations_file
from gluepy.runs.record import Record
from gluepy.runtime import RunResult, Runtime
from gluepy.testing import events_of, until


def opening(result: RunResult) -> e.RunStarted:
    first = events_of(result)[0]
    assert isinstance(first, e.RunStarted)
    return first


def all_are(held: bool, *records: Record) -> bool:
    return all(record.is_held() == held for record in records)


async def test_runs_at_once_have_one_descriptor_each_and_one_thread_together(go: Go, folder: Path) -> None:
    async with go.runtime() as runtime:
        await runtime.run_dag(dag_of(LoopStep))
        files, threads = len(os.listdir("/dev/fd")), threading.active_count()
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(runtime.run_dag, dag_of(Waits))
            await until(lambda: len(list((folder / "runs").glob("*/events.jsonl"))) == 11)
            await until(lambda: (folder / "data" / "notes").read_text().count("begin waits") == 10)
            assert len(os.listdir("/dev/fd")) - files == 10
            assert threading.active_count() == threads
            (folder / "data" / "go").touch()


async def test_a_run_that_is_asked_to_stop_stops_and_those_beside_it_go_on(go: Go, folder: Path) -> None:
    results: dict[str, RunResult] = {}

    async def run(run_id: str) -> None:
        results[run_id] = await runtime.run_dag(dag_of(Waits), run_id=run_id, check=False)

    async with go.runtime() as runtime:
        for _ in range(2):  # the second time after a while without runs
            async with anyio.create_task_group() as tasks:
                for name in ("one", "other"):
                    tasks.start_soon(run, f"{name}-{len(results)}")
                one, other = (Record(folder / "runs", f"{name}-{len(results)}") for name in ("one", "other"))
                await until(partial(all_are, True, one, other))
                one.ask_to_stop()
                await until(partial(all_are, False, one))
                assert other.is_held()
                (folder / "data" / "go").touch()
            (folder / "data" / "go").unlink()
    assert [result.status for result in results.values()] == ["cancelled", "finished"] * 2


class Settable(Task):
    async def run(self) -> None:
        """Do nothing."""


async def test_a_task_or_a_dag_that_is_changed_between_two_runs_counts_as_it_is(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Listed(DAG):
        tasks: ClassVar[Any] = [Settable, [Settable(id="second")]]

    async with go.runtime() as runtime:
        first = await runtime.run_dag(Listed)
        assert list(first.tasks) == ["settable", "second"]
        Listed.tasks[1].append(Settable(id="third"))
        assert list((await runtime.run_dag(Listed)).tasks) == ["settable", "second", "third"]
        Listed.tasks = {Settable: ()}
        assert list((await runtime.run_dag(Listed)).tasks) == ["settable"]
        Listed.tasks[Step] = (Settable,)
        assert list((await runtime.run_dag(Listed)).tasks) == ["settable", "step"]
        monkeypatch.setattr(Settable, "retries", 3)
        changed = [event for event in events_of(await runtime.run_dag(Listed)) if isinstance(event, e.TaskStarted)]
        assert changed[0].max_attempts == 4
        monkeypatch.setattr(Settable, "uses", {"gpu": 1})
        with pytest.raises(DagError, match="uses 'gpu'"):
            await runtime.run_dag(Listed)


async def test_an_instance_whose_parameter_is_changed_counts_as_it_is(go: Go, notes: Notes) -> None:
    task = Region(region="eu")
    dag = dag_of(task)
    async with go.runtime() as runtime:
        await runtime.run_dag(dag)
        task.region = "us"
        await runtime.run_dag(dag)
    assert notes.of("end") == ["region[region=eu]", "region[region=us]"]


async def test_runs_at_once_of_a_dag_that_finds_its_tasks_find_them_each_for_itself(go: Go) -> None:
    found = iter(range(100))

    def regions() -> list[int]:
        return [next(found) for _ in range(3)]

    dag, results = dag_of(each(Region, region=regions)), list[RunResult]()

    async def run(runtime: Runtime) -> None:
        results.append(await runtime.run_dag(dag))

    async with go.runtime() as runtime, anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(run, runtime)
    assert [len(result.tasks) for result in results] == [4] * 4
    ran = {task for result in results for task in result.tasks}
    assert ran == {"each-region", *(f"region[region={number}]" for number in range(12))}


MODULE = """
from gluepy import DAG, Task


class Tells(Task):
    async def run(self):
        self.metric("number", {number})


class TellsDAG(DAG):
    tasks = (Tells,)
"""


async def test_a_dag_is_found_again_when_its_module_has_been_loaded_anew(
    go: Go, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "told_anew.py"
    file.write_text(MODULE.format(number=1))
    monkeypatch.syspath_prepend(str(folder))
    settings = go.settings.replaced(INSTALLED_MODULES=["told_anew"])

    async def number() -> tuple[float | None, str]:
        result = await runtime.run_dag("tellsdag")
        state = State.from_events(events_of(result))
        return state.metrics[0]["number"], opening(result).code_version

    async with Runtime(settings) as runtime:
        first = await number()
        assert await number() == first
        file.write_text(MODULE.format(number=22))
        changed = await number()
        assert (changed[0], changed[1] == first[1]) == (1, False), "its code is what the file says"
        importlib.reload(sys.modules["told_anew"])
        assert await number() == (22, changed[1])
    del sys.modules["told_anew"]


async def test_a_secret_that_comes_into_the_environment_later_is_masked(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tells(Task):
        async def run(self) -> None:
            raise ValueError("it is hush-hush-hush")

    async def message() -> str:
        result = await runtime.run_dag(dag_of(Tells), check=False)
        return next(event.error_message for event in events_of(result) if isinstance(event, e.TaskFailed))

    async with go.runtime() as runtime:
        assert await message() == "it is hush-hush-hush"
        monkeypatch.setenv("MY_TOKEN", "hush-hush-hush")
        assert await message() == "it is ***"
        monkeypatch.delenv("MY_TOKEN")
        assert await message() == "it is hush-hush-hush"


async def test_what_is_learned_of_many_short_runs_is_written_now_and_then_and_at_the_end(
    go: Go, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = durations_file(folder / "runs", "dag")

    def runs() -> int:
        number: int = msgspec.json.decode(file.read_bytes())["runs"]
        return number

    monkeypatch.setattr("gluepy.runs.durations._PAUSE_S", 1000.0)
    async with go.runtime() as runtime:
        await runtime.run_dag(dag_of(Step))
        assert runs() == 1
        for _ in range(3):
            await runtime.run_dag(dag_of(Step))
        assert runs() == 1
    assert runs() == 4


async def test_what_another_process_has_learned_meanwhile_is_kept(
    go: Go, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gluepy.runs.durations._PAUSE_S", 0.0)
    async with go.runtime() as runtime:
        result = await runtime.run_dag(dag_of(Step))
        other = LearnedDurations(folder / "runs")
        other.learn("dag", State.from_events(events_of(result)), set())
        await runtime.run_dag(dag_of(Step))
    assert LearnedDurations(folder / "runs").of("dag").runs == 3


async def test_a_run_that_outlives_its_runtime_comes_to_its_end(go: Go, folder: Path, notes: Notes) -> None:
    async with anyio.create_task_group() as tasks:
        async with go.runtime() as runtime:
            tasks.start_soon(runtime.run_dag, dag_of(Waits))
            await until(lambda: notes.of("begin"))
        (folder / "data" / "go").touch()
    assert [run.status for run in read_runs(folder / "runs")] == ["finished"]


async def test_a_mistake_leaves_nothing_behind_and_does_not_keep_the_next_run(go: Go, folder: Path) -> None:
    async with go.runtime() as runtime:
        with pytest.raises(DagError):
            await runtime.run_dag(dag_of(Step, Step))
        assert not (folder / "runs").exists()
        assert statuses(await runtime.run_dag(dag_of(Step))) == {"step": "finished"}
