"""Clients of the application, in this process and behind a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

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


def client_of(
    application: Any, *, address: str = "127.0.0.1", host: str = "localhost:8000", **headers: str
) -> httpx.AsyncClient:
    """A client at `address` that has reached the application as `host`."""
    transport = httpx.ASGITransport(application, client=(address, 50_000))
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers)
