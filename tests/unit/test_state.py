"""The state is the fold over the events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import structs
from simulation import World, fingerprint

from gluepy.core import events as e
from gluepy.core.graph import Deps, Each, Element, Graph, Leaf, Par, Seq, Spec, Tree
from gluepy.core.resume import changes, resets
from gluepy.core.selection import Selection
from gluepy.core.state import PENDING, STATUS, State
from gluepy.core.timeline import Bar, timeline, with_more_slots

SPECS = (
    *(Spec(cls=f"m:{label}", label=label) for label in "abc"),
    Spec(cls="m:t", label="t", params=("x",)),
    Spec(cls="m:each-t", label="each-t", expands=True),
)
ASK = Each(Leaf(3), ("x",), expander=4)


def tree(root: Element) -> Tree:
    return Tree(SPECS, root)


class Story:
    """Events, written as they would be."""

    def __init__(self, root: Element) -> None:
        self.seq = 0
        self.events: list[e.Event] = [self.opening(e.RunStarted, tree(root))]
        self.state = State.from_events(self.events)

    def opening(self, kind: Any, tree: Tree, session: int = 1, **more: Any) -> Any:
        self.seq += 1
        facts = (1, "0", "host", 1, tree.record(), "digest", f"code {session}", {"concurrency": session})
        return kind(self.seq, session, "2026-01-01T00:00:01.500000Z", "info", "r1", "dag", *facts, **more)

    def tell(self, kind: Any, *facts: Any, **more: Any) -> int:
        self.seq += 1
        header = (self.seq, 1, "2026-01-01T00:00:02.250000Z", "info", "r1", "dag")
        return self.happens(kind(*header, *facts, **more))

    def happens(self, event: e.Event) -> int:
        self.events.append(event)
        return self.state.apply(event)

    def starts(self, task: str, attempt: int = 1) -> None:
        self.tell(e.TaskStarted, task, attempt, 3, "x", "thread", "host", 1, 0.0)

    def finishes(self, task: str, attempt: int = 1, duration_s: float = 2.5) -> None:
        self.tell(e.TaskFinished, task, attempt, "x", "thread", duration_s)

    def retries(self, task: str, attempt: int, reason: str, delay_s: float = 4.0) -> None:
        self.tell(e.TaskRetrying, task, attempt, 3, "x", "thread", 1.5, delay_s, reason, "E", "m")

    def fails(self, task: str, attempt: int = 1, reason: str = "exception") -> None:
        self.tell(e.TaskFailed, task, attempt, 3, "x", "thread", 1.5, reason, "E", "m")

    def resumes(self, root: Element, session: int = 2) -> None:
        self.happens(self.opening(e.RunResumed, tree(root), session, changes=[]))

    def status(self) -> dict[str, str]:
        state = self.state
        return {state.graph.task_id(node): STATUS[state.status[node]] for node in state.graph.tasks()}


@pytest.fixture
def story() -> Story:
    return Story(Seq((Leaf(0), Par((Leaf(1), Leaf(2))), ASK)))


def test_a_run_begins_with_all_its_tasks_pending(story: Story) -> None:
    state = story.state
    assert story.status() == dict.fromkeys(("a", "b", "c", "each-t"), "pending")
    assert (state.run, state.run_id, state.dag, state.session, state.seq) == ("running", "r1", "dag", 1, 1)
    assert state.started_at == "2026-01-01T00:00:01.500000Z"
    assert state.options == {"concurrency": 1}
    assert State(state.graph).run == "pending"


def test_an_attempt_has_a_number_and_a_duration(story: Story) -> None:
    story.starts("a", 2)
    assert (story.status()["a"], story.state.attempt[0]) == ("running", 2)
    story.finishes("a", 2)
    assert (story.status()["a"], story.state.duration_s[0], story.state.attempt[0]) == ("finished", 2.5, 2)
    assert story.state.seq == 3


def test_retries_count_own_failures_and_lost_workers_apart(story: Story) -> None:
    for number, reason in enumerate(("exception", "lost", "timeout", "lost", "memory"), start=1):
        story.starts("a", number)
        story.retries("a", number, reason)
    state = story.state
    assert (state.failures, state.losses) == ({0: 3}, {0: 2})
    assert state.retry_at[0] == 1767225602.25 + 4.0
    assert (story.status()["a"], state.error[0].reason, state.duration_s[0]) == ("retrying", "memory", 1.5)


def test_every_way_to_end_is_known(story: Story) -> None:
    story.fails("a")
    story.tell(e.TaskSkipped, "b", 1, "skip", "nothing new", 0.5)
    story.tell(e.TaskBlocked, "c", 0, ["a"])
    story.tell(e.TaskCancelled, "each-t", 1, 0.25)
    state = story.state
    assert story.status() == {"a": "failed", "b": "skipped", "c": "blocked", "each-t": "cancelled"}
    assert (state.error[0].error_message, state.skip_reason, state.blocked_by) == ("m", {1: "skip"}, {2: ["a"]})
    assert [state.duration_s[state.graph.index[task]] for task in ("a", "b", "c", "each-t")] == [1.5, 0.5, 0.0, 0.25]
    assert state.counts() == {"failed": 1, "skipped": 1, "cancelled": 1, "blocked": 1}


def test_a_reset_forgets_what_was_but_not_how_many_attempts_there_were(story: Story) -> None:
    story.starts("a", 1)
    story.retries("a", 1, "exception")
    story.starts("a", 2)
    story.retries("a", 2, "lost")
    story.starts("a", 3)
    story.fails("a", 3)
    story.tell(e.TaskSkipped, "b", 0, "upstream")
    story.tell(e.TaskBlocked, "c", 0, ["a"])
    for task in ("a", "b", "c"):
        story.tell(e.TaskReset, task, 3, "it failed")
    state = story.state
    assert not any((state.failures, state.losses, state.retry_at, state.error, state.skip_reason, state.blocked_by))
    assert story.status()["a"] == "pending"
    assert (state.attempt[0], state.attempts_before_reset[0]) == (3, 3)


def test_progress_metrics_and_output_change_no_status(story: Story) -> None:
    story.starts("a")
    assert story.tell(e.TaskProgress, "a", 1, 1.0, 2.0) == 0
    assert story.tell(e.TaskMetric, "a", 1, "rmse", 0.5) == 0
    assert story.tell(e.TaskMetric, "a", 1, "rmse", 0.25) == 0
    assert story.tell(e.TaskOutput, "a", 1, "stdout", "hello") == 0
    assert story.state.metrics == {0: {"rmse": 0.25}}
    assert story.status()["a"] == "running"


def test_an_expansion_adds_tasks(story: Story) -> None:
    node = story.tell(e.TaskExpanded, "each-t", 1, [["x"], ["y"]])
    state = story.state
    assert state.rows == {node: [["x"], ["y"]]}
    assert story.status()["t[x=y]"] == "pending"
    assert len(state.status) == len(state.attempt) == len(state.duration_s) == len(state.graph)
    story.starts("t[x=y]")
    story.finishes("t[x=y]")


@pytest.mark.parametrize(
    ("kind", "facts", "status"),
    [(e.RunFinished, (), "finished"), (e.RunFailed, (["a"],), "failed"), (e.RunCancelled, (), "cancelled")],
)
def test_a_run_ends(story: Story, kind: Any, facts: Iterable[Any], status: str) -> None:
    assert story.tell(kind, 12.5, {"pending": 4}, *facts) == -1
    assert (story.state.run, story.state.run_duration_s) == (status, 12.5)


def test_a_log_that_does_not_begin_with_its_run_is_refused(story: Story) -> None:
    for events in ([], [story.opening(e.RunResumed, story.state.graph.tree, changes=[])]):
        with pytest.raises(ValueError, match=r"begin with run\.started"):
            State.from_events(events)


def test_an_event_about_an_unknown_task_is_refused(story: Story) -> None:
    with pytest.raises(KeyError):
        story.starts("nobody")


def test_live_state_is_the_fold_for_every_prefix_of_every_log() -> None:
    for seed in range(20):
        run = World(seed).play().runs[0]
        folded = State.from_events([e.decode(run.lines[0])])
        for cut, line in enumerate(run.lines[1:], start=2):
            folded.apply(e.decode(line))
            if cut % 7 == 0 or cut == len(run.lines):
                assert fingerprint(folded) == fingerprint(State.from_events(map(e.decode, run.lines[:cut])))
        assert fingerprint(folded) == fingerprint(run.state)


# ---- another session


def test_a_resumed_run_of_the_same_dag_keeps_everything(story: Story) -> None:
    story.finishes("a")
    graph = story.state.graph
    story.resumes(Seq((Leaf(0), Par((Leaf(1), Leaf(2))), ASK)))
    assert story.state.graph is graph
    assert (story.state.session, story.state.options) == (2, {"concurrency": 2})
    assert story.state.started_at == "2026-01-01T00:00:01.500000Z"


def test_what_is_known_of_tasks_that_a_changed_dag_still_has_is_carried_over(story: Story) -> None:
    story.starts("a")
    story.finishes("a")
    story.starts("b")
    story.retries("b", 1, "lost")
    story.tell(e.TaskMetric, "b", 1, "rmse", 0.5)
    story.fails("c")
    story.tell(e.TaskExpanded, "each-t", 1, [["x"], ["y"]])
    story.finishes("each-t")
    story.finishes("t[x=x]")
    story.resumes(Seq((ASK, Leaf(1), Leaf(0), Leaf(2, id="new"))))  # in another order, without c
    state = story.state
    assert story.status() == {
        "each-t": "finished", "b": "retrying", "a": "finished", "new": "pending",
        "t[x=x]": "finished", "t[x=y]": "pending",
    }  # fmt: skip
    b = state.graph.index["b"]
    assert (state.losses, state.metrics, state.attempt[b]) == ({b: 1}, {b: {"rmse": 0.5}}, 1)
    assert state.error[b].reason == "lost"
    assert state.duration_s[state.graph.index["a"]] == 2.5


@pytest.mark.parametrize(
    "root",
    [
        Seq((Each(Leaf(3, fixed={}), ("x", "y"), expander=4),)),  # it asks for something else now
        Seq((Leaf(3, fixed={"x": "y"}), ASK)),  # what it found would clash
    ],
)
def test_what_was_found_for_another_each_is_asked_again(story: Story, root: Element) -> None:
    story.tell(e.TaskExpanded, "each-t", 1, [["x"], ["y"]])
    story.finishes("each-t")
    story.resumes(root)
    assert story.state.rows == {}
    node = story.state.graph.index["each-t"]
    assert resets(story.state, {}) == {node: "what it found is not known any more"}
    story.tell(e.TaskReset, "each-t", 1, "what it found is not known any more")
    assert story.state.status[node] == PENDING


def test_an_each_that_is_gone_takes_what_it_found_along(story: Story) -> None:
    story.tell(e.TaskExpanded, "each-t", 1, [["x"]])
    story.finishes("each-t")
    story.resumes(Deps((Leaf(0),), ((),)))
    assert story.status() == {"a": "pending"}
    assert story.state.rows == {}


def test_what_is_known_of_a_task_that_was_taken_out_comes_back_with_it(story: Story) -> None:
    story.starts("a")
    story.finishes("a")
    story.starts("b")
    story.retries("b", 1, "lost")
    story.tell(e.TaskMetric, "b", 1, "rmse", 0.5)
    story.starts("c")
    story.resumes(Leaf(3, fixed={"x": 1}))
    assert story.status() == {"t[x=1]": "pending"}
    assert not any((story.state.losses, story.state.error, story.state.metrics))
    story.resumes(Leaf(3, fixed={"x": 2}), session=3)
    story.resumes(Seq((Leaf(2), Leaf(1), Leaf(0))), session=4)
    state = story.state
    assert story.status() == {"c": "running", "b": "retrying", "a": "finished"}
    assert (list(state.attempt), list(state.duration_s)) == ([1, 1, 1], [0.0, 1.5, 2.5])
    assert (state.losses, state.metrics, state.retry_at) == ({1: 1}, {1: {"rmse": 0.5}}, {1: 1767225606.25})
    assert state.error[1].reason == "lost"
    assert not state.removed_tasks
    assert resets_of(story) == {"c": "it was interrupted", "a": "b runs again"}  # what is before it decides, as ever


@pytest.mark.parametrize("rows", [[["x"], ["y"]], []])
def test_an_each_that_comes_back_has_found_what_it_had(story: Story, rows: list[list[str]]) -> None:
    story.starts("each-t")
    story.tell(e.TaskExpanded, "each-t", 1, rows)
    story.finishes("each-t")
    if rows:
        story.starts("t[x=y]")
        story.finishes("t[x=y]")
    story.resumes(Leaf(0))
    story.finishes("a")
    story.resumes(Seq((Leaf(0), ASK)), session=3)
    found = {"t[x=x]": "pending", "t[x=y]": "finished"} if rows else {}
    assert story.status() == {"a": "finished", "each-t": "finished", **found}
    assert story.state.rows == {story.state.graph.index["each-t"]: rows}
    assert resets_of(story) == {}


def test_what_an_each_finds_that_was_a_task_before_runs_again_in_a_new_attempt() -> None:
    story = Story(Seq((Leaf(0), Leaf(3, fixed={"x": 1}))))
    story.starts("t[x=1]", 2)
    story.fails("t[x=1]", 2)
    story.resumes(ASK)
    story.starts("each-t")
    story.tell(e.TaskExpanded, "each-t", 1, [[1], [2]])
    assert story.status() == {"each-t": "running", "t[x=1]": "pending", "t[x=2]": "pending"}
    state, node = story.state, story.state.graph.index["t[x=1]"]
    assert (state.attempt[node], state.attempts_before_reset) == (2, {node: 2})
    assert not state.error
    assert not state.removed_tasks


def test_the_state_of_a_run_whose_dag_changes_is_the_fold_at_every_prefix(story: Story) -> None:
    """Also where the driver has carried it over before it wrote that down."""
    session: list[Callable[[], object]] = [
        lambda: story.starts("a"),
        lambda: story.finishes("a"),
        lambda: story.tell(e.TaskExpanded, "each-t", 1, [["x"], ["y"]]),
        lambda: story.finishes("each-t"),
        lambda: story.starts("t[x=y]"),
        lambda: story.fails("t[x=y]"),
        lambda: story.resumes(Seq((Leaf(2), Leaf(1)))),
        lambda: story.starts("b"),
        lambda: story.resumes(Seq((Leaf(3, fixed={"x": "x"}), ASK, Leaf(0))), 3),
        lambda: story.tell(e.TaskReset, "each-t", 1, "what it found is not known any more"),
        lambda: story.tell(e.TaskExpanded, "each-t", 2, [["y"]]),
        lambda: story.resumes(Seq((Leaf(0), ASK, Leaf(1))), 4),
    ]
    for step in session:
        step()
        assert fingerprint(State.from_events(story.events)) == fingerprint(story.state)
        before, last = State.from_events(story.events[:-1]), story.events[-1]
        if isinstance(last, e.RunResumed):
            before.carry_over(Graph(Tree.from_record(last.graph)))
            before.apply(last)
            assert fingerprint(before) == fingerprint(story.state)
    assert story.status() == {
        "a": "finished", "each-t": "pending", "b": "running", "t[x=y]": "pending"
    }  # fmt: skip


def test_states_of_equal_logs_are_equal_and_of_others_differ(story: Story) -> None:
    other = Story(Seq((Leaf(0), Par((Leaf(1), Leaf(2))), ASK)))
    assert fingerprint(other.state) == fingerprint(story.state)
    other.starts("a")
    assert fingerprint(other.state) != fingerprint(story.state)
    assert Graph(story.state.graph.tree).ids == story.state.graph.ids


def resets_of(
    story: Story, forced: dict[str, str] | None = None, gone: Iterable[str] = (), selected: Iterable[str] | None = None
) -> dict[str, str]:
    index = story.state.graph.index
    found = resets(
        story.state,
        {index[task]: why for task, why in (forced or {}).items()},
        [index[task] for task in gone],
        None if selected is None else Selection(frozenset(index[task] for task in selected)),
    )
    return {story.state.graph.task_id(node): why for node, why in found.items()}


def test_what_has_not_finished_runs_again_and_all_that_follows_it() -> None:
    story = Story(Seq((Leaf(0), Par((Leaf(1), Leaf(2))), ASK)))
    story.finishes("a")
    story.finishes("b")
    story.fails("c")
    story.tell(e.TaskBlocked, "each-t", 0, ["c"])
    assert resets_of(story) == {"c": "it failed", "each-t": "it was blocked"}
    story.starts("c", 2)
    story.tell(e.TaskExpanded, "each-t", 1, [["x"]])
    story.finishes("each-t")
    story.finishes("t[x=x]")
    assert resets_of(story) == {"c": "it was interrupted", "each-t": "c runs again", "t[x=x]": "each-t runs again"}


def test_what_is_forced_or_has_lost_its_outputs_runs_again_and_all_that_follows_it() -> None:
    story = Story(Seq((Par((Leaf(0), Leaf(1))), Par((Leaf(2), Leaf(3, fixed={"x": 1}))))))
    for task in ("a", "b", "c", "t[x=1]"):
        story.finishes(task)
    assert resets_of(story) == {}
    followers = {"c": "a runs again", "t[x=1]": "a runs again"}
    assert resets_of(story, gone=["a"]) == {"a": "its declared outputs are gone", **followers}
    assert resets_of(story, {"a": "it is forced"}) == {"a": "it is forced", **followers}
    assert resets_of(story, {"c": "it is forced"}) == {"c": "it is forced"}


def test_what_waits_for_a_retry_keeps_waiting_unless_it_is_forced() -> None:
    story = Story(Seq((Leaf(0), Leaf(1), Leaf(2))))
    story.finishes("a")
    story.starts("b")
    story.retries("b", 1, "exception")
    assert resets_of(story) == {}
    assert resets_of(story, {"b": "it is forced", "c": "it is forced"}) == {"b": "it is forced"}


def test_what_was_left_out_stays_out() -> None:
    story = Story(Seq((Leaf(0), Leaf(1))))
    story.tell(e.TaskSkipped, "a", 0, "unselected")
    story.tell(e.TaskSkipped, "b", 1, "skip")
    assert resets_of(story) == {"b": "it was skipped"}


def test_what_was_left_out_hides_nothing_that_runs_again_before_it() -> None:
    story = Story(Seq((Leaf(0), Leaf(1), Leaf(2))))
    story.finishes("a")
    story.tell(e.TaskSkipped, "b", 0, "unselected")
    story.finishes("c")
    assert resets_of(story) == {}
    assert resets_of(story, {"a": "it was forced"}) == {"a": "it was forced", "c": "a runs again"}


def test_a_new_task_that_is_not_selected_resets_nothing_and_hides_nothing_before_it() -> None:
    story = Story(Seq((Leaf(0), Leaf(2))))
    story.finishes("a")
    story.finishes("c")
    story.resumes(Seq((Leaf(0), Leaf(1), Leaf(2))))
    assert resets_of(story) == {"c": "b runs again"}
    assert resets_of(story, selected="ac") == {}
    assert resets_of(story, {"b": "it was forced"}, selected="ac") == {}
    assert resets_of(story, {"a": "it was forced"}, selected="ac") == {"a": "it was forced", "c": "a runs again"}


def test_what_is_not_selected_any_more_is_reset_where_it_could_not_stay_and_resets_nothing() -> None:
    story = Story(Seq((Leaf(0), Leaf(1), Leaf(2), Leaf(3, fixed={"x": 1}))))
    story.finishes("a")
    story.fails("b")
    story.finishes("c")
    story.finishes("t[x=1]")
    left_out = "the run's selection leaves it out"
    assert resets_of(story, gone=["c"], selected=["a", "t[x=1]"]) == {"b": left_out}
    assert resets_of(story, gone=["a"], selected=["a", "t[x=1]"]) == {
        "a": "its declared outputs are gone", "b": left_out, "c": left_out, "t[x=1]": "a runs again"
    }  # fmt: skip
    story.starts("b", 2)
    assert resets_of(story, selected=["a", "t[x=1]"]) == {"b": left_out}
    story.retries("b", 2, "exception")
    assert resets_of(story, selected=["a", "t[x=1]"]) == {}


def test_how_a_dag_has_changed_is_told_in_words() -> None:
    before = Story(Seq((Leaf(0), Par((Leaf(1), Leaf(2))), ASK)))
    before.tell(e.TaskExpanded, "each-t", 1, [["x"]])
    graph = before.state.graph
    same = Graph(tree(Seq((Leaf(0), Par((Leaf(1), Leaf(2))), ASK))))
    assert changes(graph, same) == []
    assert changes(graph, Graph(tree(Seq((Leaf(1), Par((Leaf(0), Leaf(2))), ASK))))) == ["dependencies changed"]
    many = [Leaf(0, id=f"n{number:02}") for number in range(12)]
    told = changes(graph, Graph(tree(Seq((*many, Leaf(0), Leaf(1), ASK)))))
    names = ", ".join(f"n{number:02}" for number in range(10))
    assert told == [f"added: {names} and 2 more", "removed: c"]


def test_the_code_of_the_first_and_of_the_last_session_is_known(story: Story) -> None:
    assert (story.state.first_code_version, story.state.code_version) == ("code 1", "code 1")
    story.resumes(Leaf(0))
    story.resumes(Leaf(0), session=3)
    assert (story.state.first_code_version, story.state.code_version) == ("code 1", "code 3")
    story.state.carry_over(Graph(tree(Leaf(1))))
    assert (story.state.first_code_version, story.state.code_version) == ("code 1", "code 3")


# ---- how long it took


def at(seconds: float) -> str:
    return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def told(*lines: tuple[float, int, type[Any], tuple[Any, ...]]) -> tuple[list[e.Event], State]:
    """Events at these seconds of these sessions, and their state."""
    events: list[e.Event] = []
    opening: tuple[Any, ...] = (
        1,
        "0",
        "host",
        1,
        tree(Seq((Leaf(0), Par((Leaf(1), Leaf(2))), ASK))).record(),
        "digest",
        "code",
        {},
    )
    for seq, (seconds, session, kind, facts) in enumerate(lines, start=1):
        more = opening if kind is e.RunStarted else (*opening, []) if kind is e.RunResumed else ()
        events.append(kind(seq, session, at(seconds), "info", "r", "dag", *more, *facts))
    return events, State.from_events(events)


def starting(task: str, attempt: int = 1, queued_s: float = 0.0) -> tuple[Any, ...]:
    return e.TaskStarted, (task, attempt, 3, "x", "thread", "host", 1, queued_s)


def ending(task: str, attempt: int = 1, duration_s: float = 1.0) -> tuple[Any, ...]:
    return e.TaskFinished, (task, attempt, "x", "thread", duration_s)


def ended(duration_s: float) -> tuple[Any, ...]:
    return e.RunFailed, (duration_s, {}, [])


def test_the_sessions_of_a_run_are_added_up_without_the_time_between_them() -> None:
    session = [(0.0, 1, e.RunStarted, ()), (0.0, 1, *starting("a")), (3.0, 1, *ending("a"))]
    _, state = told(*session)
    assert (state.run_duration_s, state.lasted_s()) == (0.0, 3.0)
    session += [(3.0, 1, *ended(3.5)), (500.0, 2, e.RunResumed, ()), (502.0, 2, *starting("b"))]
    _, state = told(*session)
    assert (state.run_duration_s, state.lasted_s()) == (3.5, 3.5 + 2.0)
    session += [(900.0, 3, e.RunResumed, ()), (901.0, 3, *ended(1.25))]  # its driver died: by its last event
    _, state = told(*session)
    assert (state.run_duration_s, state.lasted_s()) == (3.5 + 2.0 + 1.25,) * 2
    assert (state.started_at, state.began_at, state.last_at) == (at(0), at(900), at(901))


@pytest.mark.parametrize("last_at", [at(-86400.0), "2026-01-01T00:00:0?.000000Z"])
def test_a_clock_that_was_set_back_or_a_damaged_timestamp_makes_no_time(last_at: str) -> None:
    (opening, starts, resumed), _ = told(
        (0.0, 1, e.RunStarted, ()), (5.0, 1, *starting("a")), (9.0, 2, e.RunResumed, ())
    )
    state = State.from_events([opening, structs.replace(starts, timestamp=last_at)])
    assert state.lasted_s() == 0.0
    state.apply(resumed)
    assert state.lasted_s() == 0.0


def test_a_changed_dag_does_not_change_how_long_a_run_has_taken(story: Story) -> None:
    story.tell(e.RunFailed, 12.5, {}, [])
    story.resumes(Leaf(0))
    story.starts("a")
    assert story.state.lasted_s() == 12.5 + 0.75
    story.state.carry_over(Graph(tree(Leaf(1))))
    assert story.state.lasted_s() == 12.5 + 0.75
    story.resumes(Leaf(1), session=3)
    assert story.state.lasted_s() == 12.5 + 0.75


# ---- timelines


def test_a_timeline_has_the_attempts_and_the_path_that_the_run_waited_for() -> None:
    events, state = told(
        (0.0, 1, e.RunStarted, ()),
        (0.0, 1, *starting("a")),
        (2.0, 1, *ending("a")),
        (2.0, 1, *starting("b")),
        (2.5, 1, *starting("c", queued_s=0.5)),
        (3.0, 1, *ending("b")),
        (4.0, 1, e.TaskRetrying, ("c", 1, 3, "x", "thread", 1.5, 0.0, "exception", "E", "m")),
        (4.0, 1, e.TaskMetric, ("c", 1, "m", 1.0)),
        (4.0, 1, *starting("c", 2)),
        # the driver died, and another one came a day later
        (86400.0, 2, e.RunResumed, ()),
        (86400.0, 2, e.TaskReset, ("c", 2, "it was interrupted")),
        (86400.0, 2, *starting("c", 3)),
        (86403.0, 2, *ending("c", 3)),
        (86403.0, 2, *ending("c", 3)),
        (86403.0, 2, *starting("each-t")),
        (86404.0, 2, e.TaskExpanded, ("each-t", 1, [["x"]])),
        (86404.0, 2, *ending("each-t")),
        (86404.0, 2, *starting("t[x=x]")),
        (86405.0, 2, e.TaskProgress, ("t[x=x]", 1, 1.0, 2.0)),
    )
    line = timeline(events, state)
    assert line.bars == [
        Bar("a", 1, 0.0, 2.0, 0.0, "finished"),
        Bar("b", 1, 2.0, 3.0, 0.0, "finished"),
        Bar("c", 1, 2.5, 4.0, 0.5, "failed"),
        Bar("c", 2, 4.0, 4.0, 0.0, "failed"),
        Bar("c", 3, 4.0, 7.0, 0.0, "finished"),
        Bar("each-t", 1, 7.0, 8.0, 0.0, "finished"),
        Bar("t[x=x]", 1, 8.0, 9.0, 0.0, "running"),
    ]
    assert (line.length_s, line.waiting_s, line.working_s) == (9.0, 0.5, 2 + 1 + 1.5 + 3 + 1 + 1)
    assert line.critical_path == ["a", "c", "each-t", "t[x=x]"]


@pytest.mark.parametrize("jump_s", [86_400.0, -86_400.0])
def test_a_timeline_is_not_stretched_by_a_clock_that_was_set(jump_s: float) -> None:
    events, state = told(
        (0.0, 1, e.RunStarted, ()),
        (0.0, 1, *starting("a")),
        (2.0 + jump_s, 1, *ending("a", duration_s=2.0)),
        (2.0 + jump_s, 1, *starting("b")),
        (5.0 + 2 * jump_s, 1, *ending("b", duration_s=3.0)),
        (5.0 + 2 * jump_s, 1, *starting("c")),
        (6.0 + 2 * jump_s, 1, *ending("c", duration_s=1.0)),
    )
    line = timeline(events, state)
    assert [(bar.task, bar.started_s, bar.ended_s) for bar in line.bars] == [("a", 0, 2), ("b", 2, 5), ("c", 5, 6)]
    assert (line.length_s, line.working_s) == (6.0, 6.0)


def test_a_timeline_is_as_long_as_the_sessions_of_its_run_took() -> None:
    events, state = told(
        (0.0, 1, e.RunStarted, ()),
        (0.0, 1, *starting("a")),
        (1.0, 1, *ending("a")),
        (1.0, 1, *ended(1.25)),
        (50.0, 2, e.RunResumed, ()),
        (51.0, 2, *starting("b")),
        (90.0, 3, e.RunResumed, ()),
        (92.0, 3, *ended(2.5)),
    )
    assert timeline(events, state).length_s == state.run_duration_s == 1.25 + 1.0 + 2.5


def test_what_a_changed_dag_has_lost_stays_in_the_timeline_but_is_not_on_its_path() -> None:
    events, state = told(
        (0.0, 1, e.RunStarted, ()),
        (0.0, 1, *starting("a")),
        (1.0, 1, *ending("a")),
        (1.0, 1, *starting("b")),
        (1.0, 1, *starting("c")),
        (3.0, 1, *ending("c")),
        (50.0, 2, e.RunResumed, ()),
        (54.0, 2, *ended(4.0)),
    )
    state.carry_over(Graph(tree(Leaf(0))))
    line = timeline(events, state)
    assert [(bar.task, bar.ended_s, bar.status) for bar in line.bars] == [
        ("a", 1.0, "finished"),
        ("b", 3.0, "failed"),  # its driver was lost
        ("c", 3.0, "finished"),
    ]
    assert line.critical_path == ["a"]


def test_a_long_interruption_is_not_taken_for_a_clock_that_was_set() -> None:
    events, state = told(
        (0.0, 1, e.RunStarted, ()),
        (0.0, 1, *starting("a")),
        (0.0, 1, *starting("b")),
        (600.0, 1, *ending("b", duration_s=600.0)),
        (9000.0, 2, e.RunResumed, ()),
        (9000.0, 2, e.TaskFailed, ("a", 1, 3, "x", "thread", 0.0, "interrupted", "E", "m")),
    )
    assert [(bar.task, bar.ended_s) for bar in timeline(events, state).bars] == [("a", 600.0), ("b", 600.0)]


def test_a_run_that_has_not_begun_has_no_path() -> None:
    events, state = told((0.0, 1, e.RunStarted, ()))
    line = timeline(events, state)
    assert (line.bars, line.critical_path, line.length_s) == ([], [], 0.0)


def test_an_end_without_a_start_is_no_bar() -> None:
    events, state = told((0.0, 1, e.RunStarted, ()), (1.0, 1, e.TaskSkipped, ("a", 0, "unselected")))
    assert timeline(events, state).bars == []


def test_the_predecessors_on_the_path_are_seen_through_joins() -> None:
    story = Story(Seq((Par((Leaf(0), Leaf(1))), Par((Leaf(2), Leaf(3, fixed={"x": 1}))))))
    header = ("info", "r", "dag")
    events: list[e.Event] = []
    for seconds, task in ((0.0, "a"), (1.0, "b"), (2.0, "c")):
        kind, facts = starting(task)
        events.append(kind(1, 1, at(seconds), *header, *facts))
        kind, facts = ending(task)
        events.append(kind(1, 1, at(seconds + 1), *header, *facts))
    story.state.graph.dependencies[story.state.graph.index["c"]] = (0, 2)  # a, and a again behind the join
    assert timeline(events, story.state).critical_path == ["b", "c"]


def test_more_slots_would_bring_what_a_forecast_says() -> None:
    story = Story(Par((Leaf(0), Leaf(1), Leaf(2))))
    for task in "ab":
        story.finishes(task, duration_s=4.0)
    story.fails("c")
    simulated = with_more_slots(story.state, 1, {})
    assert [simulated(slots).makespan_s for slots in (0, 1, 2)] == [8.0, 8.0, 4.0]
