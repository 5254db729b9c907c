"""Worker processes: whatever a call does to its process, its own call ends rightly and no other notices.

Each sentence of the pool's contract is a test here, on both back ends.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import anyio
import anyio.lowlevel
import psutil
import pytest

from gluepy.errors import ExecutorBroken, GluepyError, OptionError
from gluepy.exec.executors import processes
from gluepy.exec.executors import worker as far_end
from gluepy.exec.executors.processes import EntryFailed, Reply, WorkerLost, WorkerPool

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="worker processes are tested on Linux"),
]

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SOAK_CALLS = int(os.environ.get("GLUEPY_TEST_SOAK_CALLS", "100"))


@pytest.fixture(autouse=True)
def _calls_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    assert psutil.Process().children(recursive=True) == []


class Heard:
    """What a call printed and sent."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.messages: list[bytes] = []

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
        entry, shared, payload, on_line=heard.on_line, on_message=heard.messages.append, memory_mb=memory_mb, main=main
    )


@asynccontextmanager
async def calling(pool: WorkerPool, source: str, heard: Heard) -> AsyncIterator[anyio.CancelScope]:
    """A call that runs meanwhile. Leaving cancels it, if it is still there."""
    async with anyio.create_task_group() as group:
        group.start_soon(call, pool, source, heard)
        yield group.cancel_scope
        group.cancel_scope.cancel()


