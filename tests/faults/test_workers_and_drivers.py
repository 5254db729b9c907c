"""Worker processes and the process that started them: its end, its limits, its main script."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from workers import FAMILY, HERE, ROOT, STAY, WORKERS, Started, alive, call, descriptors, guard_of, until

from gluepy.errors import ExecutorBroken, OptionError
from gluepy.exec.executors import processes
from gluepy.exec.executors.processes import EntryFailed, WorkerLost, WorkerPool, requests

pytestmark = WORKERS


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
            took_s = time.monotonic() - began
            print(f"gone in {took_s:.3f} s")
            assert took_s < 2  # it is some hundredths on a quiet machine
    finally:
        driver.kill()
        driver.wait()
        for pid in alive(*pids):
            os.kill(pid, signal.SIGKILL)


async def test_descriptors_and_processes_stay_constant_and_are_not_inherited(started: Started) -> None:
    before = descriptors()
    async with WorkerPool() as pool:
        await call(pool)
        inside = descriptors()
        assert len(started()) == 2
        assert not any(os.get_inheritable(fd) for fd in inside - before)
        for _ in range(5):
            with pytest.raises(WorkerLost):
                await call(pool, "import os; os._exit(1)")
            with anyio.move_on_after(0.05):
                await call(pool, STAY)
            await call(pool)
            assert len(descriptors()) == len(inside)
            assert len(started()) == 2
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
    monkeypatch.setattr(requests, "_main_script", lambda: {"init_main_from_path": str(script)})
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
