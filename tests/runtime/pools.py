"""Tasks for worker processes: in a module of their own, which costs little to import."""

from __future__ import annotations

import contextvars
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from typing import Any

import anyio
import anyio.lowlevel
import structlog

from gluepy import Runtime, Task, current_task, run_dag, run_dag_sync, stream_dag
from gluepy.conf import default_context, settings
from gluepy.testing.wait import until


class Parent(Task):
    """Starts a child, and one that leaves the session; writes down all three, and waits."""

    pool = "process"

    def run(self) -> None:
        wait = [sys.executable, "-c", "import time; time.sleep(600)"]
        children = [subprocess.Popen(wait), subprocess.Popen(wait, start_new_session=True)]
        with self.atomic(self.storage / "family") as file:
            file.write_text(" ".join(str(pid) for pid in (os.getpid(), *(child.pid for child in children))))
        time.sleep(600)


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


class Speaks(Task):
    """Says something on every stream there is."""

    word: str

    def run(self) -> None:
        print(f"out {self.word}")
        print(f"err {self.word}", file=sys.stderr)
        sys.stdout.write(f"half {self.word}")
        sys.stdout.flush()
        sys.stdout.write(" and half\n")
        sys.stdout.buffer.write(f"bytes {self.word} ☃\n".encode())
        self.log.info("structlog", word=self.word)
        self.log.warning("rows: %d of %s", 3, self.word)
        structlog.get_logger().info("elsewhere", word=self.word)
        logging.getLogger("app").info("logging %s", self.word)
        try:
            raise KeyError(self.word)
        except KeyError:
            self.log.exception("caught", word=self.word)


class LoopSpeaks(Speaks):
    async def run(self) -> None:  # type: ignore[override]
        Speaks.run(self)
        await self.log.ainfo("from the loop", word=self.word)


class ProcessSpeaks(Speaks):
    pool = "process"

    def run(self) -> None:
        super().run()
        sys.stdout.flush()
        os.write(1, f"descriptor {self.word}\n".encode())
        subprocess.run([sys.executable, "-c", f"print('child {self.word}')"], check=True)


class ThreadsOfItsOwn(Task):
    """Prints from threads: one that takes the context along, and one that does not."""

    def run(self) -> None:
        context = contextvars.copy_context()
        with_context = threading.Thread(target=lambda: context.run(print, "in context"))
        without = threading.Thread(target=print, args=("out of context",))
        for thread in (with_context, without):
            thread.start()
            thread.join()


class Chatters(Task):
    """Prints its word again and again."""

    word: str

    def run(self) -> None:
        for number in range(200):
            print(f"{self.word} {number}")


class LoopChatters(Chatters):
    async def run(self) -> None:  # type: ignore[override]
        for number in range(200):
            print(f"{self.word} {number}")
            await anyio.lowlevel.checkpoint()


class ProcessChatters(Chatters):
    pool = "process"


class ProcessBreaks(Task):
    """Says so, and fails."""

    pool = "process"

    def run(self) -> None:
        print("about to break")
        raise ValueError("broken")


class Misspells(Task):
    """A log call with too few arguments, which the library tells of and lets pass."""

    def run(self) -> None:
        logging.getLogger("plain").warning("%s of %s", *[1])
        logging.getLogger("plain").warning("afterwards")


class ProcessMisspells(Misspells):
    pool = "process"


def halves(word: str, turns: Any) -> None:
    """Print a line in two pieces, between which the other one prints its first."""
    print(f"{word} ", end="")
    turns.wait(240)
    print("whole")


class PrintsInPieces(Task):
    """Prints a line in pieces, as do the two processes that it forks meanwhile."""

    pool = "process"

    def run(self) -> None:
        fork = multiprocessing.get_context("fork")
        print("before the fork ", end="")
        turns = fork.Barrier(2)
        children = [fork.Process(target=halves, args=(word, turns)) for word in ("first", "second")]
        for child in children:
            child.start()
        for child in children:
            child.join()
        print("and after it")


class ConfiguresInRun(Task):
    """Sets logging up inside `run`, as scripts do."""

    def run(self) -> None:
        logging.basicConfig(format="MINE %(levelname)s %(message)s")
        logging.getLogger("a").warning("warning")
        logging.getLogger("a").info("below the level")
        logging.basicConfig(format="OTHER %(message)s", level=logging.DEBUG, force=True)
        logging.getLogger("a").debug("debug")


class LoopConfiguresInRun(ConfiguresInRun):
    async def run(self) -> None:  # type: ignore[override]
        ConfiguresInRun.run(self)


class ProcessConfiguresInRun(ConfiguresInRun):
    pool = "process"


class Draws(Task):
    """A progress bar that ends when somebody has seen it."""

    def run(self) -> None:
        for number in range(3000):
            if (self.storage / "seen").exists():
                break
            self.draw(number)
            time.sleep(0.01)
        sys.stderr.write("\rall drawn\n")

    def draw(self, number: int) -> None:
        sys.stderr.write(f"\r{number} drawn")
        sys.stderr.flush()


class LoopDraws(Draws):
    async def run(self) -> None:  # type: ignore[override]
        for number in range(3000):
            if (self.storage / "seen").exists():
                break
            self.draw(number)
            await anyio.sleep(0.01)
        sys.stderr.write("\rall drawn\n")


class ProcessDraws(Draws):
    pool = "process"


class Structured(Task):
    def run(self) -> None:
        self.log.info("told", token="hunter2")


class ProcessStructured(Structured):
    pool = "process"

    def run(self) -> None:
        configure_structlog()
        super().run()


def mask(_logger: Any, _method: str, event: Any) -> Any:
    return {**event, "token": "masked by the program"} if "token" in event else event


def configure_structlog() -> None:
    structlog.configure(processors=[mask, structlog.processors.JSONRenderer()])
