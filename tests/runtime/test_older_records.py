"""Records with a lock file, a driver file and empty folders, as earlier versions wrote them; and those without."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
from older_dag import OlderDAG
from steps import Go, Notes, Step, dag_of, statuses

from gluepy import Task
from gluepy.errors import ContextError, RunLocked
from gluepy.report import read_run, read_runs
from gluepy.runs.prune import deleted
from gluepy.runs.record import Record
from gluepy.testing import events_of

RECORD = Path(__file__).with_name("older_record")


@pytest.fixture
def older(folder: Path) -> Record:
    shutil.copytree(RECORD, folder / "runs" / "older")
    return Record(folder / "runs", "older")


async def test_a_record_of_an_earlier_version_is_read_resumed_and_deleted(go: Go, older: Record) -> None:
    told = read_run("older", older.root)
    assert (told.status, told.parameters, [task.status for task in told.tasks.values()]) == (
        "failed",
        {"depth": 3},
        ["finished", "failed"],
    )
    async with go.runtime() as runtime:
        result = await runtime.resume_run("older", dag=OlderDAG, params={"depth": 7})
    assert statuses(result) == {"load": "finished", "train": "finished"}
    assert [event.session for event in events_of(result)] == [1] * 6 + [2] * 5
    assert [run.status for run in read_runs(older.root)] == ["finished"]
    with deleted(older.root, "older"):
        pass
    assert older.is_gone()


async def test_a_driver_of_an_earlier_version_keeps_this_one_out(go: Go, older: Record) -> None:
    with (older.path / "run.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        async with go.runtime() as runtime:
            with pytest.raises(RunLocked, match=f"process {os.getpid()}"):
                await runtime.resume_run("older", dag=OlderDAG)


class Late(Task):
    async def run(self) -> None:
        if "depth" not in self.context:
            raise ValueError("no depth")


async def test_a_run_without_parameters_is_resumed_without_them_and_with_some(go: Go, notes: Notes) -> None:
    dag = dag_of(Step, Late)
    async with go.runtime() as runtime:
        result = await runtime.run_dag(dag, check=False, run_id="run")
        assert [file.name for file in result.path.iterdir()] == ["events.jsonl"]
        assert (await runtime.resume_run("run", dag=dag, check=False)).status == "failed"
        result = await runtime.resume_run("run", dag=dag, params={"depth": 1})
    assert (result.status, notes.of("begin")) == ("finished", ["step"])


async def test_a_record_that_has_lost_its_parameters_is_not_resumed_without_them(go: Go) -> None:
    dag = dag_of(Step)
    async with go.runtime() as runtime:
        result = await runtime.run_dag(dag, run_id="run", params={"depth": 1})
        (result.path / "context.yaml").unlink()
        with pytest.raises(ContextError, match=r"context\.yaml: cannot be read"):
            await runtime.resume_run("run", dag=dag, force="step")
