"""Opening a session: the first events that it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gluepy.core import events as e
from gluepy.core.state import RUNNING, State
from gluepy.exec.journal import Journal
from gluepy.exec.slots import Place


def open_session(
    journal: Journal,
    state: State,
    opening: e.RunStarted | e.RunResumed,
    resets: Mapping[int, str],
    places: Sequence[Place],
) -> None:
    """Write `opening`, then for each node of `resets`, in order, that it runs again, and why.

    An attempt that has no end was interrupted when the session before it ended: that is written first, so that no
    attempt of a log is without an end. Raises `LogBroken`.
    """

    def write(event: e.Event) -> None:
        journal.store(event)
        state.apply(event)

    write(opening)
    for node, cause in resets.items():
        if state.status[node] == RUNNING:
            write(_interrupted(journal, state, node, places[state.graph.spec_of[node]]))
        write(e.TaskReset(*journal.header("info"), state.graph.task_id(node), state.attempt[node], cause))
    journal.flush()


def _interrupted(journal: Journal, state: State, node: int, place: Place) -> e.TaskFailed:
    return e.TaskFailed(
        *journal.header("error"),
        state.graph.task_id(node),
        state.attempt[node],
        max_attempts=place.spec.retry.attempts + state.attempts_before_reset.get(node, 0),
        executor=place.executor.name,
        pool=place.pool,
        duration_s=0.0,
        reason="interrupted",
        error_type="Interrupted",
        error_message="the driver of the run ended before the attempt did",
    )
