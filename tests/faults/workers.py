"""Calls to worker processes, as the tests of the pool make them."""

from __future__ import annotations

import fcntl
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import anyio
import psutil
import pytest

from gluepy.exec.executors import worker as worker_main
from gluepy.exec.executors.processes import Killed, Reply, WorkerPool

WORKERS = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="worker processes are tested on Linux"),
    pytest.mark.usefixtures("importable_calls", "nothing_is_left_behind"),
]
Started = Callable[[], list[psutil.Process]]
HERE = Path(__file__).parent
ROOT = HERE.parent.parent


class Heard:
    """What a call printed and sent, and what it has cost when it was killed."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.messages: list[bytes] = []
        self.killed: list[Killed] = []

    def on_line(self, stream: str, line: str) -> None:
        self.lines.append((stream, line))

    @property
    def stdout(self) -> list[str]:
        return [line for stream, line in self.lines if stream == "stdout"]

    @property
    def stderr(self) -> list[str]:
        return [line for stream, line in self.lines if stream == "stderr"]

    async def numbers(self, count: int) -> list[int]:
        """The numbers in the first `count` lines, once they are there."""
        await until(lambda: len(self.stdout) >= count)
        return [int(line) for line in self.stdout[:count]]


async def call(
    pool: WorkerPool,
    source: str | bytes = "",
    heard: Heard | None = None,
    *,
    entry: str = "process_calls:code",
    shared: tuple[str, bytes] = ("none", b""),
    memory_mb: int | None = None,
    main: bool = False,
) -> Reply:
    heard = heard or Heard()
    payload = source if isinstance(source, bytes) else dedent(source).encode()
    return await pool.call(
        entry,
        shared,
        payload,
        on_line=heard.on_line,
        on_message=heard.messages.append,
        on_killed=heard.killed.append,
        memory_mb=memory_mb,
        main=main,
    )


@asynccontextmanager
async def calling(pool: WorkerPool, source: str, heard: Heard) -> AsyncIterator[anyio.CancelScope]:
    """A call that runs meanwhile. Leaving cancels it, if it is still there."""
    async with anyio.create_task_group() as group:
        group.start_soon(call, pool, source, heard)
        yield group.cancel_scope
        group.cancel_scope.cancel()


async def until(condition: Callable[[], Any], within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await anyio.sleep(0.002)


def wait_for_reply(pool: WorkerPool, body: bytes, *messages: bytes) -> None:
    """Return when the messages and the reply of the only worker lie in its pipe. Nothing else happens in the driver
    meanwhile."""
    (worker,) = pool._workers
    size = sum(worker_main.FRAME.size + len(each) for each in (*messages, bytes(worker_main.REPLY.size) + body))
    deadline = time.monotonic() + 10
    there = 0
    while there < size:
        assert time.monotonic() < deadline
        there = int.from_bytes(fcntl.ioctl(worker.process.answers, termios.FIONREAD, bytes(4)), sys.byteorder)
    assert there == size


def alive(*pids: int) -> list[int]:
    return [pid for pid in pids if worker_main._stat(pid)[:1] not in ([], [b"Z"], [b"X"])]


def guard_of(worker: int) -> int:
    return psutil.Process(worker).ppid()


def descriptors() -> set[int]:
    listed = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    return {fd for fd in listed if Path(f"/proc/self/fd/{fd}").is_symlink()}  # without the one that listed them


# A call that starts a child in its own group, one that left for a session of its own, and one that did so and lost
# its parent; it prints their ids and its own, and stays.
FAMILY = """
import os, signal, subprocess, sys, time
child = subprocess.Popen(["sleep", "1000"])
session = subprocess.Popen(["sleep", "1000"], start_new_session=True)
start = "sleep 1000 >/dev/null & echo $!"
orphan = subprocess.run(["setsid", "sh", "-c", start], stdout=subprocess.PIPE, text=True)
for pid in (child.pid, session.pid, int(orphan.stdout), os.getpid()):
    print(pid, flush=True)
"""
STAY = """
import time
while True:
    time.sleep(1000)
"""
# A call that holds memory.
HOLD = "block = bytearray(b'x') * ({mb} << 20)\n"
