"""What a resumed run does again, and why: from its state, and from what it is about."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from gluepy.core.graph import Graph
from gluepy.core.selection import Selection, expanders, resolve_name
from gluepy.core.state import BLOCKED, CANCELLED, FAILED, FINISHED, PENDING, RETRYING, RUNNING, SKIPPED, STATUS, State
from gluepy.errors import OptionError

_UNFINISHED: Final = {
    FAILED: "it failed",
    BLOCKED: "it was blocked",
    CANCELLED: "it was cancelled",
    SKIPPED: "it was skipped",
    RUNNING: "it was interrupted",
}


class Reruns(msgspec.Struct, frozen=True, kw_only=True):
    """What a resumed run does with each of its tasks.

    `resets` are the nodes that have to be reset, each with the cause, in topological order. By task id: `again` are
    those of them that run, `waiting` the tasks that have still to begin, `retrying` those that are due for another
    attempt, `kept` the finished ones that do not run. `no_task_yet` has the names that mean no task as yet, with the
    reason. `left_out` counts the tasks that the run's selection leaves out.
    """

    resets: Mapping[int, str]
    again: Mapping[str, str]
    waiting: Sequence[str]
    retrying: Sequence[str]
    kept: Sequence[str]
    no_task_yet: Mapping[str, str]
    left_out: int


def plan_resume(
    state: State,
    dag: str,
    *,
    force: Collection[str] = (),
    from_task: str | None = None,
    missing_outputs: Collection[int] = (),
    selection: Selection | None = None,
) -> Reruns:
    """Decide what the run in `state`, of the DAG with the label `dag`, does again.

    `force` are tasks (ids or labels) that run again whether they have finished or not, `from_task` likewise one from
    which the run resumes; `missing_outputs` are finished nodes whose outputs are not there any more. Raises
    `UnknownTask`, and `OptionError` if all that is named was left out by the run's selection.
    """
    graph, status = state.graph, state.status

    def is_selected(node: int) -> bool:
        return selection is None or selection.takes(graph, node)

    def ids(nodes: Collection[int], *wanted: int) -> list[str]:
        return [graph.task_id(node) for node in nodes if status[node] in wanted]

    forced, no_task_yet = _named(state, dag, force, from_task)
    if forced and not any(map(is_selected, forced)):
        task, run = graph.task_id(min(forced)), f"the selection of run {state.run_id}"
        raise OptionError(f"task {task!r}", f"{run} left it out", "start a new run")
    found = {
        node: f"{cause}; the values that it found are kept" if node in state.rows else cause
        for node, cause in resets(state, forced, missing_outputs, selection).items()
    }
    rest = [node for node in graph.tasks() if node not in found]
    to_run = [node for node in rest if is_selected(node)]
    skipped = state.skip_reason.items()
    return Reruns(
        resets=found,
        again={graph.task_id(node): cause for node, cause in found.items() if is_selected(node)},
        waiting=ids(to_run, PENDING),
        retrying=ids(to_run, RETRYING),
        kept=ids(rest, FINISHED),
        no_task_yet=no_task_yet,
        left_out=sum(
            reason == "unselected" and status[node] == SKIPPED and node not in found for node, reason in skipped
        ),
    )


def evaluation_of(state: State, dag: str) -> list[str]:
    """The tasks that judge the run. Raises `OptionError` if there are none, or others have not ended well."""
    graph = state.graph
    judges = [node for node in graph.tasks() if graph.spec(node).evaluates and node not in graph.origin]
    if not judges:
        raise OptionError("evaluate", f"DAG {dag!r} has no evaluation", "write it: evaluation = (Accuracy,)")
    for node in graph.tasks():
        if not graph.spec(node).evaluates and state.status[node] not in (FINISHED, SKIPPED):
            problem = f"run {state.run_id} has not finished: {graph.task_id(node)} is {STATUS[state.status[node]]}"
            raise OptionError("evaluate", problem, f"first `gluepy resume {state.run_id}`")
    return [graph.task_id(node) for node in judges]


def _named(
    state: State, dag: str, force: Collection[str], from_task: str | None
) -> tuple[dict[int, str], dict[str, str]]:
    """The nodes that `force` and `from_task` name, with the cause for each to run again; and the names that mean no
    task as yet, with the reason. Raises `UnknownTask`."""
    graph, forced, no_task_yet = state.graph, dict[int, str](), dict[str, str]()
    wanted = [(name, "it was forced") for name in force]
    if from_task is not None:
        wanted.append((from_task, "the run resumes from it"))
    adders = expanders(graph) if wanted else {}
    for name, cause in wanted:
        nodes, adding = resolve_name(graph, dag, name, adders)
        forced.update(dict.fromkeys(nodes, cause))
        if nodes:
            continue
        each = next((node for node in adding if node not in state.rows), adding[0])
        if state.skip_reason.get(each) == "unselected":
            no_task_yet[name] = f"{graph.task_id(each)} is not in the run's selection"
        elif each not in state.rows:
            no_task_yet[name] = f"{graph.task_id(each)} has not found its values yet"
        else:
            no_task_yet[name] = f"{graph.task_id(each)} found no values"
    return forced, no_task_yet


def resets(
    state: State, forced: Mapping[int, str], missing_outputs: Collection[int] = (), selection: Selection | None = None
) -> dict[int, str]:
    """The tasks that have to be reset before the run goes on, each with the cause, in topological order.

    That is every task that has not finished (one that waits for a retry keeps waiting, one that never started needs no
    reset), every one that is `forced`, for the reason given there, every finished one of `missing_outputs`, and every
    descendant of one that runs again. What the run leaves out, now or before, does not run: it resets nothing, and
    hides nothing that comes before it, but for an evaluation that is forced. If it had begun it is reset, so that it
    can be left out.
    """
    graph, status = state.graph, state.status
    causes: dict[int, str] = {}
    again: dict[int, str] = {}  # what runs again, and what is behind it: the task that does
    for node in graph.order():
        behind = next((again[other] for other in graph.dependencies[node] if other in again), "")
        if behind:
            again[node] = behind
        left_out = status[node] == SKIPPED and state.skip_reason.get(node) == "unselected"
        if graph.ids[node] is None or (left_out and not (node in forced and graph.spec(node).evaluates)):
            continue
        if selection is not None and not selection.takes(graph, node):
            if status[node] in _UNFINISHED or (behind and status[node] == FINISHED):
                causes[node] = "the run's selection leaves it out"
            continue
        cause = forced.get(node) or _UNFINISHED.get(status[node], "")
        if not cause and node in missing_outputs:
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
