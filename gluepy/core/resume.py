"""What a resumed run does again, and why: from the state alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from gluepy.core.graph import Graph
from gluepy.core.state import BLOCKED, CANCELLED, FAILED, FINISHED, PENDING, RETRYING, RUNNING, SKIPPED, State

_UNFINISHED: Final = {
    FAILED: "it failed",
    BLOCKED: "it was blocked",
    CANCELLED: "it was cancelled",
    SKIPPED: "it was skipped",
    RUNNING: "it was interrupted",
}


def resets(state: State, forced: Mapping[int, str], gone: Collection[int] = ()) -> dict[int, str]:
    """The tasks that have to be reset before the run goes on, each with the cause, in topological order.

    That is every task that has not finished (one that waits for a retry keeps waiting, one that never started needs no
    reset), every one that is `forced`, for the reason given there, every finished one whose outputs are `gone`, and
    every descendant of one that runs again. What the run left out stays so, and hides nothing that comes before it.
    """
    graph, status = state.graph, state.status
    causes: dict[int, str] = {}
    again: set[int] = set()
    for node in graph.order():
        if _is_passed_through(state, node):
            if any(before in again for before in graph.after[node]):
                again.add(node)
            continue
        cause = forced.get(node) or _UNFINISHED.get(status[node], "")
        if not cause and node in gone:
            cause = "its declared outputs are gone"
        if not cause and status[node] == FINISHED and graph.expandable(node):
            cause = "what it found is not known any more"
        if status[node] in (PENDING, RETRYING):
            again.add(node)
            if status[node] == PENDING or node not in forced:
                continue
        if not cause and any(before in again for before in graph.after[node]):
            cause = f"{_runs_again(state, node, again)} runs again"
        if cause:
            again.add(node)
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


def _is_passed_through(state: State, node: int) -> bool:
    """Whether it is a join, or a task that is not selected: neither runs, and those after it follow those before it."""
    return state.graph.ids[node] is None or (state.status[node] == SKIPPED and state.why.get(node) == "unselected")


def _runs_again(state: State, node: int, again: set[int]) -> str:
    after = state.graph.after
    todo = [before for before in after[node] if before in again]
    while True:
        before = todo.pop()
        if not _is_passed_through(state, before):
            return state.graph.id(before)
        todo.extend(other for other in after[before] if other in again)


def _edges(graph: Graph, without: set[str]) -> set[tuple[str, str]]:
    edges = set()
    for before, after in graph.task_edges():
        if before in graph.origin or after in graph.origin:
            continue
        names = graph.id(before), graph.id(after)
        if names[0] not in without and names[1] not in without:
            edges.add(names)
    return edges
