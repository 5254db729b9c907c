"""Airflow: `dag.test()`, which runs a DAG in this process; its scheduler, which adds to that, is left out.

It looks the DAG up in the folder of DAGs, so there it stands, as the only one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task

from benchmarks.graphs import Graph
from benchmarks.peers.measuring import Run, measure, script
from benchmarks.work import nothing

FILE = """
from benchmarks.peers.with_airflow import dag_of  # a DAG

dag = dag_of({id!r}, {graph!r})
"""
PIPELINE = """
from airflow.sdk import DAG, task

with DAG("one", schedule=None) as dag:

    @task
    def only():
        pass

    only()

if __name__ == "__main__":
    assert dag.test().state == "success"
"""


def dag_of(id: str, graph: Graph) -> Any:
    with DAG(id, schedule=None) as dag:

        @task
        def step() -> None:
            nothing()

        made: dict[int, Any] = {}
        for node, after in graph.items():
            made[node] = step.override(task_id=f"t{node}")()
            if after:
                made[node].operator.set_upstream([made[before].operator for before in after])
    return dag


def prepare(graph: Graph) -> Run:
    id = f"graph_{len(graph)}_{max(len(after) for after in graph.values())}"
    in_folder(FILE.format(id=id, graph={node: list(after) for node, after in graph.items()}))
    dag = dag_of(id, graph)

    def run() -> None:
        assert dag.test().state == "success"

    return run


def command(folder: Path) -> Sequence[str]:
    return [script("python"), str(in_folder(PIPELINE))]


def in_folder(text: str) -> Path:
    file = Path(os.environ["AIRFLOW_HOME"], "dags", "only.py")
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


if __name__ == "__main__":
    subprocess.run([script("airflow"), "db", "migrate"], stdout=subprocess.DEVNULL, check=True)
    measure(chain=prepare, fan_out=prepare, layered=prepare, command=command)
