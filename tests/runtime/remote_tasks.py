"""Tasks for tests of attempts on other machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from gluepy import Retry, Task


class Counts(Task):
    """Notes each time that it runs."""

    retries = Retry(attempts=2, wait_s=0)

    def run(self) -> None:
        with (self.path / "count").open("a") as file:
            file.write("x")


class Reads(Task):
    """Writes down what the context has, and prints it."""

    def run(self) -> None:
        found = [self.context.db.password, self.context.db.host]
        (self.path / "read.json").write_text(json.dumps(found))
        print("the password is", found[0])


class Talks(Task):
    """Tells a metric and prints a line, and pauses."""

    steps = 5

    def run(self) -> None:
        for number in range(self.steps):
            self.metric(f"m{number}", number)
            print(f"line {number}", flush=True)
            time.sleep(0.12)  # longer than an agent gathers: a report for each


class Forks(Task):
    """Starts a process that starts another, in a session of its own, and waits."""

    def run(self) -> None:
        code = (
            "import os, subprocess, sys; child = subprocess.Popen(['sleep', '1000'], start_new_session=True); "
            "print(child.pid, flush=True); child.wait()"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            with self.atomic("pids") as file:
                file.write_text(f"{os.getpid()} {child.pid} {child.stdout.readline()}")
            child.wait()


class Says(Task):
    """Prints much."""

    lines = 20_000

    def run(self) -> None:
        for number in range(self.lines):
            print(f"line {number}")
        self.metric("lines", self.lines)
