"""Thousands of calls, of which a third are killed: no wrong result, nothing left, nothing lost."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress

import anyio
import psutil
import pytest
from workers import STAY, WORKERS, Heard, Started, call, descriptors, guard_of, until

from gluepy.exec.executors.processes import WorkerLost, WorkerPool

pytestmark = WORKERS
KILLS = int(os.environ.get("GLUEPY_TEST_WORKER_KILLS", "20"))
ALL_WORKER_KILLS = int(os.environ.get("GLUEPY_TEST_ALL_WORKER_KILLS", "10000"))
LANES = 4

CANCELLED, ITSELF, EXITED, OUTSIDE, GUARD = range(5)  # ways to die; above them calls just end
WAYS = 15


async def test_soak(started: Started) -> None:
    await _soak(KILLS, seed=KILLS, started=started)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
async def test_soak_for_long(started: Started) -> None:
    await _soak(ALL_WORKER_KILLS, seed=random.randrange(1 << 32), started=started)


async def _soak(kills: int, seed: int, started: Started) -> None:
    before = descriptors()
    soak = _Soak(kills, random.Random(seed))
    async with WorkerPool() as pool:
        await call(pool)
        one_worker = len(descriptors())
        async with anyio.create_task_group() as group:
            for _ in range(LANES):
                group.start_soon(soak.lane, pool)
        assert soak.wrong == [], f"seed {seed}"
        workers = len(pool._workers)
        assert workers <= LANES
        assert len(started()) <= 2 * workers  # one that was shot last has only a guard
        assert len(descriptors()) == one_worker + 6 * (workers - 1)
    assert descriptors() == before


class _Soak:
    """Makes calls until enough of them were killed. Each prints, sends and returns its own number."""

    def __init__(self, kills: int, luck: random.Random) -> None:
        self.left, self.luck = kills, luck
        self.calls = 0
        self.shot: set[int] = set()  # workers that were killed from outside: perhaps too late for that call
        self.wrong: list[str] = []

    async def lane(self, pool: WorkerPool) -> None:
        while self.left > 0:
            self.calls += 1
            await self._call(pool, self.calls, self.luck.randrange(WAYS))

    async def _call(self, pool: WorkerPool, number: int, way: int) -> None:
        heard, expected = Heard(), EXPECTED.get(way, "replied")
        try:
            with anyio.move_on_after(self.luck.random() * 0.05 if way == CANCELLED else 60) as scope:
                async with anyio.create_task_group() as group:
                    if way in (OUTSIDE, GUARD):
                        group.start_soon(self._shoot, heard, way)
                    reply = await call(pool, self._source(number, way), heard)
                    heard.messages.append(b"over")
                    group.cancel_scope.cancel()
            end = "cancelled" if scope.cancelled_caught else "replied"
        except* WorkerLost as lost:
            (error,) = lost.exceptions
            assert isinstance(error, WorkerLost)
            end = str(error.signal or error.exit_code)
            if error.pid in self.shot:
                expected = end if end in ("9", "None") else expected
        self.left -= end != "replied"
        if end != expected and not (way in (OUTSIDE, GUARD) and end == "replied"):
            self.wrong.append(f"{number}: {way} {end}")
        if end == "replied":
            said = [line.split()[0] for line in heard.stdout]
            told = (reply.body, said, heard.messages)
            if told != (b"%d" % number, [str(number)], [b"%d" % number, b"over"]):
                self.wrong.append(f"{number}: {way} {told} {heard.lines}")

    def _source(self, number: int, way: int) -> str:
        begin = (
            f"import os, signal\nprint({number}, os.getpid(), flush=True)\nsend(b'{number}')\nresult = b'{number}'\n"
        )
        match way:
            case 0:
                return begin + STAY
            case 1:
                return begin + "os.kill(os.getpid(), signal.SIGKILL)"
            case 2:
                return begin + "import subprocess; c = subprocess.Popen(['setsid', 'sleep', '1000'])\nos._exit(7)"
            case 3 | 4:
                return begin + f"import time; time.sleep({self.luck.random() * 0.002})"
        return begin

    async def _shoot(self, heard: Heard, way: int) -> None:
        """Kill the worker at about the time of its reply."""
        await until(lambda: heard.stdout, 60)
        pid = int(heard.stdout[0].split()[1])
        await anyio.sleep(self.luck.random() * 0.002)
        if b"over" not in heard.messages:
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                target = guard_of(pid) if way == GUARD else pid
                self.shot.add(pid)
                os.kill(target, signal.SIGKILL)


EXPECTED = {CANCELLED: "cancelled", ITSELF: "9", EXITED: "7", OUTSIDE: "9", GUARD: "None"}
