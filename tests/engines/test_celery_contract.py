"""Attempts that go through a Celery broker keep the contract of executors."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from brokers import Broker, RabbitMQ, Redis, Valkey, Worker, working

from gluepy.exec.executors.celery import CeleryExecutor, CelerySettings
from gluepy.exec.port import Executor
from gluepy.testing import ExecutorContract

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers fork")

BROKERS = {"redis": Redis, "valkey": Valkey, "rabbitmq": RabbitMQ}


@pytest.fixture(scope="class")
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker: Broker = BROKERS[request.param](tmp_path_factory.mktemp(request.param))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="class")
def worker(broker: Broker) -> Iterator[Worker]:
    with working(broker, broker.folder, "--concurrency", "4") as worker:
        yield worker


class CeleryContract(ExecutorContract):
    """The contract, over the broker that `broker` is parametrized with."""

    in_processes = True
    bound_s = 15.0  # less than after which an attempt is left to its worker

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def executor(self, broker: Broker, worker: Worker) -> Executor:
        return CeleryExecutor(CelerySettings(broker_url=broker.url))


@pytest.mark.slow
@pytest.mark.xdist_group("redis")
@pytest.mark.parametrize("broker", ["redis"], indirect=True)
class TestRedis(CeleryContract):
    pass


@pytest.mark.exhaustive  # to gluepy it is Redis
@pytest.mark.xdist_group("valkey")
@pytest.mark.parametrize("broker", ["valkey"], indirect=True)
class TestValkey(CeleryContract):
    pass


@pytest.mark.slow
@pytest.mark.xdist_group("rabbitmq")
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
class TestRabbitMQ(CeleryContract):
    @pytest.fixture(params=["plain", pytest.param("async", marks=pytest.mark.exhaustive)])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)
