"""What tasks start ends with the command, signals are the driver's alone, and nothing holds up the end."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from console_calls import Console, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="what is nobody's child any more is found on Linux only"),
]

STARTERS = """
    import asyncio, multiprocessing, os, subprocess, sys, threading, time
    from pathlib import Path

    import anyio
    from gluepy import DAG, Task, parallel

    HERE = Path.cwd()
    FORK = multiprocessing.get_context("fork")
    ONE_AT_A_TIME = threading.Lock()  # a forked process holds the pipes of a Popen that another thread is in

    def note(name, pid):
        (HERE / f"{name}.new").write_text(str(pid))
        (HERE / f"{name}.new").rename(HERE / f"{name}.pid")

    def sleep(name):
        note(name, os.getpid())
        time.sleep(1000)

    def start(kind):
        with ONE_AT_A_TIME:
            start_all(kind)

    def start_all(kind):
        "A child, one in a session of its own, one without our environment, an orphan, a forked one, and its child."
        note(f"{kind}-child", subprocess.Popen(["sleep", "1000"]).pid)
        note(f"{kind}-session", subprocess.Popen(["sleep", "1000"], start_new_session=True).pid)
        note(f"{kind}-bare", subprocess.Popen(["/bin/sleep", "1000"], env={}, start_new_session=True).pid)
        shell = subprocess.run(["setsid", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE)
        note(f"{kind}-orphan", int(shell.stdout))
        thread = threading.Thread(target=FORK.Process(target=sleep, args=(f"{kind}-forked",)).start)
        thread.start()
        thread.join()
        while not (HERE / f"{kind}-forked.pid").exists():
            time.sleep(0.01)
        time.sleep(0.5)  # the guard looks four times a second for who has no mark
        note(f"{kind}-all", 0)

    class Starts(Task):
        def run(self):
            start("thread")
            if os.environ.get("ENDS"):
                return
            time.sleep(1000)

    class LoopStarts(Task):
        async def run(self):
            await anyio.to_thread.run_sync(start, "loop")
            if os.environ.get("ENDS"):
                return
            await anyio.sleep(1000)

    class ProcessStarts(Task):
        pool = "process"
        def run(self):
            start("process")
            if os.environ.get("ENDS"):
                return
            time.sleep(1000)

    class StartDAG(DAG):
        label = "start"
        tasks = (parallel(Starts, LoopStarts, ProcessStarts),)
"""
POOL = """
    import multiprocessing, time
    from pathlib import Path
    from gluepy import DAG, Task

    class Pool(Task):
        def run(self):
            with multiprocessing.get_context("fork").Pool(2) as pool:
                workers = list(pool._pool)
                pool.map(abs, range(4))
            pool.join()
            self.metric("odd", sum(worker.exitcode not in (0, -15) for worker in workers))

    class Waits(Task):
        def run(self):
            Path("waits").touch()
            while not Path("go").exists():
                time.sleep(0.01)

    class PoolDAG(DAG):
        tasks = (Pool, Waits)
"""
KEPT = """
    import multiprocessing, os
    from pathlib import Path

    from gluepy import DAG, Task, each

    def who(_=None):
        return os.getppid()

    def squares(pool):
        from joblib import Parallel, delayed
        Path(f"{pool}.pid").write_text(str(Parallel(2)(delayed(os.getpid)() for _ in range(4))[0]))

    class Joblib(Task):
        n: int
        def run(self):
            squares("joblib")

    class Loop(Task):
        async def run(self):
            squares("loop")

    class Server(Task):
        def run(self):
            with multiprocessing.get_context("forkserver").Pool(1) as pool:
                Path("server.pid").write_text(str(pool.apply(who)))

    class KeptDAG(DAG):
        tasks = (each(Joblib, n=[1, 2]), Loop, Server)
"""
ABANDONED = """
    import asyncio, atexit, os, subprocess, sys, threading, time
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    from gluepy import DAG, Task

    HERE = Path.cwd()
    atexit.register(lambda: (HERE / "handled").touch())

    def chatter():
        while True:
            print("chatter")
            os.write(1, b"chatter\\n")
            sys.__stdout__.write("chatter\\n")
            sys.__stdout__.flush()
            time.sleep(0.001)

    class Late(Task):
        timeout_s = 0.2

    class Executor(Late):
        def run(self):
            with ThreadPoolExecutor() as pool:
                pool.submit(chatter).result()

    class Chatters(Late):
        def run(self):
            chatter()

    class Joins(Late):
        def run(self):
            thread = threading.Thread(target=chatter)
            thread.start()
            thread.join()

    class Child(Late):
        def run(self):
            subprocess.run(["sleep", "1000"])
            time.sleep(1000)

    class ToThread(Late):
        async def run(self):
            await asyncio.to_thread(chatter)

    class ExecutorDAG(DAG): tasks = (Executor,)
    class ChattersDAG(DAG): tasks = (Chatters,)
    class JoinsDAG(DAG): tasks = (Joins,)
    class ChildDAG(DAG): tasks = (Child,)
    class ToThreadDAG(DAG): tasks = (ToThread,)
"""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family_of(folder: Path) -> dict[str, int]:
    return {file.stem: pid for file in folder.glob("*.pid") if (pid := int(file.read_text()))}


@pytest.mark.parametrize("end", ["SIGTERM", "SIGINT", "SIGKILL", "timeout", "by itself"])
def test_nothing_that_tasks_start_outlives_the_command(gluepy: Console, end: str) -> None:
    gluepy.write("flow.py", STARTERS)
    words = ("--timeout", "6") if end == "timeout" else ()
    environment = {"ENDS": "1"} if end == "by itself" else {}
    driver = gluepy.start("run", "flow.py", "-c", "4", *words, **environment)
    kinds = ("thread", "loop", "process")
    if end == "by itself":
        until(lambda: driver.poll() is not None, "the end")
    else:
        until(lambda: all((gluepy.folder / f"{kind}-all.pid").exists() for kind in kinds), "the start of all processes")
        family = family_of(gluepy.folder)
        assert all(map(alive, family.values())), family
        if end != "timeout":
            driver.send_signal(getattr(signal, end))
    _, stderr = driver.communicate(timeout=240)
    expected = {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -signal.SIGKILL, "timeout": 1, "by itself": 0}
    assert driver.returncode == expected[end], stderr
    family = family_of(gluepy.folder)
    assert len(family) == 15
    until(lambda: not any(map(alive, family.values())), f"the end of {family}")
    if end == "by itself":
        assert f"sleep (pid {family['thread-orphan']})" in stderr


def test_a_pool_of_processes_works_and_signals_are_the_drivers_alone(gluepy: Console) -> None:
    gluepy.write("flow.py", POOL)
    driver = gluepy.start("run", "flow.py")
    until((gluepy.folder / "waits").exists, "the end of the pool")
    assert psutil.Process(driver.pid).is_running()
    driver.send_signal(signal.SIGTERM)
    until(lambda: "run.cancelled" in (gluepy.runs[0] / "events.jsonl").read_text(), "the cancellation")
    _, stderr = driver.communicate(timeout=240)
    assert driver.returncode == 143
    assert stderr.count("cancelling") == 1
    assert "forked" not in stderr
    assert '"name":"odd","value":0' in (gluepy.runs[0] / "events.jsonl").read_text()
    (gluepy.folder / "go").touch()
    resumed = gluepy("resume")
    assert resumed.returncode == 0
    assert "cancelling" not in resumed.stderr


def test_pools_and_servers_that_libraries_keep_end_in_order_and_without_a_word(gluepy: Console) -> None:
    pytest.importorskip("joblib")
    gluepy.write("flow.py", KEPT)
    done = gluepy("run", "flow.py")
    assert done.returncode == 0, done.stderr
    assert "killed" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "resource_tracker" not in done.stderr
    logs = "".join(log.read_text() for log in (gluepy.runs[0] / "logs").iterdir())
    assert "resource_tracker" not in logs
    family = family_of(gluepy.folder)
    assert len(family) == 3
    until(lambda: not any(map(alive, family.values())), f"the end of {family}")


@pytest.mark.parametrize("dag", ["Executor", "Chatters", "Joins", "Child", "ToThread"])
def test_work_that_was_abandoned_neither_holds_up_the_exit_nor_writes_behind_the_results(
    gluepy: Console, dag: str
) -> None:
    gluepy.write("flow.py", ABANDONED)
    done = gluepy("run", f"flow.py:{dag}DAG", "--json")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["status"] == "failed"
    assert done.stdout.count("\n") == 1
    assert (gluepy.folder / "handled").exists()


def test_processes_that_are_to_stay_stay(gluepy: Console) -> None:
    gluepy.write("flow.py", STARTERS)
    driver = gluepy.start("run", "flow.py", "--task", "starts", ENDS="1", GLUEPY_LEFTOVER_PROCESSES="warn")
    assert driver.wait(240) == 0
    family = family_of(gluepy.folder)
    left = [pid for pid in family.values() if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)  # they hold its stderr, too
    _, stderr = driver.communicate(timeout=240)
    assert len(left) == 5
    assert f"sleep (pid {family['thread-child']})" in stderr
