"""Tasks that tell what cannot be taken as it is; in a module of their own, for worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gluepy import Task


class Measures(Task):
    def run(self) -> Any:
        self.measure()

    def measure(self) -> None:
        self.metric("loss", float("nan"))
        self.metric("gain", float("-inf"))
        self.metric("rate", 0.5)


class LoopMeasures(Measures):
    label = "measures"

    async def run(self) -> Any:
        self.measure()


class ProcessMeasures(Measures):
    label = "measures"
    pool = "process"


class Returns(Task):
    n: int

    def run(self) -> Any:
        return {"rows": self.n}


class LoopReturns(Returns):
    label = "returns"

    async def run(self) -> Any:
        return {"rows": self.n}


class ProcessReturns(Returns):
    label = "returns"
    pool = "process"


class ReturnsWork(Task):
    n: int

    def run(self) -> Any:
        return self.later() if self.n == 1 else self.rows()

    async def later(self) -> None:
        raise AssertionError("nobody awaits it")

    def rows(self) -> Iterator[int]:
        yield 1


class ProcessReturnsWork(ReturnsWork):
    pool = "process"


KINDS: dict[str, Any] = {
    "thread": {Measures: Measures, Returns: Returns, ReturnsWork: ReturnsWork},
    "loop": {Measures: LoopMeasures, Returns: LoopReturns},
    "process": {Measures: ProcessMeasures, Returns: ProcessReturns, ReturnsWork: ProcessReturnsWork},
}
