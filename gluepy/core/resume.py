"""What a resumed run does again, and why: from its state, and from what it is about."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from gluepy.core.graph import Graph
from gluepy.core.scheduler import Selection
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
        before = next((again[other] for other in graph.after[node] if other in again), "")
        if before:
            again[node] = before
        if graph.ids[node] is None or (status[node] == SKIPPED and state.why.get(node) == "unselected"):
            continue
        if selection is not None and not selection.takes(graph, node):
            if status[node] in _UNFINISHED or (before and status[node] == FINISHED):
                causes[node] = "the run's selection leaves it out"
            continue
        cause = forced.get(node) or _UNFINISHED.get(status[node], "")
        if not cause and node in gone:
            cause = "its declared outputs are gone"
        if not cause and status[node] == FINISHED and graph.expandable(node):
            cause = "what it found is not known any more"
        if status[node] in (PENDING, RETRYING):
            again[node] = graph.id(node)
            if status[node] == PENDING or node not in forced:
                continue
        if not cause and before:
            cause = f"{before} runs again"
        if cause:
            again[node] = graph.id(node)
            causes[node] = cause
    return causes


def changes(before: Graph, after: Graph) -> list[str]:
    """How the tasks of the DAG differ, in words; empty when they do not."""
    told = []
    added = [task for task in after.index if task not in before.index]
    removed = [task for task in before.index if task not in after.index and before.index[task] not in before.origin]
    for what, tasks in (("added", added), ("removed", removed)):
        if tasks:
            told.append(
                f"{what}: {', '.join(tasks[:10])}" + (f" and {len(tasks) - 10} more" if len(tasks) > 10 else "")
            )
    if _edges(before, set(removed)) != _edges(after, set(added)):
        told.append("dependencies changed")
    return told


def _edges(graph: Graph, without: set[str]) -> set[tuple[str, str]]:
    edges = set()
    for before, after in graph.task_edges():
        if before in graph.origin or after in graph.origin:
            continue
        names = graph.id(before), graph.id(after)
        if names[0] not in without and names[1] not in without:
            edges.add(names)
    return edges
