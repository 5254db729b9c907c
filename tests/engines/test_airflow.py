"""Runs that a real Airflow schedules: handed over by gluepy, and begun by Airflow itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from airflow_server import AirflowServer, environment
from step_flows import FLOWS, comparable, is_alive, pids, run, statuses

from gluepy.airflow.describing import describe, file_of
from gluepy.conf.sources import load_settings
from gluepy.core import events as e
from gluepy.errors import DagError, OptionError, RunStopped
from gluepy.exec.executors.airflow import AirflowExecutor, AirflowSettings
from gluepy.exec.steps import StepFolder
from gluepy.runtime import Runtime
from gluepy.runtime.collect import collect_run
from gluepy.testing import events_of
from gluepy.testing.wait import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("airflow"),
    pytest.mark.skipif(sys.platform != "linux", reason="Airflow runs on Linux"),
    pytest.mark.skipif(
        not os.environ.get("CI") and not os.environ.get("TEST_AIRFLOW"),
        reason="name an environment with apache-airflow in TEST_AIRFLOW",
    ),
]
DAGS = ("train", "failing", "flaky", "skipping", "meeting", "dynamic", "sleeping", "dying", "late")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowServer]:
    with AirflowServer(tmp_path_factory.mktemp("airflow") / "home") as server:
        yield server


@pytest.fixture(scope="module")
def airflow(server: AirflowServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project whose DAGs Airflow knows: one way or the other."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "settings.py").write_text(
        'INSTALLED_MODULES = ["flows"]\nCONCURRENCY = 4\nLIMITS = {"gpu": 1, "disk": 1}\n', "utf-8"
    )
    (folder / "flows.py").write_text(FLOWS, "utf-8")
    (folder / "context.yaml").write_text("word: hello\n", "utf-8")
    for dag in DAGS:
        command = [sys.executable, "-m", "gluepy", "airflow", "export", dag]
        text = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
        (server.dags / f"{dag}.py").write_text(text, "utf-8")
    for dag in DAGS:
        server.wait_for_dag(dag)
    return folder


@pytest.fixture
def project(airflow: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("GLUEPY_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(airflow)
    monkeypatch.setattr(sys, "path", [str(airflow), *sys.path])
    monkeypatch.delitem(sys.modules, "flows", raising=False)
    return airflow


@pytest.fixture
def executor(server: AirflowServer) -> AirflowExecutor:
    return AirflowExecutor(_settings(server))


def _settings(server: AirflowServer, **changed: Any) -> AirflowSettings:
    fields = {"url": server.url, "username": "gluepy", "password": "gluepy", "poll_s": 0.5}
    return AirflowSettings.model_validate({**fields, **changed})


@pytest.mark.parametrize("dag", ["train", "failing", "flaky", "skipping", "meeting", "dynamic"])
async def test_run_is_recorded_as_a_local_one(project: Path, executor: AirflowExecutor, dag: str) -> None:
    here = await run(project, dag, on_failure="continue")
    there = await run(project, dag, executor)
    assert statuses(there) == statuses(here)
    assert comparable(there) == comparable(here)


async def test_resumed_run_goes_on_in_the_same_run_of_airflows(
    project: Path, executor: AirflowExecutor, server: AirflowServer
) -> None:
    result = await run(project, "failing", executor)
    mended = project / "data/mended"
    mended.touch()
    try:
        async with Runtime(load_settings(project, {}), executor=executor) as runtime:
            again = await runtime.resume_run(result.run_id)
    finally:
        mended.unlink()
    assert again.status == "finished"
    assert again.tasks["load"].attempts == 1
    with server.client() as client:
        runs = client.get("/dags/failing/dagRuns").json()["dag_runs"]
    (there,) = (each for each in runs if each["dag_run_id"] == result.run_id)
    assert there["state"] == "success"


async def test_cancelled_run_leaves_no_process(project: Path, executor: AirflowExecutor) -> None:
    async with (
        Runtime(load_settings(project, {}), executor=executor) as runtime,
        runtime.stream_dag("sleeping", check=False) as stream,
    ):
        await until(lambda: len(pids(f"{project}/data/runs/{stream.id}")) == 2)
        stream.cancel()
        result = await stream.result()
    assert result.status == "cancelled"
    assert not [pid for pid in pids(result.files) if is_alive(pid)]


async def test_run_that_airflow_is_told_to_fail_is_stopped(
    project: Path, executor: AirflowExecutor, server: AirflowServer
) -> None:
    async with (
        Runtime(load_settings(project, {}), executor=executor) as runtime,
        runtime.stream_dag("sleeping", check=False) as stream,
    ):
        await until(lambda: len(pids(f"{project}/data/runs/{stream.id}")) == 2)
        with server.client() as client:
            client.patch(f"/dags/sleeping/dagRuns/{stream.id}", json={"state": "failed"}).raise_for_status()
        result = await stream.result()
    assert result.status == "failed"
    assert not [pid for pid in pids(result.files) if is_alive(pid)]
    (failed,) = (event for event in events_of(result) if isinstance(event, e.TaskFailed))
    assert (failed.task, failed.reason) == ("sleeping", "lost")


async def test_time_out_is_the_tasks(project: Path, executor: AirflowExecutor) -> None:
    result = await run(project, "late", executor)
    (failed,) = (event for event in events_of(result) if isinstance(event, e.TaskFailed))
    assert failed.reason == "timeout"
    assert not [pid for pid in pids(result.files) if is_alive(pid)]


@pytest.mark.parametrize("whom", ["the step", "the process of Airflow's task"])
async def test_what_is_killed_is_lost_and_tried_again(project: Path, executor: AirflowExecutor, whom: str) -> None:
    async with (
        Runtime(load_settings(project, {}), executor=executor) as runtime,
        runtime.stream_dag("dying") as stream,
    ):
        files = Path(f"{project}/data/runs/{stream.id}")
        await until(lambda: (files / "died").exists() and (files / "died").read_text())
        (event,) = StepFolder(str(files)).events("diesonce", 1)
        assert isinstance(event, e.TaskStarted)
        process = psutil.Process(event.pid)
        if whom != "the step":
            process = process.parent() or process
        process.send_signal(signal.SIGKILL)
        result = await stream.result()
    assert result.status == "finished"
    (retrying,) = (event for event in events_of(result) if isinstance(event, e.TaskRetrying))
    assert (retrying.reason, retrying.attempt) == ("lost", 1)


@pytest.mark.exhaustive  # Airflow holds what ran there for running, for five minutes
async def test_scheduler_that_is_restarted_does_not_matter(
    project: Path, executor: AirflowExecutor, server: AirflowServer
) -> None:
    async with (
        Runtime(load_settings(project, {}), executor=executor) as runtime,
        runtime.stream_dag("train") as stream,
    ):
        await until(lambda: (Path(f"{project}/data/runs/{stream.id}") / "rows.txt").exists())
        server.kill("scheduler")
        server.start("scheduler")
        result = await stream.result()
    assert result.status == "finished"


async def test_two_runs_at_once(project: Path, executor: AirflowExecutor) -> None:
    async with Runtime(load_settings(project, {}), executor=executor) as runtime, anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(runtime.run_dag, "train")


async def test_run_that_airflow_has_begun_is_collected(project: Path, server: AirflowServer) -> None:
    body = {"logical_date": None, "dag_run_id": "manual:1", "conf": {"word": "hi"}}
    with server.client() as client:
        client.patch("/dags/train", json={"is_paused": False}).raise_for_status()
        client.post("/dags/train/dagRuns", json=body).raise_for_status()
        await until(lambda: client.get("/dags/train/dagRuns/manual:1").json()["state"] == "success", 200.0)
    collected = collect_run(load_settings(project, {}), "train__manual-1")
    assert collected.status == "finished"
    assert (project / "data/runs/train__manual-1/eu.txt").read_text() == "hi"


async def test_what_is_wrong_is_said(project: Path, server: AirflowServer) -> None:
    (project / "more.py").write_text(MORE, "utf-8")
    with pytest.raises(RunStopped, match="has no DAG 'unknown'"):
        await run(project, "more.py:UnknownDAG", AirflowExecutor(_settings(server)))
    with pytest.raises(DagError, match="one pool"):
        await run(project, "more.py:GreedyDAG", AirflowExecutor(_settings(server)))
    with pytest.raises(OptionError, match="whole DAGs"):
        await run(project, "train", AirflowExecutor(_settings(server)), tasks=["load"])
    with pytest.raises(RunStopped, match="refuses 'gluepy'"):
        await run(project, "train", AirflowExecutor(_settings(server, password="no")))
    gone = _settings(server, url="http://127.0.0.1:9", patience_s=0)
    with pytest.raises(RunStopped, match="cannot reach Airflow"):
        await run(project, "train", AirflowExecutor(gone))


MORE = """
from gluepy import DAG, Task

