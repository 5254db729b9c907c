"""What attempts in a Celery queue survive, and what ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import redis
from brokers import HERE, Broker, Forgetful, RabbitMQ, Redis, end, free_port, working
from celery_tasks import FailsAtLength, Holds, HoldsOnce, Notes, Says

from gluepy.conf.schema import Settings
from gluepy.core.events import TaskRetrying
from gluepy.errors import ExecutorBroken, OptionError, RunStopped, SettingsError
from gluepy.exec.dag import DAG, parallel
from gluepy.exec.executors.celery import CeleryExecutor, CelerySettings
from gluepy.exec.executors.celery.application import check_version
from gluepy.runtime import RunResult, Runtime
from gluepy.testing import events_of
from gluepy.testing.wait import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers fork")

BROKERS: dict[str, type[Redis | RabbitMQ]] = {"redis": Redis, "rabbitmq": RabbitMQ, "forgetful": Forgetful}
MODULES = '["celery_tasks"]'
OWN = '["celery_tasks", "queued"]'
HEARTBEAT_S = 4.0


def exhaustively(param: str) -> Any:
    return pytest.param(param, marks=pytest.mark.exhaustive)


def on_brokers(test: Any) -> Any:
    """Have it run on Redis, and exhaustively on RabbitMQ."""
    return pytest.mark.slow(pytest.mark.parametrize("broker", ["redis", exhaustively("rabbitmq")], indirect=True)(test))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """A broker of the test's own."""
    broker: Broker = BROKERS[request.param](tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


class Holding:
    """What the tasks have noted in the storage."""

    def __init__(self, settings: Settings) -> None:
        self.folder = Path(settings.storage_root) / "holds"

    def begun(self) -> list[list[int]]:
        """(number, pid, pid of the child) of all attempts that have begun."""
        return [[int(word) for word in line.split()] for line in self._lines("begun")]

    def ended(self) -> list[int]:
        """The numbers of those that have ended by themselves."""
        return [int(line) for line in self._lines("ended")]

    def go(self) -> None:
        """Let all end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "go").touch()

    def alive(self) -> list[int]:
        """The processes of attempts that are there."""
        return [pid for _, *pids in self.begun() for pid in pids if is_alive(pid)]

    def _lines(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def holding(settings: Settings) -> Holding:
    return Holding(settings)


def executor_for(broker: Broker, **fields: Any) -> CeleryExecutor:
    return CeleryExecutor(CelerySettings(broker_url=broker.url, heartbeat_s=HEARTBEAT_S, **fields))


def dag_of(*tasks: Any) -> type[DAG]:
    return type("Queued", (DAG,), {"tasks": tasks})


@asynccontextmanager
async def running(settings: Settings, executor: CeleryExecutor, *tasks: Any) -> AsyncIterator[list[RunResult]]:
    """A run of the tasks while the block runs; afterwards its result is there."""
    results: list[RunResult] = []

    async def run(runtime: Runtime) -> None:
        results.append(await runtime.run_dag(dag_of(*tasks), check=False, concurrency=8))

    async with Runtime(settings, executor=executor) as runtime, anyio.create_task_group() as group:
        group.start_soon(run, runtime)
        yield results


# A worker dies.


@on_brokers
@pytest.mark.parametrize("whom", ["main", exhaustively("child"), exhaustively("group")])
async def test_attempt_of_a_worker_that_is_killed_is_lost_and_tried_again_when_it_is_dead(
    broker: Broker, whom: str, settings: Settings, holding: Holding, folder: Path
) -> None:
    with working(broker, folder, "-c", "1", heartbeat_s=HEARTBEAT_S, modules=MODULES) as worker:
        async with running(settings, executor_for(broker), Holds) as results:
            await until(holding.begun)
            with working(broker, folder, "-c", "1", heartbeat_s=HEARTBEAT_S, modules=MODULES):
                if whom == "child":
                    worker.children()[0].kill()
                elif whom == "main":
                    worker.process.kill()
                else:
                    os.killpg(worker.process.pid, signal.SIGKILL)
                await until(lambda: len(holding.begun()) == 2)
                assert not any(map(is_alive, holding.begun()[0][1:]))
                holding.go()
                await until(lambda: results)
    (result,) = results
    assert result.status == "finished"
    assert holding.ended() == [0]
    retrying = [event for event in events_of(result) if isinstance(event, TaskRetrying)]
    assert [event.reason for event in retrying] == ["lost"]


# The broker dies.


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["redis", "forgetful", exhaustively("rabbitmq")], indirect=True)
async def test_broker_that_is_killed_and_comes_back_loses_nothing_and_repeats_nothing(
    broker: Broker, settings: Settings, holding: Holding, folder: Path
) -> None:
    tasks = parallel(*(HoldsOnce(number=number) for number in range(6)))
    executor = CeleryExecutor(CelerySettings(broker_url=broker.url, heartbeat_s=120))
    with working(broker, folder, "-c", "2", heartbeat_s=120, modules=MODULES):
        async with running(settings, executor, tasks) as results:
            await until(lambda: len(holding.begun()) == 2)
            await anyio.to_thread.run_sync(broker.kill)
            await anyio.to_thread.run_sync(broker.start)
            with working(broker, folder, "-c", "6", heartbeat_s=120, modules=MODULES):  # who may get all once more
                await until(lambda: len(holding.begun()) == 6)
                holding.go()
                await until(lambda: results)
    (result,) = results
    assert result.status == "finished", [str(each.error) for each in result.tasks.values()]
    assert {each.attempts for each in result.tasks.values()} == {1}
    assert sorted(number for number, *_ in holding.begun()) == list(range(6))
    assert sorted(holding.ended()) == list(range(6))


# The driver dies.


def make_project(folder: Path, broker: Broker, heartbeat_s: float) -> None:
    (folder / "settings.py").write_text(
        f"INSTALLED_MODULES = ['celery_tasks', 'queued']\nEXECUTOR_BACKEND = 'celery'\n"
        f"CELERY = {{'broker_url': {broker.url!r}, 'heartbeat_s': {heartbeat_s}}}\n"
        f"RUNS_ROOT = 'runs'\nSTORAGE_ROOT = 'data'\n"
    )
    (folder / "queued.py").write_text(
        "from celery_tasks import HoldsOnce\nfrom gluepy import DAG, parallel\n"
        "class QueuedDAG(DAG):\n"
        "    label = 'queued'\n"
        "    tasks = (parallel(*(HoldsOnce(number=number) for number in range(3))),)\n"
    )


def gluepy(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "gluepy", *words],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@on_brokers
async def test_attempts_of_a_driver_that_is_killed_end_and_what_waits_is_not_run(
    broker: Broker, folder: Path, holding: Holding
) -> None:
    make_project(folder, broker, HEARTBEAT_S)
    with working(broker, folder, "-c", "1", heartbeat_s=HEARTBEAT_S, modules=OWN) as worker:
        driver = gluepy(folder, "run", "queued", "-c", "3")
        await until(holding.begun)
        end(driver)
        await until(lambda: not holding.alive())
        await until(lambda: worker.log.read_text().count("end   ") == 3)
    assert len(holding.begun()) == 1


@on_brokers
async def test_driver_that_resumes_a_run_stops_what_its_predecessor_has_left(
    broker: Broker, folder: Path, holding: Holding
) -> None:
    heartbeat_s = 600.0  # long before this
    make_project(folder, broker, heartbeat_s)
    with working(broker, folder, "-c", "1", heartbeat_s=heartbeat_s, modules=OWN):
        driver = gluepy(folder, "run", "queued", "-c", "3")
        await until(holding.begun)
        end(driver)
        driver = gluepy(folder, "resume")
        await until(lambda: len(holding.begun()) == 2)
        assert not any(map(is_alive, holding.begun()[0][1:]))
        holding.go()
        assert await anyio.to_thread.run_sync(driver.wait, 120) == 0, (folder / "driver.log").read_text()
    assert sorted(holding.ended()) == [0, 1, 2]
    assert len(holding.begun()) == 4


# Neither dies.


@on_brokers
async def test_attempt_that_takes_longer_than_the_heartbeat_goes_on(
    broker: Broker, settings: Settings, holding: Holding, folder: Path
) -> None:
    heartbeat_s = 2.0
    executor = CeleryExecutor(CelerySettings(broker_url=broker.url, heartbeat_s=heartbeat_s))
    with working(broker, folder, "-c", "1", heartbeat_s=heartbeat_s, modules=MODULES):
        async with running(settings, executor, HoldsOnce) as results:
            await until(holding.begun)
            began = time.monotonic()
            await until(lambda: time.monotonic() > began + 2 * heartbeat_s)  # longer than either would wait
            holding.go()
            await until(lambda: results)
    assert results[0].status == "finished"


# What is missing.


@on_brokers
async def test_queue_that_no_worker_takes_from_stops_the_run_and_says_how_to_start_one(
    broker: Broker, settings: Settings
) -> None:
    with pytest.raises(RunStopped, match=r"no worker takes from the queue 'gluepy' of .*; start one: gluepy worker"):
        async with Runtime(settings, executor=executor_for(broker, queue_timeout_s=0.5)) as runtime:
            await runtime.run_dag(dag_of(Notes))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["redis", "amqp"])
async def test_server_that_cannot_be_reached_stops_the_run_and_says_which(scheme: str, settings: Settings) -> None:
    url = f"{scheme}://user:secret@127.0.0.1:{free_port()}/"
    with pytest.raises(ExecutorBroken) as caught:
        async with Runtime(settings, executor=CeleryExecutor(CelerySettings(broker_url=url))):
            pass
    assert f"cannot reach {scheme}://user:***@127.0.0.1:" in str(caught.value)
    assert "start it, or set CELERY.broker_url" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_worker_that_cannot_reach_its_broker_says_which_in_one_line(scheme: str, folder: Path) -> None:
    url = f"{scheme}://user:secret@127.0.0.1:{free_port()}/"
    command = [sys.executable, "-m", "gluepy", "worker"]
    environment = {**os.environ, "GLUEPY_CELERY__BROKER_URL": url}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert f"gluepy worker: cannot reach {scheme}://user:***@127.0.0.1:" in line
    assert "start it, or set CELERY.broker_url" in line


@pytest.mark.slow
def test_extra_that_is_not_installed_is_named(folder: Path) -> None:
    (folder / "without.py").write_text(
        "import sys\nsys.modules['celery'] = None\nfrom gluepy.cli import main\nmain()\n"
    )
    (folder / "x.py").write_text(
        "from gluepy import DAG, Task\nclass X(Task):\n    def run(self): pass\n\nclass XDAG(DAG):\n    tasks = (X,)\n"
    )
    for words in (["worker"], ["run", "x.py:XDAG", "--executor", "celery"]):
        done = subprocess.run(
            [sys.executable, "without.py", *words], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert "pip install" in done.stderr
        assert "gluepy[celery]" in done.stderr


def test_celery_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gluepy.exec.executors.celery.application.version", lambda name: "5.4.0")
    with pytest.raises(ExecutorBroken, match=r"Celery 5\.4\.0 is too old; install gluepy\[celery\].* 5\.6 or later"):
        check_version("CeleryExecutor")


@pytest.mark.parametrize("url", [None, "sqs://here"])
def test_broker_url_that_is_missing_or_unknown_is_an_error_that_says_what_to_set(url: str | None) -> None:
    with pytest.raises(SettingsError, match=r"CELERY\.broker_url.*redis://"):
        CeleryExecutor(CelerySettings(broker_url=url))


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_is_refused_by_name(anyio_backend: str, settings: Settings) -> None:
    executor = CeleryExecutor(CelerySettings(broker_url="redis://127.0.0.1:1/"))
    with pytest.raises(OptionError, match="CeleryExecutor runs on asyncio only, and this is trio"):
        async with Runtime(settings, executor=executor) as runtime:
            await runtime.run_dag(dag_of(Notes))


# The worker.


@on_brokers
async def test_worker_that_is_asked_to_end_finishes_what_runs_and_takes_nothing_more(
    broker: Broker, settings: Settings, holding: Holding, folder: Path
) -> None:
    tasks = parallel(*(HoldsOnce(number=number) for number in range(2)))
    with working(broker, folder, "-c", "1", heartbeat_s=HEARTBEAT_S, modules=MODULES) as worker:
        async with running(settings, executor_for(broker), tasks) as results:
            await until(holding.begun)
            worker.process.send_signal(signal.SIGTERM)
            await anyio.to_thread.run_sync(worker.wait_until_it_says, "finishing what runs")
            holding.go()
            assert await anyio.to_thread.run_sync(worker.process.wait, 60) == 0
            assert len(holding.ended()) == 1
            with working(broker, folder, "-c", "1", heartbeat_s=HEARTBEAT_S, modules=MODULES):
                await until(lambda: results)
    assert results[0].status == "finished"
    assert {each.attempts for each in results[0].tasks.values()} == {1}


@on_brokers
async def test_worker_says_what_it_runs_and_takes_from_its_queue_alone(
    broker: Broker, settings: Settings, folder: Path
) -> None:
    class Here(Notes):
        queue = "here"

    with working(broker, folder, "-c", "1", "--queue", "there", modules=MODULES) as worker:
        said = worker.log.read_text()
        assert "1 at a time, from the queue 'there' of " in said
        assert "no project (celery_tasks)" in said
        with pytest.raises(RunStopped, match="no worker takes from the queue 'gluepy'"):
            async with Runtime(settings, executor=executor_for(broker, queue_timeout_s=0.5)) as runtime:
                await runtime.run_dag(dag_of(Notes))
        async with Runtime(settings, executor=executor_for(broker, queue="there")) as runtime:
            assert (await runtime.run_dag(dag_of(Notes))).status == "finished"


@on_brokers
async def test_worker_that_is_told_to_starts_anew_and_runs_on(broker: Broker, settings: Settings, folder: Path) -> None:
    with working(broker, folder, "-c", "1", heartbeat_s=HEARTBEAT_S, modules=MODULES) as worker:
        before = {process.pid for process in worker.children()}
        worker.process.send_signal(signal.SIGHUP)
        await until(lambda: worker.log.read_text().count("runs attempts of") == 2)
        assert before.isdisjoint(process.pid for process in worker.children())
        async with Runtime(settings, executor=executor_for(broker)) as runtime:
            assert (await runtime.run_dag(dag_of(Notes))).status == "finished"


# An order is lost, or comes twice.


@pytest.mark.slow
async def test_order_that_is_lost_with_a_worker_that_had_just_taken_it_is_sent_again(
    settings: Settings, folder: Path, tmp_path: Path
) -> None:
    broker = Redis(tmp_path / "broker")
    broker.start()
    try:
        server = redis.Redis.from_url(broker.url)
        async with running(settings, executor_for(broker), Notes) as results:
            await until(lambda: server.lpop("gluepy"))
            with working(broker, folder, "-c", "1", heartbeat_s=HEARTBEAT_S, modules=MODULES):
                await until(lambda: results)
        server.close()
    finally:
        broker.stop()
    assert results[0].status == "finished"
    assert [each.attempts for each in results[0].tasks.values()] == [1]


@on_brokers
async def test_order_that_comes_twice_is_run_once(broker: Broker, settings: Settings, folder: Path) -> None:
    class Twice(CeleryExecutor):
        def _put(self, mine: Any) -> None:
            super()._put(mine)
            super()._put(mine)

    tasks = parallel(*(Notes(number=number) for number in range(20)))
    executor = Twice(CelerySettings(broker_url=broker.url, heartbeat_s=HEARTBEAT_S))
    with working(broker, folder, "-c", "2", heartbeat_s=HEARTBEAT_S, modules=MODULES):
        async with running(settings, executor, tasks) as results:
            await until(lambda: results)
    assert {each.attempts for each in results[0].tasks.values()} == {1}
    notes = (Path(results[0].files) / "notes").read_text().splitlines()
    assert sorted(int(note.split()[0]) for note in notes) == list(range(20))


@on_brokers
async def test_cancelled_attempt_that_waits_in_the_queue_never_runs(
    broker: Broker, settings: Settings, holding: Holding, folder: Path
) -> None:
    tasks = parallel(*(HoldsOnce(number=number) for number in range(3)))
    with working(broker, folder, "-c", "1", heartbeat_s=HEARTBEAT_S, modules=MODULES) as worker:
        async with (
            Runtime(settings, executor=executor_for(broker)) as runtime,
            runtime.stream_dag(dag_of(tasks), check=False, concurrency=3) as run,
        ):
            await until(holding.begun)
            run.cancel()
            result = await run.result()
            assert {each.status for each in result.tasks.values()} == {"cancelled"}
            assert not holding.alive()
            await until(lambda: worker.log.read_text().count("end   ") == 3)
    assert len(holding.begun()) == 1


# Much.


@pytest.mark.exhaustive
@on_brokers
async def test_five_hundred_quick_tasks_and_a_hundred_thousand_lines_come_whole(
    broker: Broker, settings: Settings, folder: Path
) -> None:
    tasks = parallel(*(Notes(number=number) for number in range(500)), Says, FailsAtLength)
    with working(broker, folder, "-c", "2", modules=MODULES):
        async with Runtime(settings, executor=CeleryExecutor(CelerySettings(broker_url=broker.url))) as runtime:
            result = await runtime.run_dag(dag_of(tasks), check=False, concurrency=600, capture=True)
    assert sorted(each.status for each in result.tasks.values()) == ["failed", *["finished"] * 501]
    lines = (result.path / "logs/says.1.log").read_text().splitlines()
    assert lines == [f"line {number}" for number in range(Says.lines)]
    error = result.tasks["failsatlength"].error
    assert error is not None
    assert error.type == "ValueError"
    assert error.message.startswith("x" * 1000)
