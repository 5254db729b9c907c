"""The tasks of `ExecutorContract`: in a module, so that an executor's far end can import them."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import anyio
import anyio.lowlevel

from gluepy.conf import default_context, settings
from gluepy.core.events import JSON
from gluepy.core.policy import Retry
from gluepy.exec.parameters import parameters_of
from gluepy.exec.task import Skip, Task, current_task
from gluepy.runs.lock import Held, take

PATIENCE_S = 120.0  # for the others of a test; a test that fails must not hang

AnyTask = TypeVar("AnyTask", bound=type[Task])
ASYNC: dict[type[Task], type[Task]] = {}  # each plain task, and the async one that does the same


def _with_async_twin(task: AnyTask) -> AnyTask:
    """Add a task that does the same in an `async def run`."""

    async def run(self: Any) -> None:
        await anyio.lowlevel.checkpoint()
        task.run(self)

    name = f"Async{task.__name__}"
    names = {"run": run, "label": task.label, "__module__": __name__, "__qualname__": name}
    ASYNC[task] = globals()[name] = type(name, (task,), names)
    return task


@_with_async_twin
class Writes(Task):
    """Leaves a file."""

    outputs = ("written.txt",)

    def run(self) -> None:
        """Write it."""
        with self.atomic("written.txt") as file:
            file.write_text("whole")


@_with_async_twin
class Forgets(Task):
    """Declares a file and does not leave it."""

    outputs = ("written.txt", "forgotten.txt")

    def run(self) -> None:
        """Write half of what is declared."""
        (self.path / "written.txt").write_text("whole")


class Broken(Exception):
    """An error of the user's own."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what, why)
        self.what, self.why = what, why

    def __str__(self) -> str:
        return f"{self.what} is broken: {self.why}"


@_with_async_twin
class Fails(Task):
    """Raises `Broken` because of a `JSONDecodeError`."""

    def run(self) -> None:
        """Fail, some calls down, in code that is not gluepy's."""
        try:
            json.loads("größe ☃")
        except ValueError as error:
            raise Broken("the table", "no größe ☃") from error


@_with_async_twin
class Skips(Task):
    """Raises `Skip`."""

    def run(self) -> None:
        """Skip."""
        raise Skip("nothing new ☃")


@_with_async_twin
class Flaky(Task):
    """Fails on its first attempt."""

    retries = Retry(attempts=3, wait_s=0, jitter=0, on=(ConnectionError,))

    def run(self) -> None:
        """Fail, or not."""
        if _count(self.path / "attempts") < 2:
            raise ConnectionResetError("not yet")


@_with_async_twin
class Hopeless(Task):
    """Fails with what its `Retry.on` does not name."""

    retries = Retry(attempts=3, wait_s=0, jitter=0, on=(ConnectionError,))

    def run(self) -> None:
        """Fail."""
        _count(self.path / "attempts")
        raise LookupError("never")


@_with_async_twin
class Tells(Task):
    """Tells metrics and progress."""

    def run(self) -> None:
        """Tell ten of each."""
        for number in range(10):
            self.progress(number + 1, 10)
            self.metric(f"m{number}", number / 4)


@_with_async_twin
class Speaks(Task):
    """Prints and logs."""

    def run(self) -> None:
        """Say something on every stream."""
        print("to stdout ☃")  # noqa: T201
        print("to stderr", file=sys.stderr)  # noqa: T201
        self.log.info("to the log", rows=3)
        logging.getLogger("app").warning("to logging")
        print("without an end", end="")  # noqa: T201


@_with_async_twin
class Takes(Task):
    """Writes its parameters down as JSON."""

    none: None
    yes: bool
    integer: int
    number: float
    text: str
    items: list[JSON]
    names: dict[str, JSON]
    default: str = "default"

    def run(self) -> None:
        """Write them."""
        given = {name: getattr(self, name) for name in parameters_of(type(self)).names}
        (self.path / "params.json").write_text(json.dumps(given))


@_with_async_twin
class Looks(Task):
    """Writes down what it finds around it."""

    def run(self) -> None:
        """Write it, into the run's files."""
        found = {
            "context": self.context.to_dict(),
            "default_context": default_context.to_dict(),
            "storage": str(self.storage),
            "concurrency": settings.CONCURRENCY,
            "is_current": current_task() is self,
        }
        (self.path / "found.json").write_text(json.dumps(found))


@_with_async_twin
class Named(Task):
    """Notes that it ran; its instances have ids of their own."""

    number: int

    def run(self) -> None:
        """Write a file with the number."""
        (self.path / f"named-{self.number}").write_text("")


