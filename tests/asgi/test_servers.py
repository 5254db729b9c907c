"""Behind real servers, on asyncio and trio: streams come as they are made, and clients that are gone cost nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest

pytestmark = pytest.mark.slow

UVICORN = ["uvicorn", "serving:app", "--fd", "{fd}", "--timeout-graceful-shutdown", "1", "--log-level", "warning"]
HYPERCORN = ["hypercorn", "serving:app", "--bind", "fd://{fd}", "--graceful-timeout", "1", "-k"]
SERVERS = {
    "uvicorn": UVICORN,
    "hypercorn": [*HYPERCORN, "asyncio"],
    "hypercorn-trio": [*HYPERCORN, "trio"],
}


class Server:
    """A running server, and a client of it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
        self.process, self.port, self.folder = process, port, folder
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=240)

    @property
    def about(self) -> psutil.Process:
        """The process that answers: hypercorn has one below its own."""
        process = psutil.Process(self.process.pid)
        below = [each for each in process.children() if any("multiprocessing.spawn" in part for part in each.cmdline())]
        return below[0] if below else process

    def start(self, label: str, **options: Any) -> str:
        """Start a run."""
        answer = self.client.post(f"/dags/{label}/runs", json=options)
        assert answer.status_code == 202, answer.text
        run_id: str = answer.json()["run_id"]
        return run_id

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """The events of a run, from its log."""
        log = self.folder / "runs" / run_id / "events.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()]

    def let_go(self) -> None:
        """Have tasks that wait end."""
        (self.folder / "data").mkdir(exist_ok=True)
        (self.folder / "data" / "go").touch()

    def connections(self) -> int:
        """How many clients it has."""
        return sum(each.status == psutil.CONN_ESTABLISHED for each in self.about.net_connections("tcp"))

    def end(self) -> None:
        """End it, as systemd and containers do."""
        self.client.close()
        self.process.terminate()
        self.process.wait(240)


