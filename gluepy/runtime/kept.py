"""What a `Runtime` finds out once for all its runs: compiled DAGs, code versions, secrets, learned durations, paths."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from operator import is_
from pathlib import Path
from typing import Any

from gluepy.conf.code import CodeVersions
from gluepy.conf.dags import find_dag
from gluepy.conf.schema import Settings
from gluepy.conf.secrets import KnownSecrets
from gluepy.core.graph import Graph
from gluepy.exec.dag import DAG, Branches, Compiled, Fan, compile_dag
from gluepy.exec.port import Executor
from gluepy.exec.slots import Place, places
from gluepy.exec.task import Task
from gluepy.runs.durations import LearnedDurations
from gluepy.runtime.checks import check_processes, modules_of

_DAGS = 64  # so many compiled ones are kept


class KnownDag:
    """A DAG that was compiled, and what follows from that."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self.is_shared = compiled.graph.is_whole  # whether runs may have the same graph
        self.modules = modules_of(compiled)
        self._looked_at = list(_parts_of(compiled))
        self._checked: set[str] = set()
        self._places: dict[str, list[Place]] = {}

    def is_same(self) -> bool:
        """Whether its class, and those of its tasks, are as they were."""
        now = list(_parts_of(self.compiled))
        return len(now) == len(self._looked_at) and all(map(is_, now, self._looked_at))

    def check_processes(self, pool: str) -> None:
        """`checks.check_processes`, once for each pool."""
        if pool not in self._checked:
            check_processes(self.compiled, pool)
            self._checked.add(pool)

    def places(self, executor: Executor, here: Executor, pool: str) -> list[Place]:
        """`slots.places` of the executors of the runtime."""
        found = self._places.get(pool)
        if found is None:
            found = self._places[pool] = places(self.compiled.graph.specs, self.compiled.targets, executor, here, pool)
        return found


class Kept:
    """Whatever can change is looked at again: a DAG that is another class now or has other tasks, a task with other
    attributes, a module whose file has changed, the environment."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._dags: dict[type[DAG], KnownDag] = {}
        self._labels: dict[str, type[DAG]] = {}
        self.code_versions = CodeVersions(settings.project)
        self.secrets = KnownSecrets(settings)
        self.redact = tuple(settings.REDACT)

    @cached_property
    def runs_root(self) -> Path:
        """Where runs are recorded."""
        return self._settings.runs_root

    @cached_property
    def storage_root(self) -> str:
        """What tasks call their storage."""
        return self._settings.storage_root

    @cached_property
    def files_root(self) -> str:
        """Where the folders with the files of runs are, with a slash at the end."""
        return self._settings.run_files("")

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """What differs from the default settings."""
        return self._settings.options

    @cached_property
    def durations(self) -> LearnedDurations:
        """How long tasks have taken."""
        return LearnedDurations(self.runs_root)

    def close(self) -> None:
        """Write what is left to be written."""
        if "durations" in vars(self):
            self.durations.write()

    def find(self, dag: str | type[DAG]) -> type[DAG]:
        """`find_dag`."""
        if not isinstance(dag, str):
            return find_dag(dag, self._settings)
        known = self._labels.get(dag)
        if known is not None and known.label == dag and _is_still_there(known):
            return known
        found = find_dag(dag, self._settings)
        if found.label == dag:
            self._labels[dag] = found
        return found

    def compiled(self, dag: type[DAG]) -> KnownDag:
        """`dag`, compiled; its graph may be that of other runs too, if nothing is added to that. Raises `DagError`."""
        known = self._dags.get(dag)
        if known is None or not known.is_same():
            while len(self._dags) >= _DAGS:
                del self._dags[next(iter(self._dags))]
            known = self._dags[dag] = KnownDag(compile_dag(dag, self._settings.LIMITS))
        elif not known.is_shared:
            before = known.compiled
            known.compiled = Compiled(dag, Graph(before.graph.tree), before.targets)
        return known


def _is_still_there(dag: type[DAG]) -> bool:
    found: Any = sys.modules.get(dag.__module__)
    for part in dag.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is dag


def _parts_of(compiled: Compiled) -> Iterator[Any]:
    """Of what `compiled` was made, down to the attributes of its classes and instances."""
    yield from _attributes(compiled.dag, DAG)
    for target in compiled.targets:
        if isinstance(target, type):
            yield from _attributes(target, Task)
    todo: list[Any] = [getattr(compiled.dag, "tasks", None), compiled.dag.evaluation]
    while todo:
        item = todo.pop()
        yield item
        kind = type(item)
        if kind is tuple or kind is list:
            todo.extend(item)
        elif isinstance(item, Task):
            yield from getattr(item, "__dict__", _NOTHING).values()
        elif isinstance(item, Mapping):
            todo.extend(item.keys())
            todo.extend(item.values())
        elif isinstance(item, Branches):
            todo.extend(item.branches)
        elif isinstance(item, Fan):
            todo.append(item.item)


_NOTHING: Mapping[str, Any] = {}


def _attributes(cls: type, root: type) -> Iterator[Any]:
    for base in cls.__mro__:
        if base is root:
            return
        yield from vars(base).values()
