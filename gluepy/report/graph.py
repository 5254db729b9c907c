"""The graph of a DAG or a run, as JSON."""

from __future__ import annotations

from gluepy.core.events import JSON
from gluepy.core.graph import Graph


def graph_json(graph: Graph) -> dict[str, JSON]:
    """`nodes` and `edges`: pairs of positions in `nodes`, [dependency, dependent].

    A node is a task, or a *join*, whose `task` is null: a point without work between two wide groups, for which n tasks
    after n tasks take 2 n edges. Of a task there are `label`, `class`, `trigger`, `pool` (null: what the run has),
    `parameters` and, if it will find the values of an `each`, the labels of the tasks that this `adds`.
    """
    nodes: list[dict[str, JSON]] = []
    for node, task in enumerate(graph.ids):
        if task is None:
            nodes.append({"task": None})
            continue
        spec = graph.spec(node)
        told: dict[str, JSON] = {
            "task": task,
            "label": spec.label,
            "class": spec.cls,
            "trigger": spec.trigger,
            "pool": spec.pool,
            "parameters": graph.params(node),
        }
        if graph.expandable(node):
            told["adds"] = sorted(graph.labels_of(node))
        nodes.append(told)
    edges = [[other, node] for node, others in enumerate(graph.dependencies) for other in others]
    return {"nodes": nodes, "edges": edges}
