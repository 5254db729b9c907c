"""The service example behind a real server: runs waited for, runs in the background, runs ended with their client."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    import httpx

ENDLESS = 10**12


class Server:
    """A running service, and a client of it."""

    def __init__(self, process: subprocess.Popen[bytes], client: httpx.Client, runs: Path) -> None:
        self.process, self.client, self.runs = process, client, runs

    def workers(self) -> list[psutil.Process]:
        """The processes below the server's."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def start(self, points: int) -> str:
        """Start a run in the background; returns its id."""
        run_id: str = self.client.post("/pipelines/dags/pi/runs", json={"params": {"points": points}}).json()["run_id"]
        return run_id

    def watch(self, run_id: str) -> AbstractContextManager[httpx.Response]:
        """Its events as they come."""
        accept = {"accept": "text/event-stream"}
        return self.client.stream("GET", f"/pipelines/runs/{run_id}/events", headers=accept)

    def events(self, run_id: str) -> list[str]:
        """The names of a run's events so far, from its record."""
        return [json.loads(line)["event"] for line in (self.runs / run_id / "events.jsonl").read_text().splitlines()]


@pytest.fixture
def server(examples: Path, tmp_path: Path) -> Iterator[Server]:
    import httpx

    runs = tmp_path / "runs"
    env = os.environ | {"GLUEPY_STORAGE_ROOT": str(tmp_path / "data"), "GLUEPY_RUNS_ROOT": str(runs)}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, descriptor = listener.getsockname()[1], listener.fileno()
        command = [
            sys.executable,
            "-m",
            "uvicorn",
            "app:app",
            "--fd",
            str(descriptor),
            "--timeout-graceful-shutdown",
            "1",
        ]
        process = subprocess.Popen(command, cwd=examples / "service", env=env, pass_fds=[descriptor])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=240) as client:
            yield Server(process, client, runs)
    finally:
        process.terminate()
        process.wait(240)


def eventually(true: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether `true()` comes true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def events_of(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The server-sent events of a response, as they come."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_request_waits_for_its_run(server: Server) -> None:
    answer = server.client.post("/pi", params={"points": 20_000})
    assert answer.status_code == 200
    assert answer.json()["status"] == "finished"
    assert answer.json()["pi"] == pytest.approx(3.14, abs=0.05)


@pytest.mark.slow
def test_every_reader_of_a_run_gets_all_its_events(server: Server) -> None:
    run_id = server.start(20_000)
    seen = []
    for _ in range(2):  # the second comes when all is over
        with server.watch(run_id) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            seen.append([event["event"] for event in events_of(response)])
    assert seen[0] == seen[1] == server.events(run_id)
    assert seen[0][-1] == "run.finished"
    assert seen[0].count("task.finished") == 9


@pytest.mark.slow
def test_reader_that_goes_away_leaves_a_background_run_alone(server: Server) -> None:
    run_id = server.start(300_000)
    with server.watch(run_id) as response:
        assert next(events_of(response))["event"] == "run.started"
    assert eventually(lambda: server.events(run_id)[-1] == "run.finished")


@pytest.mark.slow
def test_client_that_goes_away_cancels_its_run(server: Server) -> None:
    with server.client.stream("POST", "/pi/stream", params={"points": ENDLESS}) as response:
        run_id = response.headers["x-run-id"]
        for event in events_of(response):
            if event["event"] == "task.progress":
                break
        workers = server.workers()
        assert workers
    assert eventually(lambda: server.events(run_id)[-1] == "run.cancelled")
    assert eventually(lambda: not any(worker.is_running() for worker in workers))
    assert server.client.post("/pi", params={"points": 1000}).status_code == 200


@pytest.mark.slow
def test_shutdown_cancels_what_runs_and_leaves_no_process(server: Server) -> None:
    background = server.start(ENDLESS)
    assert eventually(lambda: "task.progress" in server.events(background))
    with server.client.stream("POST", "/pi/stream", params={"points": ENDLESS}) as response:
        streamed = response.headers["x-run-id"]
        assert next(events_of(response))["event"] == "run.started"
        workers = server.workers()
        server.process.terminate()
        server.process.wait(240)
    assert server.events(background)[-1] == server.events(streamed)[-1] == "run.cancelled"
    assert eventually(lambda: not any(worker.is_running() for worker in workers))


@pytest.mark.slow
def test_mistakes_of_clients_are_told(server: Server) -> None:
    answer = server.client.post("/pipelines/dags/pie/runs")
    assert answer.status_code == 404
    assert "did you mean 'pi'?" in answer.json()["detail"]
    assert server.client.post("/pi", params={"points": "many"}).status_code == 422
    assert server.client.get("/pipelines/runs/none/events").status_code == 404