@pytest.fixture(params=list(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GLUEPY_")}
    env |= {
        "GLUEPY_RUNS_ROOT": str(tmp_path / "runs"),
        "GLUEPY_STORAGE_ROOT": str(tmp_path / "data"),
        "GLUEPY_INSTALLED_MODULES": '["served"]',
        "PYTHONPATH": str(Path(__file__).parent),
    }
    with socket.create_server(("127.0.0.1", 0), backlog=2000) as listener:
        fd, port = listener.fileno(), listener.getsockname()[1]
        command = [sys.executable, "-m", *(each.format(fd=fd) for each in SERVERS[request.param])]
        process = subprocess.Popen(command, cwd=tmp_path, env=env, pass_fds=[fd])
    server = Server(process, port, tmp_path)
    try:
        yield server
    finally:
        server.end()
        here = str(tmp_path)
        assert eventually(lambda: not any(each.info["cwd"] == here for each in psutil.process_iter(["cwd"])))


def lines_of(response: httpx.Response) -> Iterator[tuple[int, dict[str, Any]]]:
    """The server-sent events of a response, as they come, with their ids."""
    number = 0
    for line in response.iter_lines():
        if line.startswith("id: "):
            number = int(line.removeprefix("id: "))
        elif line.startswith("data: "):
            yield number, json.loads(line.removeprefix("data: "))


def eventually(true: Any, seconds: float = 120) -> bool:
    """Whether `true()` comes true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


STREAM = {"accept": "text/event-stream"}


def test_stream_that_breaks_goes_on_where_it_was(server: Server) -> None:
    run_id = server.start("wait", pool="process")
    seen = []
    with server.client.stream("GET", f"/runs/{run_id}/events", headers=STREAM) as response:
        for event in lines_of(response):
            seen.append(event)
            if event[1]["event"] == "task.started":
                break
    assert eventually(lambda: server.connections() == 0)
    server.let_go()
    headers = STREAM | {"last-event-id": str(seen[-1][0])}
    with server.client.stream("GET", f"/runs/{run_id}/events", headers=headers) as response:
        seen += list(lines_of(response))
    assert [event for _, event in seen] == server.events(run_id)
    headers["last-event-id"] = str(seen[-1][0])
    assert server.client.get(f"/runs/{run_id}/events", headers=headers).status_code == 204


def test_clients_that_are_killed_leave_the_run_alone_and_nothing_open(server: Server) -> None:
    server.client.get("/runs")
    run_id = server.start("wait", pool="process")
    assert eventually(lambda: server.client.get(f"/runs/{run_id}/logs/waits").text == "waiting\n")
    server.client.close()
    assert eventually(lambda: server.connections() == 0)
    before = server.about.num_fds()
    request = f"GET /runs/{run_id}/%s HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
    with ExitStack() as stack:
        for number in range(60):
            client = stack.enter_context(closing(socket.create_connection(("127.0.0.1", server.port))))
            client.sendall((request % ("events", "logs/waits?follow=true")[number % 2]).encode())
            client.recv(100)
            reset = b"\1\0\0\0\0\0\0\0"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        assert server.connections() >= 60
    assert eventually(lambda: server.connections() == 0)
    assert eventually(lambda: server.about.num_fds() <= before)
    assert server.events(run_id)[-1]["event"] == "task.started"
    server.let_go()
    assert eventually(lambda: server.events(run_id)[-1]["event"] == "run.finished")


def test_a_server_that_is_ended_cancels_its_runs(server: Server) -> None:
    run_id = server.start("wait", pool="process")
    with server.client.stream("GET", f"/runs/{run_id}/events", headers=STREAM) as response:
        assert next(lines_of(response))[1]["event"] == "run.started"
        assert eventually(lambda: server.about.children(recursive=True))
        workers = server.about.children(recursive=True)
        server.process.terminate()
        server.process.wait(240)
    assert server.events(run_id)[-1]["event"] == "run.cancelled"
    assert eventually(lambda: not any(worker.is_running() for worker in workers))


def test_client_that_does_not_read_takes_bounded_memory(server: Server) -> None:
    run_id = server.start("chatter")
    assert eventually(lambda: server.events(run_id)[-1]["event"] == "run.finished")
    server.client.get(f"/runs/{run_id}/events?limit=10000")
    before = server.about.memory_info().rss
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(closing(socket.socket()))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            request = f"GET /runs/{run_id}/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
            client.sendall(request.encode())
        time.sleep(1.0)
        assert server.client.get("/health").status_code == 200
        grown = server.about.memory_info().rss - before
        print(f"20 clients that do not read 20,000 events: {grown >> 20} MB")
        assert grown < 40 << 20  # one after the other they would get 80 MB


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_a_thousand_watch_one_run(server: Server) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("the limit of open files is too low here: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (4096, hard))
    run_id = server.start("wait", pool="process")
    server.client.get(f"/runs/{run_id}")
    began, all_began = [], anyio.Event()

    async def watch(texts: list[str]) -> None:
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            request = f"GET /runs/{run_id}/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
            await stream.send(f"{request}Connection: close\r\n\r\n".encode())
            text = b""
            async for piece in stream:
                if b"task.started" in piece and b"task.started" not in text:
                    began.append(stream)
                    if len(began) == 1_000:
                        all_began.set()
                text += piece
            texts.append(text.decode())

    async def main() -> list[str]:
        texts: list[str] = []
        async with anyio.create_task_group() as tasks:
            for _ in range(1_000):
                tasks.start_soon(watch, texts)
            with anyio.fail_after(200):
                await all_began.wait()
            idle, at = server.about.cpu_times(), time.monotonic()
            await anyio.sleep(3)
            busy = server.about.cpu_times()
            share = (busy.user + busy.system - idle.user - idle.system) / (time.monotonic() - at)
            print(f"1,000 watchers of a run in which nothing happens: {share:.1%} of a core")
            server.let_go()
        return texts

    texts = anyio.run(main)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(texts) == 1_000
    seqs = [event["seq"] for event in server.events(run_id)]
    for text in texts:
        assert [int(line.removeprefix("id: ")) for line in text.splitlines() if line.startswith("id: ")] == seqs
    print(f"memory of the server: {server.about.memory_info().rss >> 20} MB")


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
def test_answers_are_as_the_openapi_document_says_whatever_is_sent(server: Server) -> None:
    server.start("train", run_id="one")
    main = "import sys, schemathesis.cli; sys.exit(schemathesis.cli.schemathesis())"
    document = f"http://127.0.0.1:{server.port}/openapi.json"
    command = [sys.executable, "-c", main, "run", document, "--max-examples", "5"]
    done = subprocess.run(command, cwd=server.folder, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout
