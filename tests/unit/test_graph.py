"""The graph: ids and slugs, joins, what expansion adds, paths, and what it costs."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import RandomTree, in_order

from gluepy.core.events import JSON
from gluepy.core.graph import SLUG_LENGTH, Deps, Each, Element, Graph, Leaf, Par, Seq, Spec, Tree, id_of, slug_of
from gluepy.core.selection import labels_along, nodes_named
from gluepy.errors import DagError

SPECS = (
    *(Spec(cls=f"m:{label}", label=label) for label in "abcd"),
    *(Spec(cls=f"m:{label}", label=label, params=("x",)) for label in "pq"),
    *(Spec(cls=f"m:each-{label}", label=f"each-{label}", expands=True) for label in "pq"),
)
A, B, C, D, P, Q = (Leaf(number) for number in range(6))
ASK_P, ASK_Q = 6, 7


def graph_of(root: Element) -> Graph:
    return Graph(Tree(SPECS, root))


def ask(item: Element, expander: int = ASK_P) -> Each:
    return Each(item, ("x",), expander=expander)


def rows(count: int) -> list[list[JSON]]:
    return [[number] for number in range(count)]


def shape(graph: Graph) -> tuple[Any, ...]:
    return (
        list(graph.ids), list(graph.spec_of), list(map(list, graph.dependencies)), list(map(list, graph.dependents)),
        dict(graph.index), dict(graph.origin), graph.expandable(graph.index.get("each-p", -1)),
    )  # fmt: skip


def depths(graph: Graph) -> list[float]:
    """The longest paths by the definition, of one node after another."""
    known: dict[int, float] = {}

    def path(node: int) -> float:
        if node not in known:
            known[node] = (graph.ids[node] is not None) + max(
                (path(other) for other in graph.dependents[node]), default=0.0
            )
        return known[node]

    return [path(node) for node in range(len(graph))]


# ---- ids and slugs


def test_an_id_is_the_label_and_its_parameters() -> None:
    assert id_of("fit", (), ()) == "fit"
    assert id_of("fit", ("region", "fold"), ("eu", 3)) == "fit[region=eu,fold=3]"


@pytest.mark.parametrize("plain", ["load", "a-b_c-9", "x" * 60])
def test_a_plain_id_is_its_own_slug(plain: str) -> None:
    assert slug_of(plain) == plain


@pytest.mark.parametrize(
    ("id", "start"),
    [
        ("Load", "load-"),
        ("train[region=eu,fold=3]", "train-region-eu-fold-3-"),
        ("train[region=CNTRL/STORE SUP]", "train-region-cntrl-store-sup-"),
        ("☃", "task-"),
        ("\ud800", "task-"),
        ("../../etc/passwd", "etc-passwd-"),
        ("-", "task-"),
        ("x" * 61, "x" * 53 + "-"),
        ("x" * 52 + "--y" * 9, "x" * 52 + "-"),
    ],
)
def test_any_other_id_is_told_apart_by_a_digest(id: str, start: str) -> None:
    slug = slug_of(id)
    assert slug.startswith(start)
    assert re.fullmatch(r"[0-9a-f]{6}", slug.removeprefix(start))


@given(st.text(), st.text())
def test_a_slug_can_name_a_file_and_ids_that_differ_in_case_differ(id: str, other: str) -> None:
    assert re.fullmatch(r"[a-z0-9_-]{1,60}", slug_of(id)) or not id
    assert len(slug_of(id)) <= SLUG_LENGTH
    if id != other and id:
        assert slug_of(id) != slug_of(other) or not other


# ---- structure


def test_a_join_stands_between_groups_and_nowhere_else() -> None:
    graph = graph_of(Seq((Par((A, B)), Par((C, D)))))
    assert graph.ids == ["a", "b", None, "c", "d"]
    assert [list(nodes) for nodes in graph.dependencies] == [[], [], [0, 1], [2], [2]]
    assert [list(nodes) for nodes in graph.dependents] == [[2], [2], [3, 4], [], []]
    assert list(graph.task_edges()) == [(1, 3), (0, 3), (1, 4), (0, 4)]
    assert None not in graph_of(Seq((A, Par((B, C)), D))).ids


def test_an_empty_branch_hands_on_what_came_before_it_once() -> None:
    empty = Each(P, ("x",), rows=[])
    graph = graph_of(Seq((A, Par((empty, B, empty)), C)))
    assert list(graph.dependencies[graph.index["c"]]) == [graph.index["a"], graph.index["b"]]
    several = Each(Seq(()), ("x",), rows=rows(5))
    graph = graph_of(Seq((A, several, C)))
    assert list(graph.dependencies[graph.index["c"]]) == [graph.index["a"]]


def test_a_mapping_keeps_its_dependencies_and_ends_in_what_nothing_needs() -> None:
    deps = Deps((A, B, C), ((), (0,), (0,)))
    graph = graph_of(Seq((deps, D)))
    assert [list(nodes) for nodes in graph.dependencies] == [[], [0], [0], [1, 2]]


def test_an_id_that_stands_twice_is_refused() -> None:
    with pytest.raises(DagError, match="task 'a': appears twice"):
        graph_of(Seq((A, A)))
    with pytest.raises(DagError, match="task 'each-p': appears twice in the DAG; let one callable"):
        graph_of(Seq((ask(P), ask(Q))))


def test_an_each_without_values_and_without_anything_that_finds_them_is_refused() -> None:
    with pytest.raises(DagError, match="neither values nor a task that finds them"):
        graph_of(Each(P, ("x",)))


def test_a_dependency_through_several_joins_is_one() -> None:
    graph = graph_of(Seq((Par((A, B)), Par((C, D)))))
    graph.dependencies[graph.index["c"]] = (0, 2, 2)
    found = list(graph.task_edges())
    assert sorted(found) == [(0, 3), (0, 4), (1, 3), (1, 4)]


def test_names_are_ids_or_labels() -> None:
    graph = graph_of(Seq((A, Each(P, ("x",), rows=rows(3)), Leaf(1, id="p"))))
    assert nodes_named(graph, "a") == [0]
    assert nodes_named(graph, "p[x=1]") == [2]
    assert nodes_named(graph, "p") == [graph.index["p"]]  # an id comes first
    assert nodes_named(graph, "nothing") == []
    assert nodes_named(graph_of(Seq((Each(P, ("x",), rows=rows(3)),))), "p") == [0, 1, 2]


def test_parameters_come_from_the_task_or_from_the_each_around_it() -> None:
    tree = Tree(
        (Spec(cls="m:t", label="t", params=("x", "y")),), Each(Leaf(0, fixed={"y": "fixed"}), ("x",), rows=rows(2))
    )
    graph = Graph(tree)
    assert [graph.params(node) for node in graph.tasks()] == [{"x": 0, "y": "fixed"}, {"x": 1, "y": "fixed"}]


def test_parameters_are_the_callers_to_change() -> None:
    graph = graph_of(Leaf(4, fixed={"x": [{"a": [1]}]}))
    graph.params(0)["x"][0]["a"].append(2)
    assert graph.params(0) == {"x": [{"a": [1]}]}


def test_ancestors_and_descendants_see_through_joins() -> None:
    graph = graph_of(Seq((Par((A, B)), Par((C, D)))))
    assert graph.ancestors([graph.index["c"]]) == {0, 1, 2, 3}
    assert graph.descendants([graph.index["a"]]) == {0, 2, 3, 4}


def test_a_tree_is_data_there_and_back() -> None:
    for seed in range(50):
        tree = RandomTree(random.Random(seed), 20).tree()
        line = msgspec.json.encode(tree.record())
        assert Tree.from_record(msgspec.json.decode(line)) == tree
        assert shape(Graph(Tree.from_record(msgspec.json.decode(line)))) == shape(Graph(tree))
    with pytest.raises(msgspec.ValidationError):
        Tree.from_record({"specs": [], "root": {"type": "other"}})


# ---- expansion


def test_expanding_adds_tasks_between_what_asked_and_what_follows() -> None:
    graph = graph_of(Seq((A, ask(P), B)))
    node = graph.index["each-p"]
    assert graph.expandable(node) is not None
    assert list(graph.expand(node, rows(2))) == [4, 5]
    assert graph.expandable(node) is None
    assert graph.labels_of(node) == set()
    assert graph.origin == {4: node, 5: node}
    assert set(graph.task_edges()) == {(0, 1), (1, 4), (1, 5), (1, 3), (4, 3), (5, 3)}
    assert [graph.params(new) for new in (4, 5)] == [{"x": 0}, {"x": 1}]


def test_expanding_to_nothing_leaves_what_follows_to_what_asked() -> None:
    graph = graph_of(Seq((ask(P), B)))
    assert list(graph.expand(0, [])) == []
    assert list(graph.task_edges()) == [(0, 2)]


def test_what_an_empty_branch_adds_waits_for_what_asked_only_once() -> None:
    empty = Each(Q, ("y",), rows=[])
    graph = graph_of(Seq((ask(Par((empty, P, empty))), B)))
    graph.expand(0, rows(3))
    join = 1
    assert graph.ids[join] is None
    assert sorted(graph.dependencies[join]) == [0, 3, 4, 5]
    for node, dependents in enumerate(graph.dependents):
        assert len(set(dependents)) == len(dependents), "an edge appears twice"
        for other in dependents:
            assert node in graph.dependencies[other]


def test_the_labels_that_an_each_will_add_are_known_before() -> None:
    graph = graph_of(ask(Seq((P, Par((Q, Each(A, ("y",), rows=rows(1))))))))
    assert graph.labels_of(0) == {"p", "q", "a"}


def test_the_part_of_a_chain_from_or_up_to_a_label_is_known_before() -> None:
    graph = graph_of(ask(Seq((P, Par((Q, Seq((A, B)))), Each(C, ("y",), rows=rows(1)), D))))
    node = graph.index["each-p"]
    assert labels_along(graph, node, "p", downstream=True) == {"p", "q", "a", "b", "c", "d"}
    assert labels_along(graph, node, "a", downstream=True) == {"a", "b", "c", "d"}
    assert labels_along(graph, node, "b", downstream=False) == {"p", "a", "b"}
    assert labels_along(graph, node, "c", downstream=False) == {"p", "q", "a", "b", "c"}
    assert labels_along(graph, node, "nothing", downstream=True) == set()
    graph.expand(node, rows(1))
    assert labels_along(graph, node, "p", downstream=True) == set()


def test_a_clash_is_told_and_leaves_the_graph_as_it_was() -> None:
    graph = graph_of(Seq((Leaf(4, fixed={"x": 1}), ask(Seq((P, Q))), Par((B, C)))))
    node = graph.index["each-p"]
    before = shape(graph)
    clash = graph.clash(node, rows(3))
    assert clash is not None
    assert "task 'p[x=1]': appears twice" in str(clash)
    assert shape(graph) == before
    assert graph.clash(node, [[5], [6]]) is None
    assert shape(graph) == before
    assert graph.clash(node, [[7], [7]]) is not None
    assert shape(graph) == before
    graph.expand(node, [[5], [6]])
    assert "q[x=6]" in graph.index


# ---- order and paths


@pytest.mark.parametrize("seed", range(60))
def test_paths_and_order_are_right_before_and_after_every_expansion(seed: int) -> None:
    rng = random.Random(seed)
    graph = Graph(RandomTree(rng, 20).tree())
    unit: Callable[[int], float] = lambda node: 1.0  # noqa: E731
    paths = graph.longest_paths(unit)
    assert paths == guessed(graph)
    for node in list(graph.tasks()):
        if graph.expandable(node):
            values = rows(rng.choice((0, 1, 3)))
            if graph.clash(node, values) is None:
                first = len(graph)
                graph.expand(node, values)
                paths = graph.longest_paths(unit, first, paths)
                assert paths[first:] == guessed(graph)[first:]
                assert graph.longest_paths(unit) == guessed(graph)
        order = graph.order()
        assert sorted(order) == list(range(len(graph)))
        place = {node: number for number, node in enumerate(order)}
        assert all(place[other] < place[node] for node in order for other in graph.dependencies[node])
        assert sorted(in_order(graph)) == sorted(order)


def guessed(graph: Graph) -> list[float]:
    """The longest paths, where an `each` that has not asked yet counts as one row of its longest chain."""
    if not any(graph.expandable(node) for node in graph.tasks()):
        return depths(graph)
    extra: dict[int, float] = {}
    known: dict[int, float] = {}
    for node in graph.tasks():
        each = graph.expandable(node)
        if each is not None:
            alone = Graph(Tree(graph.specs, Seq((Each(each.item, each.names, rows=[[0]]),))))
            extra[node] = max(depths(alone), default=0.0)

    def path(node: int) -> float:
        if node not in known:
            here = (graph.ids[node] is not None) + extra.get(node, 0.0)
            known[node] = here + max((path(other) for other in graph.dependents[node]), default=0.0)
        return known[node]

    return [path(node) for node in range(len(graph))]


def test_weights_make_paths() -> None:
    graph = graph_of(Seq((A, Par((B, Seq((C, D)))))))
    weights = {"a": 1.0, "b": 10.0, "c": 2.0, "d": 3.0}
    assert graph.longest_paths(lambda node: weights[graph.task_id(node)]) == [11.0, 10.0, 5.0, 3.0]


# ---- what it costs


def cost(build: Callable[[int], object], size: int) -> int:
    """Lines of Python that `build(size)` runs through: the same on every machine."""
    lines = 0

    def count(_frame: FrameType, _event: str, _argument: object) -> Any:
        nonlocal lines
        lines += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        build(size)
    finally:
        sys.settrace(before)
    return lines


def test_wide_groups_cost_no_more_than_their_members() -> None:
    count = 10_000
    left, right = Each(P, ("x",), rows=rows(count)), Each(Q, ("x",), rows=rows(count))
    graph = graph_of(Seq((left, right)))
    assert len(graph) == 2 * count + 1
    assert sum(map(len, graph.dependencies)) == 2 * count
    assert sum(map(len, graph.dependents)) == 2 * count


def chain(size: int) -> Graph:
    specs = (Spec(cls="m:t", label="t"),)
    return Graph(Tree(specs, Seq(tuple(Leaf(0, id=str(number)) for number in range(size)))))


def expanded(size: int) -> Graph:
    graph = graph_of(Seq((ask(Seq((P, Q))), B)))
    assert graph.clash(0, rows(size)) is None
    graph.expand(0, rows(size))
    graph.longest_paths(lambda node: 1.0)
    return graph


@pytest.mark.parametrize("build", [chain, expanded])
def test_ten_times_the_tasks_cost_about_ten_times_as_much(build: Callable[[int], Graph]) -> None:
    small, large = cost(build, 200), cost(build, 2_000)
    assert large < 15 * small, f"{large / small:.0f} times"  # 100 times, were it quadratic


@given(st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_every_edge_is_known_at_both_ends(seed: int) -> None:
    rng = random.Random(seed)
    graph = Graph(RandomTree(rng, 15).tree())
    for node in list(graph.tasks()):
        if graph.expandable(node) and graph.clash(node, rows(2)) is None:
            graph.expand(node, rows(2))
    forth = sorted((other, node) for node, nodes in enumerate(graph.dependencies) for other in nodes)
    back = sorted((node, other) for node, nodes in enumerate(graph.dependents) for other in nodes)
    assert forth == back
    assert len(set(forth)) == len(forth)
