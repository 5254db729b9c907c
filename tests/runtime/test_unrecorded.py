"""Runs with `record=False`: they leave nothing behind but what their tasks write."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import anyio
import pytest
from steps import Go, Notes, ProcessStep, Region, Step, Waits, dag_of, statuses

from gluepy import Retry, Task, each, read_run
from gluepy.core import events as e
from gluepy.core.events import Event
from gluepy.core.state import State
from gluepy.errors import OptionError, RunError, UnknownRun, UnrecordedRun


class Fails(Task):
    retries = Retry(attempts=2, wait_s=0)

    def run(self) -> None:
        print("about to fail")
        raise ValueError("no")


def regions() -> list[str]:
    return ["eu", "us"]


async def test_a_run_without_a_record_runs_and_writes_nothing_down(go: Go, folder: Path, notes: Notes) -> None:
    result = await go(Step, each(Region, region=regions), ProcessStep, record=False)
    assert statuses(result) == {
        "step": "finished",
        "each-region": "finished",
        "region[region=eu]": "finished",
        "region[region=us]": "finished",
        "processstep": "finished",
    }
    assert not (folder / "runs").exists()
    assert not result.path.exists()
    assert len(notes.of("end")) == 4


async def test_who_watches_gets_every_event_and_line_of_a_run_without_a_record(go: Go, folder: Path) -> None:
    seen: list[Event] = []
    async with (
        go.runtime() as runtime,
        runtime.stream_dag(
            dag_of(Step, Fails), record=False, capture=True, check=False, sinks=[seen.append], params={"depth": 3}
        ) as run,
    ):
        events = [event async for event in run]
        assert (await run.result()).status == "failed"
    told = [event for event in events if not isinstance(event, e.TaskOutput)]
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    assert [type(event).__name__ for event in told] == [
        "RunStarted",
        *("TaskStarted", "TaskFinished"),
        *("TaskStarted", "TaskRetrying", "TaskStarted", "TaskFailed"),
        "RunFailed",
    ]
    assert State.from_events(told).run == "failed"
    lines = [event.line for event in events if isinstance(event, e.TaskOutput)]
    assert lines.count("about to fail") == 2
    assert seen == events
    assert not (folder / "runs").exists()


async def test_a_reader_that_falls_behind_a_run_without_a_record_loses_nothing(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Measures(Task):
        async def run(self) -> None:
            for number in range(500):
                self.metric("rows", number)

    monkeypatch.setattr("gluepy.sinks.feed.BUFFER", 10)
    async with go.runtime() as runtime, runtime.stream_dag(dag_of(Measures), record=False) as run:
        await run.result()
        seen = [event.value async for event in run if isinstance(event, e.TaskMetric)]
    assert seen == list(range(500))


async def test_a_run_without_a_record_is_refused_by_name_when_it_is_asked_for(go: Go, folder: Path) -> None:
    async with go.runtime() as runtime:
        with pytest.raises(RunError):
            await runtime.run_dag(dag_of(Fails), record=False)
        result = await runtime.run_dag(dag_of(Fails), record=False, check=False)
        for ask in (runtime.resume_run, runtime.plan_resume):
            with pytest.raises(
                UnrecordedRun, match=rf"run {result.run_id} was not recorded \(record=False\)"
            ) as caught:
                answer: Any = ask(result.run_id)
                await answer
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        with pytest.raises(UnrecordedRun, match="nothing to look at or to resume"):
            read_run(result.run_id, folder / "runs")
        named = await runtime.run_dag(dag_of(Step), record=False, run_id="mine")
        assert (named.run_id, named.files) == ("mine", str(folder / "data" / "runs" / "mine"))
        with pytest.raises(UnknownRun):
            await runtime.resume_run("mine")


async def test_a_run_without_a_record_is_cancelled_as_any_other(go: Go, notes: Notes) -> None:
    async with go.runtime() as runtime:
        async with runtime.stream_dag(dag_of(Waits), record=False, check=False) as run:
            async for event in run:
                if isinstance(event, e.TaskStarted):
                    run.cancel()
            assert (await run.result()).status == "cancelled"
        with anyio.move_on_after(0.05) as scope:
            await runtime.run_dag(dag_of(Waits), record=False)
        assert scope.cancelled_caught
    assert notes.of("end") == []


@pytest.mark.parametrize("value", ["no", 0, None])
async def test_only_true_and_false_say_whether_to_record(go: Go, value: Any) -> None:
    with pytest.raises(OptionError, match="record"):
        await go(Step, record=value)
    with pytest.raises(OptionError, match="run_id"):
        await go(Step, record=False, run_id="../up")
