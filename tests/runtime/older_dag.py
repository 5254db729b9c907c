"""The DAG of the record in `older_record/`, which was written when a run's lock was a file of its own."""

from __future__ import annotations

from gluepy import DAG, Task


class Load(Task):
    def run(self) -> None:
        print("loaded")


class Train(Task):
    def run(self) -> None:
        if self.context.depth < 5:
            raise ValueError(f"not with a depth of {self.context.depth}")


class OlderDAG(DAG):
    tasks = (Load, Train)
