"""Calls to worker processes: what goes there and comes back, whole, in order, and to the right call."""

from __future__ import annotations

import itertools
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import anyio
import anyio.lowlevel
import psutil
import pytest
from workers import STAY, WORKERS, Heard, alive, call, calling, guard_of, until

from gluepy.exec.executors import worker as worker_main
from gluepy.exec.executors.processes import EntryFailed, Reply, WorkerCall, WorkerLost, WorkerPool
from gluepy.exec.executors.processes.conversation import Conversation

pytestmark = WORKERS


async def test_a_call_runs_in_another_process_and_returns_bytes() -> None:
    async with WorkerPool() as pool:
        reply = await call(pool, b"\0payload", entry="process_calls:echo")
    assert reply.body == b"\0payload"
    assert reply.worker == "process-1"
    assert reply.pid != os.getpid()


async def test_workers_are_reused_last_in_first_out(tmp_path: Path) -> None:
    async with WorkerPool() as pool:
        gate_a, gate_b = Heard(), Heard()
        pids: dict[str, int] = {}

        async def run(name: str, heard: Heard, path: Path) -> None:
            pids[name] = (
                await call(
                    pool, f"import os, time\nprint(1)\nwhile not os.path.exists({str(path)!r}): time.sleep(.001)", heard
                )
            ).pid

        async with anyio.create_task_group() as group:
            group.start_soon(run, "first", gate_a, tmp_path / "a")
            group.start_soon(run, "last", gate_b, tmp_path / "b")
            await gate_a.numbers(1)
            await gate_b.numbers(1)
            (tmp_path / "a").touch()
            await until(lambda: "first" in pids)
            (tmp_path / "b").touch()
            await until(lambda: "last" in pids)
        assert pids["first"] != pids["last"]
        assert [(await call(pool)).pid for _ in range(3)] == [pids["last"]] * 3


async def test_names_of_workers_are_reused() -> None:
    async with WorkerPool() as pool:
        for _ in range(3):
            with pytest.raises(WorkerLost):
                await call(pool, "import os; os._exit(1)")
            assert (await call(pool)).worker == "process-1"


@pytest.mark.parametrize("size", [0, 1, 65_536 - worker_main.FRAME.size, 20_000_000])
async def test_payloads_shared_bytes_messages_and_results_of_any_size_arrive_whole(size: int) -> None:
    block = bytes(random.Random(size).randbytes(min(size, 1000))) * (size // 1000 + 1)
    block = block[:size]
    heard = Heard()
    async with WorkerPool() as pool:
        reply = await call(
            pool, b"send(shared); result = shared[::-1] #" + block.hex().encode(), heard, shared=("k", block)
        )
        assert (reply.body, heard.messages) == (block[::-1], [block])
        assert (await call(pool, block, entry="process_calls:echo")).body == block


@pytest.fixture
def heeded(monkeypatch: pytest.MonkeyPatch) -> list[Conversation]:
    """Whom the driver has listened to, once for each time."""
    on_readable, heeded = Conversation.on_readable, list[Conversation]()

    def counted(conversation: Conversation) -> None:
        on_readable(conversation)
        heeded.append(conversation)

    monkeypatch.setattr(Conversation, "on_readable", counted)
    return heeded


async def test_the_driver_sleeps_while_a_call_runs(heeded: list[Conversation]) -> None:
    payload = b"import time; time.sleep(0.1) #" + b"x" * 1_000_000  # more than goes out at once
    async with WorkerPool() as pool:
        await call(pool, payload)
    assert 0 < len(heeded) < 100  # it took thousands, if it did not sleep


async def test_an_idle_worker_that_died_does_not_keep_the_driver_awake(heeded: list[Conversation]) -> None:
    async with WorkerPool() as pool:
        pid = (await call(pool)).pid
        guard = guard_of(pid)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not alive(pid, guard))
        heeded.clear()
        for _ in range(1000):
            await anyio.lowlevel.checkpoint()
        assert len(heeded) < 10


