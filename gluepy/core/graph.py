"""The compiled form of a DAG: a tree of elements, and the graph of tasks that it stands for.

The tree is what the author wrote, reduced to data: it is small (an `each` over a million values is one element), goes
into the log as it is, and the same tree always builds the same graph. Nodes are integers in topological order. A node
is a task or a *join*, a barrier without work that stands between two wide groups, so that n tasks after n tasks cost
2 n edges. What an `each` over a callable adds at run time is appended (`Graph.expand`).
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import msgspec

from gluepy.core.events import JSON
from gluepy.core.policy import NO_RETRY, Goal, Retry, Trigger
from gluepy.errors import DagError

SLUG_LENGTH = 60
_MUTABLE = frozenset((list, dict))


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What all instances of a task class share. `cls` is `module:qualname`; `pool` None leaves the choice to the run;
    `params` are the parameters' names in declaration order. `expands` marks the task that asks an `each` for values.
    `cpus` and `queue` are for executors on other machines. `goals` say of metrics which values are better; `evaluates`
    marks the tasks that judge a run."""

    cls: str
    label: str
    pool: str | None = None
    params: tuple[str, ...] = ()
    trigger: Trigger = "all_success"
    retry: Retry = NO_RETRY
    timeout_s: float | None = None
    uses: dict[str, int] = {}
    memory_mb: int | None = None
    cpus: int | None = None
    queue: str | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    expands: bool = False
    goals: dict[str, Goal] = {}
    evaluates: bool = False


class Leaf(msgspec.Struct, frozen=True, tag="task", omit_defaults=True):
    """One task of `specs[spec]`. `fixed` are parameters with values of their own; an `each` around it gives others."""

    spec: int
    fixed: dict[str, JSON] = {}
    id: str | None = None


class Seq(msgspec.Struct, frozen=True, tag="sequence"):
    """One after another."""

    items: tuple[Element, ...]


class Par(msgspec.Struct, frozen=True, tag="parallel"):
    """Side by side."""

    items: tuple[Element, ...]


class Each(msgspec.Struct, frozen=True, tag="each", omit_defaults=True):
    """`item` once for each row of values of the parameters `names`, side by side. Without `rows`, the task
    `specs[expander]` finds them at run time."""

    item: Element
    names: tuple[str, ...]
    rows: list[list[JSON]] | None = None
    expander: int | None = None


class Deps(msgspec.Struct, frozen=True, tag="mapping", rename={"dependencies": "after"}):
    """A dependency graph: `items[n]` depends on the items `dependencies[n]`, all of which come earlier in `items`."""

    items: tuple[Leaf, ...]
    dependencies: tuple[tuple[int, ...], ...]  # `after` in the log


Element = Leaf | Seq | Par | Each | Deps


class Tree(msgspec.Struct, frozen=True):
    """All of a compiled DAG, as data. `record` and `of` take it to JSON and back."""

    specs: tuple[Spec, ...]
    root: Element

    def record(self) -> dict[str, JSON]:
        """This tree as JSON-able data."""
        record: dict[str, JSON] = msgspec.to_builtins(self)
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, JSON]) -> Tree:
        """The tree that `record` describes. Raises `msgspec.ValidationError` for anything else."""
        return msgspec.convert(record, cls)


def parts(element: Element) -> Iterator[Element]:
    """`element` and every element in it."""
    yield element
    match element:
        case Leaf():
            pass
        case Each():
            yield from parts(element.item)
        case Seq() | Par() | Deps():
            for item in element.items:
                yield from parts(item)


def leaves(element: Element) -> Iterator[Leaf]:
    """The tasks in `element`."""
    return (part for part in parts(element) if isinstance(part, Leaf))


def labels_in(specs: Sequence[Spec], element: Element) -> Iterator[str]:
    """The labels of the tasks in `element`."""
    return (specs[leaf.spec].label for leaf in leaves(element))


def compact(value: JSON) -> str:
    """A parameter's value as it stands in an id: compact JSON, strings bare unless they would read as another value."""
    if type(value) is int:
        return str(value)
    if isinstance(value, str):
        try:
            msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeError):
            return value
    return msgspec.json.encode(value).decode()