async def until(condition: Callable[[], Any], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await anyio.sleep(0.002)


def wait_for_reply(pool: WorkerPool, end: bytes) -> None:
    """Return when the reply of the only worker lies in the socket. Nothing else happens in the driver meanwhile."""
    (worker,) = pool._workers
    deadline = time.monotonic() + 10
    there = b""
    while not there.endswith(end):
        assert time.monotonic() < deadline
        with suppress(BlockingIOError):
            there = worker._control.recv(1 << 20, socket.MSG_PEEK)


def alive(*pids: int) -> list[int]:
    return [pid for pid in pids if far_end._stat(pid)[:1] not in ([], [b"Z"], [b"X"])]


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


# --- calls, results, messages


async def test_a_call_runs_in_another_process_and_returns_bytes() -> None:
    async with WorkerPool() as pool:
        reply = await call(pool, b"\0payload", entry="process_calls:echo")
    assert reply.body == b"\0payload"
    assert reply.worker == "process-1"
    assert reply.pid != os.getpid()


async def test_workers_are_reused_last_in_first_out() -> None:
    async with WorkerPool() as pool:
        gate_a, gate_b = Heard(), Heard()
        pids: dict[str, int] = {}

        async def run(name: str, heard: Heard, path: Path) -> None:
            pids[name] = (
                await call(
                    pool, f"import os, time\nprint(1)\nwhile not os.path.exists({str(path)!r}): time.sleep(.001)", heard
                )
            ).pid

        async with anyio.create_task_group() as group, _folder() as folder:
            group.start_soon(run, "first", gate_a, folder / "a")
            group.start_soon(run, "last", gate_b, folder / "b")
            await gate_a.numbers(1)
            await gate_b.numbers(1)
            (folder / "a").touch()
            await until(lambda: "first" in pids)
            (folder / "b").touch()
            await until(lambda: "last" in pids)
        assert pids["first"] != pids["last"]
        assert [(await call(pool)).pid for _ in range(3)] == [pids["last"]] * 3


@asynccontextmanager
async def _folder() -> AsyncIterator[Path]:
    async with anyio.TemporaryDirectory() as folder:
        yield Path(folder)


async def test_names_of_workers_are_reused() -> None:
    async with WorkerPool() as pool:
        for _ in range(3):
            with pytest.raises(WorkerLost):
                await call(pool, "import os; os._exit(1)")
            assert (await call(pool)).worker == "process-1"


@pytest.mark.parametrize("size", [0, 1, 65_536 - far_end.FRAME.size, 20_000_000])
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


async def test_the_driver_sleeps_while_a_call_runs() -> None:
    async with WorkerPool() as pool:
        began = time.process_time()
        await call(pool, b"import time; time.sleep(0.3) #" + b"x" * 1_000_000)
        assert time.process_time() - began < 0.15


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
        assert select.select([worker._life], (), (), 10)[0]  # until the guard says that it is dead

    source = "import os\nfor letter in (b'a', b'b', b'c'): send(letter * 47_000)\nos._exit(1)"
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
        threading.Thread(target=late, daemon=True).start()
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
        if repeats * 8 < far_end.PIECE:
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

        keys = [f"key{number}" for number in range(far_end.REMEMBERED)]
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


# --- errors


async def test_what_the_function_raises_comes_back_with_its_traceback() -> None:
    async with WorkerPool() as pool:
        with pytest.raises(EntryFailed) as caught:
            await call(pool, "try: 1 / 0\nexcept ZeroDivisionError as error: raise KeyError('why') from error")
        again = await call(pool)
    error = caught.value
    assert (error.phase, error.type, error.message) == ("call", "KeyError", "'why'")
    assert "ZeroDivisionError" in error.stack
    assert "direct cause" in error.stack
    assert "worker.py" not in error.stack
    assert "process_calls:code" in str(error)
    assert error.stack.rstrip() in str(error)
    assert again.worker == "process-1"


@pytest.mark.parametrize(
    ("source", "type_", "message"),
    [
        ("raise SystemExit(3)", "SystemExit", "3"),
        ("import sys; sys.exit()", "SystemExit", ""),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("class Odd(Exception):\n  def __str__(self): 1 / 0\nraise Odd", "Odd", "<its text cannot be made>"),
        ("raise ValueError('\\udcff')", "ValueError", "\\udcff"),
        ("raise BaseException('base')", "BaseException", "base"),
    ],
)
async def test_every_way_of_raising_is_an_error_of_the_call_and_not_the_end_of_the_worker(
    source: str, type_: str, message: str
) -> None:
    async with WorkerPool() as pool:
        pid = (await call(pool)).pid
        with pytest.raises(EntryFailed) as caught:
            await call(pool, source)
        assert (caught.value.type, caught.value.message) == (type_, message)
        assert (await call(pool)).pid == pid


async def test_a_function_that_cannot_be_imported_is_told_with_the_users_frames(tmp_path: Path) -> None:
    (tmp_path / "broken_module.py").write_text("import no_such_thing")
    sys.path.insert(0, str(tmp_path))
    try:
        async with WorkerPool() as pool:
            with pytest.raises(EntryFailed, match="could not import 'broken_module:go'") as caught:
                await call(pool, entry="broken_module:go")
            with pytest.raises(EntryFailed, match="has no attribute 'nothing'"):
                await call(pool, entry="process_calls:nothing")
    finally:
        sys.path.remove(str(tmp_path))
    assert caught.value.phase == "import"
    assert "broken_module.py" in caught.value.stack
    assert "worker.py" not in caught.value.stack
    assert "importlib" not in caught.value.stack


async def test_a_module_that_was_written_after_the_worker_looked_for_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    async with WorkerPool() as pool:
        with pytest.raises(EntryFailed):
            await call(pool, entry="late_module:go")
        seen = os.stat(tmp_path).st_mtime_ns
        (tmp_path / "late_module.py").write_text("def go(*_): return b'found'")
        os.utime(tmp_path, ns=(seen, seen))  # as within one tick of the file system's clock
        assert (await call(pool, entry="late_module:go")).body == b"found"


async def test_a_result_that_is_not_bytes_is_told() -> None:
    async with WorkerPool() as pool:
        with pytest.raises(EntryFailed, match=r"cannot be sent.*returned int, not bytes") as caught:
            await call(pool, "result = 3")
        assert caught.value.phase == "result"


@pytest.mark.parametrize(
    ("source", "exit_code", "number", "description"),
    [
        ("import os; os._exit(3)", 3, None, "exited with code 3"),
        ("import os; os._exit(0)", 0, None, "exited with code 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", None, 9, "killed by SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", None, 15, "killed by SIGTERM"),
        ("import os; os.abort()", None, 6, "killed by SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", None, 11, "killed by SIGSEGV"),
    ],
)
async def test_a_worker_that_dies_is_told_with_its_true_exit_status(
    source: str, exit_code: int | None, number: int | None, description: str
) -> None:
    heard = Heard()
    async with WorkerPool() as pool:
        pid = (await call(pool)).pid
        with pytest.raises(WorkerLost, match=description) as caught:
            await call(pool, "print('last words')\n" + source, heard)
        assert (await call(pool)).pid != pid
    error = caught.value
    assert (error.exit_code, error.signal, error.pid, error.worker) == (exit_code, number, pid, "process-1")
    assert not error.oom
    assert not error.killed_for_memory
    assert "memory" not in str(error)
    assert error.peak_rss_mb is not None
    assert 1 < error.peak_rss_mb < 200
    if number == signal.SIGSEGV:
        assert any("Segmentation fault" in line for line in heard.stderr)
        assert any("process_calls.py" in line for line in heard.stderr)
    if number not in (signal.SIGKILL, signal.SIGSEGV) and exit_code is None:
        assert heard.stdout == ["last words"]


async def test_a_worker_that_dies_takes_no_other_call_with_it(tmp_path: Path) -> None:
    heard = Heard()
    results = []

    async def survivor(pool: WorkerPool) -> None:
        source = f"import os, time\nprint(1)\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(.001)"
        results.append(await call(pool, source + "\nresult = b'alive'", heard))

    async with WorkerPool() as pool, anyio.create_task_group() as group:
        group.start_soon(survivor, pool)
        await heard.numbers(1)
        for _ in range(3):
            with pytest.raises(WorkerLost):
                await call(pool, "import os; os._exit(1)")
        (tmp_path / "go").touch()
    assert [reply.body for reply in results] == [b"alive"]


async def test_out_of_memory_is_said_only_with_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\noom 4\noom_kill 7\noom_group_kill 0\n")
    monkeypatch.setattr(processes, "_oom_files", lambda: [str(tmp_path / "missing"), str(events)])
    die = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    async with WorkerPool() as pool:
        with pytest.raises(WorkerLost) as caught:
            await call(pool, die)
        assert not caught.value.oom
        write = f"open({str(events)!r}, 'w').write('oom 4\\noom_kill 8\\n');"
        with pytest.raises(WorkerLost, match="probably out of memory") as caught:
            await call(pool, write + die)
        assert caught.value.oom
        with pytest.raises(WorkerLost) as caught:
            await call(pool, write.replace("oom_kill 8", "oom_kill 9") + "os = __import__('os'); os._exit(1)")
        assert not caught.value.oom


def test_the_kernels_count_of_out_of_memory_kills_is_found() -> None:
    count = processes._OomCount()
    assert count.read() == 0
    count.open()
    try:
        if count._fd < 0:
            pytest.skip("no memory control group here")
        assert count.read() >= 0
        assert b"oom_kill" in os.pread(count._fd, 1024, 0).split()
    finally:
        count.close()


async def test_errors_survive_pickling() -> None:
    import pickle

    for error in (
        WorkerLost("process-1", 7, None, 9, "was killed by SIGKILL", "mend", peak_rss_mb=1.0, oom=True),
        EntryFailed("a:b", "call", "KeyError", "'x'", "Traceback"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error)
        assert vars(again) == vars(error)


async def test_a_call_that_closes_its_connection_is_ended_and_told() -> None:
    async with WorkerPool(grace_s=0.2) as pool:
        with pytest.raises(WorkerLost, match="closed its connection") as caught:
            await call(pool, "import os; os.closerange(3, 200)" + STAY)
        assert (caught.value.exit_code, caught.value.signal) == (None, None)
        await call(pool)


async def test_an_error_of_the_listener_ends_the_call_and_its_worker() -> None:
    def on_line(stream: str, line: str) -> None:
        raise ZeroDivisionError(line)

    async with WorkerPool() as pool:
        for source, match in (("print('boo')", "boo"), ("send(b'ho')", "ho")):
            with pytest.raises(ZeroDivisionError, match=match):
                await pool.call(
                    "process_calls:code",
                    ("", b""),
                    (source + STAY).replace("print('boo')", "print('boo', flush=True)").encode(),
                    on_line=on_line,
                    on_message=lambda message: on_line("", message.decode()),
                )
            assert psutil.Process().children() == []
        await call(pool)


async def test_an_error_inside_the_pools_block_leaves_it_unwrapped() -> None:
    with pytest.raises(ZeroDivisionError):
        async with WorkerPool() as pool:
            await call(pool)
            raise ZeroDivisionError


# --- output


async def test_lines_come_live_and_by_stream() -> None:
    heard = Heard()
    source = "import sys\nprint('out')\nprint('err', file=sys.stderr)"
    async with WorkerPool() as pool, calling(pool, source + STAY, heard):
        await until(lambda: len(heard.lines) == 2)
    assert sorted(heard.lines) == [("stderr", "err"), ("stdout", "out")]


async def test_every_line_belongs_to_the_call_that_printed_it() -> None:
    async with WorkerPool() as pool:
        for number in range(50):
            heard = Heard()
            source = f"""
                import os, sys
                print("line", {number})
                print("é☃", file=sys.stderr)
                sys.stdout.write("no newline {number}")
                sys.stderr.write("nor here {number}")
                """
            await call(pool, source, heard)
            assert heard.stdout == [f"line {number}", f"no newline {number}"]
            assert heard.stderr == ["é☃", f"nor here {number}"]


async def test_text_that_the_locale_does_not_know_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:strict")
    heard = Heard()
    async with WorkerPool() as pool:
        await call(pool, "print('é☃', '\\udcff')", heard)
    assert heard.stdout == ["é☃ \\udcff"]


async def test_what_c_libraries_and_child_processes_print_belongs_to_the_call() -> None:
    source = """
        import ctypes, os, subprocess
        ctypes.CDLL(None).printf(b"from C\\n")
        os.write(1, b"to descriptor 1\\n")
        os.write(2, b"\\xff to descriptor 2\\n")
        subprocess.run(["echo", "from a child"])
        """
    async with WorkerPool() as pool:
        heard = Heard()
        await call(pool, source, heard)
        assert sorted(heard.stdout) == ["from C", "from a child", "to descriptor 1"]
        assert heard.stderr == ["\ufffd to descriptor 2"]


async def test_bytes_on_descriptor_1_that_look_like_our_protocol_change_nothing() -> None:
    heard = Heard()
    frame = far_end.FRAME.pack(far_end.RETURNED, 5) + b"wrong"
    async with WorkerPool() as pool:
        reply = await call(pool, f"import os; [os.write(fd, {frame!r}) for fd in (1, 2)]; result = b'right'", heard)
    assert reply.body == b"right"
    assert [line.encode()[-5:] for line in (*heard.stdout, *heard.stderr)] == [b"wrong", b"wrong"]


async def test_lines_of_a_worker_that_dies_or_is_killed_are_not_lost() -> None:
    heard, cancelled = Heard(), Heard()
    async with WorkerPool() as pool:
        with pytest.raises(WorkerLost):
            await call(pool, "import os\nos.write(1, b'line\\n' * 5000 + b'end')\nos._exit(1)", heard)
        assert heard.stdout == ["line"] * 5000 + ["end"]
        async with calling(pool, "import os; os.write(1, b'1\\nhalf')" + STAY, cancelled):
            await cancelled.numbers(1)
    assert cancelled.stdout == ["1", "half"]


@pytest.mark.parametrize("dies", [False, True], ids=["returns", "dies"])
async def test_lines_that_a_busy_driver_has_not_read_at_the_end_are_not_lost(dies: bool) -> None:
    source = f"""
        import fcntl, os
        fcntl.fcntl(1, 1031, 1 << 20)  # F_SETPIPE_SZ: more than is read at once
        print(os.getpid(), flush=True)
        os.write(1, b"line\\n" * 100_000)
        os._exit(1) if {dies} else None
        result = b"the end"
        """
    lines: list[str] = []
    async with WorkerPool() as pool:

        def on_line(_stream: str, line: str) -> None:
            lines.append(line)
            if len(lines) == 1:
                deadline = time.monotonic() + 10
                while dies and alive(int(line)):
                    assert time.monotonic() < deadline
                if not dies:
                    wait_for_reply(pool, b"the end")

        with pytest.raises(WorkerLost) if dies else nullcontext():
            await pool.call(
                "process_calls:code", ("", b""), dedent(source).encode(), on_line=on_line, on_message=lambda _: None
            )
    assert lines[1:] == ["line"] * 100_000


async def test_a_long_line_is_cut_and_says_so() -> None:
    heard = Heard()
    async with WorkerPool() as pool:
        await call(pool, "print('x' * 3_000_000); print('after')", heard)
    assert heard.stdout == ["x" * 65_536 + " … (cut: 2,934,464 more bytes)", "after"]


async def test_an_endless_line_takes_no_memory_and_does_not_hold_up_the_loop() -> None:
    heard = Heard()
    source = "import os\nprint(os.getpid())\nwhile True: os.write(1, b'x' * 65536)"
    async with WorkerPool() as pool:
        ticks = 0
        async with calling(pool, source, heard):
            await heard.numbers(1)
            worker = next(iter(pool._workers))
            while worker.lines["stdout"].cut < 50_000_000:
                ticks += 1
                await anyio.lowlevel.checkpoint()
            assert len(worker.lines["stdout"].kept) == processes.LINE_CAP
        assert ticks > 50
    assert len(heard.stdout) == 2
    assert "cut" in heard.stdout[1]


async def test_what_a_daemon_thread_prints_between_calls_is_dropped(tmp_path: Path) -> None:
    first, second = Heard(), Heard()
    source = f"""
        import os, threading, time
        def late():
            while not os.path.exists({str(tmp_path / "now")!r}):
                time.sleep(0.001)
            print("late", flush=True)
            open({str(tmp_path / "printed")!r}, "w").close()
        threading.Thread(target=late, daemon=True).start()
        """
    async with WorkerPool() as pool:
        pid = (await call(pool, source, first)).pid
        (tmp_path / "now").touch()
        await until((tmp_path / "printed").exists)
        assert (await call(pool, "print('own')", second)).pid == pid
    assert (first.stdout, second.stdout) == ([], ["own"])


async def test_a_daemon_thread_that_fills_the_pipe_between_calls_blocks_nobody(tmp_path: Path) -> None:
    source = f"""
        import os, threading, time
        def late():
            while not os.path.exists({str(tmp_path / "now")!r}):
                time.sleep(0.001)
            open({str(tmp_path / "printing")!r}, "w").close()
            print("late\\n" * 200_000, flush=True)
        threading.Thread(target=late, daemon=True).start()
        """
    heard = Heard()
    async with WorkerPool() as pool:
        pid = (await call(pool, source)).pid
        (tmp_path / "now").touch()
        await until((tmp_path / "printing").exists)
        assert (await call(pool, "print('own', flush=True)", heard)).pid == pid
    assert any("own" in line for line in heard.stdout)


async def test_a_child_that_prints_without_end_does_not_hold_up_the_reply() -> None:
    async with WorkerPool() as pool:
        with anyio.fail_after(10):
            assert (await call(pool, "import subprocess; subprocess.Popen(['yes']); result = b'done'")).body == b"done"


# --- what a call leaves behind


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
        pytest.param("import sys, io; sys.stdout = io.StringIO()", id="stdout-replaced"),
        pytest.param("import sys; sys.stderr.close()", id="stderr-closed"),
        pytest.param("import os; os.dup2(os.open('/dev/null', os.O_WRONLY), 1)", id="descriptor-1-redirected"),
        pytest.param("import os; os.close(2)", id="descriptor-2-closed"),
    ],
)
async def test_a_worker_whose_call_left_something_behind_is_replaced_with_all_of_it(source: str) -> None:
    async with WorkerPool() as pool:
        first = await call(pool, source + "\nresult = b'its result counts'")
        assert first.body == b"its result counts"
        assert psutil.Process().children(recursive=True) == []
        heard = Heard()
        assert (await call(pool, "print('heard')", heard)).pid != first.pid
        assert heard.stdout == ["heard"]


