"""`kill -9` of the driver at random moments, then `gluepy resume`: nothing is lost, nothing recorded runs again.

What ran is counted by the tasks themselves: each appends a line to a file that gluepy knows nothing of, with fsync.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")

KILLS = int(os.environ.get("GLUEPY_TEST_KILLS", "5"))
ALL_KILLS = int(os.environ.get("GLUEPY_TEST_ALL_KILLS", "1000"))
DEADLINE_S = 240.0
GONE_S = 60.0  # what is left then was not killed: it would go on for longer
PIPE = """
import os, subprocess, time

import anyio

from gluepy import DAG, Task, each, parallel
from gluepy.exec.scope import current_scope


def note(what):
    attempt = current_scope().attempt
    file = os.open("notes.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{what} {attempt.task} {os.getpid()} {attempt.number}\\n".encode())
    os.fsync(file)
    os.close(file)


def driver():
    with open(f"/proc/{os.getppid()}/stat") as file:  # of the guard
        return file.read().rpartition(")")[2].split()[1]


class Load(Task):
    def run(self):
        note("begins")
        time.sleep(0.01)
        note("ends")


class Fit(Task):
    pool = "process"
    n: int

    def run(self):
        note("begins")
        before = driver()
        child = subprocess.Popen(["sleep", "600"], start_new_session=self.n % 2 > 0)
        time.sleep(0.01 * (1 + self.n % 3))
        if driver() != before:
            time.sleep(600)  # what its driver does not take with it would be found
        child.kill()
        child.wait()
        note("ends")


class Check(Task):
    n: int

    async def run(self):
        note("begins")
        await anyio.sleep(0.01)
        note("ends")


def found():
    note("begins")
    return [1, 2, 3]


class Late(Load):
    n: int


class Report(Load):
    pool = "process"


class PipeDAG(DAG):
    tasks = (Load, parallel(each((Fit, Check), n=range(4)), each(Late, n=found)), Report)
"""
TASKS = {
    "load",
    "report",
    *(f"fit[n={n}]" for n in range(4)),
    *(f"check[n={n}]" for n in range(4)),
    *(f"late[n={n}]" for n in (1, 2, 3)),
}


def test_killed_driver_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, KILLS, seed=20)


@pytest.mark.exhaustive
@pytest.mark.timeout(4 * 3600)
def test_killed_driver_loses_nothing_and_repeats_nothing_ever(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, ALL_KILLS, seed=random.randrange(1 << 32))


def kill_and_resume(folder: Path, kills: int, seed: int) -> None:
    luck, began = random.Random(seed), time.monotonic()
    (folder / "pipe.py").write_text(PIPE)
    runs = killed = 0
    slowest_s = 0.0
    while killed < kills:
        runs += 1
        run = Run(folder, f"run-{runs}")
        words: tuple[str, ...] = ("run", "pipe.py", "--run-id", run.run_id)
        while True:
            driver = run.start(*words)
            died = run.kill(driver, luck) if killed < kills else driver.wait(DEADLINE_S) != 0
            where = f"seed {seed}, {run.run_id}, after {killed} kills"
            assert died or driver.returncode == 0, f"{where}: {driver.returncode}\n{run.errors()}"
            slowest_s = max(slowest_s, run.check(where))
            if not died:
                break
            killed += 1
            if run.log.exists() and run.log.stat().st_size:
                words = ("resume", run.run_id)
            elif run.log.parent.exists():  # nothing had begun: there is nothing to resume
                run = Run(folder, f"{run.run_id}-again")
                words = ("run", "pipe.py", "--run-id", run.run_id)
        assert run.status() == "finished"
        missing = TASKS - {task for what, task in run.notes() if what == "ends"}
        assert not missing, f"{where}: lost {missing}"
        (folder / "notes.txt").unlink()
    took_s = time.monotonic() - began
    print(f"{killed} kills in {runs} runs, {took_s:.0f} s; all was gone within {slowest_s:.3f} s")


class Run:
    """One run, driven by one process after another."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder, self.run_id = folder, run_id
        self.log = folder / f".gluepy/runs/{run_id}/events.jsonl"
        self._recorded: set[str] = set()  # finished, by the log, when a driver was killed
        self._seen = 0  # notes that were there then

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("GLUEPY_")}
        with (self.folder / "stderr.txt").open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "gluepy", *words, "-c", "3", "--progress", "none"],
                cwd=self.folder,
                env=plain,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def kill(self, driver: subprocess.Popen[bytes], luck: random.Random) -> bool:
        """Kill the driver at some moment, most of the time after it has begun to write; False when it was faster."""
        size = self.size()
        if luck.random() < 0.9:
            end = time.monotonic() + DEADLINE_S
            while self.size() == size and driver.poll() is None and time.monotonic() < end:
                time.sleep(0.001)
            delay_s = luck.uniform(0, 0.5)
        else:
            delay_s = luck.uniform(0, 0.3)
        try:
            driver.wait(delay_s)
        except subprocess.TimeoutExpired:
            driver.send_signal(signal.SIGKILL)
        return driver.wait(DEADLINE_S) == -signal.SIGKILL

    def check(self, where: str) -> float:
        """Nothing is left running, and nothing began again that was recorded as finished. Returns the seconds until
        everything was gone."""
        began = time.monotonic()
        while left := self.processes():
            if time.monotonic() > began + GONE_S:
                for process in left:
                    process.kill()
                pytest.fail(f"{where}: left running: {left}")
            time.sleep(0.01)
        gone_s = time.monotonic() - began
        notes = self.notes()
        again = {task for what, task in notes[self._seen :] if what == "begins"} & self._recorded
        assert not again, f"{where}: ran again: {again}"
        self._seen = len(notes)
        self._recorded = self.recorded()
        unfounded = {task for task in self._recorded if not task.startswith("each-")} - {
            task for what, task in notes if what == "ends"
        }
        assert not unfounded, f"{where}: recorded as finished, but never ended: {unfounded}"
        return gone_s

    def recorded(self) -> set[str]:
        """The tasks that the log has as finished."""
        return {event["task"] for event in self.events() if event["event"] == "task.finished"}

    def status(self) -> str:
        last = self.events()[-1]["event"]
        return last.removeprefix("run.") if last.startswith("run.") else "unknown"

    def events(self) -> list[dict[str, str]]:
        if not self.log.exists():
            return []
        lines = [line for line in self.log.read_bytes().split(b"\n") if line]
        events = []
        for line in lines:
            try:
                events.append(json.loads(line))
            except ValueError:
                assert not line.endswith(b"}"), line  # a torn line, by the kill
        return events

    def notes(self) -> list[tuple[str, str]]:
        """What the tasks wrote themselves: what happened to which."""
        file = self.folder / "notes.txt"
        if not file.exists():
            return []
        return [(line.split()[0], line.split()[1]) for line in file.read_text().splitlines()]

    def processes(self) -> list[psutil.Process]:
        """What still runs in the folder: drivers, workers, their guards, their children."""
        left = []
        for process in psutil.process_iter():
            try:
                if process.cwd() == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return left

    def size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def errors(self) -> str:
        return (self.folder / "stderr.txt").read_text()
