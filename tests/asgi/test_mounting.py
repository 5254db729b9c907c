"""The application is served by itself, or mounted in one of Starlette, FastAPI or Litestar."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from clients import client_of
from fastapi import FastAPI
from litestar import Litestar, asgi
from litestar.types import ASGIApp as LitestarApp
from served import TrainDAG
from starlette.applications import Starlette
from starlette.routing import Mount

import gluepy.asgi
from gluepy.conf.schema import Settings
from gluepy.errors import MissingExtra
from gluepy.runtime import Runtime


def in_starlette(runtime: Runtime) -> Any:
    return Starlette(routes=[Mount("/pipelines", gluepy.asgi.app(runtime))])


def in_fastapi(runtime: Runtime) -> Any:
    service = FastAPI()
    service.mount("/pipelines", gluepy.asgi.app(runtime))
    return service


def in_litestar(runtime: Runtime) -> Any:
    mounted: LitestarApp = gluepy.asgi.app(runtime)  # type: ignore[assignment]
    mount = asgi("/pipelines", is_mount=True, copy_scope=True)(mounted)
    return Litestar([mount], openapi_config=None, logging_config=None)  # it would set the level of the root logger


@pytest.mark.parametrize("mount", [in_starlette, in_fastapi, in_litestar])
async def test_mounted_application_finds_its_paths(runtime: Runtime, mount: Callable[[Runtime], Any]) -> None:
    for number in range(2):
        await runtime.run_dag(TrainDAG, run_id=f"run{number}", capture=True)
    async with client_of(mount(runtime)) as client:
        first = await client.get("/pipelines/runs?limit=1")
        assert [run["run_id"] for run in first.json()] == ["run1"]
        second = await client.get(first.links["next"]["url"])
        assert [run["run_id"] for run in second.json()] == ["run0"]
        started = await client.post("/pipelines/dags/train/runs", json={"run_id": "run2"})
        assert (await client.get(started.headers["location"])).json()["run_id"] == "run2"
        document = (await client.get("/pipelines/openapi.json")).json()
        assert document["servers"] == [{"url": "/pipelines"}]
        assert (await client.get("/pipelines/runs/run0/logs/fit[region=eu/north]")).text == "fitting eu/north 3\n"
        assert (await client.get("/pipelines/runs/none")).status_code == 404


@asynccontextmanager
async def lifespan_of(application: Any) -> AsyncIterator[None]:
    """What a server does around its requests."""
    to_send, to_receive = anyio.create_memory_object_stream[Any](2)
    answers, answered = anyio.create_memory_object_stream[Any](2)
    async with anyio.create_task_group() as tasks, to_send, to_receive, answers, answered:
        await to_send.send({"type": "lifespan.startup"})
        tasks.start_soon(application, {"type": "lifespan", "state": {}}, to_receive.receive, answers.send)
        assert (await answered.receive())["type"] == "lifespan.startup.complete"
        yield
        await to_send.send({"type": "lifespan.shutdown"})
        assert (await answered.receive())["type"] == "lifespan.shutdown.complete"


async def test_application_that_is_served_by_itself_opens_and_closes_the_runtime(settings: Settings) -> None:
    runtime = Runtime(settings)
    application = gluepy.asgi.app(runtime)
    async with lifespan_of(application), client_of(application) as client:
        assert (await client.get("/health")).json()["accepts_runs"] is True
        assert (await client.post("/dags/train/runs")).status_code == 202
    assert not runtime.is_open


async def test_application_leaves_a_runtime_open_that_others_have_opened(runtime: Runtime) -> None:
    async with lifespan_of(gluepy.asgi.app(runtime)):
        pass
    assert runtime.is_open


def test_missing_library_names_the_extra(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.startswith("gluepy.asgi.") or name.partition(".")[0] == "starlette"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(MissingExtra, match=r"pip install 'gluepy\[asgi\]'"):
        gluepy.asgi.app(Runtime(settings))
