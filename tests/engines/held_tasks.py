"""The pipeline of the tests of what dies."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import ClassVar

from gluepy import DAG, Retry, Task, each, parallel
from gluepy.conf import default_context


def note(task: Task, name: str) -> None:
    """Add a line to a file of what ran, at once and durably."""
    descriptor = os.open(Path(task.local(task.path), name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{os.getpid()}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class First(Task):
    """Ends."""

    def run(self) -> None:
        note(self, "first")


class Held(Task):
    """Starts a process and waits until there is a file `go`."""

    retries = Retry(attempts=2, wait_s=0)

    def run(self) -> None:
        with subprocess.Popen(["sleep", "1000"]) as child:
            note(self, "held")
            with self.atomic("here") as file:
                file.write_text(f"{os.getpid()} {child.pid} {os.getppid()}")
            while not (self.storage / "go").exists():
                time.sleep(0.01)
            child.kill()


class Last(Task):
    """Ends."""

    def run(self) -> None:
        note(self, "last")


class HeldDAG(DAG):
    label = "held"
    tasks = (First, Held, Last)


class Wants(Task):
    """Uses what few workers have."""

    uses: ClassVar = {"gpu": 2}

    def run(self) -> None:
        note(self, "wants")


class WantsDAG(DAG):
    label = "wants"
    tasks = (Wants,)


class Step(Task):
    """Notes that it ran, and takes a moment."""

    retries = Retry(attempts=20, wait_s=0)
    number: int

    def run(self) -> None:
        note(self, f"step-{self.number}")
        time.sleep(0.02)
        note(self, f"done-{self.number}")


def numbers() -> list[int]:
    return list(range(default_context.tasks))


class StormDAG(DAG):
    label = "storm"
    tasks = (each(Step, number=numbers),)


class FirstDAG(DAG):
    label = "first"
    tasks = (parallel(First, Last),)
