"""What the application tells of DAGs and runs is what the records and reports say."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from clients import client_of
from served import BrokenDAG, TrainDAG

import gluepy.asgi
from gluepy.conf.schema import Settings
from gluepy.report import RunReport
from gluepy.runs.record import Record
from gluepy.runtime import Runtime


def stored(settings: Settings, run_id: str) -> list[dict[str, Any]]:
    """The events in a run's log."""
    log = settings.runs_root / run_id / "events.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


def streamed(text: str) -> list[tuple[int, dict[str, Any]]]:
    """The server-sent events in `text`, with their ids."""
    found = []
    for part in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in part.splitlines() if ": " in line)
        if "data" in fields:
            found.append((int(fields["id"]), json.loads(fields["data"])))
    return found


async def test_dags_are_listed_and_shown_with_graph_and_parameters(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/dags")).json()
    assert [row["dag"] for row in listed] == ["broken", "chatter", "train", "wait"]
    assert listed[2]["about"] == "Load, then fit each region."
    shown = (await client.get("/dags/train")).json()
    assert [node["task"] for node in shown["graph"]["nodes"]] == ["load", "fit[region=eu/north]", "fit[region=us]"]
    assert shown["graph"]["edges"] == [[0, 1], [0, 2]]
    assert shown["parameters"]["properties"] == {
        "depth": {"type": "integer", "default": 3},
        "model": {
            "type": "object",
            "properties": {"lr": {"type": "number", "default": 0.1}, "name": {"type": "string", "default": "tree"}},
        },
        "api_token": {"type": "string", "writeOnly": True},
    }


@pytest.mark.parametrize("label", ["trian", "served:TrainDAG", "served.py", "..", "%2e%2e%2fserved"])
async def test_a_dag_is_found_by_its_label_alone(client: httpx.AsyncClient, label: str) -> None:
    answer = await client.get(f"/dags/{label}")
    assert answer.status_code == 404
    if label == "trian":
        assert "did you mean 'train'?" in answer.json()["detail"]


async def test_run_is_shown_as_it_is_reported(client: httpx.AsyncClient, runtime: Runtime, settings: Settings) -> None:
    result = await runtime.run_dag(BrokenDAG, check=False)
    shown = (await client.get(f"/runs/{result.run_id}")).json()
    report = RunReport.from_record(Record(settings.runs_root, result.run_id), settings)
    assert shown == json.loads(json.dumps(report.to_json()))
    assert (await client.get("/runs/latest")).json()["run_id"] == result.run_id
    assert (await client.get(f"/runs/{result.run_id[-8:]}")).json()["run_id"] == result.run_id
    graph = (await client.get(f"/runs/{result.run_id}/graph")).json()
    assert graph["edges"] == [[0, 1]]
    task = (await client.get(f"/runs/{result.run_id}/tasks/fails")).json()
    assert task["task"] == "fails"
    assert task["error"]["message"] == "no such file"
    assert [attempt["status"] for attempt in task["history"]] == ["failed"]
    assert (await client.get(f"/runs/{result.run_id}/tasks/fail")).status_code == 404


async def test_task_with_a_slash_in_its_id_is_found(client: httpx.AsyncClient, runtime: Runtime) -> None:
    run_id = (await runtime.run_dag(TrainDAG, capture=True)).run_id
    for part in ("tasks", "logs"):
        for name in ("fit[region=eu/north]", "fit%5Bregion%3Deu%2Fnorth%5D"):
            assert (await client.get(f"/runs/{run_id}/{part}/{name}")).status_code == 200


async def test_runs_are_listed_page_by_page(client: httpx.AsyncClient, runtime: Runtime) -> None:
    ids = [(await runtime.run_dag(TrainDAG)).run_id for _ in range(5)]
    ids.append((await runtime.run_dag(BrokenDAG, check=False)).run_id)
    ids.reverse()
    found: list[str] = []
    page = "/runs?limit=4"
    while page:
        answer = await client.get(page)
        assert len(answer.json()) <= 4
        found += [run["run_id"] for run in answer.json()]
        page = answer.links.get("next", {}).get("url", "")
    assert found == ids

    async def listed(**query: str) -> list[str]:
        return [run["run_id"] for run in (await client.get("/runs", params=query)).json()]

    assert await listed() == ids
    assert await listed(dag="broken") == ids[:1]
    assert await listed(status="finished") == ids[1:]
    assert await listed(status="interrupted") == []
    third = (await client.get(f"/runs/{ids[2]}")).json()["started_at"]
    assert await listed(since=third) == ids[:3]
    assert await listed(since="2099-01-01T00:00:00+02:00") == await listed(since="9999-12-31T23:59:59-14:00") == []
    for odd in ("0000-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "2016-12-31t23:59:60z"):  # RFC 3339 all the same
        assert await listed(since=odd) == ids
    assert (await client.get("/runs?cursor=nothing")).status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=1001", "limit=-1", "limit=1e3", "limit=٣", "status=done", "since=yesterday",
        "lmit=5", "limit=1&limit=2",
    ],
)  # fmt: skip
async def test_query_that_cannot_be_meant_is_refused(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"/runs?{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("query: ")


async def test_events_are_those_of_the_log(client: httpx.AsyncClient, runtime: Runtime, settings: Settings) -> None:
    run_id = (await runtime.run_dag(TrainDAG)).run_id
    events = stored(settings, run_id)
    assert (await client.get(f"/runs/{run_id}/events")).json() == events
    assert (await client.get(f"/runs/{run_id}/events?after=2&limit=3")).json() == events[2:5]
    assert (await client.get(f"/runs/{run_id}/events?after={len(events)}")).json() == []


async def test_stream_of_a_run_that_has_ended_has_every_event_and_ends(
    client: httpx.AsyncClient, runtime: Runtime, settings: Settings
) -> None:
    run_id = (await runtime.run_dag(TrainDAG)).run_id
    events = stored(settings, run_id)
    for last, rest in (("", events), ("3", events[3:]), ("no number", events), ("9" * 40, events), ("-1", events)):
        headers = {"accept": "text/event-stream", "last-event-id": last}
        answer = await client.get(f"/runs/{run_id}/events", headers=headers)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert streamed(answer.text) == [(event["seq"], event) for event in rest]
    headers = {"accept": "text/event-stream", "last-event-id": str(len(events))}
    assert (await client.get(f"/runs/{run_id}/events", headers=headers)).status_code == 204


async def test_stream_goes_on_with_a_run_that_is_resumed(
    client: httpx.AsyncClient, runtime: Runtime, settings: Settings
) -> None:
    run_id = (await runtime.run_dag(BrokenDAG, check=False)).run_id
    headers = {"accept": "text/event-stream"}
    before = streamed((await client.get(f"/runs/{run_id}/events", headers=headers)).text)
    await runtime.resume_run(run_id, check=False)
    headers["last-event-id"] = str(before[-1][0])
    after = streamed((await client.get(f"/runs/{run_id}/events", headers=headers)).text)
    assert [event for _, event in before + after] == stored(settings, run_id)
    assert after[0][1]["event"] == "run.resumed"


async def test_log_is_read_whole_or_in_part(client: httpx.AsyncClient, runtime: Runtime) -> None:
    result = await runtime.run_dag(TrainDAG, capture=True)
    whole = (result.path / "logs" / "load.1.log").read_bytes()
    log = f"/runs/{result.run_id}/logs/load"
    answer = await client.get(log)
    assert answer.content == whole
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (await client.get(log + "?follow=true&offset=4")).content == whole[4:]
    assert (await client.get(log + "?attempt=2")).content == b""  # as of any attempt that has printed nothing
    for given, begin, end in (("0-3", 0, 4), ("4-", 4, None), ("-5", -5, None), (f"2-{10**17}", 2, None)):
        answer = await client.get(log, headers={"range": f"bytes={given}"})
        assert (answer.status_code, answer.content) == (206, whole[begin:end])
        assert answer.headers["content-range"].endswith(f"/{len(whole)}")
    for given in (f"{len(whole)}-", "-0", f"{10**17}-"):
        answer = await client.get(log, headers={"range": f"bytes={given}"})
        assert answer.status_code == 416
        assert answer.headers["content-range"] == f"bytes */{len(whole)}"
    many = ",".join(f"{number}-{number}" for number in range(1000))
    for ignored in (f"bytes={many}", "bytes=5-2", "lines=1-2", f"bytes={'9' * 1000}-", "bytes=-"):
        answer = await client.get(log, headers={"range": ignored})
        assert (answer.status_code, answer.content) == (200, whole)


@pytest.mark.parametrize(
    "name", ["%2e%2e", "%2e%2e%2fruns", "..%2f..%2fetc", "index.sqlite", ".hidden", "x" * 5000, "%00"]
)
async def test_what_is_no_run_is_not_found(
    client: httpx.AsyncClient, runtime: Runtime, settings: Settings, name: str
) -> None:
    run_id = (await runtime.run_dag(TrainDAG, capture=True)).run_id
    secret = settings.runs_root / "secret"
    secret.mkdir()
    (secret / "load.1.log").write_text("secret")
    for path in (f"/runs/{name}", f"/runs/{name}/events", f"/runs/{run_id}/logs/{name}", f"/runs/{name}/logs/load"):
        answer = await client.get(path)
        assert answer.status_code == 404, path


async def test_unreadable_log_is_told(client: httpx.AsyncClient, runtime: Runtime, settings: Settings) -> None:
    run_id = (await runtime.run_dag(TrainDAG)).run_id
    (settings.runs_root / run_id / "events.jsonl").write_text("garbage\n")
    answer = await client.get(f"/runs/{run_id}")
    assert answer.status_code == 500
    assert "it has no events of a run yet (1 line is damaged)" in answer.json()["detail"]
    assert [run["status"] for run in (await client.get("/runs")).json()] == ["unreadable"]
    assert (await client.get(f"/runs/{run_id}/events")).json() == []


async def test_runtime_that_is_not_open_is_enough_to_look(runtime: Runtime, settings: Settings) -> None:
    run_id = (await runtime.run_dag(TrainDAG)).run_id
    async with client_of(gluepy.asgi.app(Runtime(settings))) as client:
        assert (await client.get("/health")).json()["accepts_runs"] is False
        assert (await client.get(f"/runs/{run_id}")).json()["status"] == "finished"


async def test_openapi_document_names_every_path(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    assert {"/dags", "/runs", "/runs/{run_id}/events", "/health"} <= set(document["paths"])
