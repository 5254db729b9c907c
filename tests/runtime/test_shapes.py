"""What a DAG says about order holds when it runs: each task notes for itself when it begins and ends."""

from __future__ import annotations

from typing import Any

import pytest
from steps import Go, LoopStep, Notes, ProcessStep, Region, Score, Step, statuses

from gluepy import DAG, Retry, Task, each, parallel
from gluepy.conf import default_context
from gluepy.core.events import TaskExpanded
from gluepy.exec.task import current_task
from gluepy.testing import events_of, outline

KINDS = pytest.mark.parametrize("kind", [Step, LoopStep])


@pytest.mark.parametrize("kind", [Step, LoopStep, ProcessStep])
async def test_sequence_runs_from_top_to_bottom(go: Go, notes: Notes, kind: type[Task]) -> None:
    result = await go(*(kind(id=name) for name in "abcd"))
    assert result.status == "finished"
    assert [line[1] for line in notes.lines()] == list("aabbccdd")
    assert outline(events_of(result)) == [
        "run.started",
        *(f"task.{what} {name}" for name in "abcd" for what in ("started", "finished")),
        "run.finished",
    ]


@KINDS
async def test_branches_of_parallel_lie_between_what_is_before_and_after(
    go: Go, notes: Notes, kind: type[Task]
) -> None:
    a, b, c, d = (kind(id=name) for name in "abcd")
    await go(a, parallel(b, c), d)
    for middle in "bc":
        notes.assert_after("a", middle)
        notes.assert_after(middle, "d")


@KINDS
async def test_nested_sequence_is_one_branch(go: Go, notes: Notes, kind: type[Task]) -> None:
    a, b, c, d, e = (kind(id=name) for name in "abcde")
    result = await go(parallel(a, (b, parallel(c, d))), e)
    assert len(notes.of("end")) == 5
    for first, then in ("bc", "bd", "ae", "ce", "de"):
        notes.assert_after(first, then)
    assert set(statuses(result).values()) == {"finished"}


@KINDS
async def test_mapping_runs_each_task_after_what_it_depends_on(go: Go, notes: Notes, kind: type[Task]) -> None:
    load, a, b, join = (kind(id=name) for name in ("load", "a", "b", "join"))
    await go({join: (a, b), a: load, b: (load,), load: ()})
    for first, then in (("load", "a"), ("load", "b"), ("a", "join"), ("b", "join")):
        notes.assert_after(first, then)


async def test_tasks_may_be_named_by_strings_below_the_dag(go: Go, notes: Notes) -> None:
    async with go.runtime() as runtime:
        await runtime.run_dag(Named)
    assert notes.of("end") == ["first", "second"]


class Named(DAG):
    tasks = ("First", parallel("Second"))


class First(Step):
    pass


class Second(Step):
    pass


async def test_each_runs_one_task_a_value_side_by_side(go: Go, notes: Notes) -> None:
    result = await go(Step(id="before"), each(Region, region=["eu", "us", 1]), Step(id="after"))
    assert set(result.tasks) == {"before", "region[region=eu]", "region[region=us]", "region[region=1]", "after"}
    for middle in ("region[region=eu]", "region[region=us]", "region[region=1]"):
        notes.assert_after("before", middle)
        notes.assert_after(middle, "after")


async def test_each_with_several_names_runs_the_product(go: Go) -> None:
    class Fold(Task):
        region: str
        fold: int
        depth: int = 3

        def run(self) -> None:
            self.metric("depth", self.depth)

    result = await go(each(Fold, fold=[1, 2], region=["eu", "us"]))
    assert set(result.tasks) == {
        f"fold[region={region},fold={fold},depth=3]" for region in ("eu", "us") for fold in (1, 2)
    }


async def test_each_over_a_chain_runs_a_chain_a_value(go: Go, notes: Notes) -> None:
    await go(each((Region, Score), region=["eu", "us"]))
    for region in ("eu", "us"):
        notes.assert_after(f"region[region={region}]", f"score[region={region}]")


async def test_instance_and_class_of_one_task_stand_side_by_side(go: Go) -> None:
    result = await go(parallel(each(Region, region=["eu"]), Region(region="all", id="final")))
    assert set(result.tasks) == {"region[region=eu]", "final"}


# each over a callable


def regions() -> list[str]:
    text: str = (current_task().storage / "regions").read_text()
    return text.split()


def nothing() -> list[str]:
    return []


def broken() -> list[str]:
    raise KeyError("no")


class Writes(Task):
    text: str

    def run(self) -> None:
        (self.storage / "regions").write_text(self.text)


