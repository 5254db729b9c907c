"""What calls cost, in memory and CPU time, and the limit of their memory."""

from __future__ import annotations

import signal
from pathlib import Path
from textwrap import dedent

import anyio
import psutil
import pytest
from workers import HOLD, STAY, WORKERS, Heard, Started, call, calling

from gluepy.exec.executors.processes import Killed, WorkerLost, WorkerPool, size

pytestmark = [pytest.mark.slow, *WORKERS]


async def test_a_call_that_uses_more_than_its_memory_is_killed() -> None:
    async with WorkerPool() as pool:
        for _ in range(2):
            with pytest.raises(WorkerLost, match="more than its memory_mb = 120") as caught:
                await call(pool, HOLD.format(mb=200) + STAY, memory_mb=120)
            error = caught.value
            assert error.killed_for_memory
            assert (error.memory_mb, error.oom, error.signal) == (120, False, signal.SIGKILL)
            assert error.peak_rss_mb is not None
            assert 120 < error.peak_rss_mb < 300


async def test_the_memory_of_descendants_counts_also_of_those_that_left(started: Started) -> None:
    source = """
        import subprocess, sys, time
        hold = "import time; block = bytearray(b'x') * (200 << 20); time.sleep(1000)"
        child = subprocess.Popen([sys.executable, "-c", hold], start_new_session=True)
        """
    async with WorkerPool() as pool:
        with pytest.raises(WorkerLost, match="memory_mb") as caught:
            await call(pool, dedent(source) + STAY, memory_mb=150)
        assert caught.value.peak_rss_mb is not None
        assert caught.value.peak_rss_mb > 150
    assert started() == []


async def test_memory_that_forked_processes_share_counts_once() -> None:
    source = """
        import os, signal, time
        children = []
        for _ in range(4):
            child = os.fork()
            if not child:
                signal.pause()
            children.append(child)
        time.sleep(0.2)
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        """
    async with WorkerPool() as pool:
        await call(pool, HOLD.format(mb=100) + dedent(source), memory_mb=250)


async def test_a_memory_limit_ends_with_its_call_and_its_peak_is_told() -> None:
    async with WorkerPool() as pool:
        reply = await call(pool, HOLD.format(mb=100) + "import time; time.sleep(0.1)", memory_mb=300)
        assert 100 < reply.peak_rss_mb < 300
        free = await call(pool, HOLD.format(mb=400) + "import time; time.sleep(0.1)")
        assert free.pid == reply.pid
        again = await call(pool, "import time; time.sleep(0.1)", memory_mb=300)
        assert again.pid == reply.pid
        assert again.peak_rss_mb < 100


async def test_peak_memory_is_that_of_the_call() -> None:
    async with WorkerPool() as pool:
        large = await call(pool, HOLD.format(mb=200) + "del block")
        small = await call(pool)
        child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'b = bytearray(b\"x\") * (150 << 20)'])"
        below = await call(pool, child)
        after = await call(pool)
    assert large.pid == after.pid
    assert large.peak_rss_mb > 200
    assert small.peak_rss_mb < 60
    assert 150 < below.peak_rss_mb < 200
    assert after.peak_rss_mb < 60


async def test_cpu_time_is_that_of_the_call_with_its_threads_and_children() -> None:
    burn = "import time\nwhile time.process_time() < {s}: pass"
    async with WorkerPool() as pool:
        await call(pool)
        own = await call(pool, "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass")
        idle = await call(pool, "import time; time.sleep(0.1)")
        child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn.format(s=0.3)!r}])"
        below = await call(pool, child)
    assert 0.19 < own.cpu_s < 0.5
    assert idle.cpu_s < 0.05
    assert below.cpu_s > 0.29


SPEND = """
import time
block = bytearray(b"x") * ({mb} << 20)
end = time.process_time() + {s}
while time.process_time() < end: pass
"""
DIE = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize("how", ["cancelled", "dies"])
async def test_a_killed_call_is_told_with_its_own_cost_and_not_that_of_earlier_ones(how: str) -> None:
    heard = Heard()
    async with WorkerPool() as pool:
        before = await call(pool, SPEND.format(mb=200, s=0.3) + "del block")
        source = SPEND.format(mb=50, s=0.1) + "print(1, flush=True)\n"
        if how == "cancelled":
            async with calling(pool, source + STAY, heard):
                await heard.numbers(1)
            (cost,) = heard.killed
        else:
            with pytest.raises(WorkerLost) as caught:
                await call(pool, source + DIE, heard)
            lost = caught.value
            cost = Killed(lost.worker, lost.pid, lost.cpu_s, lost.peak_rss_mb)
            assert heard.killed == []
    assert (cost.worker, cost.pid) == (before.worker, before.pid)
    assert cost.cpu_s is not None
    assert cost.peak_rss_mb is not None
    assert 0.09 < cost.cpu_s < 0.3
    assert 50 < cost.peak_rss_mb < 150


async def test_the_first_call_of_a_worker_does_not_pay_for_the_workers_start() -> None:
    heard = Heard()
    async with WorkerPool() as pool:
        with pytest.raises(WorkerLost) as caught:
            await call(pool, "import time; send(b'%f' % time.process_time())\n" + DIE, heard)
    assert caught.value.cpu_s is not None
    assert caught.value.cpu_s < float(heard.messages[0])  # of its whole life