class Plain(Task):
    def run(self): pass

class Greedy(Task):
    uses = {"gpu": 1, "disk": 1}
    def run(self): pass

class UnknownDAG(DAG):
    tasks = (Plain,)
    label = "unknown"

class GreedyDAG(DAG):
    tasks = (Greedy,)
    label = "greedy"
"""


def test_dags_file_asks_the_projects_interpreter(project: Path, server: AirflowServer) -> None:
    source = str(Path(__file__).parents[2])
    (server.dags / "asked.py").write_text(
        f"import sys; sys.path.append({source!r})\nfrom gluepy.airflow import to_airflow\n"
        f"dag = to_airflow('train', project={str(project)!r}, python={sys.executable!r}, dag_id='asked')\n"
    )
    server.wait_for_dag("asked")
    with server.client() as client:
        there = {task["task_id"] for task in client.get("/dags/asked/tasks").json()["tasks"]}
    assert there == {task["slug"] for task in describe("train", load_settings(project, {}))["tasks"]}


def test_exported_file_needs_nothing_of_gluepy(project: Path, tmp_path: Path) -> None:
    text = file_of(describe("dynamic", load_settings(project, {}), schedule="@daily"))
    assert "import gluepy" not in text
    (tmp_path / "dag.py").write_text(text)
    code = "import sys; import dag; print(type(dag.dag).__name__, 'gluepy' in sys.modules, len(dag.dag.tasks))"
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "AIRFLOW_HOME": str(tmp_path)}
    python = str(environment() / "bin/python")
    told = subprocess.run([python, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    assert told.stdout.split()[-3:] == ["DAG", "False", "4"]