def following(source: str, heard: Heard, then: Callable[[Reply], WorkerCall | None] | None = None) -> WorkerCall:
    payload = dedent(source).encode()
    return WorkerCall("process_calls:code", ("", b""), payload, heard.on_line, heard.messages.append, then=then)


async def test_a_call_is_followed_by_another_one_in_the_same_worker_and_each_has_its_own() -> None:
    heard, replies = [Heard() for _ in range(50)], []

    def source(number: int) -> str:
        return f"import sys\nsys.stdout.write('line {number}')\nsend(b'{number}')\nresult = b'{number}'"

    def then(reply: Reply) -> WorkerCall | None:
        replies.append(reply)
        number = len(replies)
        assert heard[number - 1].stdout == [f"line {number - 1}"]  # also what lacks its newline
        return following(source(number), heard[number], then) if number < len(heard) else None

    async with WorkerPool() as pool:
        last = await pool.make(following(source(0), heard[0], then))
        assert (await call(pool)).pid == last.pid
    assert last == replies[-1]
    assert [reply.body for reply in replies] == [b"%d" % number for number in range(50)]
    assert len({reply.pid for reply in replies}) == 1
    assert [each.messages for each in heard] == [[b"%d" % number] for number in range(50)]


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import subprocess; subprocess.Popen(['sleep', '1000'])", id="left-a-child"),
        pytest.param("1 / 0", id="failed"),
    ],
)
async def test_nothing_follows_a_call_that_failed_or_cost_its_worker(source: str) -> None:
    asked: list[Reply] = []
    async with WorkerPool() as pool:
        with suppress(EntryFailed):
            await pool.make(following(source, Heard(), asked.append))
        await call(pool)
    assert asked == []


