"""Prefect: a flow whose tasks are submitted to threads, with the server that it starts itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

from benchmarks.graphs import Graph
from benchmarks.peers.measuring import THREADS, Run, ends, measure, script
from benchmarks.work import nothing

PIPELINE = """
from prefect import flow, task


@task
def only():
    pass


@flow
def one():
    only()


if __name__ == "__main__":
    one()
"""


@task
def step() -> None:
    nothing()


def prepare(graph: Graph) -> Run:
    @flow(task_runner=ThreadPoolTaskRunner(max_workers=THREADS))
    def whole() -> None:
        made: dict[int, Any] = {}
        for node, after in graph.items():
            made[node] = step.submit(wait_for=[made[before] for before in after])
        for node in ends(graph):
            made[node].result()

    return whole


def command(folder: Path) -> Sequence[str]:
    (folder / "one.py").write_text(PIPELINE)
    return [script("python"), "one.py"]


if __name__ == "__main__":
    measure(chain=prepare, fan_out=prepare, layered=prepare, command=command)
