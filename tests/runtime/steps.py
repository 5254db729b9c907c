"""Tasks that note, in a file of their own, when they begin and end; and what reads it."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import anyio.lowlevel

from gluepy import DAG, Task
from gluepy.clock import Clock
from gluepy.conf.schema import Settings
from gluepy.exec.port import Executor
from gluepy.exec.scope import current_scope
from gluepy.runtime import RunResult, Runtime
from gluepy.testing import until

PATIENCE_S = 240.0


def dag_of(*tasks: Any, label: str = "dag") -> type[DAG]:
    """A DAG of these tasks, one after another; of a mapping, when it is one."""
    inside = tasks[0] if len(tasks) == 1 and isinstance(tasks[0], dict) else tasks
    return cast("type[DAG]", type("Made", (DAG,), {"tasks": inside, "label": label}))


def note(storage: Any, what: str) -> None:
    """Add a line, in one write, with the current attempt's id and number."""
    scope = current_scope()
    assert scope is not None
    file = os.open(f"{storage}/notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"{what} {scope.attempt.task} {scope.attempt.number} {os.getpid()}\n".encode())
    finally:
        os.close(file)


class Notes:
    """What the tasks of all runs noted in the storage folder."""

    def __init__(self, storage: Path) -> None:
        self._file = storage / "notes"

    def lines(self) -> list[list[str]]:
        """(what, task, attempt, pid), in order."""
        return [line.split() for line in self._file.read_text().splitlines()] if self._file.exists() else []

    def of(self, what: str) -> list[str]:
        """The tasks that noted `what`, in order."""
        return [line[1] for line in self.lines() if line[0] == what]

    def pids(self, task: str) -> list[int]:
        """The processes in which `task` ran, attempt by attempt."""
        return [int(line[3]) for line in self.lines() if line[:2] == ["begin", task]]

    def at(self, what: str, task: str) -> int:
        """Which line says so."""
        return [line[:2] for line in self.lines()].index([what, task])

    def assert_after(self, first: str, then: str) -> None:
        """Assert that `then` began when `first` had ended."""
        assert self.at("end", first) < self.at("begin", then), f"{then} began before {first} had ended"


class Go:
    """Runs DAGs with the test's settings: `await go(Load, Train, concurrency=2)`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def runtime(self, **arguments: Any) -> Runtime:
        return Runtime(self.settings, **arguments)

    async def __call__(
        self,
        *tasks: Any,
        executor: Executor | type[Executor] | None = None,
        clock: Clock | None = None,
        check: bool = False,
        **options: Any,
    ) -> RunResult:
        async with Runtime(self.settings, executor=executor, clock=clock) as runtime:
            return await runtime.run_dag(dag_of(*tasks), check=check, **options)


def statuses(result: RunResult) -> dict[str, str]:
    return {id: task.status for id, task in result.tasks.items()}


class Step(Task):
    """Begins and ends."""

    def run(self) -> None:
        note(self.storage, "begin")
        note(self.storage, "end")


class LoopStep(Task):
    async def run(self) -> None:
        note(self.storage, "begin")
        await anyio.lowlevel.checkpoint()
        note(self.storage, "end")


class ProcessStep(Step):
    pool = "process"


class Region(Task):
    region: Any

    def run(self) -> None:
        note(self.storage, "begin")
        note(self.storage, "end")


class Score(Region):
    pass


class Waits(Task):
    """Waits, on the event loop, until there is a file `go` in the storage folder; notes how it ended."""

    async def run(self) -> None:
        note(self.storage, "begin")
        try:
            await until((self.storage / "go").exists, PATIENCE_S)
        except BaseException:
            note(self.storage, "stopped")
            raise
        note(self.storage, "end")


class ThreadWaits(Task):
    """The same in a thread."""

    def run(self) -> None:
        note(self.storage, "begin")
        deadline = time.monotonic() + PATIENCE_S
        while not (self.storage / "go").exists():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.005)
        note(self.storage, "end")


class ProcessWaits(ThreadWaits):
    pool = "process"


WAITERS = {"loop": Waits, "thread": ThreadWaits, "process": ProcessWaits}


class Boom(Exception):
    """An error of the user's."""


class Fails(Task):
    def run(self) -> None:
        raise Boom("as told")


class LoopFails(Task):
    async def run(self) -> None:
        raise Boom("as told")


class ProcessFails(Fails):
    pool = "process"


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """As on a full disk, but for the name of the error: `write` fails beyond `size`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
