"""What calls leave behind is cleared away, and killing a worker kills all that it started."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import anyio
import anyio.lowlevel
import pytest
from workers import (
    FAMILY,
    STAY,
    WORKERS,
    Heard,
    Started,
    alive,
    call,
    calling,
    descriptors,
    guard_of,
    until,
    wait_for_reply,
)

from gluepy.errors import ExecutorBroken
from gluepy.exec.executors.processes import EntryFailed, WorkerLost, WorkerPool

pytestmark = WORKERS


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import subprocess; child = subprocess.Popen(['sleep', '1000'])", id="child"),
        pytest.param(
            "import subprocess; c = subprocess.Popen(['sleep', '1000'], start_new_session=True)", id="session"
        ),
        pytest.param("import subprocess; subprocess.run(['setsid', 'sh', '-c', 'sleep 1000 &'])", id="orphan"),
        pytest.param("import os\nif not os.fork(): os._exit(0)", id="zombie"),
        pytest.param("import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()", id="thread"),
        pytest.param(
            "import threading, time; threading.Thread(target=time.sleep, args=(99,), daemon=True).start()", id="daemon"
        ),
        pytest.param("import sys, io; sys.stdout = io.StringIO()", id="stdout-replaced"),
        pytest.param("import sys; sys.stderr.close()", id="stderr-closed"),
        pytest.param("import os; os.dup2(os.open('/dev/null', os.O_WRONLY), 1)", id="descriptor-1-redirected"),
        pytest.param("import os; os.close(2)", id="descriptor-2-closed"),
    ],
)
async def test_a_worker_whose_call_left_something_behind_is_replaced_with_all_of_it(
    source: str, started: Started
) -> None:
    async with WorkerPool(leave_s=0.3) as pool:
        first = await call(pool, source + "\nresult = b'its result counts'")
        assert first.body == b"its result counts"
        assert started() == []
        heard = Heard()
        assert (await call(pool, "print('heard')", heard)).pid != first.pid
        assert heard.stdout == ["heard"]


async def test_a_failed_call_that_leaves_a_child_behind_costs_the_worker_too(started: Started) -> None:
    async with WorkerPool() as pool:
        with pytest.raises(EntryFailed):
            await call(pool, "import subprocess; child = subprocess.Popen(['sleep', '1000']); 1 / 0")
        assert started() == []


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import subprocess; subprocess.run(['true'])", id="child-waited-for"),
        pytest.param("import os; os.chdir('/')", id="folder"),
        pytest.param("import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)", id="handler"),
        pytest.param("import signal; signal.setitimer(signal.ITIMER_REAL, 0.5)", id="timer"),
    ],
)
async def test_a_worker_whose_call_left_nothing_that_matters_is_kept_and_put_right(source: str) -> None:
    async with WorkerPool() as pool:
        pid = (await call(pool, source)).pid
        os.kill(pid, signal.SIGINT)
        reply = await call(pool, "import os, signal; result = repr((os.getcwd(), signal.getitimer(0))).encode()")
        assert reply.pid == pid
        assert reply.body.decode() == repr((str(Path.cwd()), (0.0, 0.0)))


async def test_workers_that_idle_for_long_are_stopped(started: Started) -> None:
    async with WorkerPool(idle_s=0.05) as pool:
        pid = (await call(pool)).pid
        await until(lambda: not alive(pid))
        await until(lambda: started() == [])
        assert (await call(pool)).pid != pid


async def test_a_worker_that_died_while_idle_is_replaced_unnoticed() -> None:
    heard = Heard()
    async with WorkerPool() as pool:
        for _ in range(5):
            pid = (await call(pool, "import sys; sys.stdout.write('x')", heard)).pid
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: not alive(pid))  # type: ignore[misc]
        assert (await call(pool)).worker == "process-1"
    assert heard.stdout == ["x"] * 5


async def test_cancelling_a_call_kills_its_process_with_every_descendant(started: Started) -> None:
    heard = Heard()
    async with WorkerPool() as pool:
        async with calling(pool, FAMILY + STAY, heard):
            family = await heard.numbers(4)
            assert alive(*family) == family
            guard = guard_of(family[-1])
            began = time.monotonic()
        assert time.monotonic() - began < 2
        assert alive(*family, guard) == []
        assert started() == []
        await call(pool)


async def test_cancelling_kills_a_call_that_holds_the_interpreter_lock_or_is_stopped() -> None:
    async with WorkerPool() as pool:
        for source in (
            "import ctypes; ctypes.PyDLL(None).sleep(1000)",
            "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
            "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)" + STAY,
            "import os\nos.setpgid(0, os.getppid())" + STAY,
        ):
            heard = Heard()
            async with calling(pool, "import os\nprint(os.getpid())\n" + dedent(source), heard):
                (pid,) = await heard.numbers(1)
                began = time.monotonic()
            assert time.monotonic() - began < 2
            assert alive(pid) == []


async def test_cancellation_goes_through_and_a_deadline_is_a_cancellation(started: Started) -> None:
    async with WorkerPool() as pool:
        with anyio.move_on_after(0.1) as scope:
            await call(pool, STAY)
        assert scope.cancelled_caught
        assert started() == []


@pytest.mark.parametrize("delay_s", [0, 0.001, 0.003, 0.01, 0.02, 0.04])
async def test_cancelling_at_any_moment_of_a_workers_start_leaves_nothing(delay_s: float, started: Started) -> None:
    before = descriptors()
    async with WorkerPool() as pool:
        inside = descriptors()
        for _ in range(5):
            with anyio.move_on_after(delay_s):
                await call(pool, "import time; time.sleep(1000)")
            assert started() == []
            assert descriptors() == inside
    assert descriptors() == before


async def test_cancelling_a_start_that_waits_for_its_turn_leaves_nothing() -> None:
    async with WorkerPool() as pool:
        inside = descriptors()
        others = [object() for _ in range(int(pool._limiter.total_tokens))]
        for other in others:
            await pool._limiter.acquire_on_behalf_of(other)
        with anyio.move_on_after(0.01) as scope:
            await call(pool)
        assert scope.cancelled_caught
        assert descriptors() == inside
        assert not pool._workers
        for other in others:
            pool._limiter.release_on_behalf_of(other)
        await call(pool)


async def test_a_call_that_was_cancelled_before_it_began_costs_no_worker() -> None:
    async with WorkerPool() as pool:
        pid = (await call(pool)).pid
        with anyio.CancelScope() as scope:
            scope.cancel()
            await call(pool)
        assert (await call(pool)).pid == pid


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_own_cancellation_kills_too_even_when_it_comes_twice(anyio_backend: str) -> None:
    import asyncio

    heard = Heard()
    async with WorkerPool() as pool:
        task = asyncio.create_task(call(pool, FAMILY + STAY, heard))
        family = await heard.numbers(4)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not alive(*family))
        await call(pool)
    assert not pool._workers


async def test_a_guard_that_does_not_answer_is_killed_within_the_grace_time() -> None:
    heard = Heard()
    async with WorkerPool(grace_s=0.2) as pool:
        async with calling(pool, FAMILY + STAY, heard):
            child, *_, worker = family = await heard.numbers(4)
            os.kill(guard_of(worker), signal.SIGSTOP)
            began = time.monotonic()
        assert time.monotonic() - began < 2
        await until(lambda: not alive(child, worker))
    for pid in alive(*family):  # without a guard nobody knows of those that left the group
        os.kill(pid, signal.SIGKILL)


async def test_a_guard_that_is_killed_takes_the_worker_and_its_group_with_it() -> None:
    heard = Heard()

    async def kill_guard() -> None:
        family = await heard.numbers(4)
        os.kill(guard_of(family[-1]), signal.SIGKILL)

    async with WorkerPool() as pool, anyio.create_task_group() as group:
        group.start_soon(kill_guard)
        with pytest.raises(WorkerLost, match="guard") as caught:
            await call(pool, FAMILY + STAY, heard)
        assert (caught.value.exit_code, caught.value.signal) == (None, None)
        child, *escaped, worker = await heard.numbers(4)
        await until(lambda: not alive(child, worker))
        for pid in alive(*escaped):
            os.kill(pid, signal.SIGKILL)


async def test_a_worker_dies_with_its_guard_even_without_a_driver() -> None:
    async with WorkerPool() as pool:
        worker = (await call(pool)).pid
        os.kill(guard_of(worker), signal.SIGKILL)
        deadline = time.monotonic() + 5
        while alive(worker):  # without giving the driver's loop a turn
            assert time.monotonic() < deadline
            time.sleep(0.001)  # noqa: ASYNC251


async def test_a_guard_whose_line_to_the_driver_ends_kills_all() -> None:
    async with WorkerPool() as pool:
        pid = (await call(pool)).pid
        next(iter(pool._workers)).process.life.shutdown(socket.SHUT_WR)
        await until(lambda: not alive(pid))
        assert (await call(pool)).pid != pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_guard_ignores_signals_that_a_supervisor_sends_to_everybody(number: signal.Signals) -> None:
    async with WorkerPool() as pool:
        pid = (await call(pool)).pid
        os.kill(guard_of(pid), number)
        assert (await call(pool)).pid == pid
        assert alive(guard_of(pid))


async def test_leaving_the_pool_kills_idle_and_busy_workers_and_waits(started: Started) -> None:
    heard = Heard()
    errors = []

    async def busy(pool: WorkerPool) -> None:
        try:
            await call(pool, FAMILY + STAY, heard)
        except ExecutorBroken as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        async with WorkerPool() as pool:
            group.start_soon(busy, pool)
            family = await heard.numbers(4)
            idle = (await call(pool)).pid
        assert alive(idle, *family) == []
        assert started() == []
    assert "closed" in str(errors[0])
    with pytest.raises(ExecutorBroken, match="not open"):
        await call(pool)


async def test_leaving_the_pool_while_cancelled_still_waits(started: Started) -> None:
    heard = Heard()

    async def busy(pool: WorkerPool) -> None:
        with suppress(ExecutorBroken):
            await call(pool, FAMILY + STAY, heard)

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            async with WorkerPool() as pool:
                group.start_soon(busy, pool)
                family = await heard.numbers(4)
                family.append((await call(pool)).pid)
                scope.cancel()
        assert alive(*family) == []
        assert started() == []


async def test_a_call_that_ends_while_the_pool_is_left_is_not_waited_for_in_vain(
    tmp_path: Path, started: Started
) -> None:
    replies, gate = [], tmp_path / "gate"

    async def busy(pool: WorkerPool) -> None:
        until_gate = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.001)\n"
        replies.append(await call(pool, until_gate + "print(1, flush=True); result = b'the end'", heard))

    heard = Heard()
    with anyio.fail_after(120):
        async with anyio.create_task_group() as group:
            async with WorkerPool() as pool:
                await call(pool)
                group.start_soon(busy, pool)
                while pool._idle:
                    await anyio.lowlevel.checkpoint()
                gate.touch()
                wait_for_reply(pool, b"the end")
            assert started() == []
    assert [reply.body for reply in replies] == [b"the end"]
