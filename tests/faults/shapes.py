"""DAGs of all kinds, small ones, whose tasks end the same way however often their drivers die."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
from evidence import note

from gluepy import DAG, Retry, Skip, Task, each, parallel
from gluepy.exec.scope import current_scope


class Loop(Task):
    async def run(self) -> None:
        note("begins")
        await anyio.lowlevel.checkpoint()
        note("ends")


class Thread(Task):
    def run(self) -> None:
        note("begins")
        note("ends")


class Region(Loop):
    region: str
    fold: int = 0


class Score(Region):
    pass


class Late(Thread):
    n: int


class Later(Loop):
    n: int


class Tells(Task):
    """Measures, and tells how far it is."""

    async def run(self) -> None:
        note("begins")
        self.metric("rows", 7)
        self.progress(1, 2)
        self.metric("rows", 8)
        note("ends")


class Flaky(Task):
    """Of three attempts the third finishes, whatever became of the others."""

    retries = Retry(attempts=3, wait_s=0.004, jitter=0)

    async def run(self) -> None:
        note("begins")
        scope = current_scope()
        assert scope is not None
        if scope.attempt.number % 3:
            raise ConnectionError("as told")
        note("ends")


class Fails(Task):
    async def run(self) -> None:
        note("begins")
        raise ValueError("as told")


class FailsTwice(Fails):
    retries = Retry(attempts=2, wait_s=0.002, jitter=0)


class Skips(Task):
    def run(self) -> None:
        note("begins")
        raise Skip("as told")


class Waits(Task):
    """Until it is stopped."""

    async def run(self) -> None:
        note("begins")
        await anyio.sleep_forever()


class TooLong(Waits):
    timeout_s = 0.01


class Gpu(Loop):
    uses: ClassVar = {"gpu": 1}
    n: int


class NoneFailed(Loop):
    trigger = "none_failed"


class AllDone(Thread):
    trigger = "all_done"


class OneFailed(Loop):
    trigger = "one_failed"


class Writes(Task):
    outputs = ("rows.txt",)

    def run(self) -> None:
        note("begins")
        with self.atomic("rows.txt") as file:
            file.write_text("1")
        note("ends")


def found() -> list[int]:
    note("begins")
    note("ends")
    return [1, 2]


async def nothing() -> list[str]:
    note("begins")
    note("ends")
    return []


@dataclass(frozen=True)
class Shape:
    """A DAG, the options of its runs, and what is asked for when one of them that has ended is resumed first of all
    (`again`; None: it is the first session whose events are cut)."""

    dag: type[DAG]
    options: Mapping[str, Any] = field(default_factory=dict)
    again: Mapping[str, Any] | None = None


def _dag(name: str, tasks: Any) -> type[DAG]:
    made: type[DAG] = type(name, (DAG,), {"tasks": tasks, "__module__": __name__})
    globals()[name] = made  # a resumed run finds it by its name
    return made


_LINE = (Loop(id="a"), Thread(id="b"), Loop(id="c"))
_JOIN = {Loop: (), Thread: Loop, Tells: Loop, Region(region="eu", id="eu"): (Thread, Tells)}

SHAPES: dict[str, Shape] = {
    "chain": Shape(_dag("Chain", _LINE)),
    "diamond": Shape(_dag("Diamond", _JOIN)),
    "dynamic each": Shape(_dag("Dynamic", (each((Late, Later), n=found), each(Region, region=nothing), Loop))),
    "retries": Shape(_dag("Retries", (parallel(Flaky, Thread), Loop))),
    "forced again": Shape(
        _dag("Forced", (Loop(id="a"), parallel(Thread, Tells), Loop(id="z"))), again={"force": "tells"}
    ),
    "threads": Shape(
        _dag("Threads", (Thread(id="a"), Thread(id="b"), parallel((Thread(id="c"), Tells), Loop), Thread(id="z")))
    ),
    # and the rest
    "parallel": Shape(_dag("Parallel", (Loop, parallel(Thread, (Tells, Loop(id="b")), Region(region="eu"))))),
    "each": Shape(_dag("Each", (each((Region, Score), region=["eu", "us"]), Loop))),
    "product": Shape(_dag("Product", (Loop, each(Region, region=["eu", "us"], fold=[1, 2]), Thread))),
    "retries in vain": Shape(_dag("InVain", (FailsTwice, Loop))),
    "triggers": Shape(
        _dag("Triggers", (parallel(Fails, Loop), parallel(NoneFailed, (AllDone, Thread), OneFailed))),
        {"on_failure": "continue"},
    ),
    "no failure": Shape(_dag("NoFailure", (Loop(id="a"), parallel(OneFailed, AllDone, Thread), NoneFailed(id="z")))),
    "skip": Shape(
        _dag("Skipping", (parallel(Skips, Thread), parallel((Loop, Loop(id="after")), (NoneFailed, AllDone))))
    ),
    "drain": Shape(_dag("Draining", (Loop(id="a"), parallel(Fails, (Thread, Loop)))), {"concurrency": 1}),
    "continue": Shape(
        _dag("Continuing", parallel((Fails, Loop(id="after")), (Thread, Loop(id="other")))), {"on_failure": "continue"}
    ),
    "cancel": Shape(_dag("Cancelling", (Thread, parallel(Waits, Fails), Loop)), {"on_failure": "cancel"}),
    "limits": Shape(_dag("Limited", (each(Gpu, n=[1, 2, 3]), Thread))),
    "time-out": Shape(_dag("TimedOut", (parallel(TooLong, Loop), AllDone)), {"on_failure": "continue"}),
    "selection": Shape(_dag("Selected", (Loop(id="a"), Thread(id="b"), Loop(id="c"))), {"from_task": "b"}),
    "part of a dynamic each": Shape(_dag("Part", (Loop, each((Late, Later), n=found), Thread)), {"to_task": "late"}),
    "outputs": Shape(_dag("Outputs", (Writes, Tells, Thread)), again={"from_task": "tells"}),
    "failed again": Shape(_dag("FailedAgain", (Loop, FailsTwice, Thread)), again={}),
}
