"""Attempts that go to agents keep the contract of executors, whatever brings them there."""

from __future__ import annotations

import os
import sys

import pytest
from remotes import AgentExecutor, PipeExecutor

from gluepy.exec.port import Executor
from gluepy.testing import ExecutorContract

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="agents have worker processes")


class TestAnAgentInThisProcess(ExecutorContract):
    in_processes = True

    @pytest.fixture
    def kind(self, anyio_backend: str) -> str:
        return "plain" if anyio_backend == "asyncio" else "async"  # as below

    @pytest.fixture
    def executor(self) -> Executor:
        return AgentExecutor()


@pytest.mark.slow
class TestAgentsInProcesses(ExecutorContract):
    in_processes = True
    many = 6

    @pytest.fixture
    def kind(self, anyio_backend: str) -> str:
        return "plain" if anyio_backend == "asyncio" else "async"  # a process costs half a second: not all four pairs

    @pytest.fixture
    def executor(self) -> Executor:
        return PipeExecutor("--own")


@pytest.mark.slow
class TestAgentsOfAProjectOfTheirOwn(ExecutorContract):
    in_processes = True

    @pytest.fixture(params=["plain"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def executor(self, monkeypatch: pytest.MonkeyPatch) -> Executor:
        monkeypatch.setitem(os.environ, "GLUEPY_INSTALLED_MODULES", '["gluepy.testing"]')
        return AgentExecutor(own=False)
