"""What a run would do: `gluepy run --dry-run`; and what a DAG looks like: `gluepy graph`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from gluepy.cli.text import count, printable, table
from gluepy.core.events import JSON
from gluepy.core.graph import Deps, Each, Element, Graph, Leaf, Par, Seq, Tree, compact
from gluepy.core.selection import Selection
from gluepy.exec.dag import Compiled

_SHOWN = 20  # tasks of one wave, values of one `each`


class Plan:
    """The tasks that a run would do, in waves: each wave needs only what the waves before it made."""

    def __init__(
        self, compiled: Compiled, selection: Selection | None, pool: str, concurrency: int, executor: str
    ) -> None:
        self.compiled, self.selection, self.pool = compiled, selection, pool
        self.concurrency, self.executor = concurrency, executor
        graph = compiled.graph
        self.chosen = set(graph.tasks())
        if selection is not None:
            self.chosen &= selection.nodes
        self.waves: list[list[int]] = []
        depth = [0] * len(graph)
        for node in range(len(graph)):  # in topological order
            depth[node] = max((depth[other] for other in graph.dependencies[node]), default=0)
            if node in self.chosen:
                if depth[node] == len(self.waves):
                    self.waves.append([])
                self.waves[depth[node]].append(node)
                depth[node] += 1

    def record(self) -> dict[str, JSON]:
        """The plan as one JSON object."""
        return {
            "dag": self.compiled.label,
            "executor": self.executor,
            "concurrency": self.concurrency,
            "tasks": len(self.chosen),
            "unselected": len(self.compiled.graph.index) - len(self.chosen),
            "waves": [[self._task(node) for node in wave] for wave in self.waves],
        }

    def text(self) -> Iterator[str]:
        """The plan as lines."""
        graph = self.compiled.graph
        left_out = len(graph.index) - len(self.chosen)
        tasks = count(len(self.chosen), "task")
        yield f"{printable(self.compiled.label)}: {tasks}, {self.concurrency} at a time, {self.executor}"
        if left_out:
            yield f"{count(left_out, 'task')} not selected; what depends on them takes them as done, in a new folder"
        for number, wave in enumerate(self.waves, start=1):
            yield ""
            yield f"wave {number}: {count(len(wave), 'task')}"
            rows = [(printable(graph.task_id(node)), self._facts(node)) for node in wave]
            if len(wave) > _SHOWN:  # by label: what they are is alike
                sizes = Counter(graph.spec(node).label for node in wave)
                first = {graph.spec(node).label: node for node in reversed(wave)}
                rows = [
                    (
                        f"{printable(label)} × {size:,}" if size > 1 else printable(graph.task_id(first[label])),
                        self._facts(first[label]),
                    )
                    for label, size in sizes.items()
                ]
            shown = rows if len(rows) <= _SHOWN else rows[: _SHOWN - 1]
            yield from table(shown, "  ")
            if len(shown) < len(rows):
                yield f"  … and {count(len(rows) - len(shown), 'more label' if len(wave) > _SHOWN else 'more task')}"

    def _task(self, node: int) -> dict[str, JSON]:
        graph = self.compiled.graph
        spec = graph.spec(node)
        task: dict[str, JSON] = {"task": graph.task_id(node), "pool": spec.pool or self.pool}
        if spec.uses:
            task["uses"] = spec.uses
        if graph.expandable(node):
            task["adds"] = sorted(graph.labels_of(node))
        return task

    def _facts(self, node: int) -> str:
        graph = self.compiled.graph
        spec = graph.spec(node)
        facts = [spec.pool or self.pool]
        facts += [f"{amount} {name}" for name, amount in spec.uses.items()]
        if spec.retry.attempts > 1:
            facts.append(f"up to {spec.retry.attempts} attempts")
        if spec.timeout_s is not None:
            facts.append(f"at most {spec.timeout_s:g} s")
        if spec.trigger != "all_success":
            facts.append(spec.trigger)
        if graph.expandable(node):
            facts.append(f"finds values, then {', '.join(sorted(graph.labels_of(node)))} for each")
        return printable(", ".join(facts))


def as_text(compiled: Compiled) -> Iterator[str]:
    """The DAG as its author wrote it, as an indented tree. What stands below `each` is done once for each value."""
    yield printable(compiled.label)
    tree = compiled.graph.tree
    yield from _branch(_items(tree.root), tree, "")


def as_mermaid(graph: Graph) -> Iterator[str]:
    """The tasks and their dependencies as a Mermaid flowchart."""

    def quoted(text: str) -> str:
        return "".join(each if each.isalnum() or each in " -_.,=/" else f"#{ord(each)};" for each in text)

    yield "flowchart TD"
    for node, id in enumerate(graph.ids):
        yield f"    t{node}(( ))" if id is None else f'    t{node}["{quoted(_label(graph, node))}"]'
    for before, node in _edges(graph):
        yield f"    t{before} --> t{node}"


def as_dot(graph: Graph, name: str) -> Iterator[str]:
    """The tasks and their dependencies for Graphviz."""

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    yield f"digraph {quoted(printable(name))} {{"
    yield "    node [shape=box];"
    for node, id in enumerate(graph.ids):
        yield f"    t{node} [shape=point];" if id is None else f"    t{node} [label={quoted(_label(graph, node))}];"
    for other, node in _edges(graph):
        yield f"    t{other} -> t{node};"
    yield "}"


def _label(graph: Graph, node: int) -> str:
    adds = f" → {', '.join(sorted(graph.labels_of(node)))}" if graph.expandable(node) else ""
    return printable(graph.task_id(node)) + adds


def _edges(graph: Graph) -> Iterator[tuple[int, int]]:
    for node, dependencies in enumerate(graph.dependencies):
        for other in dependencies:
            yield other, node


def _items(element: Element) -> Sequence[Element]:
    return element.items if isinstance(element, Seq) else (element,)


def _branch(items: Sequence[Element], tree: Tree, indent: str, notes: Sequence[str] = ()) -> Iterator[str]:
    for position, item in enumerate(items):
        last = position == len(items) - 1
        stem, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
        match item:
            case Leaf():
                yield f"{indent}{stem}{_leaf(item, tree)}{notes[position] if notes else ''}"
            case Par():
                yield f"{indent}{stem}parallel"
                yield from _branch(item.items, tree, indent + below)
            case Seq():
                yield f"{indent}{stem}one after another"
                yield from _branch(item.items, tree, indent + below)
            case Each():
                yield f"{indent}{stem}{_each(item, tree)}"
                yield from _branch(_items(item.item), tree, indent + below)
            case Deps():
                ids = [_leaf(leaf, tree) for leaf in item.items]
                after = [f"  after {', '.join(ids[dep] for dep in deps)}" if deps else "" for deps in item.dependencies]
                yield from _branch(item.items, tree, indent, after)


def _leaf(leaf: Leaf, tree: Tree) -> str:
    spec = tree.specs[leaf.spec]
    if leaf.id is not None:
        return printable(leaf.id)
    given = [f"{name}={compact(leaf.fixed[name])}" if name in leaf.fixed else name for name in spec.params]
    return printable(spec.label + (f"[{','.join(given)}]" if given else ""))


def _each(each: Each, tree: Tree) -> str:
    names = ", ".join(each.names)
    if each.rows is None:
        assert each.expander is not None
        finder = tree.specs[each.expander]
        return printable(f"each {names} that {finder.cls} finds, by the task {finder.label}")
    values = [", ".join(map(compact, row)) for row in each.rows[: _SHOWN if len(each.rows) <= _SHOWN else 5]]
    more = f"; … {len(each.rows):,} in all" if len(values) < len(each.rows) else ""
    return printable(f"each {names}: {'; '.join(values)}{more}")
