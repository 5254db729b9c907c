"""Tasks that work on files wherever these are: in a module of their own, for worker processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from upath import UPath

from gluepy import DAG, Retry, Task

OTHER = "s3://bucket-of-others"


def names(folder: Any) -> list[str]:
    """The files in a folder, by their paths within it."""
    start = len(str(folder)) + 1
    return sorted(str(path)[start:] for path in folder.rglob("*") if path.is_file())


class Uses(Task):
    """Writes every kind of path and fails, and then writes them again and reads them."""

    retries = Retry(attempts=2, wait_s=0)

    @property
    def inputs(self) -> tuple[Any, ...]:
        return ("before.txt", self.storage / "before.txt", f"{OTHER}/before.txt", UPath(f"{OTHER}/before.txt"))

    @property
    def outputs(self) -> tuple[Any, ...]:
        return (f"{self.label}.csv", f"model-{self.label}", f"{OTHER}/{self.label}/by-text")

    def run(self) -> None:
        number = self._here("").attempt.number
        self.publish(str(number))
        if number == 1:
            raise ConnectionError("once more")
        self.look()

    def publish(self, number: str) -> None:
        me = self.label
        here = Path(os.environ["HERE"], me)
        for name in (
            f"{me}.csv",
            self.storage / me / "champion",
            f"{OTHER}/{me}/by-text",
            UPath(f"{OTHER}/{me}/by-path"),
            str(here / "by-text"),
            here / "by-path",
        ):
            with self.atomic(name) as file:
                assert file.name == str(name).rpartition("/")[2]
                file.write_text(number)
        for name in (f"model-{me}", self.storage / me / "model", f"{OTHER}/{me}/model", here / "model"):
            with self.atomic(name) as folder:
                (folder / "deep").mkdir(parents=True)
                (folder / f"deep/weights-{number}").write_text(number)
                (folder / "about").write_text(number)

    def look(self) -> None:
        me = self.label
        here = Path(os.environ["HERE"], me)
        assert (self.path / f"{me}.csv").read_text() == "2"
        for name in (f"{me}.csv", self.storage / me / "champion", f"{OTHER}/{me}/by-path", here / "by-text"):
            assert self.local(name).read_text() == "2"
        for root in (
            self.path / f"model-{me}",
            self.storage / me / "model",
            UPath(f"{OTHER}/{me}/model"),
            here / "model",
        ):
            assert names(root) == names(self.local(root)) == ["about", "deep/weights-2"]


class ProcessUses(Uses):
    pool = "process"


class LoopUses(Uses):
    async def run(self) -> None:  # type: ignore[override]
        Uses.run(self)


class Before(Task):
    """Writes what the others need, and looks at what is there: nothing of theirs."""

    def run(self) -> None:
        for name in ("before.txt", self.storage / "before.txt", f"{OTHER}/before.txt"):
            with self.atomic(name) as file:
                file.write_text("1")
        assert names(self.path) == ["before.txt"]
        assert list(self.path.glob("*.csv")) == []


class After(Task):
    """Finds, in the process in which `Before` looked, what was written elsewhere since."""

    inputs = ("uses.csv", "loopuses.csv", "processuses.csv", "model-processuses")

    def run(self) -> None:
        assert len(list(self.path.glob("*.csv"))) == 3
        assert (self.path / "processuses.csv").exists()
        assert {path.name for path in self.path.iterdir()} >= {"processuses.csv", "model-processuses"}


class UsesDAG(DAG):
    tasks = (Before, Uses, LoopUses, ProcessUses, After)
