"""What runs while the disk below the log breaks."""

from __future__ import annotations

import time

from evidence import note

from gluepy import DAG, Task, parallel
from gluepy.testing import until

PATIENCE_S = 240.0


class Step(Task):
    """On the event loop; measures something, which is a write of its own."""

    async def run(self) -> None:
        note("begins")
        self.metric("rows", 1)
        note("ends")


class ThreadStep(Task):
    def run(self) -> None:
        note("begins")
        note("ends")


class Last(Step):
    async def run(self) -> None:
        await super().run()
        (self.storage / "last").touch()


class Holds(Task):
    """Begins first, and lasts until the last step has ended."""

    async def run(self) -> None:
        note("begins")
        try:
            await until((self.storage / "last").exists, PATIENCE_S)
        except BaseException:
            note("stopped")
            raise
        note("ends")


class ProcessHolds(Task):
    """In a process, until it is killed."""

    pool = "process"

    def run(self) -> None:
        note("begins")
        time.sleep(PATIENCE_S)
        note("ends")


class Steps(DAG):
    """One step after another, on the loop and in threads (the second of two is begun by the thread that has done the
    first), some 20 writes; and one that lasts as long as they all."""

    tasks = parallel(
        Holds,
        (
            Step(id="1"),
            ThreadStep(id="2"),
            ThreadStep(id="3"),
            *(Step(id=str(number)) for number in range(4, 10)),
            Last,
        ),
    )


class ManySteps(DAG):
    """The same with some 200 writes."""

    tasks = parallel(Holds, (*((Step, ThreadStep)[number % 5 > 2](id=str(number)) for number in range(130)), Last))
