"""What becomes of runs on Dask when something dies, is missing or is not what it should be. All processes are real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from dask_clusters import Cluster, needs_dask
from deaths import HERE, Driver, Here, held, kill_child, kill_main, lines

from gluepy.conf.schema import Settings
from gluepy.core.events import TaskRetrying
from gluepy.errors import OptionError, RunStopped
from gluepy.runtime import RunResult, Runtime
from gluepy.testing import events_of
from gluepy.testing.wait import until

pytestmark = [needs_dask, pytest.mark.xdist_group("dask"), pytest.mark.slow]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.syspath_prepend(str(HERE))
    return Settings(
        RUNS_ROOT="runs",
        STORAGE_ROOT="data",
        CONCURRENCY=4,
        LIMITS={"gpu": 2},
        INSTALLED_MODULES=["held_tasks"],
    )


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    (folder / "cluster").mkdir()
    with Cluster(folder / "cluster", workers=2, modules=["held_tasks"]) as cluster:
        yield cluster


def dask_executor(*arguments: Any, **options: Any) -> Any:
    from gluepy.exec.executors.dask import DaskExecutor

    return DaskExecutor(*arguments, **options)


# Workers.


def kill_group(here: Here) -> None:
    os.killpg(os.getpgid(here.agent), signal.SIGKILL)


@pytest.mark.parametrize("kill", [kill_child, kill_main, kill_group])
async def test_attempt_whose_worker_is_killed_is_lost_and_runs_again_once(
    settings: Settings, cluster: Cluster, folder: Path, kill: Callable[[Here], None]
) -> None:
    results: list[RunResult] = []

    async def run(runtime: Runtime) -> None:
        results.append(await runtime.run_dag("held", check=False))

    async with (
        Runtime(settings, executor=dask_executor(cluster.address)) as runtime,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(run, runtime)
        first = await held(folder)
        kill(first)
        await until(first.is_gone, 60)
        await held(folder)
        (folder / "data/go").touch()
    (result,) = results
    assert result.status == "finished"
    (lost,) = (event for event in events_of(result) if isinstance(event, TaskRetrying))
    assert lost.reason == "lost"
    assert (lines(result, "first"), lines(result, "held"), lines(result, "last")) == (1, 2, 1)


async def test_scheduler_that_runs_lost_attempts_again_by_itself_runs_none_twice(
    settings: Settings, folder: Path
) -> None:
    (folder / "cluster").mkdir()
    with Cluster(folder / "cluster", workers=2, modules=["held_tasks"], allowed_failures=3) as cluster:
        results: list[RunResult] = []

        async def run(runtime: Runtime) -> None:
            results.append(await runtime.run_dag("held", check=False))

        async with (
            Runtime(settings, executor=dask_executor(cluster.address)) as runtime,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(run, runtime)
            kill_main(await held(folder))
            await held(folder)
            (folder / "data/go").touch()
    (result,) = results
    (lost,) = (event for event in events_of(result) if isinstance(event, TaskRetrying))
    assert (lost.reason, lost.attempt) == ("lost", 1)
    assert "it was begun before, and not ended, by worker" in lost.error_message
    assert lines(result, "held") == 2


# Drivers and schedulers.


@pytest.mark.parametrize("own", [False, True], ids=["cluster", "own"])
async def test_killed_driver_leaves_nothing_running_and_its_run_is_resumed(
    folder: Path, own: bool, request: pytest.FixtureRequest
) -> None:
    options = {"GLUEPY_DASK__WORKERS": "2"}
    if not own:
        options = {"GLUEPY_DASK__ADDRESS": request.getfixturevalue("cluster").address}
    driver = Driver(folder, "run", "held", "--executor", "dask", "--run-id", "r", **options)
    here = await held(folder)
    driver.process.kill()
    driver.ended()
    await until(here.is_gone, 60)
    (folder / "data/go").touch()
    code, told = Driver(folder, "resume", "r", "--executor", "dask", **options).ended()
    assert code == 0, told
    files = folder / "data/runs/r"
    counts = {name: len((files / name).read_text().splitlines()) for name in ("first", "held", "last")}
    assert counts == {"first": 1, "held": 2, "last": 1}


async def test_run_whose_scheduler_is_killed_stops_with_exit_code_3_and_is_resumed_on_another(
    folder: Path, cluster: Cluster
) -> None:
    driver = Driver(folder, "run", "held", "--executor", "dask", "--run-id", "r", GLUEPY_DASK__ADDRESS=cluster.address)
    here = await held(folder)
    cluster.kill_scheduler()
    code, told = driver.ended()
    assert code == 3
    assert "DaskExecutor: the connection to the Dask scheduler was lost" in told
    await until(here.is_gone, 60)
    (folder / "data/go").touch()
    (folder / "another").mkdir()
    with Cluster(folder / "another", workers=1, modules=["held_tasks"]) as another:
        driver = Driver(folder, "resume", "r", GLUEPY_DASK__SCHEDULER_FILE=str(another.scheduler_file))
        code, told = driver.ended()
    assert code == 0, told
    files = folder / "data/runs/r"
    assert len((files / "first").read_text().splitlines()) == 1
    assert len((files / "held").read_text().splitlines()) == 2


async def test_attempt_that_waits_for_a_worker_is_cancelled_and_never_begins(
    settings: Settings, cluster: Cluster, folder: Path
) -> None:
    from held_tasks import FirstDAG

    async with Runtime(settings, executor=dask_executor(cluster.address)) as runtime:
        async with anyio.create_task_group() as tasks:
            for _ in range(2):  # both workers are busy
                tasks.start_soon(lambda: runtime.run_dag("held", check=False))
            await held(folder)
            await held(folder)
            async with runtime.stream_dag(FirstDAG, check=False) as run:
                started = 0
                async for event in run:
                    started += type(event).__name__ == "TaskStarted"
                    if started == 2:
                        break
                run.cancel()
                result = await run.result()
            (folder / "data/go").touch()
        assert result.status == "cancelled"
        assert {task.status for task in result.tasks.values()} == {"cancelled"}
    assert not os.path.exists(result.files)  # noqa: ASYNC240


# What is missing.


async def test_resource_that_no_worker_has_is_an_error_and_not_an_endless_wait(
    settings: Settings, cluster: Cluster
) -> None:
    async with Runtime(settings, executor=dask_executor(cluster.address)) as runtime:
        with pytest.raises(RunStopped) as stopped:
            await runtime.run_dag("wants")
    assert "task 'wants' uses gpu=2, and no Dask worker has that; they have slot=1" in str(stopped.value)
    assert 'start workers with --resources "gpu=2"' in str(stopped.value)


async def test_own_cluster_has_what_the_limits_say(settings: Settings) -> None:
    executor = dask_executor(workers=1, resources=settings.LIMITS)
    async with Runtime(settings, executor=executor) as runtime:
        assert (await runtime.run_dag("wants")).status == "finished"


async def test_attempt_that_no_worker_begins_in_time_stops_the_run(settings: Settings, folder: Path) -> None:
    (folder / "cluster").mkdir()
    with Cluster(folder / "cluster", workers=0) as cluster:
        async with Runtime(settings, executor=dask_executor(cluster.address, queue_timeout_s=0.5)) as runtime:
            with pytest.raises(RunStopped, match=r"there is no Dask worker, .* within DASK.queue_timeout_s = 0.5 s"):
                await runtime.run_dag("first")


async def test_attempt_that_has_begun_in_time_may_take_longer(
    settings: Settings, cluster: Cluster, folder: Path
) -> None:
    async with (
        Runtime(settings, executor=dask_executor(cluster.address, queue_timeout_s=2)) as runtime,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(runtime.run_dag, "held")
        await held(folder)
        await anyio.sleep(2.2)  # the time-out itself is what is tested
        (folder / "data/go").touch()


def test_scheduler_that_cannot_be_reached_is_one_clear_line(folder: Path) -> None:
    for options, said in (
        ({"GLUEPY_DASK__ADDRESS": "tcp://127.0.0.1:1"}, "cannot reach the Dask scheduler at tcp://127.0.0.1:1"),
        ({"GLUEPY_DASK__SCHEDULER_FILE": "none.json"}, "there is no file none.json"),
    ):
        code, told = Driver(folder, "run", "first", "--executor", "dask", **options).ended()
        assert code == 3
        assert said in told
        assert "Traceback" not in told


def test_settings_that_contradict_each_other_are_told(folder: Path) -> None:
    options = {"GLUEPY_DASK__ADDRESS": "tcp://127.0.0.1:1", "GLUEPY_DASK__SCHEDULER_FILE": "none.json"}
    code, told = Driver(folder, "run", "first", "--executor", "dask", **options).ended()
    assert code == 2
    assert "DASK.address: DASK.scheduler_file is set, too; set one of them" in told


def test_missing_extra_is_named(folder: Path) -> None:
    (folder / "distributed.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'distributed'\", name='distributed')"
    )
    code, told = Driver(folder, "run", "first", "--executor", "dask", PYTHONPATH=f"{folder}:{HERE}").ended()
    assert code == 2
    assert "'dask' needs the extra 'dask': pip install 'gluepy[dask]'" in told


def test_trio_is_refused_by_name(settings: Settings) -> None:
    async def run() -> None:
        async with Runtime(settings, executor=dask_executor(workers=1)):
            pass

    with pytest.raises(OptionError, match="DaskExecutor runs on asyncio only, and this is trio"):
        anyio.run(run, backend="trio")


async def test_workers_without_the_project_say_so(settings: Settings, folder: Path) -> None:
    (folder / "cluster").mkdir()
    with Cluster(folder / "cluster", workers=1, modules=["other"]) as cluster:
        async with Runtime(settings, executor=dask_executor(cluster.address)) as runtime:
            result = await runtime.run_dag("first", check=False)
    error = result.tasks["first"].error
    assert error is not None
    assert error.type == "UnknownTask"
    assert "INSTALLED_MODULES = ['other']" in error.message


def test_script_without_a_main_guard_is_told_so(folder: Path) -> None:
    (folder / "script.py").write_text("import gluepy\ngluepy.run_dag_sync('first', executor='dask')\n")
    environment = {**os.environ, "GLUEPY_INSTALLED_MODULES": '["held_tasks"]', "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, text=True, capture_output=True, timeout=240
    )
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr


# A storm.


async def storm(settings: Settings, folder: Path, *, kills: int) -> None:
    """Run ten tasks for each worker that is killed meanwhile."""
    (folder / "cluster").mkdir()
    results: list[RunResult] = []
    killed = 0

    async def run(runtime: Runtime) -> None:
        results.append(await runtime.run_dag("storm", check=False, params={"tasks": 10 * kills}))

    async def kill(cluster: Cluster) -> None:
        nonlocal killed
        while not results and killed < kills:
            agents = cluster.agents()
            if agents:
                os.kill(agents[killed % len(agents)], signal.SIGKILL)
                killed += 1
            await anyio.sleep(0.25)

    with Cluster(folder / "cluster", workers=3, modules=["held_tasks"]) as cluster:
        async with (
            Runtime(settings, executor=dask_executor(cluster.address)) as runtime,
            anyio.create_task_group() as group,
        ):
            group.start_soon(run, runtime)
            group.start_soon(kill, cluster)
    (result,) = results
    assert result.status == "finished"
    assert killed >= min(kills, 3)
    for number in range(10 * kills):
        attempts = result.tasks[f"step[number={number}]"].attempts
        assert lines(result, f"step-{number}") <= attempts
        assert lines(result, f"done-{number}") >= 1
    retried = sum(task.attempts - 1 for task in result.tasks.values())
    assert retried == sum(isinstance(event, TaskRetrying) for event in events_of(result))


async def test_storm_of_killed_workers_runs_each_recorded_attempt_at_most_once(
    settings: Settings, folder: Path
) -> None:
    await storm(settings, folder, kills=int(os.environ.get("TEST_DASK_KILLS", "3")))


@pytest.mark.exhaustive
async def test_long_storm_of_killed_workers_runs_each_recorded_attempt_at_most_once(
    settings: Settings, folder: Path
) -> None:
    await storm(settings, folder, kills=50)
