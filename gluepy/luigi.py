"""DAGs as tasks of Luigi (https://luigi.readthedocs.io), which a pipeline there can depend on: `to_luigi`.

Each task of the DAG is a task of Luigi's, which runs `gluepy step`, and is complete when its step has finished or was
skipped in that run. `python -m gluepy.luigi` builds a run that `--executor luigi` hands over.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

import luigi

from gluepy.conf import discovered_project
from gluepy.conf.dags import find_dag
from gluepy.conf.schema import Settings
from gluepy.conf.sources import load_settings
from gluepy.core.events import JSON, TaskFinished, TaskSkipped
from gluepy.core.graph import Graph, slug_of
from gluepy.exec.dag import DAG, compile_dag
from gluepy.exec.steps import StepFolder
from gluepy.runtime.session import reference
from gluepy.runtime.step import expand_known

__all__ = ["GluepyStep", "to_luigi"]


def to_luigi(dag: str | type[DAG], params: Mapping[str, JSON] | None = None) -> type[luigi.WrapperTask]:
    """A class of Luigi tasks that stand for a run of `dag` (a label, a DAG class or "file.py:TrainDAG") with `params`.

    Its one parameter is `run_id`: the same id is the same run, of which what has finished is not run again.

        Train = to_luigi("train")

        class Report(luigi.Task):
            def requires(self):
                return Train(run_id=f"train-{self.date}")

    Raises `UsageError` for a DAG that cannot be found or compiled, or that asks for what Luigi cannot do.
    """
    from gluepy.exec.executors.luigi import LuigiExecutor

    name, given = reference(dag), json.dumps(params or {}, sort_keys=True)
    LuigiExecutor.check_graph(_graph(name))

    class Run(luigi.WrapperTask):
        run_id = luigi.Parameter()

        def requires(self) -> list[GluepyStep]:
            graph = _graph(name)
            ends = [node for node in graph.tasks() if not graph.task_dependents(node)]
            return [GluepyStep(dag=name, run_id=self.run_id, task=graph.task_id(node), params=given) for node in ends]

    Run.__name__ = Run.__qualname__ = f"Gluepy_{slug_of(name.rpartition(':')[2] or name)}"
    return cast("type[luigi.WrapperTask]", Run)


class GluepyStep(luigi.Task):
    """One task of a run of a DAG. `params` are the run's, as JSON; `tasks` those that are to run, as JSON, or empty for
    all."""

    dag = luigi.Parameter()
    run_id = luigi.Parameter()
    task = luigi.Parameter()
    params = luigi.Parameter(default="{}", significant=False)
    tasks = luigi.Parameter(default="", significant=False)

    @property
    def retry_count(self) -> int:
        """How often Luigi tries it."""
        return int(self._spec().retry.attempts)

    @property
    def resources(self) -> dict[str, int]:  # type: ignore[override]  # Luigi asks for it, and never sets it
        """The limits that the task uses."""
        return dict(self._spec().uses)

    def requires(self) -> list[GluepyStep]:
        """What has to be complete before it starts."""
        graph = self._graph()
        wanted = json.loads(self.tasks) if self.tasks else None
        before = map(graph.task_id, graph.task_dependencies(graph.index[self.task]))
        return [
            self._other(task) for task in before if wanted is None or task in wanted or task not in _static(self.dag)
        ]

    def complete(self) -> bool:
        """Whether its step has finished, or was skipped."""
        folder = _folder(self.run_id)
        run_file = folder.read_run()
        discarded = run_file.discarded.get(self.task, 0) if run_file is not None else 0
        attempts = [attempt for attempt in folder.attempts(slug_of(self.task)) if attempt > discarded or attempt == 0]
        if not attempts:
            return False
        events = folder.events(slug_of(self.task), attempts[-1])
        return bool(events) and isinstance(events[-1], TaskFinished | TaskSkipped)

    def run(self) -> Iterator[list[GluepyStep]]:
        """Run the step, after what an `each` before it has added."""
        graph = self._graph()
        static = _static(self.dag)
        added = [graph.task_id(node) for node in graph.task_dependencies(graph.index[self.task])]
        if added := [task for task in added if task not in static]:
            yield [self._other(task) for task in added]
        settings = _settings()
        words = ["--project", str(settings.project)] if settings.project is not None else []
        command = [sys.executable, "-m", "gluepy", *words, "step", self.run_id, self.task, "--dag", self.dag]
        for name, value in json.loads(self.params).items():
            command += ["-P", f"{name}={json.dumps(value)}"]
        done = subprocess.run([*command, "--executor", "LuigiExecutor"], check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise RuntimeError(
                f"gluepy step {self.run_id} {self.task}: exit code {done.returncode}; its log is in STORAGE_ROOT"
            )

    def _other(self, task: str) -> GluepyStep:
        return GluepyStep(dag=self.dag, run_id=self.run_id, task=task, params=self.params, tasks=self.tasks)

    def _graph(self) -> Graph:
        graph = _graph(self.dag)
        if not graph.is_whole:
            graph = Graph(graph.tree)
            expand_known(graph, _folder(self.run_id), {})
        return graph

    def _spec(self) -> Any:
        graph = self._graph()
        return graph.spec(graph.index[self.task])


@lru_cache
def _settings() -> Settings:
    return load_settings(discovered_project(), warn=False)


@lru_cache
def _graph(dag: str) -> Graph:
    settings = _settings()
    return compile_dag(find_dag(dag, settings), settings.LIMITS).graph


@lru_cache
def _static(dag: str) -> frozenset[str]:
    return frozenset(_graph(dag).index)


@lru_cache
def _folder(run_id: str) -> StepFolder:
    return StepFolder(_settings().run_files(run_id))


def main() -> None:
    """Build the run that standard input describes: `dag`, `run_id`, `tasks`, `workers`, `scheduler_url`,
    `retry_delay_s`, `limits`. Exit code 0 if Luigi is content, else 1."""
    order = json.load(sys.stdin)
    config = luigi.configuration.get_config()
    config.set("worker", "keep_alive", "true")
    config.set("worker", "wait_interval", "0.2")
    config.set("worker", "wait_jitter", "0")
    config.set("worker", "check_unfulfilled_deps", "false")
    config.set("scheduler", "retry_delay", str(order["retry_delay_s"]))
    for name, amount in order["limits"].items():
        config.set("resources", name, str(amount))
    tasks = json.dumps(order["tasks"])
    steps = [GluepyStep(dag=order["dag"], run_id=order["run_id"], task=task, tasks=tasks) for task in order["tasks"]]
    where = {"scheduler_url": order["scheduler_url"]} if order["scheduler_url"] else {"local_scheduler": True}
    fine = luigi.build(steps, workers=order["workers"], log_level="WARNING", **where)
    sys.stdout.flush()
    os._exit(0 if fine else 1)


if __name__ == "__main__":
    main()