async def test_a_failed_call_that_leaves_a_child_behind_costs_the_worker_too() -> None:
    async with WorkerPool() as pool:
        with pytest.raises(EntryFailed):
            await call(pool, "import subprocess; child = subprocess.Popen(['sleep', '1000']); 1 / 0")
        assert psutil.Process().children(recursive=True) == []


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import subprocess; subprocess.run(['true'])", id="child-waited-for"),
        pytest.param(
            "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()", id="daemon"
        ),
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


async def test_workers_that_idle_for_long_are_stopped() -> None:
    async with WorkerPool(idle_s=0.05) as pool:
        pid = (await call(pool)).pid
        await until(lambda: not alive(pid))
        await until(lambda: psutil.Process().children(recursive=True) == [])
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


# --- killing


async def test_cancelling_a_call_kills_its_process_with_every_descendant() -> None:
    heard = Heard()
    async with WorkerPool() as pool:
        async with calling(pool, FAMILY + STAY, heard):
            family = await heard.numbers(4)
            assert alive(*family) == family
            guard = guard_of(family[-1])
            began = time.monotonic()
        assert time.monotonic() - began < 1
        assert alive(*family, guard) == []
        assert psutil.Process().children(recursive=True) == []
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
            assert time.monotonic() - began < 1
            assert alive(pid) == []