def id_of(label: str, names: Sequence[str], values: Sequence[JSON]) -> str:
    """The id of a task: `trainregion[region=eu,fold=3]`."""
    if not names:
        return label
    if len(names) == 1:
        return f"{label}[{names[0]}={compact(values[0])}]"
    return f"{label}[{','.join([f'{name}={compact(value)}' for name, value in zip(names, values, strict=True)])}]"


def slug_of(id: str) -> str:
    """`id` as files, logs and engines name it: `[a-z0-9_-]`, at most 60 characters, with a digest where it differs."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", id.lower()).strip("-")
    if plain == id and len(id) <= SLUG_LENGTH:
        return id
    digest = hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{plain[: SLUG_LENGTH - 7].rstrip('-') or 'task'}-{digest}"


class Graph:
    """Tasks and joins as parallel lists, indexed by node.

    `ids[n]` is the task's id (None: a join), `spec_of[n]` its spec, `values[n]` its parameters' values in the order of
    `Spec.params`; `dependencies[n]` are the nodes it depends on, `dependents[n]` those that depend on it; `index` maps
    ids to nodes; `origin` maps the nodes that an `each` added at run time to the node that asked for them.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.specs: tuple[Spec, ...] = tree.specs
        self.ids: list[str | None] = []
        self.spec_of: list[int] = []
        self.values: list[Sequence[JSON]] = []
        self.dependencies: list[Sequence[int]] = []
        self.dependents: list[Sequence[int]] = []
        self.index: dict[str, int] = {}
        self.origin: dict[int, int] = {}
        self._open: dict[int, tuple[Each, int, Mapping[str, JSON]]] = {}
        self._add(tree.root, (), {})

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_whole(self) -> bool:
        """Whether no `each` can still add tasks: nothing changes such a graph, and runs may share it."""
        return not self._open

    def tasks(self) -> Iterator[int]:
        """The nodes that are tasks, in topological order but for what was added at run time, which comes last."""
        return (node for node, id in enumerate(self.ids) if id is not None)

    def task_id(self, node: int) -> str:
        """The id of a task node."""
        id = self.ids[node]
        assert id is not None
        return id

    def spec(self, node: int) -> Spec:
        """The spec of a task node."""
        return self.specs[self.spec_of[node]]

    def params(self, node: int) -> dict[str, JSON]:
        """The parameters of a task node by name, for the caller to keep: nobody else sees what becomes of them."""
        names, values = self.specs[self.spec_of[node]].params, self.values[node]
        return {
            name: deepcopy(value) if type(value) in _MUTABLE else value
            for name, value in zip(names, values)  # noqa: B905  # `strict` takes as long as all the rest
        }

    def expand(self, node: int, rows: Sequence[Sequence[JSON]]) -> range:
        """Add the tasks that the `each` of `node` makes of `rows`, for which there is no `clash`; returns them."""
        each, join, bindings = self._open.pop(node)
        first = len(self.ids)
        tails = [
            tail for tail in self._rows(each, rows, (node,), bindings) if tail != node
        ]  # it is, of an empty branch
        self._link(tails, join)
        self.dependencies[join] = (*self.dependencies[join], *tails)
        for new in range(first, len(self.ids)):
            self.origin[new] = node
        return range(first, len(self.ids))

    def clash(self, node: int, rows: Sequence[Sequence[JSON]]) -> DagError | None:
        """The error that `expand` would raise, if any; the graph stays as it is."""
        try:
            self.ids_of(node, rows)
        except DagError as error:
            return error
        return None

    def ids_of(self, node: int, rows: Sequence[Sequence[JSON]]) -> list[str]:
        """The ids of the tasks that `expand` would add. Raises `DagError` as it would; the graph stays as it is."""
        each, _, bindings = self._open[node]
        first = len(self.ids)
        try:
            self._rows(each, rows, (node,), bindings)
            return [id for id in self.ids[first:] if id is not None]
        finally:
            self._cut(first, node)

    def along(self, node: int, *, downstream: bool) -> set[int]:
        """`node`, which an `each` added at run time, and all that the `each` added downstream of it (or upstream)."""
        origin, links = self.origin[node], self.dependents if downstream else self.dependencies
        seen: set[int] = set()
        todo = [node]
        while todo:
            other = todo.pop()
            if other not in seen and self.origin.get(other) == origin:
                seen.add(other)
                todo.extend(links[other])
        return seen

    def expandable(self, node: int) -> Each | None:
        """The `each` that `node` will ask for values; None for any other task and for one that was expanded."""
        entry = self._open.get(node)
        return entry[0] if entry else None

    def labels_of(self, node: int) -> set[str]:
        """The labels of the tasks that the `each` of `node` will add."""
        each = self.expandable(node)
        return set(labels_in(self.specs, each.item)) if each else set()

    def ancestors(self, nodes: Iterable[int]) -> set[int]:
        """`nodes` and everything before them, joins included."""
        return self._closure(nodes, self.dependencies)

    def descendants(self, nodes: Iterable[int]) -> set[int]:
        """`nodes` and everything after them, joins included."""
        return self._closure(nodes, self.dependents)

    def task_dependencies(self, node: int) -> list[int]:
        """The tasks that `node` directly depends on, seen through joins."""
        return self._through_joins(node, self.dependencies)

    def deciding(self, node: int) -> list[int]:
        """The tasks whose ends a trigger of `node` looks at: what it directly depends on. What an `each` found stands
        where the `each` does: for what comes after in the place of the task that asked for it, which is left out, and
        for itself behind what that one depends on."""
        before = self.task_dependencies(node)
        asker = self.origin.get(node)
        if asker in before:
            before = [*(other for other in before if other != asker), *self.task_dependencies(asker)]
        asked = {self.origin[other] for other in before if other in self.origin}
        return [other for other in before if other not in asked]

    def task_dependents(self, node: int) -> list[int]:
        """The tasks that directly depend on `node`, seen through joins."""
        return self._through_joins(node, self.dependents)

    def _through_joins(self, node: int, edges: Sequence[Sequence[int]]) -> list[int]:
        found, seen, todo = [], set(), list(edges[node])
        while todo:
            other = todo.pop()
            if other in seen:
                continue
            seen.add(other)
            if self.ids[other] is None:
                todo.extend(edges[other])
            else:
                found.append(other)
        return found

    def task_edges(self) -> Iterator[tuple[int, int]]:
        """Every dependency between two tasks, seen through joins, as (dependency, dependent)."""
        return ((other, node) for node in self.tasks() for other in self.task_dependencies(node))

    def longest_paths(self, weight: Callable[[int], float], since: int = 0, known: Sequence[float] = ()) -> list[float]:
        """For every node from `since` on, the weight of the heaviest path from it to an end, its own included.

        `known` are the results for the nodes before `since`. An `each` not yet expanded counts one row.
        """
        paths = [*known, *[0.0] * (len(self.ids) - since)]
        ids, dependents, unknown = self.ids, self.dependents, self._open
        for node in self._backwards(since):
            leads = dependents[node]
            heaviest = paths[leads[0]] if len(leads) == 1 else max([paths[other] for other in leads], default=0.0)
            if ids[node] is not None:
                heaviest += weight(node)
                if unknown and node in unknown:
                    heaviest += self._depth(unknown[node][0].item)
            paths[node] = heaviest
        return paths

    # Building. Every method takes an element and its dependencies, and returns the tails that the next one depends on.

    def _add(self, element: Element, dependencies: Sequence[int], bindings: Mapping[str, JSON]) -> Sequence[int]:
        match element:
            case Leaf():
                return (self._leaf(element, dependencies, bindings),)
            case Seq():
                for item in element.items:
                    dependencies = self._add(item, dependencies, bindings)
                return dependencies
            case Par():
                dependencies = self._gather(dependencies, len(element.items))
                return _once(
                    itertools.chain.from_iterable(self._add(item, dependencies, bindings) for item in element.items)
                )
            case Each() if element.rows is not None:
                dependencies = self._gather(dependencies, len(element.rows))
                return self._rows(element, element.rows, dependencies, bindings) if element.rows else dependencies
            case Each():
                return self._expander(element, dependencies, bindings)
            case Deps():
                nodes: list[int] = []
                for leaf, deps in zip(element.items, element.dependencies, strict=True):
                    nodes.append(self._leaf(leaf, tuple(nodes[dep] for dep in deps) or dependencies, bindings))
                needed = {dep for deps in element.dependencies for dep in deps}
                return [node for position, node in enumerate(nodes) if position not in needed]

    def _rows(
        self, each: Each, rows: Sequence[Sequence[JSON]], dependencies: Sequence[int], bindings: Mapping[str, JSON]
    ) -> list[int]:
        tails: list[int] = []
        item, names = each.item, each.names
        for row in rows:
            bound = {**bindings, **dict(zip(names, row, strict=True))}
            if type(item) is Leaf:
                tails.append(self._leaf(item, dependencies, bound))
            else:
                tails.extend(self._add(item, dependencies, bound))
        return _once(tails)

    def _leaf(self, leaf: Leaf, dependencies: Sequence[int], bindings: Mapping[str, JSON]) -> int:
        spec = self.specs[leaf.spec]
        names, fixed = spec.params, leaf.fixed
        values = tuple([fixed[name] if name in fixed else bindings[name] for name in names]) if names else ()
        return self._node(leaf.id or id_of(spec.label, names, values), leaf.spec, values, dependencies)

    def _expander(self, each: Each, dependencies: Sequence[int], bindings: Mapping[str, JSON]) -> Sequence[int]:
        if each.expander is None:
            raise DagError("each", "has neither values nor a task that finds them")
        label = self.specs[each.expander].label
        if label in self.index:
            raise DagError(
                f"task {label!r}",
                "appears twice in the DAG",
                "let one callable return all values, or subclass the task",
            )
        node = self._node(label, each.expander, (), dependencies)
        join = self._node(None, -1, (), (node,))
        self._open[node] = (each, join, bindings)
        return (join,)

    def _gather(self, dependencies: Sequence[int], width: int) -> Sequence[int]:
        # One join between two wide groups instead of an edge for each pair of their members.
        return (self._node(None, -1, (), dependencies),) if len(dependencies) > 1 and width > 1 else dependencies

    def _node(self, id: str | None, spec: int, values: Sequence[JSON], dependencies: Sequence[int]) -> int:
        node = len(self.ids)
        if id is not None and self.index.setdefault(id, node) != node:
            raise DagError(f"task {id!r}", "appears twice in the DAG", "give one an id of its own: Name(id='…')")
        self.ids.append(id)
        self.spec_of.append(spec)
        self.values.append(values)
        self.dependencies.append(dependencies)
        self.dependents.append(())
        self._link(dependencies, node)
        return node

    def _link(self, dependencies: Iterable[int], node: int) -> None:
        alone = (node,)  # shared by all that only lead here: a million tails are one tuple
        dependents = self.dependents
        for other in dependencies:
            leads = dependents[other]
            if not leads:
                dependents[other] = alone
            elif isinstance(leads, list):
                leads.append(node)
            else:
                dependents[other] = [*leads, node]

    def _cut(self, first: int, node: int) -> None:
        for id in self.ids[first:]:
            if id is not None and self.index.get(id, -1) >= first:
                del self.index[id]
        for column in (self.ids, self.spec_of, self.values, self.dependencies, self.dependents):
            del column[first:]
        self.dependents[node] = tuple(other for other in self.dependents[node] if other < first)

    def _closure(self, nodes: Iterable[int], links: Sequence[Sequence[int]]) -> set[int]:
        seen: set[int] = set()
        todo = list(nodes)
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo.extend(links[node])
        return seen

    def order(self) -> list[int]:
        """Every node after all that it depends on, those that were added at run time too."""
        return list(self._backwards(0))[::-1]

    def _backwards(self, since: int) -> Iterator[int]:
        """Every node from `since` on after all that depends on it; what an `each` added comes before that `each`."""
        if since or not self.origin:
            yield from range(len(self.ids) - 1, since - 1, -1)
            return
        added: dict[int, list[int]] = {}
        for node, origin in self.origin.items():
            added.setdefault(origin, []).append(node)
        for node in range(len(self.ids) - 1, since - 1, -1):
            if node not in self.origin:
                yield from reversed(added.get(node, ()))
                yield node

    def _depth(self, element: Any) -> float:
        match element:
            case Seq():
                return sum(self._depth(item) for item in element.items)
            case Par():
                return max((self._depth(item) for item in element.items), default=0.0)
            case Each():
                return self._depth(element.item)
            case _:
                return 1.0


def _once(tails: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(tails))  # empty branches all end in what came before them
