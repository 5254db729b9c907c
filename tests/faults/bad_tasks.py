"""Tasks that do what tasks should not: functions of the running task, of which `bad` makes one task for each pool."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from gluepy import Retry, Task

Misdeed = Callable[[Task], object]
POOLS: dict[str, dict[str, type[Task]]] = {"loop": {}, "thread": {}, "process": {}}


class Unpicklable(Exception):
    """Cannot be pickled."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.lock = threading.Lock()


class PicklesOneWay(Exception):
    """Can be pickled, and not unpickled."""

    def __init__(self, table: str, column: str) -> None:
        super().__init__(f"{table} has no {column}")


class Changeling(Exception):
    """Comes out of its pickle as something else."""

    def __reduce__(self) -> Any:
        return (str, ("not an exception",))


class Speechless(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Weird(BaseException):
    """Not an `Exception`."""


def bad(misdeed: Misdeed) -> Misdeed:
    """Make a task of it for each pool; `POOLS[pool][name]`."""

    def run(self: Task) -> None:
        misdeed(self)

    async def run_async(self: Task) -> None:
        misdeed(self)

    name = misdeed.__name__
    for pool, body in (("loop", run_async), ("thread", run), ("process", run)):
        title = f"{pool.title()}_{name}"
        names: dict[str, Any] = {"run": body, "label": "bad", "__module__": __name__, "__qualname__": title}
        if pool != "loop":
            names["pool"] = pool
        POOLS[pool][name] = globals()[title] = type(title, (Task,), names)
    return misdeed


def chosen(pool: str, misdeed: Misdeed) -> type[Task]:
    return POOLS[pool][misdeed.__name__]


# What is raised


@bad
def raises_what_cannot_be_pickled(task: Task) -> None:
    raise Unpicklable("it holds a lock")


@bad
def raises_what_cannot_be_unpickled(task: Task) -> None:
    raise PicklesOneWay("prices", "currency")


@bad
def raises_what_unpickles_as_something_else(task: Task) -> None:
    raise Changeling("me")


@bad
def raises_what_cannot_speak(task: Task) -> None:
    raise Speechless


@bad
def raises_a_long_story(task: Task) -> None:
    raise ValueError("x" * 10_000_000)


@bad
def raises_half_a_character(task: Task) -> None:
    raise ValueError("half \ud83d of an emoji")


@bad
def raises_a_group(task: Task) -> None:
    raise ExceptionGroup("two things", [ValueError("one"), KeyError("other")])


@bad
def raises_a_circle_of_causes(task: Task) -> None:
    first, second = ValueError("one"), ValueError("other")
    first.__cause__, second.__cause__ = second, first
    raise first


@bad
def recurses_for_ever(task: Task) -> None:
    recurses_for_ever(task)


@bad
def raises_stop_iteration(task: Task) -> None:
    raise StopIteration(3)


@bad
def raises_cancelled(task: Task) -> None:
    raise asyncio.CancelledError("by itself")


@bad
def raises_keyboard_interrupt(task: Task) -> None:
    raise KeyboardInterrupt


@bad
def raises_something_weird(task: Task) -> None:
    raise Weird("not an Exception")


@bad
def exits(task: Task) -> None:
    sys.exit("enough")


@bad
def exits_with_0(task: Task) -> None:
    sys.exit(0)


@bad
def measures_text(task: Task) -> None:
    task.metric("loss", "low")  # type: ignore[arg-type]


# How it dies


@bad
def leaves_at_once(task: Task) -> None:
    os._exit(3)


@bad
def leaves_at_once_with_0(task: Task) -> None:
    os._exit(0)


@bad
def segfaults(task: Task) -> None:
    ctypes.string_at(0)


@bad
def kills_itself(task: Task) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@bad
def aborts(task: Task) -> None:
    os.abort()


class DiesOnce(Task):
    pool = "process"
    retries = Retry(attempts=2, wait_s=0)

    def run(self) -> None:
        marker = self.path / "marker"
        if not marker.exists():
            marker.touch()
            os._exit(3)


# What it says


@bad
def prints_a_long_line(task: Task) -> None:
    print("x" * 3_000_000)
    print("after")


@bad
def prints_without_an_end(task: Task) -> None:
    sys.stdout.write("y" * 3_000_000)
    sys.stdout.flush()


@bad
def writes_to_descriptor_1(task: Task) -> None:
    os.write(1, b"\x00\xff binary \r\n{}\n")


@bad
def closes_stdout(task: Task) -> None:
    sys.stdout.close()


@bad
def says_what_a_terminal_takes_for_orders(task: Task) -> None:
    print("\x1b[2J[bold]\x07")


# What it leaves


@bad
def leaves_a_child(task: Task) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (task.storage / "child").write_text(str(child.pid))
    child.returncode = 0  # forget it


@bad
def leaves_a_thread_that_goes_on_telling(task: Task) -> None:
    def tell() -> None:
        deadline = time.monotonic() + 20
        while not (task.storage / "stop").exists() and time.monotonic() < deadline:
            task.metric("late", 1)
            print("late")
            time.sleep(0.001)

    threading.Thread(target=tell, daemon=True).start()


@bad
def changes_the_folder(task: Task) -> None:
    os.chdir("/")


class Takes(Task):
    value: Any

    def run(self) -> None:
        (self.path / "length").write_text(str(len(self.value)))


class LoopTakes(Takes):
    async def run(self) -> None:  # type: ignore[override]
        Takes.run(self)


class ProcessTakes(Takes):
    pool = "process"
