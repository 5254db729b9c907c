"""`SlurmExecutor` keeps the contract of executors, on a real cluster of one node."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
from filelock import FileLock
from slurm_cluster import INSTALL, SlurmCluster, missing_programs

from gluepy import DAG, Runtime
from gluepy.conf.schema import Settings
from gluepy.conf.sources import load_settings
from gluepy.core.events import TaskFailed
from gluepy.core.graph import Spec
from gluepy.errors import ExecutorBroken, RunStopped, SettingsError
from gluepy.exec.executors import slurm
from gluepy.exec.executors.slurm import SlurmExecutor, SlurmSettings
from gluepy.exec.port import Attempt, Executor, RunInfo
from gluepy.testing import ExecutorContract, contract_tasks, events_of, until

if missing_programs():
    why = f"Slurm is not installed: {INSTALL}"
    if os.environ.get("CI") == "true":
        raise RuntimeError(why)
    pytest.skip(why, allow_module_level=True)
if os.geteuid() != 0:
    pytest.skip("a Slurm cluster of our own has to be started by root", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _its_commands_work(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**cluster.environment, "GLUEPY_INSTALLED_MODULES": '["gluepy.testing"]'}.items():
        monkeypatch.setenv(name, value)


def executor_in(folder: Path, **settings: Any) -> SlurmExecutor:
    return SlurmExecutor(SlurmSettings(poll_s=0.2, **settings), folder / "jobs")


class TestJobs(ExecutorContract):
    @pytest.fixture(params=["plain"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def executor(self, tmp_path: Path) -> Executor:
        return executor_in(tmp_path)


class Greedy(contract_tasks.Writes):
    uses: ClassVar = {"gpu": 7}


class GreedyDAG(DAG):
    tasks = (Greedy,)


class OneTask(DAG):
    tasks = (contract_tasks.Stays,)


@pytest.fixture
def settings_here(tmp_path: Path) -> Settings:
    return load_settings(None, {"STORAGE_ROOT": str(tmp_path / "data"), "RUNS_ROOT": str(tmp_path / "runs")})


async def begun(tmp_path: Path) -> Path:
    """The folder of the run's files, once its task holds its lock."""
    await until(lambda: list((tmp_path / "data/runs").glob("*/here")))
    return next((tmp_path / "data/runs").glob("*/here")).parent


def running_jobs(cluster: SlurmCluster) -> list[str]:
    return cluster.run("squeue", "-h", "-t", "RUNNING,COMPLETING", "-o", "%i").stdout.split()


async def only_job(cluster: SlurmCluster) -> str:
    """The job that runs, when those of other tests have ended."""
    await until(lambda: len(running_jobs(cluster)) == 1)
    return running_jobs(cluster)[0]


Happens = Callable[[SlurmCluster, str], object]


def back_up(cluster: SlurmCluster) -> None:
    cluster.run("scontrol", "update", f"nodename={cluster.node}", "state=resume")


