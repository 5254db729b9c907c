"""Metrics are there to be scraped, in the application or alone."""

from __future__ import annotations

import httpx
import pytest
from clients import client_of
from prometheus_client.parser import text_string_to_metric_families
from served import BrokenDAG
from starlette.applications import Starlette
from starlette.routing import Mount, Route

import gluepy.asgi
from gluepy.conf.schema import Settings
from gluepy.errors import OptionError
from gluepy.runtime import Runtime


async def failed_runs(client: httpx.AsyncClient, path: str) -> float:
    """How many runs of the DAG are told to have failed."""
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    labels = {"dag": "broken", "status": "failed"}
    return sum(each.value for each in samples if each.name == "gluepy_runs_total" and each.labels == labels)


async def test_application_has_what_the_sink_has_counted(settings: Settings) -> None:
    runtime = Runtime(settings.replaced(SINKS=["prometheus"]))
    async with runtime, client_of(gluepy.asgi.app(runtime)) as client:
        before = await failed_runs(client, "/metrics")
        await runtime.run_dag(BrokenDAG, check=False)
        assert await failed_runs(client, "/metrics") == before + 1
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        assert (await client.get("/metrics", headers=accept)).text.endswith("# EOF\n")


async def test_metrics_alone_have_the_runtime_count(settings: Settings) -> None:
    runtime = Runtime(settings)
    metrics = gluepy.asgi.metrics(runtime)
    service = Starlette(routes=[Route("/metrics", metrics), Mount("/below", metrics)])
    async with runtime, client_of(service) as client:
        before = await failed_runs(client, "/metrics")
        await runtime.run_dag(BrokenDAG, check=False)
        assert await failed_runs(client, "/below/metrics") == await failed_runs(client, "/below/") == before + 1
        assert (await client.post("/metrics")).status_code == 405
        gluepy.asgi.metrics(runtime)  # it counts
    assert runtime.settings.SINKS == ["prometheus"]
    async with client_of(metrics, address="8.8.8.8") as other:
        assert (await other.get("/metrics")).status_code == 403


async def test_open_runtime_that_does_not_count_is_refused(runtime: Runtime) -> None:
    with pytest.raises(OptionError, match="before the runtime is opened"):
        gluepy.asgi.metrics(runtime)
