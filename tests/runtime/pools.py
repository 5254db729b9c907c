"""Tasks for worker processes: in a module of their own, which costs little to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import anyio
import anyio.lowlevel

from gluepy import Runtime, Task, current_task, run_dag, run_dag_sync, stream_dag
from gluepy.conf import default_context, settings
from gluepy.testing.wait import until


class Parent(Task):
    """Starts a child, and one that leaves the session; writes down all three, and waits."""

    pool = "process"

    def run(self) -> None:
        wait = [sys.executable, "-c", "import time; time.sleep(60)"]
        children = [subprocess.Popen(wait), subprocess.Popen(wait, start_new_session=True)]
        with self.atomic(self.storage / "family") as file:
            file.write_text(" ".join(str(pid) for pid in (os.getpid(), *(child.pid for child in children))))
        time.sleep(60)


class Nests(Task):
    """Tries to start a run."""

    def run(self) -> None:
        run_dag_sync("anything")


class ProcessNests(Nests):
    pool = "process"


class LoopNests(Task):
    async def run(self) -> None:
        await run_dag("anything")


class StreamNests(Task):
    async def run(self) -> None:
        async with stream_dag("anything"):
            pass


class RuntimeNests(Task):
    async def run(self) -> None:
        async with Runtime():
            pass


class Looks(Task):
    """Writes down whose run it is in, once all runs are there."""

    def run(self) -> None:
        self._meet()
        deep()

    def _meet(self) -> None:
        here = self.local(self.storage / "meeting")
        here.mkdir(exist_ok=True)
        (here / self.context.who).touch()
        deadline = time.monotonic() + 20
        while len(list(here.iterdir())) < self.context.of and time.monotonic() < deadline:
            time.sleep(0.005)


class ProcessLooks(Looks):
    pool = "process"


class LoopLooks(Looks):
    async def run(self) -> None:  # type: ignore[override]
        here = self.local(self.storage / "meeting")
        here.mkdir(exist_ok=True)
        (here / self.context.who).touch()
        await until(lambda: len(list(here.iterdir())) == self.context.of)
        deep()
        await anyio.lowlevel.checkpoint()
        deep()


def deep() -> None:
    """Code below a task, which knows the run by the proxies alone."""
    task = current_task()
    found = {
        "context": default_context.who,
        "own": task.context.who,
        "run": task.path.name,
        "storage": settings.STORAGE_ROOT,
        "mine": getattr(settings, "BUCKET", None),
    }
    task.metric("looked", 1)
    (task.path / "found.json").write_text(json.dumps(found))


class ProcessNothing(Task):
    pool = "process"

    def run(self) -> None:
        pass
