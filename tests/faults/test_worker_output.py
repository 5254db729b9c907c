"""What worker processes print comes live, whole, and to the call that printed it."""

from __future__ import annotations

import pickle
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from textwrap import dedent

import anyio
import anyio.lowlevel
import psutil
import pytest
from workers import STAY, WORKERS, Heard, alive, call, calling, until

from gluepy.exec.executors import worker as worker_main
from gluepy.exec.executors.lines import LINE_LENGTH
from gluepy.exec.executors.processes import WorkerLost, WorkerPool

pytestmark = WORKERS


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
    frame = worker_main.FRAME.pack(worker_main.RETURNED, 5) + b"wrong"
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
                while not dies and psutil.Process(int(line)).status() != psutil.STATUS_SLEEPING:
                    assert time.monotonic() < deadline  # until it waits for its next call: the reply is sent

        with pytest.raises(WorkerLost) if dies else nullcontext():
            await pool.call(
                "process_calls:code", ("", b""), dedent(source).encode(), on_line=on_line, on_message=lambda _: None
            )
    assert lines[1:] == ["line"] * 100_000


async def test_a_long_line_loses_its_middle_and_says_so() -> None:
    heard = Heard()
    async with WorkerPool() as pool:
        await call(pool, "print('a' * 1_500_000 + 'z' * 1_500_000); print('after')", heard)
    half = LINE_LENGTH // 2
    cut = f"{'a' * half} … ({3_000_000 - LINE_LENGTH:,} characters left out) … {'z' * half}"
    assert heard.stdout == [cut, "after"]


async def test_an_endless_line_takes_no_memory_and_does_not_hold_up_the_loop() -> None:
    heard = Heard()
    source = "import os\nprint(os.getpid())\nwhile True: os.write(1, b'x' * 65536)"
    async with WorkerPool() as pool:
        ticks = 0
        async with calling(pool, source, heard):
            await heard.numbers(1)
            worker = next(iter(pool._workers))
            while worker.lines["stdout"].length < 50_000_000:
                ticks += 1
                await anyio.lowlevel.checkpoint()
            assert (
                sys.getsizeof(pickle.dumps(worker.lines["stdout"]._row)) < 3 * LINE_LENGTH + 1000
            )  # and what describes it
        assert ticks > 50
    assert len(heard.stdout) == 2
    assert "left out" in heard.stdout[1]


async def test_what_a_daemon_thread_prints_between_calls_is_dropped(tmp_path: Path) -> None:
    first, second = Heard(), Heard()
    source = f"""
        import os, threading, time
        def late():
            while not os.path.exists({str(tmp_path / "now")!r}):
                time.sleep(0.001)
            print("late", flush=True)
            open({str(tmp_path / "printed")!r}, "w").close()
        threading.Thread(target=late, name="fsspecIO", daemon=True).start()  # one that may stay
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
        threading.Thread(target=late, name="fsspecIO", daemon=True).start()  # one that may stay
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
        with anyio.fail_after(120):
            assert (await call(pool, "import subprocess; subprocess.Popen(['yes']); result = b'done'")).body == b"done"
