"""What authors write, what it means, and what they are told about what they cannot mean."""

from __future__ import annotations

import functools
import math
import types
import typing
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gluepy
from gluepy.core.graph import Graph, Tree, compact
from gluepy.core.policy import Retry
from gluepy.errors import DagError, NoRunContext
from gluepy.exec import DAG, Skip, Task, each, parallel
from gluepy.exec.dag import Expander, check_label, compile_dag
from gluepy.exec.parameters import parameters_of
from gluepy.exec.task import retry_of, spec_of
from gluepy.exec.values import as_json


class Early(DAG):
    label = "early"
    tasks = ("Load", parallel("Clean", ("Fit", "Score")), each("Train", region=["eu", "us"]), "gluepy.exec.task.Task")


class Work(Task):
    def run(self) -> None:
        """Nothing."""


class Load(Work):
    """Loads."""


class Clean(Work):
    """Cleans."""


class Fit(Work):
    """Fits."""


class Score(Work):
    """Scores."""


class Train(Work):
    region: Any
    fold: int = 3


def graph_of(tasks: Any, limits: dict[str, int] | None = None) -> Graph:
    return compile_dag(type("Sample", (DAG,), {"tasks": tasks}), limits).graph


def edges(graph: Graph) -> set[tuple[str, str]]:
    return {(graph.task_id(one), graph.task_id(other)) for one, other in graph.task_edges()}


def ids(graph: Graph) -> list[str]:
    return [graph.task_id(node) for node in graph.tasks()]


def error_of(tasks: Any, limits: dict[str, int] | None = None) -> str:
    """What the author is told; it names the DAG and a hint."""
    with pytest.raises(DagError) as caught:
        graph_of(tasks, limits)
    assert caught.value.place.startswith("DAG Sample (test_authoring)")
    assert caught.value.hint
    return str(caught.value)


def with_run(run: Any, **attributes: Any) -> type[Task]:
    return type("Odd", (Task,), {"run": run, **attributes})


def nothing(self: Any) -> None:
    """A run."""


def task(**attributes: Any) -> type[Task]:
    return with_run(nothing, **attributes)


# ---- sequences, branches, mappings


def test_a_sequence_runs_from_top_to_bottom() -> None:
    assert edges(graph_of((Load, Clean, Fit))) == {("load", "clean"), ("clean", "fit")}


def test_a_nested_sequence_is_one_branch() -> None:
    graph = graph_of((Load, parallel(Clean, (Fit, Score)), Train(region="eu")))
    assert edges(graph) == {
        ("load", "clean"), ("load", "fit"), ("fit", "score"),
        ("clean", "train[region=eu,fold=3]"), ("score", "train[region=eu,fold=3]"),
    }  # fmt: skip


def test_a_nested_sequence_in_a_sequence_is_the_same_as_its_tasks() -> None:
    assert edges(graph_of((Load, (Clean, [Fit]), Score))) == edges(graph_of((Load, Clean, Fit, Score)))


def test_a_single_task_or_group_needs_no_comma() -> None:
    assert ids(graph_of(Load)) == ["load"]
    assert ids(graph_of(parallel(Load, Clean))) == ["load", "clean"]
    assert ids(graph_of(each(Train, region=["eu"]))) == ["train[region=eu,fold=3]"]


def test_a_mapping_is_the_dependency_graph() -> None:
    graph = graph_of({Score: (Clean, Fit), Load: (), Clean: Load, Fit: [Load], Train(region="eu"): {Score}})
    assert edges(graph) == {
        ("load", "clean"), ("load", "fit"), ("clean", "score"), ("fit", "score"), ("score", "train[region=eu,fold=3]"),
    }  # fmt: skip
    order = ids(graph)
    assert all(order.index(before) < order.index(after) for before, after in edges(graph))


def test_a_mappings_task_is_found_whatever_the_order_of_its_parameters() -> None:
    graph = graph_of({Train(fold=1, region="eu"): (), Load: Train(region="eu", fold=1)})
    assert edges(graph) == {("train[region=eu,fold=1]", "load")}


def test_a_dependency_named_twice_is_one() -> None:
    assert edges(graph_of({Load: (), Fit: (Load, Load, "Load")})) == {("load", "fit")}


