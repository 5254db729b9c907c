"""gluepy, as the others are measured: a runtime for each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gluepy as glue
from benchmarks.graphs import Graph
from benchmarks.peers.measuring import BURNS, PROCESSES, THREADS, Run, measure, script
from benchmarks.work import burn, nothing

PIPELINE = """
from gluepy import DAG, Task


class Only(Task):
    def run(self):
        pass


class OneDAG(DAG):
    tasks = (Only,)
"""


class Step(glue.Task):
    n: int

    def run(self) -> None:
        nothing()


class Burn(glue.Task):
    pool = "process"
    n: int

    def run(self) -> None:
        burn()


class BurnDAG(glue.DAG):
    tasks = (glue.each(Burn, n=range(BURNS)),)


def prepare(graph: Graph) -> Run:
    made = {node: Step(n=node) for node in graph}
    tasks = {made[node]: tuple(made[before] for before in after) for node, after in graph.items()}
    dag = type("WholeDAG", (glue.DAG,), {"tasks": tasks, "__module__": __name__})
    return lambda: glue.run_dag_sync(dag, concurrency=THREADS)


def cpu() -> None:
    glue.run_dag_sync(BurnDAG, concurrency=PROCESSES)


def command(folder: Path) -> Sequence[str]:
    (folder / "one.py").write_text(PIPELINE)
    return [script("gluepy"), "run", "one.py"]


if __name__ == "__main__":
    measure(chain=prepare, fan_out=prepare, layered=prepare, cpu=cpu, command=command)
