"""A project whose DAGs are run step by step, and what is compared of their runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil

from gluepy.conf.sources import load_settings
from gluepy.core import events as e
from gluepy.exec.port import Executor
from gluepy.runtime import RunResult, Runtime
from gluepy.testing import events_of

FLOWS = """
import os, subprocess, sys, time
from pathlib import Path
from gluepy import DAG, Retry, Skip, Task, each, parallel

class Load(Task):
    outputs = ("rows.txt",)
    def run(self):
        print("loading")
        self.progress(1, 2)
        self.metric("rows", 3)
        (self.path / "rows.txt").write_text(self.context.word)

class Fit(Task):
    region: str
    def run(self):
        (self.path / f"{self.region}.txt").write_text((self.path / "rows.txt").read_text())

class Join(Task):
    async def run(self):
        self.log.info("joined", regions=2)

class Broken(Task):
    def run(self):
        if (self.storage / "mended").exists():
            return
        raise ValueError("it is broken")

class Flaky(Task):
    retries = Retry(attempts=3, wait_s=0)
    def run(self):
        with open(self.path / "tries", "a") as file:
            file.write("x")
        if (self.path / "tries").stat().st_size < 2:
            raise ConnectionError("not yet")

class Skipping(Task):
    def run(self):
        raise Skip("nothing to do")

class Always(Task):
    trigger = "all_done"
    def run(self): pass

class Meets(Task):
    trigger = "none_failed_min_one_success"
    def run(self): pass

class OnFailure(Task):
    trigger = "one_failed"
    def run(self): pass

class Sleeping(Task):
    def run(self):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        (self.path / "pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)

class OutOfTime(Sleeping):
    timeout_s = 1

class DiesOnce(Task):
    retries = Retry(attempts=2, wait_s=0)
    def run(self):
        mark = self.path / "died"
        if not mark.exists():
            mark.write_text(str(os.getppid()))
            time.sleep(600)

class TrainDAG(DAG):
    label = "train"
    tasks = (Load, each(Fit, region=["eu", "us"]), Join)

class FailingDAG(DAG):
    label = "failing"
    tasks = (Load, parallel((Broken, Join), (Fit(region="eu"), Always)), OnFailure)

class BrokenDAG(DAG):
    label = "broken"
    tasks = (Load, parallel(Broken, Fit(region="eu")), Join)

class FlakyDAG(DAG):
    label = "flaky"
    tasks = (Flaky,)

class SkippingDAG(DAG):
    label = "skipping"
    tasks = (Skipping, Join, Always)

class MeetingDAG(DAG):
    label = "meeting"
    tasks = {Skipping: (), Load: (), Meets(id="one"): (Skipping, Load), Meets(id="none"): Skipping}

class DynamicDAG(DAG):
    label = "dynamic"
    tasks = (Load, each(Fit, region=lambda: ["a", "b"]), Join)

class SleepingDAG(DAG):
    label = "sleeping"
    tasks = (Sleeping, Join)

class OutOfTimeDAG(DAG):
    label = "late"
    tasks = (OutOfTime,)

class DyingDAG(DAG):
    label = "dying"
    tasks = (DiesOnce, Join)
"""


async def run(project: Path, dag: str, executor: Executor | None = None, **options: Any) -> RunResult:
    settings = load_settings(project, {})
    async with Runtime(settings, executor=executor) as runtime:
        return await runtime.run_dag(dag, check=False, capture=True, **options)


def statuses(result: RunResult) -> dict[str, str]:
    return {task: each.status for task, each in result.tasks.items()}


def comparable(result: RunResult) -> list[dict[str, Any]]:
    """The events about tasks, without what differs between any two runs; those of each task in order."""
    apart = ("seq", "timestamp", "run_id", "pid", "host", "worker", "queued_s", "duration_s", "cpu_s", "peak_rss_mb")
    events = [json.loads(e.encode(event)) for event in events_of(result)]
    told = [{name: value for name, value in event.items() if name not in (*apart, "executor")} for event in events]
    return sorted((event for event in told if "task" in event), key=lambda event: str(event["task"]))


def logs(result: RunResult) -> dict[str, int]:
    """How many lines each log file has."""
    return {file.name: len(file.read_text().splitlines()) for file in (result.path / "logs").iterdir()}


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def pids(files: str) -> list[int]:
    try:
        return [int(word) for word in (Path(files) / "pids").read_text().split()]
    except FileNotFoundError:
        return []