def test_names_of_classes_are_found_in_the_dags_module_above_or_below() -> None:
    early = type("Other", (DAG,), {"tasks": Early.tasks[:-1], "__module__": __name__})
    assert ids(compile_dag(early).graph) == [
        "load", "clean", "fit", "score", "train[region=eu,fold=3]", "train[region=us,fold=3]",
    ]  # fmt: skip
    assert ids(graph_of({"Fit": "Load", "Load": ()})) == ["load", "fit"]


def test_a_dotted_name_is_imported() -> None:
    assert ids(graph_of((f"{__name__}.Load",))) == ["load"]


def test_the_public_names_are_importable_from_the_package_too() -> None:
    for name in ("DAG", "Task", "parallel", "each", "Retry", "Skip"):
        assert getattr(gluepy, name) is getattr(gluepy.exec, name)


# ---- ids and labels


def test_labels_default_to_the_lower_cased_class_name() -> None:
    assert (Load.label, Train.label, Early.label) == ("load", "train", "early")

    class Named(Work):
        label = "other"

    class Child(Named):
        """Has a name of its own again."""

    assert (Named.label, Child.label) == ("other", "child")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("eu", "eu"),
        ("", ""),
        ("1", '"1"'),
        ("1e5", '"1e5"'),
        ("true", '"true"'),
        ("null", '"null"'),
        ('"eu"', r'"\"eu\""'),
        ("[1]", '"[1]"'),
        ("[1", "[1"),
        ("NaN", "NaN"),
        ("CNTRL/STORE SUP", "CNTRL/STORE SUP"),
        ("☃", "☃"),
        (1, "1"),
        (1.0, "1.0"),
        (True, "true"),
        (None, "null"),
        ([1, "a"], '[1,"a"]'),
        ({"a": [None]}, '{"a":[null]}'),
        (10**30, "1" + "0" * 30),
    ],
)
def test_an_id_has_parameters_as_compact_json_and_strings_bare_where_they_can_be(value: Any, told: str) -> None:
    assert ids(graph_of((Train(region=value),))) == [f"train[region={told},fold=3]"]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4))
def test_different_values_look_different_in_ids(value: Any) -> None:
    if not isinstance(value, str):
        assert compact(value) != compact(compact(value))


def test_parameters_stand_in_the_order_of_their_declaration() -> None:
    class Base(Work):
        first: int = 1

    class Both(Base):
        second: int
        third: int = 3

    assert ids(graph_of((Both(third=30, second=2),))) == ["both[first=1,second=2,third=30]"]
    assert graph_of((Both(third=30, second=2),)).params(0) == {"first": 1, "second": 2, "third": 30}


def test_an_instance_may_have_an_id_of_its_own() -> None:
    graph = graph_of((Load, Load(id="again"), Train(region="all", id="final")))
    assert ids(graph) == ["load", "again", "final"]
    assert graph.params(2) == {"region": "all", "fold": 3}


# ---- parameters


def test_class_variables_attributes_of_task_and_private_names_are_no_parameters() -> None:
    class Odd(Work):
        a: ClassVar[int] = 1
        b: typing.ClassVar[int] = 2
        c: "ClassVar[int]" = 3  # noqa: UP037
        d: "typing.ClassVar" = 4  # noqa: UP037
        retries: ClassVar[int] = 2
        timeout_s: float | None = 3.0  # type: ignore[misc]
        outputs: tuple[str, ...] = ("x",)
        _private: int = 5
        real: int = 6

    assert parameters_of(Odd).names == ("real",)
    real: Any = types.new_class(
        "Real", (Work,), {}, lambda space: space.update(__annotations__={"x": ClassVar[int], "y": int})
    )
    assert parameters_of(real).names == ("y",)


def test_parameters_and_their_defaults_are_inherited_and_overridden() -> None:
    class Base(Work):
        region: str = "eu"
        deep: ClassVar[int] = 1

    class Child(Base):
        fold: int = 0

    class Grandchild(Child):
        region = "us"

    assert ids(graph_of((Child, Grandchild))) == ["child[region=eu,fold=0]", "grandchild[region=us,fold=0]"]


def test_a_default_of_a_mixin_counts() -> None:
    class Mixin:
        fold = 7

    class Mixed(Mixin, Train):
        """Train, seven times folded."""

    assert ids(graph_of((Mixed(region="eu"),))) == ["mixed[region=eu,fold=7]"]


