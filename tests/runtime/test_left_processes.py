"""Processes that tasks have started and left, in a program that embeds the runtime: told, and killed only on demand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import psutil
import pytest
import structlog
from steps import Go, dag_of
from structlog.testing import capture_logs

from gluepy import Task
from gluepy.core.events import TaskMetric
from gluepy.testing.wait import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they are found on Linux only")


def sleeps() -> int:
    return os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)  # a Popen object would warn


class Leaves(Task):
    """Leaves a process, and ends well."""

    def run(self) -> None:
        self.metric("pid", sleeps())


class Overruns(Task):
    """Waits for a process until it is out of time."""

    timeout_s = 0.2

    def run(self) -> None:
        child = subprocess.Popen(["sleep", "1000"])
        self.metric("pid", child.pid)
        child.wait()


class LoopOverruns(Task):
    timeout_s = 0.2

    async def run(self) -> None:
        self.metric("pid", sleeps())
        await anyio.sleep_forever()


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    yield
    structlog.reset_defaults()  # `capture_logs` leaves it configured
    for child in psutil.Process().children():
        child.kill()
        child.wait()


async def pid_of(go: Go, kind: type[Task], **settings: Any) -> tuple[int, list[Any]]:
    go.settings = go.settings.replaced(**settings)
    with capture_logs() as logs:
        async with go.runtime() as runtime, runtime.stream_dag(dag_of(kind), check=False) as run:
            pids = [int(event.value or 0) async for event in run if isinstance(event, TaskMetric)]
            await run.result()
            if kind is Overruns and not settings:  # its thread waits
                assert is_alive(pids[0])
                await until(lambda: any("processes" in line for line in logs))
                os.kill(pids[0], signal.SIGKILL)
    return pids[0], [line for line in logs if "processes" in line]


@pytest.mark.parametrize("kind", [Leaves, LoopOverruns])
async def test_processes_that_were_left_are_told_by_name_and_id(go: Go, kind: type[Task]) -> None:
    pid, (told,) = await pid_of(go, kind)
    assert told["event"] == "a task has left processes running"
    assert told["processes"] == f"sleep (pid {pid})"
    assert "LEFTOVER_PROCESSES" in told["hint"]
    assert is_alive(pid)


async def test_those_of_an_attempt_that_is_out_of_time_are_told_with_its_name(go: Go) -> None:
    pid, (told,) = await pid_of(go, Overruns)
    assert (told["processes"], told["task"], told["attempt"]) == (f"sleep (pid {pid})", "overruns", 1)


@pytest.mark.parametrize("kind", [Leaves, Overruns])
async def test_they_are_killed_if_that_is_wanted(go: Go, kind: type[Task]) -> None:
    pid, (told,) = await pid_of(go, kind, LEFTOVER_PROCESSES="kill")
    assert told["event"] == "killed processes that a task had left"
    assert str(pid) in told["processes"]
    await until(lambda: not is_alive(pid))


async def test_those_that_may_be_anybodys_are_told_though_what_is_known_is_killed(go: Go) -> None:
    pid, (told,) = await pid_of(go, LoopOverruns, LEFTOVER_PROCESSES="kill")
    assert (told["event"], told["processes"]) == ("a task has left processes running", f"sleep (pid {pid})")
    assert "hint" not in told
    assert is_alive(pid)


async def test_a_program_that_leaves_nothing_hears_nothing(go: Go) -> None:
    class Tidy(Task):
        def run(self) -> None:
            subprocess.run(["true"], check=True)

    with capture_logs() as logs:
        async with go.runtime() as runtime:
            await runtime.run_dag(dag_of(Tidy))
    assert logs == []
