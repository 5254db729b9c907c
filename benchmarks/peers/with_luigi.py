"""Luigi: one worker, which runs in this process; more of them are processes, not threads."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import luigi

from benchmarks.graphs import Graph
from benchmarks.peers.measuring import BURNS, PROCESSES, Run, ends, measure, script
from benchmarks.work import burn, nothing

PIPELINE = """
import luigi


class Only(luigi.Task):
    done = False

    def run(self):
        self.done = True

    def complete(self):
        return self.done
"""
_graph: Graph = {}
_done: set[int] = set()
_folder = Path(tempfile.mkdtemp())


class Nothing(luigi.Task):
    n = luigi.IntParameter()

    def requires(self) -> list[Any]:
        return [Nothing(n=before) for before in _graph[self.n]]

    def run(self) -> None:
        nothing()
        _done.add(self.n)

    def complete(self) -> bool:
        return self.n in _done


class Burn(luigi.Task):
    n = luigi.IntParameter()

    def output(self) -> Any:
        return luigi.LocalTarget(str(_folder / str(self.n)))

    def run(self) -> None:
        burn()
        Path(self.output().path).touch()


def prepare(graph: Graph) -> Run:
    def run() -> None:
        global _graph
        _graph = graph
        _done.clear()
        last = [Nothing(n=node) for node in ends(graph)]
        assert luigi.build(last, local_scheduler=True)

    return run


def cpu() -> None:
    shutil.rmtree(_folder)
    _folder.mkdir()
    assert luigi.build([Burn(n=n) for n in range(BURNS)], local_scheduler=True, workers=PROCESSES)
    assert len(list(_folder.iterdir())) == BURNS


def command(folder: Path) -> Sequence[str]:
    (folder / "one.py").write_text(PIPELINE)
    return [script("python"), "-m", "luigi", "--module", "one", "Only", "--local-scheduler"]


if __name__ == "__main__":
    sys.setrecursionlimit(20_000)
    measure(chain=prepare, fan_out=prepare, layered=prepare, cpu=cpu, command=command)