async def test_cancellation_goes_through_and_a_deadline_is_a_cancellation() -> None:
    async with WorkerPool() as pool:
        with anyio.move_on_after(0.1) as scope:
            await call(pool, STAY)
        assert scope.cancelled_caught
        assert psutil.Process().children(recursive=True) == []


@pytest.mark.parametrize("delay_s", [0, 0.001, 0.003, 0.01, 0.02, 0.04])
async def test_cancelling_at_any_moment_of_a_workers_start_leaves_nothing(delay_s: float) -> None:
    before = descriptors()
    async with WorkerPool() as pool:
        inside = descriptors()
        for _ in range(5):
            with anyio.move_on_after(delay_s):
                await call(pool, "import time; time.sleep(1000)")
            assert psutil.Process().children(recursive=True) == []
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
        next(iter(pool._workers))._life.shutdown(socket.SHUT_WR)
        await until(lambda: not alive(pid))
        assert (await call(pool)).pid != pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_guard_ignores_signals_that_a_supervisor_sends_to_everybody(number: signal.Signals) -> None:
    async with WorkerPool() as pool:
        pid = (await call(pool)).pid
        os.kill(guard_of(pid), number)
        assert (await call(pool)).pid == pid
        assert alive(guard_of(pid))


async def test_leaving_the_pool_kills_idle_and_busy_workers_and_waits() -> None:
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
        assert psutil.Process().children(recursive=True) == []
    assert "closed" in str(errors[0])
    with pytest.raises(ExecutorBroken, match="not open"):
        await call(pool)


