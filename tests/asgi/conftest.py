"""The application on this machine, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from clients import client_of

import gluepy.asgi
from gluepy.conf.schema import Settings
from gluepy.runtime import Runtime


@pytest.fixture
def settings(folder: Path) -> Settings:
    (folder / "context.yaml").write_text("depth: 3\nmodel: {lr: 0.1, name: tree}\napi_token: abcdef-secret\n")
    here = ["served"]
    return Settings(
        RUNS_ROOT="runs", STORAGE_ROOT="data", INSTALLED_MODULES=here, CONTEXT_FILES=["context.yaml"], CONCURRENCY=4
    )


@pytest.fixture
async def runtime(settings: Settings) -> AsyncIterator[Runtime]:
    async with Runtime(settings) as runtime:
        yield runtime


@pytest.fixture
async def client(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    """A client on this machine."""
    async with client_of(gluepy.asgi.app(runtime)) as client:
        yield client