def test_a_parameter_without_a_value_says_so_when_it_is_read() -> None:
    with pytest.raises(AttributeError, match="was not given a value"):
        _ = Train().region  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match="no attribute 'zone'"):
        _ = Train().zone  # type: ignore[call-arg]
    assert Train(region="eu").region == "eu"
    assert repr(Train(region="eu")) == "Train(region='eu')"


def test_an_unknown_parameter_is_told_the_nearest_known_one() -> None:
    with pytest.raises(DagError, match="no parameter 'regoin'; did you mean 'region'"):
        Train(regoin="eu")  # type: ignore[call-arg]
    with pytest.raises(DagError, match="no parameter 'zzz'; its parameters: region, fold"):
        Train(zzz=1)  # type: ignore[call-arg]
    with pytest.raises(DagError, match="its parameters: none"):
        Load(zzz=1)  # type: ignore[call-arg]


def test_values_are_copied_as_plain_json() -> None:
    class Number(int):
        """An int that is more."""

    class Text(str):
        """A str that is more."""

    plain = as_json({"a": (1, Number(2)), Text("b"): Text("c"), "d": 1.5}, "x")
    assert plain == {"a": [1, 2], "b": "c", "d": 1.5}
    assert {type(part) for part in (plain["a"][1], plain["b"])} == {int, str}


def endless() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, b"x", object(), {1: 2}, {"a": {1}}, endless(), "\ud800", {"\ud800": 1}, Load]
)
def test_parameters_that_are_not_json_are_refused(value: Any) -> None:
    assert "Train.region is" in error_of((Train(region=value),))
    assert "a value of each for 'region' is" in error_of((each(Train, region=[value]),))


def test_a_parameter_without_a_value_is_refused() -> None:
    told = error_of((Load, Train))
    assert "Train needs a value for its parameter 'region'" in told
    assert "each(Train, region=[…])" in told


@pytest.mark.parametrize(
    "name", ["path", "run", "storage", "context", "log", "atomic", "local", "progress", "metric", "id"]
)
def test_a_parameter_named_like_an_attribute_of_task_is_refused(name: str) -> None:
    odd = type("Odd", (Work,), {"__annotations__": {name: "str"}})
    assert f"the parameter {name!r} has the name of an attribute of Task; rename it" in error_of((odd,))


# ---- each


def test_each_makes_one_task_a_value_side_by_side() -> None:
    graph = graph_of((Load, each(Train, region=["eu", "us"]), Score))
    assert edges(graph) == {
        ("load", "train[region=eu,fold=3]"), ("load", "train[region=us,fold=3]"),
        ("train[region=eu,fold=3]", "score"), ("train[region=us,fold=3]", "score"),
    }  # fmt: skip


def test_several_keywords_make_the_product() -> None:
    graph = graph_of((each(Train, region=("eu", "us"), fold=range(2)),))
    assert ids(graph) == [f"train[region={region},fold={fold}]" for region in ("eu", "us") for fold in (0, 1)]


def test_each_over_a_chain_is_one_chain_a_value() -> None:
    class Test(Train):
        """Tests what was trained."""

    graph = graph_of((each((Train, Test), region=["eu", "us"]),))
    assert edges(graph) == {
        ("train[region=eu,fold=3]", "test[region=eu,fold=3]"), ("train[region=us,fold=3]", "test[region=us,fold=3]"),
    }  # fmt: skip


def test_each_in_each_and_parallel_in_each() -> None:
    class Test(Train):
        """Tests what was trained."""

    graph = graph_of((each(each(Train, fold=[1, 2]), region=["eu", "us"]),))
    assert len(ids(graph)) == 4
    graph = graph_of((each(parallel(Train, Test), region=["eu", "us"]), Load))
    assert len(edges(graph)) == 4


def test_each_over_no_values_satisfies_what_depends_on_it() -> None:
    assert edges(graph_of((Load, each(Train, region=[]), Score))) == {("load", "score")}
    assert edges(graph_of((Load, parallel(each(Train, region=[]), Clean), Score))) == {
        ("load", "clean"), ("load", "score"), ("clean", "score"),
    }  # fmt: skip


def test_each_over_a_callable_is_a_task_that_asks() -> None:
    graph = graph_of((Load, each(Train, region=regions), Score))
    assert ids(graph) == ["load", "each-train", "score"]
    assert edges(graph) == {("load", "each-train"), ("each-train", "score")}
    node = graph.index["each-train"]
    assert graph.spec(node).expands
    assert graph.labels_of(node) == {"train"}
    graph.expand(node, [["eu"], ["us"]])
    assert ids(graph)[3:] == ["train[region=eu,fold=3]", "train[region=us,fold=3]"]
    assert ("train[region=eu,fold=3]", "score") in edges(graph)


