"""Interrupts reach calls, and nothing else in a worker process."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from workers import WORKERS, Heard, call, guard_of

from gluepy.exec.executors.processes import EntryFailed, WorkerPool

pytestmark = WORKERS


async def test_workers_are_out_of_reach_of_the_terminals_interrupt() -> None:
    async with WorkerPool() as pool:
        pid = (await call(pool)).pid
        assert os.getsid(pid) != os.getsid(0)
        assert os.getpgid(pid) == pid
        assert os.getsid(guard_of(pid)) != os.getsid(0)


async def test_an_interrupt_inside_a_call_is_a_keyboard_interrupt_there() -> None:
    async with WorkerPool() as pool:
        pid = (await call(pool)).pid
        source = """
            import os, signal
            try:
                os.kill(os.getpid(), signal.SIGINT)
                while True: pass
            except KeyboardInterrupt:
                result = b"caught"
            """
        reply = await call(pool, source)
        assert (reply.body, reply.pid) == (b"caught", pid)
        with pytest.raises(EntryFailed, match="KeyboardInterrupt"):
            await call(pool, "import os, signal; os.kill(os.getpid(), signal.SIGINT)\nwhile True: pass")
        assert (await call(pool)).pid == pid


async def test_a_driver_that_ignores_interrupts_does_not_hand_that_down() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        async with WorkerPool() as pool:
            with pytest.raises(EntryFailed, match="KeyboardInterrupt"):
                await call(pool, "import os, signal; os.kill(os.getpid(), signal.SIGINT); signal.pause()")
    finally:
        signal.signal(signal.SIGINT, before)


async def test_interrupts_at_any_moment_never_give_a_wrong_result_nor_kill_the_worker() -> None:
    stop = threading.Event()

    def pester(pid: int) -> None:
        dice = random.Random(1)
        while not stop.is_set():
            os.kill(pid, signal.SIGINT)
            stop.wait(dice.random() * 0.0005)

    right = interrupted = 0
    async with WorkerPool() as pool:
        pid = (await call(pool)).pid
        thread = threading.Thread(target=pester, args=(pid,))
        thread.start()
        try:
            for number in range(1000):
                try:
                    reply = await call(pool, b"%d" % number, entry="process_calls:echo")
                except EntryFailed as error:
                    assert error.type == "KeyboardInterrupt"
                    interrupted += 1
                else:
                    assert (reply.body, reply.pid) == (b"%d" % number, pid)
                    right += 1
        finally:
            stop.set()
            thread.join()
        assert (await call(pool, b"after", entry="process_calls:echo")).body == b"after"
    assert right > 0


async def test_a_child_of_a_call_can_be_interrupted() -> None:
    source = """
        import signal, subprocess
        child = subprocess.Popen(["sleep", "1000"])
        child.send_signal(signal.SIGINT)
        result = b"%d" % child.wait(timeout=240)
        """
    async with WorkerPool() as pool:
        assert (await call(pool, source)).body == b"-2"


async def test_a_hundred_calls_after_interrupts_to_idle_workers_are_all_right(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    meet = f"import os, time\nprint(1, flush=True)\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.001)\n"
    pids: set[int] = set()
    results: dict[int, bytes] = {}
    async with WorkerPool() as pool:

        async def begin(heard: Heard) -> None:
            pids.add((await call(pool, meet, heard)).pid)

        async with anyio.create_task_group() as group:
            crowd = [Heard() for _ in range(4)]
            for heard in crowd:
                group.start_soon(begin, heard)
            for heard in crowd:
                await heard.numbers(1)
            gate.touch()
        assert len(pids) == 4

        for wave in range(5):
            assert len(pool._idle) == 4
            for pid in pids:
                os.kill(pid, signal.SIGINT)
            numbers = iter(range(20 * wave, 20 * (wave + 1)))

            async def lane(numbers: Iterator[int] = numbers) -> None:
                for number in numbers:
                    reply = await call(pool, b"%d" % number, entry="process_calls:echo")
                    results[number] = reply.body
                    assert reply.pid in pids

            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(lane)
    assert results == {number: b"%d" % number for number in range(100)}
