"""Kedro: a pipeline of nodes with data sets in memory; the sequential runner, threads for the fan-out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kedro.io import DataCatalog
from kedro.pipeline import Pipeline, node
from kedro.runner import ParallelRunner, SequentialRunner, ThreadRunner

from benchmarks.graphs import Graph
from benchmarks.peers.measuring import BURNS, PROCESSES, THREADS, Run, measure, script
from benchmarks.work import burn, nothing

PROJECT = {
    "pyproject.toml": """
[tool.kedro]
package_name = "one"
project_name = "one"
kedro_init_version = "{version}"
source_dir = "src"
""",
    "src/one/__init__.py": "",
    "src/one/settings.py": "",
    "src/one/pipeline_registry.py": """
from kedro.pipeline import Pipeline, node


def only():
    return 0


def register_pipelines():
    return {{"__default__": Pipeline([node(only, None, "done")])}}
""",
    "conf/base/catalog.yml": "{{}}",
    "conf/base/parameters.yml": "{{}}",
    "conf/local/credentials.yml": "{{}}",
}


def step(*_: object) -> int:
    """A data set cannot hold None."""
    nothing()
    return 0


def burn_step() -> int:
    burn()
    return 0


def prepare(graph: Graph, runner: Any = SequentialRunner) -> Run:
    def run() -> None:
        nodes = [
            node(step, [f"d{before}" for before in after] or None, f"d{task}", name=f"t{task}")
            for task, after in graph.items()
        ]
        runner().run(Pipeline(nodes), DataCatalog())

    return run


def cpu() -> None:
    nodes = [node(burn_step, None, f"d{n}", name=f"t{n}") for n in range(BURNS)]
    ParallelRunner(max_workers=PROCESSES).run(Pipeline(nodes), shared_catalog())


def shared_catalog() -> Any:
    from kedro.io import SharedMemoryDataCatalog

    return SharedMemoryDataCatalog()


def command(folder: Path) -> Sequence[str]:
    from kedro import __version__

    for name, text in PROJECT.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(version=__version__))
    return [script("kedro"), "run"]


if __name__ == "__main__":
    measure(
        chain=prepare,
        fan_out=lambda graph: prepare(graph, lambda: ThreadRunner(max_workers=THREADS)),
        layered=prepare,
        cpu=cpu,
        command=command,
    )