async def test_leaving_the_pool_while_cancelled_still_waits() -> None:
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
        assert psutil.Process().children(recursive=True) == []


async def test_a_call_that_ends_while_the_pool_is_left_is_not_waited_for_in_vain(tmp_path: Path) -> None:
    replies, gate = [], tmp_path / "gate"

    async def busy(pool: WorkerPool) -> None:
        until_gate = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.001)\n"
        replies.append(await call(pool, until_gate + "print(1, flush=True); result = b'the end'", heard))

    heard = Heard()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            async with WorkerPool() as pool:
                await call(pool)
                group.start_soon(busy, pool)
                while pool._idle:
                    await anyio.lowlevel.checkpoint()
                gate.touch()
                wait_for_reply(pool, b"the end")
            assert psutil.Process().children(recursive=True) == []
    assert [reply.body for reply in replies] == [b"the end"]


# --- signals


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
        result = b"%d" % child.wait(timeout=10)
        """
    async with WorkerPool() as pool:
        assert (await call(pool, source)).body == b"-2"


# --- memory and time


HOLD = "block = bytearray(b'x') * ({mb} << 20)\n"


async def test_a_call_that_uses_more_than_its_memory_is_killed() -> None:
    async with WorkerPool() as pool:
        for _ in range(2):
            with pytest.raises(WorkerLost, match="more than memory_mb = 120") as caught:
                await call(pool, HOLD.format(mb=200) + STAY, memory_mb=120)
            error = caught.value
            assert error.killed_for_memory
            assert (error.memory_mb, error.oom, error.signal) == (120, False, signal.SIGKILL)
            assert error.peak_rss_mb is not None
            assert 120 < error.peak_rss_mb < 300


async def test_the_memory_of_descendants_counts_also_of_those_that_left() -> None:
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
    assert psutil.Process().children(recursive=True) == []


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


# --- the driver's end


DRIVER = """
import os, signal, sys, anyio
sys.path[:0] = [{root!r}, {here!r}]
from gluepy.exec.executors.processes import WorkerPool

