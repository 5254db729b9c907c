"""Dagster: a graph of ops, executed in this process, one after another; processes for the CPU workload."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagster import (
    DagsterInstance,
    DependencyDefinition,
    GraphDefinition,
    In,
    JobDefinition,
    MultiDependencyDefinition,
    NodeInvocation,
    Nothing,
    execute_job,
    multiprocess_executor,
    op,
    reconstructable,
)

from benchmarks.graphs import Graph
from benchmarks.peers.measuring import BURNS, PROCESSES, Run, measure, script
from benchmarks.work import burn, nothing

PIPELINE = """
from dagster import job, op


@op
def only():
    pass


@job
def one():
    only()
"""


@op
def burning() -> None:
    burn()


def burns() -> JobDefinition:
    nodes = [NodeInvocation("burning", alias=f"t{n}") for n in range(BURNS)]
    graph = GraphDefinition("burns", node_defs=[burning], dependencies={node: {} for node in nodes})
    return graph.to_job(executor_def=multiprocess_executor.configured({"max_concurrent": PROCESSES}))


def prepare(graph: Graph) -> Run:
    made = op(name="step", ins={"after": In(Nothing)})(lambda: nothing())

    def run() -> None:
        edges: dict[Any, Any] = {}
        for node, after in graph.items():
            before = [DependencyDefinition(f"t{other}") for other in after]
            edges[NodeInvocation("step", alias=f"t{node}")] = (
                {"after": MultiDependencyDefinition(before)} if before else {}
            )
        job = GraphDefinition("whole", node_defs=[made], dependencies=edges).to_job()
        assert job.execute_in_process().success

    return run


def cpu() -> None:
    with tempfile.TemporaryDirectory() as folder, DagsterInstance.local_temp(folder) as instance:
        assert execute_job(reconstructable(burns), instance=instance).success


def command(folder: Path) -> Sequence[str]:
    (folder / "one.py").write_text(PIPELINE)
    return [script("dagster"), "job", "execute", "-f", "one.py", "-j", "one"]


if __name__ == "__main__":
    measure(chain=prepare, fan_out=prepare, layered=prepare, cpu=cpu, command=command)
