"""Tasks that write files, for worker processes too: in a module of their own, which costs little to import."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import anyio
import anyio.lowlevel

from gluepy import DAG, Retry, Task, current_task


def listed() -> list[str]:
    """The names of drafts and results that a task can find in its run's folder and in the storage."""
    task = current_task()
    found = {path.name for root in (task.path, task.storage) for path in Path(root).rglob("*")}
    walked = {name for _, folders, files in os.walk(task.storage) for name in (*folders, *files)}
    assert found <= walked
    return sorted(name for name in walked if ".csv" in name or "draft" in name or "model" in name)


class Writes(Task):
    """Writes `part-1.csv` and a folder, and lists what can be found meanwhile."""

    def run(self) -> None:
        with self.atomic("part-1.csv") as file, self.atomic(self.storage / "model") as folder:
            file.write_text("1")
            folder.mkdir()
            (folder / "weights.csv").write_text("1")
            assert listed() == []
        assert listed() == ["model", "part-1.csv", "weights.csv"]
        (self.path / "part-1.csv").unlink()
        shutil.rmtree(str(self.storage / "model"))


class ProcessWrites(Writes):
    pool = "process"


class LoopWrites(Writes):
    async def run(self) -> None:  # type: ignore[override]
        await anyio.lowlevel.checkpoint()
        Writes.run(self)


class Dies(Task):
    """Is killed while it writes, in its first attempt."""

    pool = "process"
    retries = Retry(attempts=2, wait_s=0)

    def run(self) -> None:
        with self.atomic("part-1.csv") as file, self.atomic("model") as folder:
            file.write_text("1")
            folder.mkdir()
            if not (self.storage / "other").exists():
                (self.storage / "other").write_text("died")
                os.kill(os.getpid(), signal.SIGKILL)


class DiesForGood(Dies):
    retries = Retry(attempts=1)


class Overruns(Task):
    """Is out of time while it writes, in its first attempt."""

    timeout_s = 0.2
    retries = Retry(attempts=2, wait_s=0)

    async def run(self) -> None:
        with self.atomic("part-1.csv") as file:
            file.write_text("1")
            if not (self.storage / "other").exists():
                (self.storage / "other").write_text("late")
                await anyio.sleep_forever()


class Counts(Task):
    def run(self) -> None:
        self.metric("found", len(list(self.path.glob("*.csv"))))


class Overwrites(Task):
    """Tries to put a file in the place of a folder, in two attempts."""

    retries = Retry(attempts=2, wait_s=0)

    def run(self) -> None:
        (self.path / "model").mkdir(exist_ok=True)
        scope = self._here("")
        with self.atomic("model") as file:
            file.write_text(str(scope.attempt.number))


class Rows(Task):
    outputs = ("rows.csv",)

    def run(self) -> None:
        (self.path / "rows.csv").write_text("1")


class Table(Task):
    name: str

    @property
    def outputs(self) -> tuple[str, ...]:
        return (f"{self.name}.csv",)

    def run(self) -> None:
        (self.path / self.outputs[0]).write_text("1")


class Needs(Task):
    inputs = ("rows.csv", "./table.csv", "other.csv")

    def run(self) -> None:
        (self.storage / "it-ran").touch()


class ProcessNeeds(Needs):
    pool = "process"


class LoopNeeds(Needs):
    async def run(self) -> None:  # type: ignore[override]
        Needs.run(self)


class Several(Needs):
    """Gives one name where a tuple of names belongs."""

    @property
    def inputs(self) -> str:  # type: ignore[override]
        return "rows.csv"


class DiesDAG(DAG):
    tasks = (DiesForGood,)


class OverwritesDAG(DAG):
    tasks = (Overwrites,)
