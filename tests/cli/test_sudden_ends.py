"""A driver is told to end, or killed, while its process tasks hold the interpreter lock and have children everywhere:
the process group, a session of their own, no parent any more. All of them die with it, at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from console_calls import Console, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descendants that left are found on Linux only")

PROMISED_S = 0.5  # on a quiet machine; what is printed is what it took here
BOUND_S = 60.0  # what is left then was not killed: tasks and children would go on for longer
PIPE = """
    import ctypes, os, re, subprocess, threading, time
    from gluepy import DAG, Task, each

    def holds_the_lock(how):
        if how == "sleep":
            ctypes.PyDLL(None).sleep(1000)
        elif how == "power":
            pow(3, 1 << 10_000_000, (1 << 100_000) + 1)
        elif how == "regex":
            re.match(r"(a+)+$", "a" * 60 + "b")

    class Hold(Task):
        pool = "process"
        how: str

        def run(self):
            child = subprocess.Popen(["sleep", "1000"])
            session = subprocess.Popen(["setsid", "sleep", "1000"])
            orphan = subprocess.run(
                ["setsid", "sh", "-c", "sleep 1000 >/dev/null & echo $!"], stdout=subprocess.PIPE, text=True
            )
            family = (os.getppid(), os.getpid(), child.pid, session.pid, int(orphan.stdout))
            threading.Thread(target=self.beat, daemon=True).start()
            with open("new." + self.how, "w") as file:
                file.write(" ".join(map(str, family)))
            os.rename("new." + self.how, "family." + self.how)
            holds_the_lock(self.how)

        def beat(self):  # stands still while nobody but the main thread has the lock
            file = os.open("beat." + self.how, os.O_CREAT | os.O_WRONLY)
            while True:
                os.pwrite(file, b"%d" % time.monotonic_ns(), 0)
                time.sleep(0.001)

    class HoldDAG(DAG):
        tasks = (each(Hold, how=["sleep", "power", "regex"]),)
"""
HOLDERS = ("sleep", "power", "regex")


def family_of(folder: Path) -> list[int]:
    """The guards, workers and their descendants, once all are there and the locks are held."""
    files = [folder / f"family.{how}" for how in HOLDERS]
    beats = [folder / f"beat.{how}" for how in HOLDERS]

    def stand_still() -> bool:
        before = [beat.read_bytes() for beat in beats]
        time.sleep(0.02)
        return before == [beat.read_bytes() for beat in beats]

    until(lambda: all(file.exists() for file in (*files, *beats)), "the start of all tasks")
    until(stand_still, "the hold of the locks")
    return [int(pid) for file in files for pid in file.read_text().split()]


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def seconds_until_gone(driver: subprocess.Popen[str], pids: list[int]) -> float:
    began = time.monotonic()
    until(lambda: driver.poll() is not None and all(map(is_gone, pids)), "the end of everything")
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [
        (signal.SIGKILL, -signal.SIGKILL, "interrupted"),
        (signal.SIGTERM, 143, "cancelled"),
        (signal.SIGINT, 130, "cancelled"),
    ],
)
def test_everything_dies_with_the_driver_although_tasks_hold_the_lock_and_have_children_that_left(
    number: signal.Signals, code: int, status: str, gluepy: Console
) -> None:
    gluepy.write("pipe.py", PIPE)
    driver = gluepy.start("run", "pipe.py", "-c", "3", "--run-id", "first", "--progress", "none")
    pids: list[int] = []
    try:
        pids = family_of(gluepy.folder)
        assert len(pids) == 5 * len(HOLDERS)
        assert not any(map(is_gone, pids))
        driver.send_signal(number)
        took_s = seconds_until_gone(driver, pids)
        print(f"{number.name}: {len(pids) + 1} processes gone in {took_s:.3f} s ({PROMISED_S} s promised)")
        assert took_s < BOUND_S
    finally:
        driver.kill()
        driver.communicate(timeout=240)
        for pid in pids:
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)
    assert driver.returncode == code
    assert gluepy("runs", "--json").stdout.count(f'"status":"{status}"') == 1