async def main():
    async with WorkerPool() as pool:
        def on_line(stream, line):
            print(line, flush=True)
        source = {source!r}
        await pool.call("process_calls:code", ("", b""), b"", on_line=on_line, on_message=print)
        {before}
        await pool.call("process_calls:code", ("", b""), source.encode(), on_line=on_line, on_message=print)

if __name__ == "__main__":
    anyio.run(main, backend={backend!r})
"""


@pytest.mark.parametrize("holder", [False, True], ids=["", "forked-copy"])
async def test_a_driver_that_is_killed_takes_everything_with_it(
    holder: bool, anyio_backend_name: str, tmp_path: Path
) -> None:
    # `holder` is a process that the driver forked, and that holds copies of all its descriptors.
    before = (
        "holder = os.fork()\n        if not holder: signal.pause()\n        print(holder, flush=True)" if holder else ""
    )
    gil = "\nimport ctypes\nctypes.PyDLL(None).sleep(1000)"
    script = tmp_path / "driver.py"
    script.write_text(
        DRIVER.format(
            root=str(ROOT),
            here=str(HERE),
            before=before,
            backend=anyio_backend_name,
            source=FAMILY + gil,
        )
    )
    driver = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert driver.stdout is not None
    pids: list[int] = []
    try:
        with driver.stdout as lines:
            pids = [int(lines.readline()) for _ in range(4 + holder)]
            family = pids[holder:]
            assert alive(*family) == family
            family.append(guard_of(family[-1]))
            driver.kill()
            began = time.monotonic()
            await until(lambda: not alive(*family))
            assert time.monotonic() - began < 0.5
    finally:
        driver.kill()
        driver.wait()
        for pid in alive(*pids):
            os.kill(pid, signal.SIGKILL)


async def test_descriptors_and_processes_stay_constant_and_are_not_inherited() -> None:
    before = descriptors()
    async with WorkerPool() as pool:
        await call(pool)
        inside = descriptors()
        assert len(psutil.Process().children(recursive=True)) == 2
        assert not any(os.get_inheritable(fd) for fd in inside - before)
        for _ in range(5):
            with pytest.raises(WorkerLost):
                await call(pool, "import os; os._exit(1)")
            with anyio.move_on_after(0.05):
                await call(pool, STAY)
            await call(pool)
            assert len(descriptors()) == len(inside)
            assert len(psutil.Process().children(recursive=True)) == 2
        source = """
            import subprocess, sys
            show = [sys.executable, "-c", "import os; print(sorted(os.listdir('/proc/self/fd')))"]
            result = subprocess.run(show, close_fds=False, stdout=subprocess.PIPE).stdout
            """
        assert (await call(pool, source)).body == b"['0', '1', '2', '3']\n"
    assert descriptors() == before


async def test_a_worker_that_does_not_start_is_broken_infrastructure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    async with WorkerPool() as pool:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
        with pytest.raises(ExecutorBroken, match=r"No such file.*sys\.executable"):
            await call(pool)
        script = tmp_path / "python"
        script.write_text("#!/bin/sh\necho no such library >&2\nexit 127\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        with pytest.raises(ExecutorBroken, match=r"did not start.*no such library"):
            await call(pool)
        monkeypatch.undo()
        monkeypatch.syspath_prepend(str(HERE))
        await call(pool)
    assert descriptors() == before


async def test_too_many_open_files_is_told_with_the_mend() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with WorkerPool() as pool:
        before = descriptors()
        limit = 0
        while limit - len([fd for fd in before if fd < limit]) < 3:
            limit += 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            with pytest.raises(ExecutorBroken, match="ulimit"):
                await call(pool)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert descriptors() == before
        await call(pool)


async def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = WorkerPool()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        with pytest.raises(ExecutorBroken, match="pool 'thread'"):
            await pool.__aenter__()


# --- the main script


SCRIPT = """
import os, sys, multiprocessing, anyio
sys.path[:0] = [{root!r}, {here!r}]
open({log!r}, "a").write("imported\\n")
from gluepy.exec.executors.processes import WorkerPool

