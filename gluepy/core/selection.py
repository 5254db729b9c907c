"""Selecting tasks by id or label, also tasks that an `each` adds only at run time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gluepy.core.graph import Each, Element, Graph, Par, Seq, labels_in, parts
from gluepy.errors import OptionError, UnknownTask


class Bound(msgspec.Struct, frozen=True):
    """Of the tasks that the nodes `origins` add, only the one with the id `task` and those downstream of it (or, if not
    `downstream`, upstream)."""

    task: str
    downstream: bool
    origins: frozenset[int]


class Selection(msgspec.Struct, frozen=True):
    """The tasks that a run runs.

    These are the `nodes` and, of the tasks that an `each` adds at run time, those with one of `labels` or `ids`, all
    that the nodes `origins` add, and those with a label that `parts` has for the node that adds them, as far as they
    are within `bounds`.
    """

    nodes: frozenset[int]
    labels: frozenset[str] = frozenset()
    origins: frozenset[int] = frozenset()
    ids: frozenset[str] = frozenset()
    parts: dict[int, frozenset[str]] = {}
    bounds: tuple[Bound, ...] = ()
    _within: dict[int, set[int]] = {}  # the nodes within each bound, from when its task exists

    def takes(self, graph: Graph, node: int) -> bool:
        """Whether the task `node` of `graph` is selected."""
        if node in self.nodes:
            return True
        origin, label = graph.origin.get(node, -1), graph.spec(node).label
        if origin < 0:
            return False
        by_name = label in self.labels or graph.ids[node] in self.ids
        if not (by_name or origin in self.origins or label in self.parts.get(origin, ())):
            return False
        return all(
            node in self._reach(graph, place, bound)
            for place, bound in enumerate(self.bounds)
            if origin in bound.origins
        )

    def _reach(self, graph: Graph, place: int, bound: Bound) -> set[int]:
        if place not in self._within:
            if bound.task not in graph.index:
                return set()
            self._within[place] = graph.along(graph.index[bound.task], downstream=bound.downstream)
        return self._within[place]


def select(graph: Graph, dag: str, options: Mapping[str, Any]) -> Selection | None:
    """The tasks that the options `tasks`, `from_task`, `to_task` and `skip_evaluation` select; None if that is every
    task.

    Raises `UnknownTask`, and `OptionError` if nothing is selected.
    """
    tasks, from_task, to_task = options.get("tasks"), options.get("from_task"), options.get("to_task")
    judges = {node for node in graph.tasks() if graph.spec(node).evaluates} if options.get("skip_evaluation") else ()
    if not tasks and from_task is None and to_task is None and not judges:
        return None
    names = [tasks] if isinstance(tasks, str) else list(tasks or ())
    adders = expanders(graph)
    have_added = set(graph.origin.values())
    chosen = set(graph.tasks()).difference(judges)
    parts = {node: set(labels) for node, labels in adders.items() if graph.expandable(node)}
    bounds: list[Bound] = []
    if names:
        chosen = {node for name in names for nodes in resolve_name(graph, dag, name, adders) for node in nodes}
    for name, downstream in ((from_task, True), (to_task, False)):
        if name is not None:
            nodes, adding = resolve_name(graph, dag, name, adders)
            if not nodes and _is_instance(name):
                bounds.append(Bound(name, downstream, frozenset(adding)))
            nodes = [*nodes, *(node for node in adding if node not in have_added)]
            chosen &= {*(graph.descendants(nodes) if downstream else graph.ancestors(nodes)), *adding}
            for node, labels in adders.items():
                if name in labels and node in parts:
                    parts[node] &= labels_along(graph, node, name, downstream=downstream)
                elif node in adding and node in parts:
                    parts[node] &= labels_along(graph, node, name.partition("[")[0], downstream=downstream)
    chosen.difference_update(judges)
    if not chosen:
        raise OptionError("from_task and to_task", "nothing lies between them", f"see `gluepy graph {dag}`")
    if names:
        return Selection(frozenset(chosen), labels=frozenset(names), ids=frozenset(names), bounds=tuple(bounds))
    return Selection(
        frozenset(chosen),
        parts={node: frozenset(labels) for node, labels in parts.items() if node in chosen},
        bounds=tuple(bounds),
    )


def resolve_name(graph: Graph, dag: str, name: str, adders: Mapping[int, set[str]]) -> tuple[list[int], list[int]]:
    """The nodes that `name`, an id or a label, stands for, and those of `adders` that have added or can still add tasks
    of that name. `adders` are the graph's `expanders`. Raises `UnknownTask` if there are neither."""
    nodes, label = nodes_named(graph, name), name.partition("[")[0]
    if _is_instance(name) and nodes:
        adding = [graph.origin[node] for node in nodes if node in graph.origin]
    else:
        adding = [node for node, labels in adders.items() if label in labels]
    if _is_instance(name) and not nodes:  # the task gets this id once the values of its `each` are known
        adding = [node for node in adding if graph.expandable(node)]
    if not nodes and not adding:
        raise UnknownTask(name, dag, task_names(graph))
    return nodes, adding


def nodes_named(graph: Graph, name: str) -> list[int]:
    """The task with the id `name`, or else every task with that label."""
    if name in graph.index:
        return [graph.index[name]]
    return [node for node in graph.tasks() if graph.spec(node).label == name]


def awaited(graph: Graph, names: Iterable[str]) -> dict[str, frozenset[int]]:
    """Those of `names` that are ids of tasks which do not exist yet, each with the nodes that can still add it."""
    instances = {name: name.partition("[")[0] for name in names if _is_instance(name) and not nodes_named(graph, name)}
    if not instances:
        return {}
    adders = {node: labels for node, labels in expanders(graph).items() if graph.expandable(node)}
    return {
        name: frozenset(node for node, labels in adders.items() if label in labels) for name, label in instances.items()
    }


def task_names(graph: Graph) -> list[str]:
    """The names by which tasks can be selected: labels, also of tasks that an `each` will add, then ids."""
    return list(dict.fromkeys([*(spec.label for spec in graph.specs), *graph.index]))


def expanders(graph: Graph) -> dict[int, set[str]]:
    """The tasks that find the values of an `each`, also those that have, with the labels of what they add."""
    return {
        graph.index[graph.specs[part.expander].label]: set(labels_in(graph.specs, part.item))
        for part in parts(graph.tree.root)
        if isinstance(part, Each) and part.expander is not None
    }


def labels_along(graph: Graph, node: int, label: str, *, downstream: bool) -> set[str]:
    """The labels of the tasks that the `each` of `node` will add, from `label` on (or, if not `downstream`, up to it),
    itself included. Empty if the `each` has been expanded."""
    each = graph.expandable(node)
    return _along(graph, each.item, label, downstream) if each else set()


def _along(graph: Graph, element: Element, label: str, downstream: bool) -> set[str]:
    if label not in labels_in(graph.specs, element):
        return set()
    match element:
        case Seq():
            items = element.items if downstream else element.items[::-1]
            place = next(place for place, item in enumerate(items) if label in labels_in(graph.specs, item))
            beyond = {found for item in items[place + 1 :] for found in labels_in(graph.specs, item)}
            return _along(graph, items[place], label, downstream) | beyond
        case Each():
            return _along(graph, element.item, label, downstream)
        case Par():
            return set().union(*(_along(graph, item, label, downstream) for item in element.items))
        case _:
            return set(labels_in(graph.specs, element))


def _is_instance(name: str) -> bool:
    return name.endswith("]") and "[" in name
