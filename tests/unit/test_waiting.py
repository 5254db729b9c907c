"""What tasks wait for, a slot or a named limit: in a run that goes on, in its timeline, in a forecast."""

from __future__ import annotations

from pathlib import Path

import pytest

from gluepy.cli.bars import timeline_text
from gluepy.cli.estimate import Estimate
from gluepy.cli.story import run_text
from gluepy.conf.sources import load_settings
from gluepy.core import events as e
from gluepy.core.forecast import forecast
from gluepy.core.graph import Each, Graph, Leaf, Par, Seq, Spec, Tree
from gluepy.core.state import FINISHED, RUNNING, SKIPPED, State
from gluepy.core.timeline import Bar, Timeline, held_back, waited_for
from gluepy.report import RunReport, RunTimeline
from gluepy.runs.durations import Durations
from gluepy.runs.record import Record

SPECS = (
    Spec(cls="flows:Load", label="load"),
    Spec(cls="flows:Use", label="use", params=("n",), uses={"one": 1}),
    Spec(cls="flows:Free", label="free", params=("n",)),
    Spec(cls="flows:After", label="after"),
    Spec(cls="flows:Fit", label="each-fit", expands=True),
    Spec(cls="flows:Fit", label="fit", params=("n",)),
)
ROWS = [[1], [2], [3]]
LOAD, AFTER = Leaf(0), Leaf(3)
USES, FREES = Each(Leaf(1), ("n",), ROWS), Each(Leaf(2), ("n",), ROWS)
TREE = Tree(SPECS, Seq((LOAD, Par((USES, FREES)), AFTER)))


def state_of(**statuses: int) -> State:
    state = State(Graph(TREE))
    for node in state.graph.tasks():
        state.status[node] = statuses.get(state.graph.task_id(node).replace("[n=", "").replace("]", ""), 0)
    return state


def waiting(state: State, slots: int, limit: int = 1) -> dict[str, str]:
    return {state.graph.task_id(node): name for node, name in held_back(state, slots, {"one": limit}).items()}


def test_what_is_ready_waits_for_a_limit_or_for_a_slot() -> None:
    assert waiting(state_of(load=RUNNING), 1) == {}  # nothing else is ready
    state = state_of(load=FINISHED, use1=RUNNING, free1=RUNNING)
    assert waiting(state, 2) == {"use[n=2]": "one", "use[n=3]": "one", "free[n=2]": "", "free[n=3]": ""}
    assert waiting(state, 9) == {"use[n=2]": "one", "use[n=3]": "one"}
    assert waiting(state, 9, limit=2) == {}  # they are about to start
    ended = {f"{label}{n}": SKIPPED if n == 2 else FINISHED for label in ("use", "free") for n in (1, 2, 3)}
    assert waiting(state_of(load=FINISHED, **{**ended, "use3": RUNNING}), 1) == {}  # after: its join is not done
    assert waiting(state_of(load=FINISHED, **ended), 0) == {"after": ""}


def bar(task: str, started_s: float, ended_s: float, queued_s: float) -> Bar:
    return Bar(task, 1, started_s, ended_s, queued_s, "finished")


def test_the_time_of_waiting_is_told_by_what_it_was_for() -> None:
    bars = [
        bar("load", 0, 1, 0),
        bar("use[n=1]", 1, 3, 0),
        bar("free[n=1]", 1, 2, 0),
        bar("free[n=2]", 2, 4, 1),
        bar("use[n=2]", 3, 5, 2),
        bar("free[n=3]", 4, 5, 3),
        bar("use[n=3]", 5, 6, 4),
    ]
    told = Timeline(bars, 6, sum(each.ended_s - each.started_s for each in bars), 10, [])
    assert waited_for(told, state_of(), {"one": 1}) == {"": 4, "one": 6}
    assert waited_for(told, state_of(), {"one": 2}) == {"": 10}


@pytest.mark.parametrize(("limit", "narrowest", "makespan_s"), [(1, ("one", 6.0), 8.0), (2, ("", 0.0), 6.0)])
def test_a_forecast_knows_which_limit_keeps_a_run(limit: int, narrowest: tuple[str, float], makespan_s: float) -> None:
    graph = Graph(TREE)
    found = forecast(graph, lambda node: 1.0 + (graph.spec_of[node] == 1), concurrency=20, limits={"one": limit})
    assert (found.narrowest, found.makespan_s) == (narrowest, makespan_s)
    known = Durations(1, {}, {"use": [2.0], "load": [1.0], "free": [1.0], "after": [1.0]})
    outlook = Estimate.from_durations(Graph(TREE), None, 20, {"one": limit}, known)
    assert outlook.typical_s == makespan_s
    bound = "at least 6.00 s however many tasks run at a time, for limit one"
    assert (bound in list(outlook.text())) == (limit == 1)
    assert outlook.record().get("limit") == (narrowest[0] or None)


def test_a_finished_run_is_not_told_to_be_as_long_as_its_path_when_a_limit_keeps_it() -> None:
    state = state_of(
        **dict.fromkeys(("load", "after", *(f"{label}{n}" for label in ("use", "free") for n in (1, 2, 3))), FINISHED)
    )
    state.run = "finished"
    for node in state.graph.tasks():
        state.status[node], state.duration_s[node] = FINISHED, 1.0
    bars = [bar("load", 0, 1, 0), *(bar(f"use[n={n}]", n, n + 1, n - 1) for n in (1, 2, 3)), bar("after", 4, 5, 0)]
    told = Timeline(bars, 5, 5, 3, ["load", "use[n=3]", "after"])
    wide = RunTimeline(told, state, concurrency=9, limits={"one": 1}, status="finished")
    text = "\n".join(timeline_text(wide, False))
    assert "3.00 s ready and waiting for limit one" in text
    assert "more concurrency would bring nothing: limit one keeps it as long" not in text  # 5 s are its path
    assert wide.to_json()["waited_for_s"] == {"limit one": 3}


def test_what_an_each_found_stands_where_its_block_stands(tmp_path: Path) -> None:
    root = Seq((LOAD, Each(Leaf(5), ("n",), None, 4), AFTER))
    graph = Tree(SPECS, root).record()
    head = (1, "2026-01-01T00:00:00.000000Z", "info", "run", "dag")
    events: list[e.Event] = [
        e.RunStarted(1, *head, 1, "2", "host", 1, graph, "digest", "code", {}),
        e.TaskExpanded(2, *head, "each-fit", 1, [[1], [2]]),
        e.TaskSkipped(3, *head, "fit[n=2]", 1, "skip", "no news"),
    ]
    record = Record.create(tmp_path, "run", {"model": {"depth": 3}, "db": {"password": "hush"}})
    record.events.write_bytes(b"".join(map(e.encode, events)))
    run = RunReport.from_record(record, load_settings(None))
    told = run.to_json()
    assert list(told["tasks"]) == ["load", "each-fit", "fit[n=1]", "fit[n=2]", "after"]
    assert told["tasks"]["fit[n=2]"]["reason"] == "skip"
    assert told["tasks"]["fit[n=2]"]["why"] == "no news"
    assert run.parameters == told["parameters"] == {"model.depth": 3, "db.password": "***"}
    text = list(run_text(run, False))
    tasks = text[text.index(next(line for line in text if line.startswith("task "))) + 1 :]
    assert [line.split()[0] for line in tasks] == ["load", "each-fit", "fit[n=1]", "fit[n=2]", "after"]
    assert "model.depth  3" in text