async def test_a_worker_that_is_dead_when_the_next_call_would_follow_is_replaced() -> None:
    pids = []

    def then(reply: Reply) -> WorkerCall | None:
        pids.append(reply.pid)
        os.kill(reply.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while alive(reply.pid):
            assert time.monotonic() < deadline
        return following("print('again'); result = b'followed'", heard)

    heard = Heard()
    async with WorkerPool() as pool:
        reply = await pool.make(following("", Heard(), then))
    assert (reply.body, heard.stdout) == (b"followed", ["again"])
    assert pids != [reply.pid]


async def test_a_worker_that_dies_while_its_first_call_goes_out_has_been_there(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Conversation._begin

    def killed_meanwhile(conversation: Conversation, call: WorkerCall) -> None:
        begin(conversation, call)
        assert select.select([conversation.process.answers], (), (), 10)[0]  # its first words, which nobody has read
        (guard,) = psutil.Process().children()
        (worker,) = guard.children()
        worker.kill()
        deadline = time.monotonic() + 10
        while alive(worker.pid):
            assert time.monotonic() < deadline

    monkeypatch.setattr(Conversation, "_begin", killed_meanwhile)
    async with WorkerPool() as pool:
        with pytest.raises(WorkerLost, match="killed by SIGKILL"):
            await call(pool, b"x" * 10_000_000)


async def test_what_stops_a_call_that_followed_means_that_one() -> None:
    first, second = Heard(), Heard()

    def then(_reply: Reply) -> WorkerCall | None:
        return replace(following("print('second', flush=True)" + STAY, second), on_killed=second.killed.append)

    async with WorkerPool() as pool, anyio.create_task_group() as group:
        group.start_soon(pool.make, replace(following("", first, then), on_killed=first.killed.append))
        await until(lambda: second.stdout == ["second"])
        group.cancel_scope.cancel()
    assert (len(first.killed), len(second.killed)) == (0, 1)


async def test_messages_arrive_in_order_and_before_the_call_returns() -> None:
    heard = Heard()
    async with WorkerPool() as pool:
        await call(pool, "for number in range(2000): send(b'%d' % number)", heard)
        assert heard.messages == [b"%d" % number for number in range(2000)]


async def test_messages_arrive_while_the_call_runs() -> None:
    heard = Heard()
    async with WorkerPool() as pool, calling(pool, "send(b'early')" + STAY, heard):
        await until(lambda: heard.messages == [b"early"])


async def test_messages_of_a_worker_that_dies_are_not_lost() -> None:
    heard = Heard()
    async with WorkerPool() as pool:
        with pytest.raises(WorkerLost):
            await call(pool, "import os\nfor number in range(9): send(b'%d' % number * 70_000)\nos._exit(1)", heard)
    assert heard.messages == [b"%d" % number * 70_000 for number in range(9)]


async def test_messages_that_a_busy_driver_has_not_read_when_the_worker_dies_are_not_lost() -> None:
    messages = []

    def on_message(message: bytes) -> None:
        messages.append(message[:1])
        (worker,) = pool._workers
        assert select.select([worker.process.life], (), (), 10)[0]  # until the guard says that it is dead

    source = "import os\nfor letter in (b'a', b'b', b'c'): send(letter * 20_000)\nos._exit(1)"
    async with WorkerPool() as pool:
        with pytest.raises(WorkerLost):
            await pool.call(
                "process_calls:code", ("", b""), source.encode(), on_line=lambda *_: None, on_message=on_message
            )
    assert messages == [b"a", b"b", b"c"]


@pytest.mark.parametrize("memory_mb", [None, 1000])
async def test_a_reply_counts_also_when_the_worker_died_right_after_it(memory_mb: int | None) -> None:
    source = """
        import os, threading, time
        print(os.getpid(), flush=True)
        threading.Thread(target=lambda: (time.sleep(0.02), os.kill(os.getpid(), 9)), daemon=True).start()
        result = b"sent"
        """

    def on_line(_stream: str, line: str) -> None:
        deadline = time.monotonic() + 10
        while alive(int(line)):  # the driver is too busy to read the reply meanwhile
            assert time.monotonic() < deadline

    async with WorkerPool() as pool:
        heard = Heard()
        heard.on_line = on_line  # type: ignore[assignment, method-assign]
        assert (await call(pool, source, heard, memory_mb=memory_mb)).body == b"sent"
        await call(pool)


async def test_any_thread_of_the_worker_may_send() -> None:
    heard = Heard()
    source = """
        import threading
        def many(letter):
            for _ in range(200):
                send(letter * 5000)
        threads = [threading.Thread(target=many, args=(letter,)) for letter in (b"a", b"b", b"c")]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        """
    async with WorkerPool() as pool:
        await call(pool, source, heard)
    assert sorted(heard.messages) == [letter * 5000 for letter in (b"a", b"b", b"c") for _ in range(200)]


async def test_what_is_sent_after_the_end_of_the_call_reaches_nobody(tmp_path: Path) -> None:
    first, second = Heard(), Heard()
    late = f"""
        import os, threading, time
        def late():
            while not os.path.exists({str(tmp_path / "now")!r}):
                time.sleep(0.001)
            send(b"late")
            open({str(tmp_path / "sent")!r}, "w").close()
        threading.Thread(target=late, name="fsspecIO", daemon=True).start()  # one that may stay
        """
    async with WorkerPool() as pool:
        pid = (await call(pool, late, first)).pid
        (tmp_path / "now").touch()
        await until((tmp_path / "sent").exists)
        assert (await call(pool, "send(b'own')", second)).pid == pid
    assert (first.messages, second.messages) == ([], [b"own"])


async def test_a_forked_child_cannot_speak_for_the_worker() -> None:
    heard = Heard()
    source = """
        import os
        send(b"before")
        child = os.fork()
        send(b"parent" if child else b"child")
        if child:
            assert os.waitpid(child, 0)[1] == 0
            result = b"parent"
        """  # the child returns from the call, too
    async with WorkerPool() as pool:
        reply = await call(pool, source, heard)
        assert (await call(pool, "import os; result = b'%d' % os.getpid()")).body == b"%d" % reply.pid
    assert reply.body == b"parent"
    assert heard.messages == [b"before", b"parent"]


async def test_a_fork_while_a_thread_sends_does_not_hang_the_child() -> None:
    source = """
        import os, threading
        stop = threading.Event()
        def chatter():
            while not stop.is_set():
                send(b"x" * 60000)
        thread = threading.Thread(target=chatter)
        thread.start()
        for _ in range(20):
            child = os.fork()
            if not child:
                send(b"child")
                os._exit(0)
            os.waitpid(child, 0)
        stop.set()
        thread.join()
        """
    heard = Heard()
    async with WorkerPool() as pool:
        await call(pool, source, heard)
    assert set(heard.messages) == {b"x" * 60000}


@pytest.mark.parametrize("repeats", [7_000, 125_000], ids=["fits-the-buffer", "large"])
async def test_a_signal_handler_that_raises_while_sending_tears_no_message(repeats: int) -> None:
    source = """
        import signal, time
        class Ring(Exception):
            pass
        def ring(*_):
            global sending
            if sending:
                sending = False
                raise Ring
        sending = False
        number = rung = 0
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            number += 1
            try:
                sending = True
                send((b"%08d" % number) * REPEATS)
                sending = False
            except Ring:
                rung += 1
        result = b"%d" % rung
        """
    heard = Heard()
    async with WorkerPool() as pool:
        source = source.replace("REPEATS", str(repeats))
        if repeats * 8 < worker_main.PIECE:
            reply = await call(pool, source, heard)
            assert int(reply.body) > 10
            assert (await call(pool)).pid == reply.pid
            assert heard.messages
        else:  # the call is lost, but nobody is told wrong things
            with pytest.raises(WorkerLost, match="exited with code 1"):
                await call(pool, source, heard)
            assert "broke off" in heard.stderr[-1]
    assert all(message == message[:8] * repeats for message in heard.messages)


async def test_shared_bytes_are_sent_once_to_a_worker_which_keeps_the_last_few() -> None:
    versions = itertools.count()

    def told(key: str) -> tuple[str, bytes]:
        return key, f"{key}, version {next(versions)}".encode()

    async with WorkerPool() as pool:

        async def got(key: str) -> bytes:
            return (await call(pool, "result = shared", shared=told(key))).body

        keys = [f"key{number}" for number in range(worker_main.REMEMBERED)]
        first = {key: await got(key) for key in keys}
        assert len(set(first.values())) == len(keys)
        assert {key: await got(key) for key in keys} == first
        await got(keys[0])
        await got("one more")  # pushes out the key that was not used for longest, now the second
        assert [key for key in (keys[0], *keys[2:], keys[1]) if await got(key) != first[key]] == [keys[1]]


async def test_the_worker_has_the_drivers_path_arguments_environment_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("NAME = b'only here'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", "--flag"])
    monkeypatch.setenv("ONLY_HERE", "1")
    source = "import os, sys; result = repr((os.getcwd(), sys.argv, os.environ['ONLY_HERE'])).encode()"
    async with WorkerPool() as pool:
        assert (await call(pool, source)).body.decode() == repr((str(tmp_path), ["program", "--flag"], "1"))
        with pytest.raises(EntryFailed, match="No module named 'only_here'"):
            await call(pool, "import only_here")
        monkeypatch.syspath_prepend(str(tmp_path))  # after the worker was started
        assert (await call(pool, "import only_here; result = only_here.NAME")).body == b"only here"


async def test_a_thread_that_blocks_signals_does_not_hand_that_down(anyio_backend_name: str) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        async with WorkerPool() as pool:
            source = "import signal; result = repr(signal.pthread_sigmask(signal.SIG_BLOCK, ())).encode()"
            assert (await call(pool, source)).body == b"set()"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
