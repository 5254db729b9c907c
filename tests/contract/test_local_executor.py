"""LocalExecutor keeps the contract of executors, wherever it runs a task."""

from __future__ import annotations

import pytest

from gluepy.exec.executors.local import LocalExecutor
from gluepy.exec.port import Executor
from gluepy.testing import ExecutorContract


class TestThreadsAndTheLoop(ExecutorContract):
    pool = "thread"

    @pytest.fixture
    def executor(self) -> Executor:
        return LocalExecutor()


class TestProcesses(ExecutorContract):
    pool = "process"
    in_processes = True

    @pytest.fixture(params=["plain"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def executor(self) -> Executor:
        return LocalExecutor()