class Meets(Task):
    """Ends when all of them are there: they can only run side by side."""

    number: int
    of: int

    def run(self) -> Any:
        """Arrive, and wait for the others."""
        here, deadline = self._arrive(), time.monotonic() + PATIENCE_S
        while len(list(here.iterdir())) < self.of:
            _check(deadline)
            time.sleep(0.01)

    def _arrive(self) -> Path:
        here = self.local("meeting")
        here.mkdir(exist_ok=True)
        (here / str(self.number)).touch()
        return here


class AsyncMeets(Meets):
    """`Meets`, on an event loop."""

    label = Meets.label

    async def run(self) -> None:
        """Arrive, and wait for the others."""
        here, deadline = self._arrive(), time.monotonic() + PATIENCE_S
        while len(list(here.iterdir())) < self.of:
            _check(deadline)
            await anyio.sleep(0.01)


def _held(file: Path) -> Held:
    file.touch()
    held = take(file, None, new=False)
    if held is None:
        raise RuntimeError("an attempt before this one goes on")
    return held


class Stays(Task):
    """Holds a lock, which is free once the work has really ended, until it is told to go."""

    def run(self) -> Any:
        """Hold it until there is a file `go`."""
        deadline = time.monotonic() + PATIENCE_S
        with _held(self.local("held")):
            self._arrived()
            while not (self.path / "go").exists():
                _check(deadline)
                time.sleep(0.01)

    def _arrived(self) -> None:
        with self.atomic("here") as file:
            file.write_text(str(os.getpid()))


class AsyncStays(Stays):
    """`Stays`, on an event loop."""

    label = Stays.label

    async def run(self) -> None:
        """Hold it until there is a file `go`."""
        deadline = time.monotonic() + PATIENCE_S
        with _held(self.local("held")):
            self._arrived()
            while not (self.path / "go").exists():
                _check(deadline)
                await anyio.sleep(0.01)


class Overruns(Stays):
    """`Stays`, for longer than it may."""

    timeout_s = 0.2


class AsyncOverruns(AsyncStays):
    """`Overruns`, on an event loop."""

    label = Overruns.label
    timeout_s = 0.2


ASYNC.update({Meets: AsyncMeets, Stays: AsyncStays, Overruns: AsyncOverruns})


@_with_async_twin
class SaysMuch(Task):
    """Prints many lines, and tells how many."""

    lines = 20_000

    def run(self) -> None:
        """Print them."""
        for number in range(self.lines):
            print(f"line {number}")  # noqa: T201
        self.metric("lines", self.lines)


@_with_async_twin
class FailsAtLength(Task):
    """Fails with a message of a megabyte."""

    def run(self) -> None:
        """Fail."""
        raise ValueError("größe" + "x" * 2**20)


@_with_async_twin
class Excludes(Task):
    """Fails if another of its kind runs at the same time, which the limit `slot` forbids."""

    uses: ClassVar = {"slot": 1}
    number: int

    def run(self) -> None:
        """Be alone for a moment."""
        alone = self.local(self.path) / "alone"
        with alone.open("x"):
            time.sleep(0.02)
        alone.unlink()


class Forks(Task):
    """Starts a process that starts another, and waits for the first."""

    def run(self) -> Any:
        """Leave the ids of all three."""
        code = (
            "import subprocess, sys; last = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(999)'])\n"
            "print(last.pid, flush=True); last.wait()"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            with self.atomic("here") as file:
                file.write_text(f"{os.getpid()} {child.pid} {child.stdout.readline()}")
            child.wait()


class ForksTooLong(Forks):
    """`Forks`, for longer than it may."""

    timeout_s = 3.0


class ForksFarTooLong(Forks):
    """`ForksTooLong`, for a machine on which it did not get there in time."""

    timeout_s = 60.0


class Dies(Task):
    """Kills its process on its first attempt."""

    retries = Retry(attempts=2, wait_s=0, jitter=0)

    def run(self) -> None:
        """Be killed, or not."""
        if _count(self.path / "attempts") < 2:
            os.kill(os.getpid(), signal.SIGKILL)


def numbers() -> list[int]:
    """Values for an `each`, from the context."""
    found: list[int] = default_context.numbers
    return found


def _count(file: Any) -> int:
    """The number of calls with `file`, this one included."""
    count = len(file.read_text()) + 1 if file.exists() else 1
    file.write_text("x" * count)
    return count


def _check(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError("nobody came")
