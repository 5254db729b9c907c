"""What a resumed run does again, and why: from its state, and from what it is about."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from gluepy.core.graph import Graph
from gluepy.core.selection import Selection
from gluepy.core.state import BLOCKED, CANCELLED, FAILED, FINISHED, PENDING, RETRYING, RUNNING, SKIPPED, State

_UNFINISHED: Final = {
    FAILED: "it failed",
    BLOCKED: "it was blocked",
    CANCELLED: "it was cancelled",
    SKIPPED: "it was skipped",
    RUNNING: "it was interrupted",
}


def resets(
    state: State, forced: Mapping[int, str], gone: Collection[int] = (), selection: Selection | None = None
) -> dict[int, str]:
    """The tasks that have to be reset before the run goes on, each with the cause, in topological order.

    That is every task that has not finished (one that waits for a retry keeps waiting, one that never started needs no
    reset), every one that is `forced`, for the reason given there, every finished one whose outputs are `gone`, and
    every descendant of one that runs again. What the run leaves out, now or before, does not run: it resets nothing,
    and hides nothing that comes before it. Where it had begun it is reset, so that it can be left out.
    """
    graph, status = state.graph, state.status
    causes: dict[int, str] = {}
    again: dict[int, str] = {}  # what runs again, and what is behind it: the task that does
    for node in graph.order():
        behind = next((again[other] for other in graph.dependencies[node] if other in again), "")
        if behind:
            again[node] = behind
        if graph.ids[node] is None or (status[node] == SKIPPED and state.skip_reason.get(node) == "unselected"):
            continue
        if selection is not None and not selection.takes(graph, node):
            if status[node] in _UNFINISHED or (behind and status[node] == FINISHED):
                causes[node] = "the run's selection leaves it out"
            continue
        cause = forced.get(node) or _UNFINISHED.get(status[node], "")
        if not cause and node in gone:
            cause = "its declared outputs are gone"
        if not cause and status[node] == FINISHED and graph.expandable(node):
            cause = "what it found is not known any more"
        if status[node] in (PENDING, RETRYING):
            again[node] = graph.task_id(node)
            if status[node] == PENDING or node not in forced:
                continue
        if not cause and behind:
            cause = f"{behind} runs again"
        if cause:
            again[node] = graph.task_id(node)
            causes[node] = cause
    return causes


def changes(old: Graph, new: Graph) -> list[str]:
    """How the tasks of the DAG differ, in words; empty when they do not."""
    told = []
    added = [task for task in new.index if task not in old.index]
    removed = [task for task in old.index if task not in new.index and old.index[task] not in old.origin]
    for what, tasks in (("added", added), ("removed", removed)):
        if tasks:
            told.append(
                f"{what}: {', '.join(tasks[:10])}" + (f" and {len(tasks) - 10} more" if len(tasks) > 10 else "")
            )
    if _edges(old, set(removed)) != _edges(new, set(added)):
        told.append("dependencies changed")
    return told


def _edges(graph: Graph, without: set[str]) -> set[tuple[str, str]]:
    edges = set()
    for dependency, dependent in graph.task_edges():
        if dependency in graph.origin or dependent in graph.origin:
            continue
        names = graph.task_id(dependency), graph.task_id(dependent)
        if names[0] not in without and names[1] not in without:
            edges.add(names)
    return edges
