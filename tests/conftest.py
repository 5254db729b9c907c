"""What all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gluepy.conf.schema import Settings


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every async test runs on both."""
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, no project around it, no settings in the environment; what a run adds to `sys.path`
    goes with it."""
    for name in os.environ:
        if name.startswith("GLUEPY_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> Settings:
    """Settings of no project: `runs` has the records, `data` the files, in the current folder, which is the test's."""
    return Settings(RUNS_ROOT="runs", STORAGE_ROOT="data", CONCURRENCY=4)
