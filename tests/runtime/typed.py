"""Tasks whose parameters are more than JSON; in a module of their own, for worker processes."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from gluepy import Task
from gluepy.exec.scope import current_scope


class Mode(str, enum.Enum):  # noqa: UP042  # as many still write it
    FULL = "full"


class Typed(Task):
    day: date
    mode: Mode = Mode.FULL
    file: Path = Path("a/b")
    rate: float = 1

    def run(self) -> None:
        self.told()

    def told(self) -> None:
        scope = current_scope()
        assert scope is not None
        values = self.day, self.mode, self.file, self.rate
        line = f"{scope.attempt.task} {' '.join(type(value).__name__ for value in values)} {self.day:%Y}\n"
        with open(f"{self.storage}/told", "a") as file:
            file.write(line)


class LoopTyped(Typed):
    async def run(self) -> None:  # type: ignore[override]
        self.told()


class ProcessTyped(Typed):
    pool = "process"


@dataclass(frozen=True)
class Frozen(Task):  # type: ignore[misc]
    day: date

    def run(self) -> None:
        with open(f"{self.storage}/told", "a") as file:
            file.write(f"frozen {self.day:%Y}\n")


class ProcessFrozen(Frozen):
    pool = "process"
