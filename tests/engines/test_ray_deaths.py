"""What becomes of runs on Ray when something dies, is missing or is not what it should be. All processes are real."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from deaths import HERE, Driver, Here, held, kill_child, kill_main, lines
from ray_clusters import RayCluster, needs_ray, only_loopback

from gluepy.conf.schema import Settings
from gluepy.core.events import TaskRetrying
from gluepy.errors import DagError, OptionError, RunStopped
from gluepy.runtime import RunResult, Runtime
from gluepy.testing import events_of
from gluepy.testing.wait import until

__all__ = ["only_loopback"]
pytestmark = [needs_ray, pytest.mark.xdist_group("ray"), pytest.mark.slow, pytest.mark.usefixtures("only_loopback")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.syspath_prepend(str(HERE))
    return Settings(
        RUNS_ROOT="runs", STORAGE_ROOT="data", CONCURRENCY=4, LIMITS={"gpu": 2}, INSTALLED_MODULES=["held_tasks"]
    )


@pytest.fixture(scope="module")
def cluster(only_loopback: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with RayCluster(tmp_path_factory.mktemp("ray"), cpus=2, modules=["held_tasks"], path=HERE) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def connected(cluster: RayCluster) -> Iterator[RayCluster]:
    """This process is connected to it: once, since that takes seconds."""
    import ray

    ray.init(cluster.address, log_to_driver=False, logging_level=40)
    yield cluster
    ray.shutdown()


def ray_executor(*arguments: Any, **options: Any) -> Any:
    from gluepy.exec.executors.ray import RayExecutor

    return RayExecutor(*arguments, **options)


def counts(folder: Path) -> dict[str, int]:
    files = folder / "data/runs/r"
    return {name: len((files / name).read_text().splitlines()) for name in ("first", "held", "last")}


# Workers and nodes.


@pytest.mark.parametrize("kill", [kill_child, kill_main])
async def test_attempt_whose_worker_is_killed_is_lost_and_runs_again_once(
    settings: Settings, connected: RayCluster, folder: Path, kill: Callable[[Here], None]
) -> None:
    results: list[RunResult] = []

    async def run(runtime: Runtime) -> None:
        results.append(await runtime.run_dag("held", check=False))

    async with (
        Runtime(settings, executor=ray_executor(connected.address)) as runtime,
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


async def test_attempt_that_waits_for_a_worker_is_cancelled_and_never_begins(
    settings: Settings, connected: RayCluster, folder: Path
) -> None:
    from held_tasks import FirstDAG

    async with (
        Runtime(settings, executor=ray_executor(connected.address)) as runtime,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(2):  # both CPUs are busy
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
    assert {task.status for task in result.tasks.values()} == {"cancelled"}
    assert not os.path.exists(result.files)  # noqa: ASYNC240


async def test_attempt_that_no_worker_begins_in_time_stops_the_run(
    settings: Settings, connected: RayCluster, folder: Path
) -> None:
    async with (
        Runtime(settings, executor=ray_executor(connected.address)) as busy,
        Runtime(settings, executor=ray_executor(connected.address, queue_timeout_s=0.5)) as runtime,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(2):
            tasks.start_soon(busy.run_dag, "held")
        await held(folder)
        await held(folder)
        with pytest.raises(RunStopped, match=r"no Ray worker has begun .* within RAY.queue_timeout_s = 0.5 s"):
            await runtime.run_dag("first")
        (folder / "data/go").touch()


@pytest.mark.exhaustive
def test_attempts_of_a_node_that_dies_are_lost_and_run_again_on_another(folder: Path) -> None:
    with RayCluster(folder, cpus=0, modules=["held_tasks"], path=HERE) as cluster:
        node = cluster.add_node()
        driver = Driver(
            folder, "run", "held", "--executor", "ray", "--run-id", "r", GLUEPY_RAY__ADDRESS=cluster.address
        )
        here = anyio.run(held, folder)
        cluster.kill(node)
        cluster.add_node()
        anyio.run(held, folder)
        assert here.is_gone()
        (folder / "data/go").touch()
        code, told = driver.ended()
    assert code == 0, told
    assert counts(folder) == {"first": 1, "held": 2, "last": 1}


# Drivers and heads.


def test_killed_driver_leaves_nothing_running_and_its_run_is_resumed(folder: Path, cluster: RayCluster) -> None:
    options = {"GLUEPY_RAY__ADDRESS": cluster.address}
    driver = Driver(folder, "run", "held", "--executor", "ray", "--run-id", "r", **options)
    here = anyio.run(held, folder)
    driver.process.kill()
    driver.ended()
    anyio.run(until, here.is_gone, 60)
    (folder / "data/go").touch()
    code, told = Driver(folder, "resume", "r", **options).ended()
    assert code == 0, told
    assert counts(folder) == {"first": 1, "held": 2, "last": 1}


@pytest.mark.exhaustive
def test_killed_driver_takes_a_cluster_of_its_own_along(folder: Path) -> None:
    driver = Driver(folder, "run", "held", "--executor", "ray", "--run-id", "r")
    here = anyio.run(held, folder)
    os.killpg(driver.process.pid, signal.SIGKILL)
    driver.ended()
    anyio.run(until, here.is_gone, 60)
    (folder / "data/go").touch()
    code, told = Driver(folder, "resume", "r").ended()
    assert code == 0, told
    assert counts(folder) == {"first": 1, "held": 2, "last": 1}


@pytest.mark.exhaustive
def test_run_whose_head_is_killed_stops_with_exit_code_3_and_is_resumed_on_another(folder: Path) -> None:
    with RayCluster(folder, cpus=1, modules=["held_tasks"], path=HERE) as cluster:
        options = {"GLUEPY_RAY__ADDRESS": cluster.address}
        driver = Driver(folder, "run", "held", "--executor", "ray", "--run-id", "r", **options)
        here = anyio.run(held, folder)
        cluster.kill(cluster.head)
        code, told = driver.ended()
        assert (code, "RayExecutor: the Ray cluster is gone" in told) == (3, True), told
        anyio.run(until, here.is_gone, 60)
    (folder / "data/go").touch()
    code, told = Driver(folder, "resume", "r", "--executor", "ray").ended()
    assert code == 0, told
    assert counts(folder) == {"first": 1, "held": 2, "last": 1}


# What is missing.


async def test_task_for_which_no_node_is_large_enough_is_refused_before_anything_runs(
    settings: Settings, connected: RayCluster
) -> None:
    async with Runtime(settings, executor=ray_executor(connected.address)) as runtime:
        with pytest.raises(DagError, match=r"it needs CPU=1 GPU=2, and no node .* they have CPU=2 memory=") as refused:
            await runtime.run_dag("wants")
    assert "ray start --resources" in str(refused.value)


def test_own_cluster_has_what_the_limits_say_and_tasks_see_their_gpus(folder: Path) -> None:
    (folder / "sees.py").write_text(
        "import os\nfrom gluepy import DAG, Task\n\nclass Sees(Task):\n    uses = {'gpu': 1}\n    number: int\n"
        "    def run(self):\n        with self.atomic(f'{self.number}') as file:\n"
        "            file.write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n\n"
        "class Both(Task):\n    uses = {'gpu': 2}\n"
        "    def run(self):\n        with self.atomic('both') as file:\n"
        "            file.write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n\n"
        "class SeesDAG(DAG):\n    label = 'sees'\n    tasks = (Sees(number=1), Both, Sees(number=2))\n"
    )
    options = {"GLUEPY_CONCURRENCY": "1", "GLUEPY_INSTALLED_MODULES": '["sees"]', "PYTHONPATH": str(folder)}
    code, told = Driver(folder, "run", "sees", "--executor", "ray", "--run-id", "r", **options).ended()
    assert code == 0, told
    seen = [(folder / "data/runs/r" / name).read_text() for name in ("1", "both", "2")]
    assert [len(each.split(",")) for each in seen] == [1, 2, 1]


@pytest.mark.exhaustive  # Ray tries for 20 s
def test_cluster_that_cannot_be_reached_is_one_clear_line(folder: Path) -> None:
    driver = Driver(folder, "run", "first", "--executor", "ray", GLUEPY_RAY__ADDRESS="127.0.0.1:1")
    code, told = driver.ended()
    assert code == 3
    assert "RayExecutor: cannot reach the Ray cluster at 127.0.0.1:1" in told
    assert "Traceback" not in told


def test_client_addresses_are_refused(folder: Path) -> None:
    options = {"GLUEPY_RAY__ADDRESS": "ray://127.0.0.1:10001"}
    code, told = Driver(folder, "run", "first", "--executor", "ray", **options).ended()
    assert code == 2
    assert "RAY.address: the driver has to be a node of the cluster; name it as host:6379, not by ray://" in told


def test_missing_extra_is_named(folder: Path) -> None:
    (folder / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\", name='ray')")
    code, told = Driver(folder, "run", "first", "--executor", "ray", PYTHONPATH=f"{folder}:{HERE}").ended()
    assert code == 2
    assert "'ray' needs the extra 'ray': pip install 'gluepy[ray]'" in told


def test_trio_is_refused_by_name(settings: Settings) -> None:
    async def run() -> None:
        async with Runtime(settings, executor=ray_executor()):
            pass

    with pytest.raises(OptionError, match="RayExecutor runs on asyncio only, and this is trio"):
        anyio.run(run, backend="trio")
