"""The DAGs that the tests serve."""

from __future__ import annotations

import time

import anyio.lowlevel

from gluepy import DAG, Task, each


class Load(Task):
    """Prints a little, and measures something."""

    def run(self) -> None:
        print("loading <b>rows</b>")
        print("loaded")
        self.metric("rows", 7)


class Fit(Task):
    region: str

    def run(self) -> None:
        print("fitting", self.region, self.context.get("depth"))


class Fails(Task):
    def run(self) -> None:
        raise ValueError("no such file")


class Waits(Task):
    """Prints a line, and another once the file `go` is there."""

    def run(self) -> None:
        print("waiting", flush=True)
        while not (self.storage / "go").exists():
            time.sleep(0.005)
        print("gone", flush=True)


class TrainDAG(DAG):
    """Load, then fit each region."""

    label = "train"
    tasks = (Load, each(Fit, region=["eu/north", "us"]))


class BrokenDAG(DAG):
    label = "broken"
    tasks = (Load, Fails)


class WaitDAG(DAG):
    label = "wait"
    tasks = (Waits, Load)


class Chatters(Task):
    """Tells more than is kept in memory for those who watch."""

    async def run(self) -> None:
        for number in range(20_000):
            self.metric("number", number)
            if number % 500 == 0:
                await anyio.lowlevel.checkpoint()


class ChatterDAG(DAG):
    label = "chatter"
    tasks = (Chatters,)