def work(shared, payload, send):
    return b"from main"

async def main():
    async with WorkerPool() as pool:
        reply = await pool.call({entry!r}, ("", b""), b"result = b'ran'", on_line=print, on_message=print, main={main})
        print(reply.body.decode(), multiprocessing.get_start_method(allow_none=True))
"""


async def _run(
    tmp_path: Path,
    backend: str,
    *,
    entry: str = "process_calls:code",
    main: bool = True,
    guarded: bool = True,
    how: str = "",
) -> tuple[int, str, str, int]:
    log = tmp_path / "log"
    source = SCRIPT.format(root=str(ROOT), here=str(HERE), log=str(log), entry=entry, main=main)
    guard = "__name__ == '__main__'" if guarded else "True"
    source += f"\nif {guard}:\n    anyio.run(main, backend={backend!r})\n"
    script = tmp_path / "script.py"
    script.write_text(source)
    command = {"-c": ["-c", source], "-": ["-"], "-m": ["-m", "script"], "": [str(script)]}[how]
    ended = await anyio.run_process(
        [sys.executable, *command], input=source.encode() if how == "-" else b"", check=False, cwd=tmp_path
    )
    return ended.returncode, ended.stdout.decode(), ended.stderr.decode(), len(log.read_text().splitlines())


@pytest.mark.parametrize("how", ["", "-m"])
async def test_a_function_of_the_main_script_can_be_called(how: str, tmp_path: Path, anyio_backend_name: str) -> None:
    assert await _run(tmp_path, anyio_backend_name, entry="__main__:work", how=how) == (0, "from main None\n", "", 2)


async def test_the_main_script_is_imported_only_when_asked_for(tmp_path: Path, anyio_backend_name: str) -> None:
    assert await _run(tmp_path, anyio_backend_name, main=False) == (0, "ran None\n", "", 1)


@pytest.mark.parametrize("how", ["-c", "-"])
async def test_a_driver_without_a_script_is_no_obstacle(how: str, tmp_path: Path, anyio_backend_name: str) -> None:
    assert await _run(tmp_path, anyio_backend_name, how=how) == (0, "ran None\n", "", 1)


async def test_a_script_without_a_main_guard_gets_a_clear_error_and_starts_one_worker(
    tmp_path: Path, anyio_backend_name: str
) -> None:
    code, out, err, imports = await _run(tmp_path, anyio_backend_name, guarded=False)
    assert code == 1
    assert out == ""
    assert imports == 2
    assert 'put what the script runs under `if __name__ == "__main__":`' in err
    assert "could not import the main script" in err


async def test_a_worker_that_failed_to_import_the_script_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('no guard')")
    monkeypatch.setattr(processes, "_main_script", lambda: {"init_main_from_path": str(script)})
    async with WorkerPool() as pool:
        pid = (await call(pool)).pid
        with pytest.raises(EntryFailed, match="main script: SystemExit: no guard") as caught:
            await call(pool, main=True)
        assert caught.value.phase == "prepare"
        script.write_text("ready = True")
        assert (await call(pool, "import __main__; assert __main__.ready", main=True)).pid != pid


async def test_a_pool_refuses_to_open_in_a_process_that_imports_the_main_script(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not processes.importing_main()
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    assert processes.importing_main()
    with pytest.raises(OptionError, match="__main__"):
        async with WorkerPool():
            pass


# --- all together


async def _soak(calls: int) -> None:
    before = descriptors()
    dice = random.Random(calls)
    wrong: list[str] = []
    killed = 0
    async with WorkerPool() as pool:
        await call(pool)
        one_worker = len(descriptors())
        todo = iter(range(calls))

        async def lane() -> None:
            nonlocal killed
            for number in todo:
                heard = Heard()
                source = f"import os, signal\nprint({number})\nsend(b'{number}')\nresult = b'{number}'\n"
                way = dice.randrange(9)
                try:
                    with anyio.move_on_after(60) as scope:
                        if way == 0:
                            scope.deadline = anyio.current_time() + dice.random() * 0.05
                            source += STAY
                        elif way == 1:
                            source += "os.kill(os.getpid(), signal.SIGKILL)"
                        elif way == 2:
                            source += (
                                "import subprocess; c = subprocess.Popen(['setsid', 'sleep', '1000'])\nos._exit(7)"
                            )
                        reply = await call(pool, source, heard)
                        expected = (b"%d" % number, [str(number)], [b"%d" % number])
                        if way < 3 or (reply.body, heard.stdout, heard.messages) != expected:
                            wrong.append(f"{number}: {way} {reply} {heard.lines} {heard.messages}")
                    if scope.cancelled_caught:
                        killed += 1
                        if way != 0:
                            wrong.append(f"{number}: hung")
                except WorkerLost as error:
                    killed += 1
                    if (way, error.signal, error.exit_code) not in ((1, 9, None), (2, None, 7)):
                        wrong.append(f"{number}: {way} {error}")

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(lane)
        workers = len(pool._workers)
        assert workers <= 4
        assert len(psutil.Process().children(recursive=True)) == 2 * workers
        assert len(descriptors()) == one_worker + 5 * (workers - 1)
    assert wrong == []
    assert killed > calls / 5
    assert descriptors() == before


async def test_soak() -> None:
    await _soak(SOAK_CALLS)


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
async def test_soak_for_long() -> None:
    await _soak(10_000)


def test_errors_are_of_the_tree() -> None:
    assert issubclass(WorkerLost, GluepyError)
    assert issubclass(EntryFailed, GluepyError)
