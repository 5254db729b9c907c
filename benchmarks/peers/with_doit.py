"""doit: tasks of Python actions, in this process or in threads; its state is a file in a temporary folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from doit.cmd_base import ModuleTaskLoader
from doit.doit_cmd import DoitMain

from benchmarks.graphs import Graph
from benchmarks.peers.measuring import BURNS, PROCESSES, THREADS, Run, measure, script
from benchmarks.work import burn, nothing

PIPELINE = """
def task_only():
    return {"actions": [lambda: None]}
"""
_folder = tempfile.mkdtemp()


def prepare(graph: Graph, *options: str) -> Run:
    def task_t() -> Iterator[dict[str, Any]]:
        for node, after in graph.items():
            yield {"name": str(node), "actions": [nothing], "task_dep": [f"t:{before}" for before in after]}

    return lambda: doit({"task_t": task_t}, *options)


def cpu() -> None:
    def task_burn() -> Iterator[dict[str, Any]]:
        for n in range(BURNS):
            yield {"name": str(n), "actions": [(burn,)]}

    doit({"task_burn": task_burn}, "-n", str(PROCESSES))


def doit(tasks: dict[str, Any], *options: str) -> None:
    code = DoitMain(ModuleTaskLoader(tasks)).run(["run", "--db-file", f"{_folder}/doit.db", *options])
    assert code == 0, f"doit ended with {code}"


def command(folder: Path) -> Sequence[str]:
    (folder / "dodo.py").write_text(PIPELINE)
    return [script("doit")]


if __name__ == "__main__":
    measure(
        chain=prepare,
        fan_out=lambda graph: prepare(graph, "-n", str(THREADS), "-P", "thread"),
        layered=prepare,
        cpu=cpu,
        command=command,
    )
