"""Tasks for worker processes: in a module of their own, which costs little to import."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from gluepy import Task


class Parent(Task):
    """Starts a child, and one that leaves the session; writes down all three, and waits."""

    pool = "process"

    def run(self) -> None:
        wait = [sys.executable, "-c", "import time; time.sleep(60)"]
        children = [subprocess.Popen(wait), subprocess.Popen(wait, start_new_session=True)]
        with self.atomic(self.storage / "family") as file:
            file.write_text(" ".join(str(pid) for pid in (os.getpid(), *(child.pid for child in children))))
        time.sleep(60)