def regions() -> list[str]:
    return ["eu", "us"]


async def regions_later() -> list[str]:
    return ["eu", "us"]


def test_what_asks_has_the_retries_and_the_time_out_of_what_it_asks_for() -> None:
    class Careful(Train):
        retries = Retry(attempts=5)
        timeout_s = 7

    spec = graph_of((each(Careful, region=regions),)).spec(0)
    assert (spec.retry.attempts, spec.timeout_s, spec.pool) == (5, 7.0, "thread")
    assert graph_of((each(Careful, region=regions_later),)).spec(0).pool == "loop"


async def test_a_callable_is_asked_for_rows_and_lists_beside_it_make_the_product() -> None:
    values = {"region": regions, "fold": [0, 1]}
    rows = [["eu", 0], ["eu", 1], ["us", 0], ["us", 1]]
    assert Expander(values).rows() == rows
    assert not Expander(values).is_async
    later = Expander({"region": regions_later, "fold": [0, 1], "more": lambda: ["x"]})
    assert later.is_async
    assert await later.rows_async() == [[*row, "x"] for row in rows]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("eu", "must return a list"),
        (7, "must return a list"),
        (None, "must return a list"),
        ({"eu": 1}, "must return a list"),
        (["eu", "eu"], "appear twice"),
        ([[1], (1,)], "appear twice"),
        ([object()], "not a JSON value"),
        ([math.nan], "not a JSON value"),
    ],
)
def test_what_a_callable_must_not_return_is_said(answer: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Expander({"region": lambda: answer}).rows()


def test_a_number_and_its_text_are_different_values() -> None:
    assert Expander({"region": lambda: [1, "1", 1.0, True, "true"]}).rows() == [[1], ["1"], [1.0], [True], ["true"]]


def test_an_iterable_is_read_once() -> None:
    assert ids(graph_of((each(Train, region=(name for name in ("eu", "us"))),))) == [
        "train[region=eu,fold=3]", "train[region=us,fold=3]",
    ]  # fmt: skip


# ---- wide groups


def test_wide_groups_after_wide_groups_do_not_cost_their_product() -> None:
    count = 10_000
    left, right = each(Train, region=list(range(count))), each(Train(fold=4), region=list(range(count)))  # type: ignore[call-arg]
    graph = graph_of((left, right, Score))
    assert len(ids(graph)) == 2 * count + 1
    assert sum(map(len, graph.dependencies)) <= 3 * count + 1
    assert sum(map(len, graph.dependents)) == sum(map(len, graph.dependencies))


def test_joins_stand_only_between_groups() -> None:
    narrow = graph_of((Load, parallel(Clean, Fit), Score))
    assert all(id is not None for id in narrow.ids)
    wide = graph_of((parallel(Load, Clean), parallel(Fit, Score)))
    assert [list(nodes) for nodes in wide.dependencies] == [[], [], [0, 1], [2], [2]]


# ---- mistakes


class Rewound(Work):
    """A task that no mapping has."""


MISTAKES: dict[str, tuple[Any, str]] = {
    "a cycle": ({Load: Fit, Clean: Load, Fit: Clean, Score: Fit}, "form a cycle: 'load' -> 'fit' -> 'clean' -> 'load'"),
    "a task after itself": ({Load: Load}, "form a cycle: 'load' -> 'load'"),
    "an unknown dependency": (
        {Load: (), Fit: (Load, Rewound)},
        "'fit' depends on 'rewound', which is not in the mapping",
    ),
    "an unknown instance": (
        {Train(region="eu"): (), Fit: Train(region="us")},
        """depends on 'train' ({"region":"us","fold":3}), which is not""",
    ),
    "a key twice": ({Load: (), "Load": ()}, "'load' appears twice"),
    "an instance twice": ({Train(region="eu"): (), Train(region="eu"): ()}, "appears twice; give one an id of its own"),
    "a group in a mapping": ({parallel(Load, Fit): ()}, "cannot be parallel, each or a sequence"),
    "a group as a dependency": ({Load: (), Fit: (parallel(Load),)}, "is not a task"),
    "an id twice": ((Load, Fit, Load), "task 'load': appears twice in the DAG; give one an id"),
    "two with one id": ((Load(id="x"), Fit(id="x")), "task 'x': appears twice"),
    "an id twice by each": ((each(Train, region=["eu", "eu"]),), "appears twice"),
    "two that ask with one name": (
        (each(Train, region=regions), each(Train, region=regions_later)),
        "task 'each-train': appears twice in the DAG; let one callable return all values",
    ),
    "no tasks": ((), "has no tasks"),
    "no tasks but empty groups": ((each(Train, region=[]), ()), "has no tasks"),
    "no tasks in a mapping": ({}, "has no tasks"),
    "tasks that are None": (None, "has no `tasks`"),
    "tasks that are no sequence": (Load(), "give it a tuple of tasks"),
    "tasks that are a name": ("Load", "give it a tuple of tasks"),
    "no task": ((Load, 7), "7 is not a task"),
    "a class that is no task": ((Load, dict), "dict is not a task"),
    "Task itself": ((Task,), "Task is not a task"),
    "an unknown name": (("Laod",), "no task 'Laod' in the module test_authoring; did you mean 'Load'?"),
    "an unknown name, none near": (("Zzzzz",), "define it there, import it there, or give its dotted name"),
    "a name of no task": (("functools",), "is not a task"),
    "a dotted name of no module": (("nowhere.Load",), "the task 'nowhere.Load' cannot be imported"),
    "a dotted name of nothing": ((f"{__name__}.Nothing",), f"no task '{__name__}.Nothing' in the module {__name__}"),
    "parallel of nothing": ((parallel(),), "parallel() without branches"),
    "each without values": ((each(Train),), "each(…) without values"),
    "each of another's parameter": (
        (each(Train, regoin=["eu"]),),
        "its parameter 'region' (the each around it gives regoin)",
    ),
    "each of another's parameter, of one that has it": (
        (each(Train(region="eu"), flod=[1]),),
        "gives 'flod', which no task in it has as a parameter; did you mean 'fold'?",
    ),
    "each of a task without parameters": ((each(Load, zone=["eu"]),), "annotate it in the task's class"),
    "each over a chain that it cannot tell apart": (
        (each((Train, Score), region=["eu", "us"]),),
        "each(…, region=…) repeats 'score', which has no parameter 'region'",
    ),
    "each over a callable and a chain": ((each((Train, Score), region=regions),), "repeats 'score'"),
    "each of what has a value": ((each(Train(region="eu"), region=["us"]),), "which 'train' has a value for already"),
    "each of one id": ((each(Train(id="one"), region=["eu", "us"]),), "repeats the id 'one'; remove the id"),  # type: ignore[call-arg]
    "each over a class": ((each(Train, region=Load),), "is the class Load"),
    "each over a callable with arguments": ((each(Train, region=compact),), "takes arguments (value)"),
    "each over a callable in each": (
        (each(each(Train, region=regions), fold=[1, 2]),),
        "an each over a callable inside another each; let one callable return all combinations",
    ),
    "each in each over a callable": ((each(each(Train, fold=regions), region=regions),), "inside another each"),
    "each in a sequence in each over a callable": (
        (each((Train, parallel(each(Train, fold=regions))), region=regions),),
        "inside another each",
    ),
    "an id that is no text": ((Load(id=7),), "Load has the id 7"),  # type: ignore[arg-type]
    "an empty id": ((Load(id=""),), "an id is a string with at least one character"),
    "an id that cannot be encoded": ((Load(id="\ud800"),), "Load has the id"),
    "no run": ((type("Idle", (Task,), {}),), "it does not define run(self); write one"),
    "run with arguments": ((with_run(lambda self, data, *more: None),), "run takes arguments (data, more)"),
    "run with a default": ((with_run(lambda self, data=1: None),), "run takes arguments (data)"),
    "run without self": ((with_run(lambda: None),), "run takes no self; write def run(self)"),
    "run that is no function": ((with_run(7),), "run is 7; write def run(self)"),
    "a static run with an argument": ((with_run(staticmethod(lambda data: None)),), "run takes arguments (data)"),
    "a pool that is none": ((task(pool="threads"),), "pool is 'threads'"),
    "memory of a thread": ((task(memory_mb=100),), "memory_mb without pool = 'process'"),
    "memory that is none": ((task(memory_mb=-1, pool="process"),), "memory_mb is -1"),
    "no CPUs": ((task(cpus=0),), "cpus is 0"),
    "a queue without a name": ((task(queue=""),), "queue is ''"),
    "half a megabyte": ((task(memory_mb=0.5, pool="process"),), "memory_mb is 0.5"),
    "a trigger that is none": (
        (task(trigger="always"),),
        "use one of all_success, none_failed, none_failed_min_one_success, all_done, one_failed",
    ),
    "a time-out in the past": ((task(timeout_s=0),), "timeout_s is 0"),
    "a time-out in words": ((task(timeout_s="30"),), "timeout_s is '30'"),
    "a time-out without end": ((task(timeout_s=math.inf),), "timeout_s is inf"),
    "uses of nothing": ((task(uses={"gpu": 0}),), "uses is {'gpu': 0}"),
    "uses in words": ((task(uses="gpu"),), "uses is 'gpu'"),
    "uses that are true": ((task(uses={"gpu": True}),), "uses is"),
    "retries below nothing": ((task(retries=-1),), "retries is -1"),
    "retries in words": ((task(retries="3"),), "it must be a Retry(…), or the number of retries"),
    "retries on what is no exception": (
        (task(retries=Retry(on=("ConnectionError",))),),
        "Retry.on has 'ConnectionError'",
    ),
    "outputs that are one text": (
        (task(outputs="a.parquet"),),
        """give a tuple of names, as in outputs = ("products""",
    ),
    "inputs that are no text": ((task(inputs=(1,)),), "inputs is (1,)"),
    "an empty label": ((task(label=""),), "label is ''"),
    "a label that is no text": ((task(label=3),), "label is 3"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_place_and_its_mend(mistake: str) -> None:
    tasks, told = MISTAKES[mistake]
    assert told in error_of(tasks)


def test_a_task_that_is_wrong_is_named_with_its_module() -> None:
    assert "task Odd (test_authoring): " in error_of((task(pool="x", __module__="test_authoring"),))


def test_an_async_run_cannot_go_to_a_process_and_has_no_other_pool() -> None:
    async def run(self: Any) -> None:
        """Later."""

    assert "async def run with pool = 'process'" in error_of((with_run(run, pool="process"),))
    assert spec_of(with_run(run)).pool == "loop"
    assert spec_of(with_run(run, pool="thread")).pool == "loop"
    assert spec_of(task()).pool is None
    assert spec_of(task(pool="process", memory_mb=10)).memory_mb == 10
    assert (spec_of(task(cpus=2, queue="gpu")).cpus, spec_of(task(cpus=2, queue="gpu")).queue) == (2, "gpu")


def test_a_run_that_yields_is_refused() -> None:
    def run(self: Any) -> Any:
        yield 1

    async def run_later(self: Any) -> Any:
        yield 1

    for generator in (run, run_later):
        assert "run is a generator, so calling it does nothing" in error_of((with_run(generator),))


def test_static_and_class_methods_are_runs_too() -> None:
    for kind in (staticmethod(lambda: None), classmethod(lambda cls: None)):
        assert spec_of(with_run(kind)).label == "odd"


def test_uses_must_be_in_limits_and_fit_them() -> None:
    gpu = task(uses={"gpu": 2})
    assert graph_of((gpu,), {"gpu": 2}).spec(0).uses == {"gpu": 2}
    assert "uses 'gpu', which LIMITS does not have; add it to LIMITS, as in LIMITS = {'gpu': 2}" in error_of((gpu,), {})
    assert "did you mean 'gpus'" in error_of((gpu,), {"gpus": 2})
    assert "uses 2 of 'gpu', of which there are 1; raise LIMITS['gpu']" in error_of((gpu,), {"gpu": 1})
    assert graph_of((gpu,)).spec(0).uses == {"gpu": 2}  # without limits it is not checked


def test_a_dag_needs_a_label_and_tasks() -> None:
    for attributes, told in (({}, "has no `tasks`"), ({"tasks": (Load,), "label": ""}, "label is ''")):
        with pytest.raises(DagError, match="DAG Sample") as caught:
            compile_dag(type("Sample", (DAG,), attributes))
        assert told in str(caught.value)


@pytest.mark.parametrize("label", ["a:b", "train.py", "-train"])
def test_a_label_that_a_command_line_would_take_for_something_else_is_refused(label: str) -> None:
    with pytest.raises(DagError, match="they mean a class, a file and an option"):
        check_label(type("Sample", (DAG,), {"label": label}))
    check_label(type("Sample", (DAG,), {"label": "train-1.pyx"}))


def test_a_dag_whose_module_is_gone_still_says_what_is_missing() -> None:
    lost = type("Lost", (DAG,), {"tasks": ("Load",), "__module__": "gone"})
    with pytest.raises(DagError, match="no task 'Load' in the module gone"):
        compile_dag(lost)


@pytest.mark.parametrize("values", ["eu", 7, {"eu": 1}, b"eu"])
def test_values_that_are_no_list_are_refused_where_they_stand(values: Any) -> None:
    with pytest.raises(DagError, match="is not a list of values"):
        each(Train, region=values)


def test_long_values_are_cut_in_messages() -> None:
    told = error_of(({"long": "y" * 500},))
    assert "…" in told
    assert len(told) < 400


def test_a_long_cycle_is_found_at_once() -> None:
    chain = [type(f"T{number}", (Work,), {}) for number in range(3000)]
    told = error_of(dict(zip(chain, [chain[-1], *chain], strict=False)))
    assert told.count(" -> ") == 3000


# ---- what a task class becomes


def test_retries_are_a_policy_or_a_number_of_further_attempts() -> None:
    assert spec_of(task()).retry.attempts == 1
    assert spec_of(task(retries=2)).retry == Retry(attempts=3)
    policy = Retry(attempts=4, wait_s=2.0, factor=3.0, max_wait_s=9.0, jitter=0.2, on=(OSError,))
    spec = spec_of(task(retries=policy))
    assert spec.retry == Retry(attempts=4, wait_s=2.0, factor=3.0, max_wait_s=9.0, jitter=0.2)  # classes stay here
    assert retry_of(task(retries=policy)) is policy
    assert retry_of(task(retries=2)).attempts == 3
    assert retry_of(task()).attempts == 1


def test_datasets_that_depend_on_parameters_are_known_later() -> None:
    odd = task(outputs=property(lambda self: ("x",)), inputs=["a", "b"])
    assert spec_of(odd).outputs == ()
    assert spec_of(odd).inputs == ("a", "b")


def test_the_compiled_tree_is_json_and_builds_the_same_graph() -> None:
    tasks = (
        Load, parallel(Clean, (Fit, Score)), each((Train,), region=regions), each(each(Train, fold=[1]), region=["x"]),
        task(uses={"gpu": 1}, retries=2, timeout_s=3, trigger="all_done", pool="process", memory_mb=5, outputs=("o",)),
    )  # fmt: skip
    for shape in (tasks, {Load: (), Fit: Load, Train(region={"a": [1]}, id="x"): (Load, Fit)}):
        graph = graph_of(shape)
        again = Graph(Tree.from_record(graph.tree.record()))
        assert again.tree == graph.tree
        assert (again.ids, again.values, list(map(list, again.dependencies))) == (
            graph.ids,
            graph.values,
            list(map(list, graph.dependencies)),
        )


def test_skip_says_why_in_text_that_can_be_recorded() -> None:
    assert Skip("nothing new").why == "nothing new"
    assert Skip().why == ""
    assert Skip(3).why == "3"  # type: ignore[arg-type]
    assert Skip("\ud800").why == "?"


def test_a_task_without_run_says_so_when_it_is_called() -> None:
    with pytest.raises(TypeError, match="Idle does not define run"):
        type("Idle", (Task,), {})().run()


def test_partials_and_builtins_can_be_asked() -> None:
    assert graph_of((each(Train, region=functools.partial(list, "ab")),)).spec(0).expands
    assert graph_of((each(Train, region={"eu": 1}.keys().__iter__),)).spec(0).expands
    assert graph_of((each(Train, region=vars),)).spec(0).expands  # nobody knows its arguments
    assert graph_of((each(Train, region=functools.partial(regions_later)),)).spec(0).pool == "loop"


class Silent(Task):
    """Its __init__ does not call Task's."""

    def __init__(self) -> None:
        self.size = 3

    def run(self) -> None: ...


def test_a_task_with_an_init_of_its_own_need_not_call_the_bases() -> None:
    assert list(graph_of((Silent(), Load)).index) == ["silent", "load"]
    assert repr(Silent()) == "Silent()"
    with pytest.raises(NoRunContext):
        Silent().progress(1)


def test_one_class_is_enough_for_what_is_worth_another_attempt() -> None:
    for on in (ConnectionError, [ConnectionError], (ConnectionError,)):
        assert Retry(on=on).on == (ConnectionError,)
    assert "Retry.on has 'OSError'" in error_of((task(retries=Retry(on="OSError")),))


@pytest.mark.parametrize("wrong", [{"attempts": "3"}, {"attempts": 2.5}, {"wait_s": "1"}, {"jitter": True}])
def test_a_policy_of_what_is_no_number_says_what_it_was_given(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"attempts must be a positive whole number.* {name}={value!r}"):
        Retry(**wrong)


# ---- attributes that look like gluepy's


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        (
            {"retry": 3},
            "retry = 3 means nothing to gluepy; did you mean retries? (if it is your own, annotate it: retry:",
        ),
        ({"timeout": 5}, "did you mean timeout_s?"),
        ({"memory": 100}, "did you mean memory_mb?"),
        ({"num_cpus": 2}, "did you mean cpus?"),
        ({"retires": 2}, "did you mean retries?"),
        ({"output": ("a.csv",)}, "did you mean outputs?"),
        ({"use": {"gpu": 1}}, "did you mean uses?"),
        ({"limits": {"gpu": 1}}, "did you mean uses?"),
        ({"name": "train"}, "did you mean label?"),
        ({"triger": "all_done"}, "did you mean trigger?"),
        ({"retry_delay": 3}, "did you mean retries = Retry(attempts=…, wait_s=…)?"),
        ({"requires": Load}, "requires = Load means nothing to gluepy; the DAG's `tasks` say what a task comes after"),
        ({"depends_on": ["load"]}, "the DAG's `tasks` say what a task comes after"),
    ],
)
def test_an_attribute_that_looks_like_one_of_a_task_is_refused(attributes: dict[str, Any], told: str) -> None:
    assert told in error_of((task(**attributes),))
    assert told in error_of((type("Child", (task(**attributes),), {}),))


class Polite:
    """A mixin with a time-out of its own."""

    timeout = 10


def uses_its_timeout(self: Any) -> None:
    """Reads it in a function inside."""
    print([self.timeout for _ in ()])


@pytest.mark.parametrize(
    "kind",
    [
        task(retry_url="http://…", users=["eu"], labels=["x"], columns=["a"], inputs_dir="raw", _retry=3),
        task(timeout=lambda self: 5, requires=classmethod(lambda cls: ()), output=property(lambda self: "x")),
        task(timeout=5, __annotations__={"timeout": ClassVar[int]}),
        task(timeout=5, __annotations__={"timeout": int}),
        with_run(uses_its_timeout, timeout=5),
        task(timeout=5, wait=property(lambda self: self.timeout)),
        type("Mixed", (Polite, Work), {"timeout": 20}),
        task(name=3, retry="never", output=None),
    ],
)
def test_an_attribute_of_somebodys_own_is_his_business(kind: type[Task]) -> None:
    assert list(graph_of((kind(),)).index)


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"name": "train"}, "name = 'train' means nothing to gluepy; did you mean label?"),
        ({"taks": (Load,), "tasks": None}, "did you mean tasks?"),
        ({"retries": 3}, "retries = 3 means nothing in a DAG; write it in the classes of its tasks"),
        ({"timeout_s": 3}, "timeout_s = 3 means nothing in a DAG"),
        ({"timeout": 3}, "timeout = 3 means nothing in a DAG; did you mean timeout_s, in the classes of its tasks?"),
        ({"max_retries": 3}, "did you mean retries, in the classes of its tasks?"),
        ({"on_failure": "continue"}, "give it to the run: --keep-going or --fail-fast, or run_dag(…, on_failure=…)"),
        ({"max_workers": 4}, "means nothing in a DAG; give it to the run: --concurrency, or run_dag(…, concurrency=…)"),
        ({"params": {"depth": 3}}, "give it to the run: --param, or run_dag(…, params=…)"),
    ],
)
def test_an_attribute_that_looks_like_one_of_a_dag_is_refused(attributes: dict[str, Any], told: str) -> None:
    with pytest.raises(DagError) as caught:
        compile_dag(type("Sample", (DAG,), {"tasks": (Load,), **attributes}))
    assert told in str(caught.value)
    assert compile_dag(type("Sample", (DAG,), {"tasks": (Load,), "schedule": "daily", "owner": "me"}))
