"""Runs that are started, cancelled and resumed over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from clients import client_of
from served import BrokenDAG, WaitDAG
from starlette.types import Message, Scope

import gluepy.asgi
from gluepy.conf.schema import Settings
from gluepy.runtime import Runtime
from gluepy.testing import until


def let_go(folder: Path) -> None:
    """Have tasks that wait end."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "go").touch()


async def status(client: httpx.AsyncClient, run_id: str) -> str:
    """The status of a run."""
    found: str = (await client.get(f"/runs/{run_id}")).json()["status"]
    return found


async def ended(client: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    """The run, once it has ended."""
    answer = await client.get(f"/runs/{run_id}/events", headers={"accept": "text/event-stream"})
    assert answer.status_code == 200
    shown: dict[str, Any] = (await client.get(f"/runs/{run_id}")).json()
    return shown


async def test_run_is_started_and_goes_on_after_the_answer(client: httpx.AsyncClient, settings: Settings) -> None:
    options = {"params": {"depth": 9}, "concurrency": 2, "run_id": "mine", "timeout_s": 100}
    answer = await client.post("/dags/train/runs", json=options)
    assert (answer.status_code, answer.json()) == (202, {"run_id": "mine"})
    assert answer.headers["location"] == "/runs/mine"
    run = await ended(client, "mine")
    assert run["status"] == "finished"
    assert run["parameters"]["depth"] == 9
    assert run["options"]["dag"] == "train"
    assert (await client.get("/runs/mine/logs/fit[region=us]")).text == "fitting us 9\n"


async def test_run_can_be_looked_at_as_soon_as_it_is_started(client: httpx.AsyncClient, folder: Path) -> None:
    run_id = (await client.post("/dags/wait/runs")).json()["run_id"]
    assert await status(client, run_id) == "running"
    assert [run["status"] for run in (await client.get("/runs")).json()] == ["running"]
    let_go(folder)
    assert (await ended(client, run_id))["status"] == "finished"


async def test_run_is_cancelled_and_resumed(client: httpx.AsyncClient, folder: Path) -> None:
    run_id = (await client.post("/dags/wait/runs", json={"pool": "process"})).json()["run_id"]
    busy = await client.post(f"/runs/{run_id}/resume")
    assert busy.status_code == 409
    assert "is being driven" in busy.json()["detail"]
    answer = await client.post(f"/runs/{run_id}/cancel")
    assert (answer.status_code, answer.json()) == (202, {"run_id": run_id})
    assert (await ended(client, run_id))["status"] == "cancelled"
    late = await client.post(f"/runs/{run_id}/cancel")
    assert late.status_code == 409
    assert "is not running: it was cancelled" in late.json()["detail"]
    let_go(folder)
    assert (await client.post(f"/runs/{run_id}/resume", json={"force": ["waits"]})).status_code == 202
    run = await ended(client, run_id)
    assert (run["status"], run["sessions"]) == ("finished", 2)


async def test_run_of_another_process_is_listed_watched_and_cancelled(
    client: httpx.AsyncClient, settings: Settings, folder: Path
) -> None:
    program = (
        "import sys, served, gluepy\n"
        "from gluepy.conf.schema import Settings\n"
        "import anyio\n"
        "async def main():\n"
        "    async with gluepy.Runtime(Settings(RUNS_ROOT='runs', STORAGE_ROOT='data')) as runtime:\n"
        "        await runtime.run_dag(served.WaitDAG, run_id='theirs', pool='process', capture=True, check=False)\n"
        "if __name__ == '__main__':\n"
        "    anyio.run(main)\n"
    )
    (folder / "other.py").write_text(program)
    paths = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(folder)]!r}; "
    code = paths + "import runpy; runpy.run_path('other.py', run_name='__main__')"
    process = await anyio.open_process([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    async with process:
        log = settings.runs_root / "theirs" / "logs" / "waits.1.log"
        await until(lambda: log.exists() and b"waiting" in log.read_bytes())
        assert await status(client, "theirs") == "running"
        assert [run["run_id"] for run in (await client.get("/runs?status=running")).json()] == ["theirs"]
        assert (await client.post("/runs/theirs/cancel")).status_code == 202
        assert (await ended(client, "theirs"))["status"] == "cancelled"
        await process.wait()


async def test_background_runs_end_with_the_runtime(settings: Settings) -> None:
    async with Runtime(settings) as runtime, client_of(gluepy.asgi.app(runtime)) as client:
        run_id = (await client.post("/dags/wait/runs", json={"pool": "process"})).json()["run_id"]
    events = (settings.runs_root / run_id / "events.jsonl").read_text().splitlines()
    assert json.loads(events[-1])["event"] == "run.cancelled"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"executor": "os:system"}, "there is no option 'executor'; known: "),
        ({"sinks": ["os:system"]}, "there is no option 'sinks'"),
        ({"parms": {}}, "did you mean 'params'?"),
        ({"concurrency": 0}, "concurrency: 0 must be a positive whole number"),
        ({"concurrency": True}, "concurrency is True, not of type integer or null"),
        ({"concurrency": 10**9}, "above 10000"),
        ({"params": [1]}, "params is [1], not of type object or null"),
        ({"params": {"a..b": 1}}, "a part of its dotted name is empty"),
        ({"from_task": 3}, "from_task is 3"),
        ({"pool": "sea"}, "'sea' is not one of thread, process"),
        ({"run_id": "../../etc"}, "cannot name a folder"),
        ({"run_id": "x" * 101}, "cannot name a folder"),
        ({"timeout_s": -1}, "must be a positive number"),
        ({"capture": "yes"}, "capture is 'yes', not of type boolean"),
        ([], "it is not a JSON object"),
        ("train", "it is not a JSON object"),
    ],
)
async def test_option_that_cannot_be_meant_is_refused_and_nothing_recorded(
    client: httpx.AsyncClient, settings: Settings, body: Any, said: str
) -> None:
    answer = await client.post("/dags/train/runs", json=body)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert not settings.runs_root.exists() or not [each for each in settings.runs_root.iterdir() if each.is_dir()]