async def test_an_earlier_calls_large_child_is_not_taken_for_the_peak_of_a_call_that_dies() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'b = bytearray(b\"x\") * (150 << 20)'])\n"
    async with WorkerPool() as pool:
        await call(pool, child)
        with pytest.raises(WorkerLost, match="killed by SIGKILL; look") as caught:
            await call(pool, DIE)
        assert caught.value.peak_rss_mb is None
        with pytest.raises(WorkerLost, match=r"killed by SIGKILL, peak RSS 1\d\d MB") as caught:
            await call(pool, child + DIE)
        assert caught.value.peak_rss_mb is not None


async def test_the_peak_of_a_limited_call_is_not_that_of_the_next_one() -> None:
    async with WorkerPool() as pool:
        limited = await call(pool, HOLD.format(mb=100) + "import time; time.sleep(0.1); del block", memory_mb=1000)
        with pytest.raises(WorkerLost) as caught:
            await call(pool, DIE)
    assert caught.value.pid == limited.pid
    assert caught.value.peak_rss_mb is not None
    assert caught.value.peak_rss_mb < 60


async def test_a_call_that_never_had_a_worker_cost_nothing() -> None:
    heard = Heard()
    async with WorkerPool() as pool:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await call(pool, STAY, heard)
    assert heard.killed == []


@pytest.mark.parametrize(
    ("mb", "said"), [(0.4, "0 MB"), (80.6, "81 MB"), (999.4, "999 MB"), (1024, "1.0 GB"), (8090, "7.9 GB")]
)
def test_sizes_are_said_as_people_say_them(mb: float, said: str) -> None:
    assert size(mb) == said


LEFT = {
    "global": "import sys; sys.left = bytearray(b'x') * (300 << 20)",
    "cycle": "cycle = [bytearray(b'x') * (300 << 20)]; cycle.append(cycle)",
    "freed": "blocks = [bytearray(100_000) for _ in range(3000)]; pins = [object() for _ in range(9)]; del blocks",
}


@pytest.mark.parametrize("left", LEFT)
async def test_what_an_earlier_call_has_left_in_memory_is_not_the_next_calls(left: str) -> None:
    hold = HOLD.format(mb=50) + "import time; time.sleep(0.1)\n"
    async with WorkerPool() as pool:
        pid = (await call(pool, LEFT[left])).pid
        limited = await call(pool, hold, memory_mb=120)
        free = await call(pool, hold)
        short = await call(pool)
        with pytest.raises(WorkerLost) as caught:
            await call(pool, hold + DIE)
    assert limited.pid == free.pid == short.pid == caught.value.pid == pid
    assert caught.value.peak_rss_mb is not None
    for peak_mb in (limited.peak_rss_mb, free.peak_rss_mb, caught.value.peak_rss_mb):
        assert 50 < peak_mb < 100
    assert short.peak_rss_mb < 40


async def test_a_call_is_held_to_its_limit_also_after_others_have_left_much() -> None:
    async with WorkerPool() as pool:
        await call(pool, LEFT["global"])
        with pytest.raises(WorkerLost, match=r"killed at \d\d\d MB, more than its memory_mb = 120") as caught:
            await call(pool, HOLD.format(mb=150) + STAY, memory_mb=120)
    assert caught.value.peak_rss_mb is not None
    assert 120 < caught.value.peak_rss_mb < 250


async def test_pages_of_mapped_files_are_not_memory_of_a_call(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as large:
        large.truncate(300 << 20)
    source = f"""
        import mmap, os, time
        with open({str(file)!r}, "rb") as large, mmap.mmap(large.fileno(), 0, access=mmap.ACCESS_READ) as pages:
            touched = sum(pages[at] for at in range(0, len(pages), mmap.PAGESIZE))
            time.sleep(0.1)
        """
    heard = Heard()
    async with WorkerPool() as pool:
        limited, free = await call(pool, source, memory_mb=150), await call(pool, source)
        async with calling(pool, dedent(source) + "print(1, flush=True)" + STAY, heard):
            await heard.numbers(1)
    (killed,) = heard.killed
    for peak_mb in (limited.peak_rss_mb, free.peak_rss_mb, killed.peak_rss_mb):
        assert peak_mb is not None
        assert peak_mb < 60


async def test_shared_memory_of_a_call_counts() -> None:
    source = "import mmap\nblock = mmap.mmap(-1, 200 << 20)\nfor _ in range(200): block.write(b'x' * (1 << 20))\n"
    async with WorkerPool() as pool:
        with pytest.raises(WorkerLost, match="more than its memory_mb = 120"):
            await call(pool, source + STAY, memory_mb=120)


async def test_garbage_is_collected_and_freed_memory_given_back_after_a_call() -> None:
    async with WorkerPool() as pool:
        for left in ("cycle", "freed"):
            pid = (await call(pool, LEFT[left])).pid
            assert psutil.Process(pid).memory_info().rss < 100 << 20, left
