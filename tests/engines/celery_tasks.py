"""Tasks for tests of workers that take attempts from a queue."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import ClassVar

from filelock import FileLock

from gluepy import Retry, Task
from gluepy.exec.scope import current_scope

PATIENCE_S = 240.0


def note(file: str, text: str) -> None:
    """Add a line to a file, for good."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{text}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Notes(Task):
    """Notes that it runs."""

    number: int = 0

    def run(self) -> None:
        note(str(self.local("notes")), f"{self.number} {os.getpid()}")


class Holds(Task):
    """Notes that it begins, holds a lock until there is a file `go`, and notes its end. It has a grandchild, in a
    session of its own, and leaves both pids in `pids`."""

    retries: ClassVar[Retry | int] = Retry(attempts=2, wait_s=0)
    number: int = 0

    def run(self) -> None:
        files = self.storage / "holds"
        files.mkdir(exist_ok=True)
        with FileLock(str(files / f"held-{self.number}"), timeout=0):  # else another attempt is there still
            code = "import subprocess; subprocess.run(['sleep', '1000'], start_new_session=True)"
            with subprocess.Popen([sys.executable, "-c", code]) as child:
                note(str(files / "begun"), f"{self.number} {os.getpid()} {child.pid}")
                deadline = time.monotonic() + PATIENCE_S
                while not (files / "go").exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                child.kill()
            note(str(files / "ended"), str(self.number))


class HoldsOnce(Holds):
    """`Holds`, without another try."""

    retries = 0


class Says(Task):
    """Prints much."""

    lines: ClassVar = 100_000

    def run(self) -> None:
        for number in range(self.lines):
            print(f"line {number}")


class FailsAtLength(Task):
    """Has much to say of its failure."""

    length: ClassVar = 1_000_000

    def run(self) -> None:
        raise ValueError("x" * self.length)


class Effect(Task):
    """Works for a moment, and then notes its number and its attempt for good."""

    retries = Retry(attempts=100, wait_s=0)
    number: int = 0

    def run(self) -> None:
        scope = current_scope()
        assert scope is not None
        time.sleep(0.02 + self.number % 7 / 100)
        note(str(self.storage / "effects"), f"{self.number} {scope.attempt.number}")