@pytest.mark.parametrize(
    ("content", "kind", "status_code"),
    [
        (b"{}", "text/plain", 415),
        (b"params=1", "application/x-www-form-urlencoded", 415),
        (b"{}", "", 415),
        (b"{", "application/json", 422),
        (b"[" * 100_000, "application/json", 422),
        (b"\xff", "application/json", 422),
        (b"{}", "Application/JSON; charset=utf-8", 202),
        (b"", "application/json", 202),
    ],
)
async def test_body_has_to_be_a_short_json_object(
    client: httpx.AsyncClient, content: bytes, kind: str, status_code: int
) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = await client.post("/dags/train/runs", content=content, headers=headers)
    assert answer.status_code == status_code
    assert set(answer.json()) == {"run_id"} if status_code == 202 else {"detail"}


@pytest.mark.parametrize("pieces", [[b"{" + b" " * (300 << 10)], [b" " * (64 << 10)] * 1000])
async def test_long_body_is_refused_without_being_read(runtime: Runtime, pieces: list[bytes]) -> None:
    sent: list[Message] = []
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/dags/train/runs",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
    }
    await gluepy.asgi.app(runtime)(scope, receive, send)
    assert sent[0]["status"] == 413
    assert len(messages) >= len(pieces) - 5


async def test_unknown_dag_or_run_is_not_found(client: httpx.AsyncClient) -> None:
    assert "did you mean 'train'?" in (await client.post("/dags/trian/runs")).json()["detail"]
    answer = await client.post("/dags/train/runs", json={"tasks": ["nothing"]})
    assert (answer.status_code, "has no task 'nothing'" in answer.json()["detail"]) == (409, True)
    for path in ("/dags/served:TrainDAG/runs", "/runs/none/cancel", "/runs/none/resume"):
        assert (await client.post(path)).status_code == 404


async def test_run_without_an_evaluation_cannot_be_evaluated(client: httpx.AsyncClient) -> None:
    run_id = (await client.post("/dags/train/runs", json={"skip_evaluation": True})).json()["run_id"]
    await ended(client, run_id)
    answer = await client.post(f"/runs/{run_id}/resume", json={"evaluate": True})
    assert answer.status_code == 409
    assert "has no evaluation" in answer.json()["detail"]


async def test_run_id_cannot_be_used_twice(client: httpx.AsyncClient) -> None:
    assert (await client.post("/dags/train/runs", json={"run_id": "one"})).status_code == 202
    again = await client.post("/dags/train/runs", json={"run_id": "one"})
    assert again.status_code == 409
    assert "is recorded already" in again.json()["detail"]


async def test_closed_runtime_refuses_to_start_and_still_cancels(
    runtime: Runtime, settings: Settings, folder: Path
) -> None:
    async with client_of(gluepy.asgi.app(Runtime(settings))) as client:
        answer = await client.post("/dags/train/runs")
        assert answer.status_code == 503
        assert "has not opened its Runtime" in answer.json()["detail"]
        run = await runtime.start_dag(WaitDAG, pool="process")
        assert (await client.post(f"/runs/{run.id}/resume")).status_code == 503
        assert (await client.post(f"/runs/{run.id}/cancel")).status_code == 202
        assert (await run.result()).status == "cancelled"


async def test_methods_that_a_path_does_not_have_are_refused(client: httpx.AsyncClient) -> None:
    for method, path in (("GET", "/dags/train/runs"), ("POST", "/runs"), ("DELETE", "/runs/x"), ("PUT", "/health")):
        answer = await client.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"]


async def test_run_in_the_background_tells_its_events_and_result(runtime: Runtime) -> None:
    run = await runtime.start_dag(BrokenDAG)
    result = await run.result()
    assert result.status == "failed"
    assert run.ended
    names = [type(event).__name__ async for event in run]  # from the log, since nobody has read them before
    assert (names[0], names[-1]) == ("RunStarted", "RunFailed")
    again = await runtime.start_resume(run.id)
    events = [event async for event in again]
    assert events[0].session == 2
    assert (await again.result()).status == "failed"