LOSSES: dict[str, tuple[Happens, str]] = {
    "scancel": (lambda cluster, job: cluster.run("scancel", job), r"job \d+ was cancelled, not by gluepy"),
    "SIGKILL of all of it": (
        lambda cluster, job: cluster.run("scancel", "--signal=KILL", "--full", job),
        r"job \d+ on \S+ ended with signal 9|job \d+ was cancelled",
    ),
    "node": (
        lambda cluster, job: cluster.run("scontrol", "update", f"nodename={cluster.node}", "state=down", "reason=t"),
        r"node \S+ of job \d+ failed",
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
async def test_an_attempt_whose_job_is_lost_says_how(
    loss: str, cluster: SlurmCluster, tmp_path: Path, settings_here: Settings
) -> None:
    happens, told = LOSSES[loss]
    async with (
        Runtime(settings_here, executor=executor_in(tmp_path)) as runtime,
        runtime.stream_dag(OneTask, check=False) as run,
    ):
        await begun(tmp_path)
        happens(cluster, await only_job(cluster))
        with anyio.fail_after(120):
            result = await run.result()
    back_up(cluster)
    failed = next(event for event in events_of(result) if isinstance(event, TaskFailed))
    assert failed.reason == "lost"
    assert re.search(told, failed.error_message), failed.error_message


async def test_a_controller_that_dies_and_comes_back_changes_nothing(
    cluster: SlurmCluster, tmp_path: Path, settings_here: Settings
) -> None:
    async with (
        Runtime(settings_here, executor=executor_in(tmp_path)) as runtime,
        runtime.stream_dag(OneTask, check=False) as run,
    ):
        files = await begun(tmp_path)
        # Else it forgets the job, and gives its number again, to the next.
        now = time.time()
        await until(lambda: (cluster.home / "state/job_state").stat().st_mtime > now)
        cluster.kill("slurmctld")
        (files / "go").touch()
        try:
            with anyio.fail_after(120):
                result = await run.result()
        finally:
            cluster.start_controller()
    assert result.status == "finished"


DRIVER = """
import sys
from pathlib import Path
from gluepy import DAG, run_dag_sync
from gluepy.exec.executors import slurm
from gluepy.exec.executors.slurm import SlurmExecutor, SlurmSettings
from gluepy.testing import contract_tasks

class Driven(DAG):
    tasks = (contract_tasks.Stays,)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    executor = SlurmExecutor(SlurmSettings(poll_s=0.2, patience_s=3), folder / "jobs")
    run_dag_sync(Driven, executor=executor, run_id="driven")
"""


async def test_the_job_of_a_driver_that_is_killed_stops(cluster: SlurmCluster, tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {
        **os.environ,
        "GLUEPY_STORAGE_ROOT": str(tmp_path / "data"),
        "GLUEPY_RUNS_ROOT": str(tmp_path / "runs"),
    }
    async with await anyio.open_process(
        [sys.executable, "driver.py", str(tmp_path)], cwd=tmp_path, env=environment, stdout=None, stderr=None
    ) as driver:
        files = await begun(tmp_path)
        job = await only_job(cluster)
        driver.send_signal(signal.SIGKILL)
        await driver.wait()
    await until(lambda: job not in running_jobs(cluster))
    with FileLock(files / "held", timeout=0):
        pass  # nobody holds it any more


async def test_what_the_cluster_does_not_have_is_an_error_that_says_so(tmp_path: Path, settings_here: Settings) -> None:
    settings = settings_here.replaced(LIMITS={"gpu": 7})
    async with Runtime(settings, executor=executor_in(tmp_path)) as runtime:
        with pytest.raises(RunStopped, match=r"sbatch refused .*gpu:7.*not available") as caught:
            await runtime.run_dag(GreedyDAG)
    assert "memory_mb and uses" in caught.value.hint


async def test_a_machine_without_slurm_is_told(
    tmp_path: Path, settings_here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExecutorBroken, match=r"no sbatch on PATH; start it on a login node"):
        async with Runtime(settings_here, executor=executor_in(tmp_path)):
            pass


async def test_what_passes_through_the_shared_folder_is_the_users_alone(
    tmp_path: Path, settings_here: Settings
) -> None:
    async with Runtime(settings_here, executor=executor_in(tmp_path)):
        (session,) = (tmp_path / "jobs").iterdir()
        assert session.stat().st_mode & 0o077 == 0
    assert not session.exists()


async def test_a_folder_that_is_away_for_a_while_breaks_nothing(
    cluster: SlurmCluster, tmp_path: Path, settings_here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched: list[bool] = []

    def away(alive: Path) -> None:
        touched.append(len(touched) == 1)
        if touched[-1]:
            raise OSError("stale file handle")
        alive.parent.mkdir(parents=True, exist_ok=True)
        alive.touch()

    monkeypatch.setattr(slurm, "touch", away)
    async with (
        Runtime(settings_here, executor=executor_in(tmp_path, patience_s=3)) as runtime,
        runtime.stream_dag(OneTask, check=False) as run,
    ):
        files = await begun(tmp_path)
        await until(lambda: len(touched) > 2)
        (files / "go").touch()
        assert (await run.result()).status == "finished"


def test_an_object_store_needs_a_shared_folder_besides(settings_here: Settings) -> None:
    settings = settings_here.replaced(STORAGE_ROOT="s3://bucket/data")
    with pytest.raises(SettingsError, match=r"s3://bucket/data.*a folder that this machine and the nodes share"):
        SlurmExecutor.from_settings(settings)


def test_jobs_ask_for_what_their_tasks_need(tmp_path: Path) -> None:
    executor = executor_in(tmp_path, partition="p", account="a", sbatch=["--nice=5"])
    spec = Spec(cls="m:T", label="t", cpus=4, memory_mb=100, timeout_s=61, uses={"gpu": 2, "database": 1})
    run = RunInfo(run_id="r", dag="d", path="p", storage="s")
    attempt = Attempt(run, spec, "t", 1, 1, {}, "process")
    assert executor.arguments(attempt) == [
        "--job-name=gluepy-t", "--no-requeue", "--partition=p", "--account=a", "--cpus-per-task=4", "--mem=100M",
        "--time=3", "--gres=gpu:2", "--nice=5",
    ]  # fmt: skip


@pytest.mark.parametrize("anyio_backend", ["trio"])  # on one: Slurm tries for a minute
async def test_a_cluster_that_cannot_be_reached_is_told_before_anything_runs(
    tmp_path: Path, settings_here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "none.conf"))
    with pytest.raises(ExecutorBroken, match=r"cannot reach the cluster: .*; see whether its controller runs"):
        async with Runtime(settings_here, executor=executor_in(tmp_path)):
            pass
    assert not (tmp_path / "runs").exists()


@pytest.mark.exhaustive
async def test_a_job_beyond_its_time_limit_has_timed_out(tmp_path: Path, settings_here: Settings) -> None:
    executor = executor_in(tmp_path, sbatch=["--time=1"])
    async with Runtime(settings_here, executor=executor) as runtime:
        result = await runtime.run_dag(OneTask, check=False)
    failed = next(event for event in events_of(result) if isinstance(event, TaskFailed))
    assert failed.reason in ("timeout", "lost")