@pytest.mark.parametrize("asks", ["plain", "async"])
async def test_callable_is_asked_when_the_tasks_before_it_are_done(go: Go, notes: Notes, asks: str) -> None:
    async def in_loop() -> list[str]:
        return regions()

    values: Any = regions if asks == "plain" else in_loop
    result = await go(Writes(text="eu us", id="write"), each((Region, Score), region=values), Step(id="after"))
    assert result.status == "finished"
    assert set(result.tasks) == {
        "write", "each-region", "after",
        *(f"{label}[region={region}]" for label in ("region", "score") for region in ("eu", "us")),
    }  # fmt: skip
    for region in ("eu", "us"):
        notes.assert_after(f"region[region={region}]", f"score[region={region}]")
        notes.assert_after(f"score[region={region}]", "after")
    events = events_of(result)
    assert [event.values for event in events if isinstance(event, TaskExpanded)] == [[["eu"], ["us"]]]


async def test_callable_and_values_make_the_product(go: Go) -> None:
    class Fold(Task):
        region: str
        fold: int

        def run(self) -> None:
            pass

    result = await go(each(Fold, region=lambda: ["eu", "us"], fold=[1, 2]))
    assert len(result.tasks) == 5
    assert "fold[region=us,fold=2]" in result.tasks


async def test_callable_reads_the_context_of_its_run(go: Go) -> None:
    result = await go(each(Region, region=lambda: default_context.regions), params={"regions": ["eu"]})
    assert set(result.tasks) == {"each-region", "region[region=eu]"}


async def test_empty_answer_satisfies_what_depends_on_it(go: Go, notes: Notes) -> None:
    result = await go(each(Region, region=nothing), Step(id="after"))
    assert statuses(result) == {"each-region": "finished", "after": "finished"}
    assert notes.of("end") == ["after"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda: ["eu", "eu"], "twice"),
        (lambda: [1, object()], "not a JSON value"),
        (lambda: [float("nan")], "not a JSON value"),
        (lambda: "eu", "must return a list"),
        (lambda: None, "must return a list"),
        (broken, "KeyError"),
    ],
)
async def test_answer_that_cannot_be_used_fails_the_each_and_blocks_the_rest(go: Go, answer: Any, told: str) -> None:
    result = await go(each(Region, region=answer), Step(id="after"))
    assert statuses(result) == {"each-region": "failed", "after": "blocked"}
    error = result.tasks["each-region"].error
    assert error is not None
    assert told in str(error)
    assert error.task == "each-region"


async def test_answer_whose_task_exists_already_fails_the_each(go: Go) -> None:
    taken = Region(region="x", id="region[region=eu]")
    result = await go(parallel(taken, each(Region, region=lambda: ["eu"])))
    assert statuses(result) == {"region[region=eu]": "finished", "each-region": "failed"}
    assert "twice" in str(result.tasks["each-region"].error)


async def test_callable_is_retried_like_its_task(go: Go) -> None:
    asked = []

    def flaky() -> list[str]:
        asked.append(1)
        if len(asked) == 1:
            raise ConnectionError("not yet")
        return ["eu"]

    class Train(Task):
        region: str
        retries = Retry(attempts=2, wait_s=0)

        def run(self) -> None:
            pass

    result = await go(each(Train, region=flaky))
    assert (result.status, result.tasks["each-train"].attempts) == ("finished", 2)


async def test_each_after_a_failure_is_not_asked(go: Go) -> None:
    asked: list[int] = []

    def ask() -> list[str]:
        asked.append(1)
        return []

    class Broken(Task):
        def run(self) -> None:
            raise ValueError

    result = await go(Broken, each(Region, region=ask))
    assert statuses(result) == {"broken": "failed", "each-region": "blocked"}
    assert not asked


@pytest.mark.slow
async def test_barriers_between_wide_groups_compile_and_run_in_seconds(go: Go) -> None:
    class Loop(Task):
        number: int

        async def run(self) -> None:
            pass

    wide = 10_000
    groups = [parallel(*(Loop(number=number) for number in range(start, start + wide))) for start in (0, wide)]
    result = await go(*groups)
    assert len(result.tasks) == 2 * wide
    assert result.duration_s < 20


class Greedy(Task):
    seen: list[int]
    retries = Retry(attempts=2, wait_s=0)

    def run(self) -> None:
        self.seen.append(1)
        self.context.known.append(1)
        assert (len(self.seen), len(self.context.known)) == (1, 0)
        raise ValueError("again")


async def test_what_an_attempt_does_to_its_parameters_and_context_stays_with_it(go: Go) -> None:
    result = await go(Greedy(seen=[]), params={"known": []}, check=False)
    (task,) = result.tasks.values()
    assert task.attempts == 2
    assert task.error is not None and task.error.type == "ValueError"
