"""An executor that is not gluepy's own keeps the contract, with nothing but what the port offers."""

from __future__ import annotations

import sys

import pytest
from subprocess_executor import SubprocessExecutor

from gluepy.exec.port import Executor
from gluepy.testing import ExecutorContract


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="it kills a process group")
class TestSubprocesses(ExecutorContract):
    in_processes = True
    many = 6

    @pytest.fixture
    def kind(self, anyio_backend: str) -> str:
        return "plain" if anyio_backend == "asyncio" else "async"  # a process costs half a second: not all four pairs

    @pytest.fixture
    def executor(self) -> Executor:
        return SubprocessExecutor()
