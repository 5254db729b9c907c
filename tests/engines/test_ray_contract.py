"""RayExecutor keeps the contract of executors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray_clusters import RayCluster, needs_ray, only_loopback

from gluepy.exec.port import Executor
from gluepy.testing import ExecutorContract

__all__ = ["only_loopback"]
pytestmark = [needs_ray, pytest.mark.xdist_group("ray"), pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(only_loopback: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    import ray

    folder = tmp_path_factory.mktemp("ray")
    with RayCluster(folder, cpus=4, resources='{"slot": 1}', modules=["gluepy.testing"]) as cluster:
        ray.init(cluster.address, log_to_driver=False, logging_level=40)  # once: it takes seconds
        yield cluster
        ray.shutdown()


class TestRay(ExecutorContract):
    in_processes = True
    many = 200

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def executor(self, cluster: RayCluster) -> Executor:
        from gluepy.exec.executors.ray import RayExecutor

        return RayExecutor(cluster.address)
