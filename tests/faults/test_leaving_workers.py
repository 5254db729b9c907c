"""A worker that is needed no longer exits as any program does, within a bound; one that is stopped does not."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest
from workers import STAY, WORKERS, Heard, Started, alive, call, calling, until

from gluepy.exec.executors.processes import WorkerLost, WorkerPool

pytestmark = WORKERS
SHARED_MEMORY = Path("/dev/shm")

# What a program cleans up when it exits, each way leaving a line in a file.
CLEANS_UP = """
import atexit, sys, tempfile, types, weakref
class Kept: pass
keeps = sys.modules["keeps"] = types.ModuleType("keeps")  # as a module's global variables
keeps.kept, keeps.folder = Kept(), tempfile.TemporaryDirectory(dir={folder!r})
keeps.file = open({folder!r} + "/unflushed", "w")
def note(how):
    with open({folder!r} + "/notes", "a") as file:
        file.write(how + "\\n")
atexit.register(note, "exit handler")
weakref.finalize(keeps.kept, note, "finalizer")
keeps.file.write("all of it")
del keeps
"""


def cleaned_up(folder: Path) -> bool:
    notes = folder / "notes"
    done = notes.exists() and sorted(notes.read_text().splitlines()) == ["exit handler", "finalizer"]
    return done and sorted(os.listdir(folder)) == ["notes", "unflushed"]


@pytest.mark.parametrize("how", ["pool-left", "idle", "left-a-child", "left-a-thread", "changed-for-good"])
async def test_a_worker_that_is_needed_no_longer_cleans_up(how: str, tmp_path: Path, started: Started) -> None:
    source = CLEANS_UP.format(folder=str(tmp_path)) + {
        "left-a-child": "import subprocess; child = subprocess.Popen(['sleep', '1000'])",
        "left-a-thread": "import threading, time; threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
        "changed-for-good": "import os; os.setpgid(0, os.getppid())",
    }.get(how, "")
    async with WorkerPool(idle_s=0.05 if how == "idle" else 60) as pool:
        await call(pool, source)
        if how == "idle":
            await until(lambda: not pool._workers)
        elif how == "changed-for-good":
            await call(pool)
        if how.startswith("left"):
            assert cleaned_up(tmp_path)  # before the call returns
            assert started() == []
    assert cleaned_up(tmp_path)
    assert (tmp_path / "unflushed").read_text() == "all of it"


async def test_threads_that_a_call_leaves_end_their_work_and_are_heard() -> None:
    heard = Heard()
    source = """
        import atexit, threading, time
        atexit.register(print, "at exit")
        threading.Thread(target=lambda: (time.sleep(0.2), print("the end of a thread"))).start()
        result = b"its result counts"
        """
    async with WorkerPool() as pool:
        assert (await call(pool, source, heard)).body == b"its result counts"
    assert heard.stdout == ["the end of a thread", "at exit"]


async def test_a_worker_that_does_not_leave_is_killed_and_that_is_told(started: Started) -> None:
    heard = Heard()
    forever = "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()"
    async with WorkerPool(leave_s=0.2) as pool:
        await call(pool, forever, heard)
        assert started() == []
        await call(pool, "import atexit, time; atexit.register(time.sleep, 1000)")
    assert heard.stderr == ["what the task has left running was killed: it did not end by itself within 0.2 s"]


async def test_workers_that_leave_share_the_time(tmp_path: Path) -> None:
    import anyio

    source = f"""
        import atexit, os, time
        open({str(tmp_path)!r} + f"/{{os.getpid()}}", "w").close()
        while len(os.listdir({str(tmp_path)!r})) < 3: time.sleep(0.001)
        atexit.register(time.sleep, 1000)
        """
    async with WorkerPool(leave_s=1) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(call, pool, source)
        began = time.monotonic()
    assert time.monotonic() - began < 2.9


async def test_a_worker_that_is_stopped_does_not_clean_up(tmp_path: Path) -> None:
    heard = Heard()
    source = f"import atexit\natexit.register(lambda: open({str(tmp_path / 'exit')!r}, 'w'))\nprint(1, flush=True)"
    async with WorkerPool() as pool, calling(pool, source + STAY, heard):
        await heard.numbers(1)
    assert not (tmp_path / "exit").exists()


SEGMENT = """
from multiprocessing import shared_memory
import ast
import os
import re
segment = shared_memory.SharedMemory(create=True, size=1000)
print(segment.name, os.getpid(), flush=True)
"""


@pytest.mark.parametrize("how", ["ends", "dies", "stopped"])
async def test_shared_memory_that_a_call_has_left_is_cleaned_up(how: str) -> None:
    heard = Heard()
    async with WorkerPool() as pool:
        if how == "ends":
            await call(pool, SEGMENT, heard)
        elif how == "dies":
            with pytest.raises(WorkerLost):
                await call(pool, SEGMENT + "os.kill(os.getpid(), 9)", heard)
        else:
            async with calling(pool, SEGMENT + STAY, heard):
                await until(lambda: heard.stdout)
                name = heard.stdout[0].split()[0]
                assert (SHARED_MEMORY / name).exists()
        name, pid = heard.stdout[0].split()
        assert not (SHARED_MEMORY / name).exists()
        assert not alive(int(pid))


@pytest.mark.slow
async def test_joblib_leaves_nothing_in_shared_memory() -> None:
    pytest.importorskip("joblib")
    source = """
        import os, joblib, numpy
        block = numpy.ones(300_000)
        sums = joblib.Parallel(2)(joblib.delayed(numpy.sum)(block) for _ in range(4))
        result = repr([os.getpid(), *(int(each) for each in sums)]).encode()
        """
    async with WorkerPool() as pool:
        pid, *sums = ast.literal_eval((await call(pool, source)).body.decode())
    assert sums == [300_000] * 4
    # Names of joblib's hold the process that made them; other tests' processes use joblib too.
    assert [name for name in os.listdir(SHARED_MEMORY) if str(pid) in re.split("[-_]", name)] == []


def test_coverage_is_measured_in_workers(tmp_path: Path) -> None:
    pytest.importorskip("coverage")
    (tmp_path / "sitecustomize.py").write_text("import coverage; coverage.process_startup()")
    (tmp_path / "config").write_text("[run]\nparallel = true\n")
    (tmp_path / "flow.py").write_text(
        dedent("""
        from gluepy import DAG, Task
        class Work(Task):
            pool = "process"
            def run(self):
                print("line seven")
        class Flow(DAG):
            tasks = (Work,)
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COVERAGE_PROCESS_START": str(tmp_path / "config")}
    command = [sys.executable, "-m", "gluepy", "run", "flow.py:Flow", "--quiet"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=240, capture_output=True)
    subprocess.run(
        [sys.executable, "-m", "coverage", "combine"], cwd=tmp_path, check=True, timeout=240, stdout=subprocess.DEVNULL
    )
    report = [sys.executable, "-m", "coverage", "report", "--include", "*/flow.py", "-m"]
    told = subprocess.run(report, cwd=tmp_path, check=True, timeout=240, stdout=subprocess.PIPE, text=True).stdout
    assert "100%" in told
