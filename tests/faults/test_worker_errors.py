"""What goes wrong in a worker process is told truly, and only to the call that it happened to."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import anyio.lowlevel
import psutil
import pytest
from workers import STAY, WORKERS, Heard, call

from gluepy.exec.executors.processes import EntryFailed, WorkerLost, WorkerPool

pytestmark = WORKERS


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


async def test_errors_survive_pickling() -> None:
    import pickle

    for error in (
        WorkerLost("process-1", 7, None, 9, "killed by SIGKILL", "hint", peak_rss_mb=1.0, oom=True),
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
