"""DaskExecutor keeps the contract of executors: on a cluster of its own, and on one that is there already."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dask_clusters import Cluster, needs_dask

from gluepy.exec.port import Executor
from gluepy.testing import ExecutorContract

pytestmark = [needs_dask, pytest.mark.xdist_group("dask")]


class DaskContract(ExecutorContract):
    in_processes = True
    many = 500

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"


@pytest.mark.slow  # each test starts a cluster
class TestOwnCluster(DaskContract):
    @pytest.fixture
    def executor(self) -> Executor:
        from gluepy.exec.executors.dask import DaskExecutor

        return DaskExecutor(workers=3, resources={"slot": 1})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("dask"), workers=3, modules=["gluepy.testing"]) as cluster:
        yield cluster


@pytest.mark.slow
class TestSchedulerAndWorkers(DaskContract):
    @pytest.fixture
    def executor(self, cluster: Cluster) -> Executor:
        from gluepy.exec.executors.dask import DaskExecutor

        return DaskExecutor(cluster.address)
