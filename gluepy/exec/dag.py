"""What a pipeline's author writes around tasks: `DAG`, `parallel`, `each`; and `compile_dag`, which checks it all."""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from gluepy.core.events import JSON, recordable
from gluepy.core.graph import Deps, Each, Element, Graph, Leaf, Par, Seq, Spec, Tree, compact, leaves
from gluepy.errors import DagError, did_you_mean
from gluepy.exec.parameters import parameters_of
from gluepy.exec.task import Task, has_others, is_async, retry_of, spec_of
from gluepy.exec.values import Codec, WrongValue, short


class DAG:
    """A pipeline: a `label` (default: the lower-cased class name) and its `tasks`.

    `tasks` is a sequence, run from top to bottom, or a mapping of each task to what it depends on. A task is a class,
    the name of one in the DAG's module, or an instance. `evaluation`, a sequence too, are tasks that judge a run and
    change nothing of it: they run after all others, unless they are left out (`skip_evaluation`).
    """

    label: ClassVar[str]
    tasks: ClassVar[Any]
    evaluation: ClassVar[Any] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "label" not in cls.__dict__:
            cls.label = cls.__name__.lower()


DAG.label = "dag"


class Branches:
    """What `parallel` makes."""

    def __init__(self, branches: tuple[Any, ...]) -> None:
        self.branches = branches


class Fan:
    """What `each` makes."""

    def __init__(self, item: Any, values: dict[str, Any]) -> None:
        self.item, self.values = item, values


class Expander:
    """What the task `each-<label>` does: ask the callables, and make rows of parameter values of what they return.

    `retry_on` are the errors that are worth another attempt, empty for all; `codecs` check what a parameter may be.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        retry_on: tuple[Any, ...] = (),
        codecs: Mapping[str, Sequence[Codec]] | None = None,
    ) -> None:
        self.values, self.retry_on, self.codecs = values, retry_on, codecs or {}
        self.is_async = any(inspect.iscoroutinefunction(value) for value in values.values())

    def rows(self) -> list[list[JSON]]:
        """One row of values an instance. Raises `ValueError` for duplicates and for what a parameter cannot be."""
        return self.product([value() if callable(value) else value for value in self.values.values()])

    async def rows_async(self) -> list[list[JSON]]:
        """`rows`, where a callable is async."""
        answers = []
        for value in self.values.values():
            answer = value() if callable(value) else value
            answers.append(await answer if inspect.isawaitable(answer) else answer)
        return self.product(answers)

    def product(self, answers: Sequence[Any]) -> list[list[JSON]]:
        """The rows of what the callables answered, and of the lists beside them."""
        columns = []
        for name, answer in zip(self.values, answers, strict=True):
            if isinstance(answer, (str, bytes, Mapping)) or not isinstance(answer, Iterable):
                raise ValueError(f"the callable for {name!r} returned {short(answer)}; it must return a list of values")
            codecs = self.codecs.get(name, _ANY)
            columns.append([encoded(value, codecs, f"a value for {name!r}") for value in answer])
        rows = [list(row) for row in itertools.product(*columns)]
        seen: set[str] = set()
        for row in rows:
            key = ",".join(map(compact, row))
            if key in seen:
                raise ValueError(f"the values {short(row)} appear twice; each instance needs values of its own")
            seen.add(key)
        return rows


_ANY = (Codec(Any),)


def encoded(value: Any, codecs: Sequence[Codec], what: str) -> JSON:
    """`value` as JSON that all of `codecs` read. Raises `WrongValue`, naming `what`."""
    recorded = codecs[0].encode(value, what)
    for codec in codecs[1:]:
        if (other := codec.encode(value, what)) != recorded:
            problem = f"{what} is {short(value)}, which is {recorded!r} for one task and {other!r} for another"
            raise WrongValue(problem, "annotate the parameter with the same type in both")
    return recorded


def parallel(*branches: Any) -> Branches:
    """The `branches` run side by side. A nested sequence is one branch; its tasks run one after another."""
    return Branches(branches)


def each(item: Any, /, **values: Any) -> Fan:
    """`item`, a task or a chain of tasks, once for each value, side by side.

    `values` give each parameter a list of values, or a callable without arguments that returns one: it is asked when
    the tasks before it are done. Several keywords make the product.
    """
    return Fan(item, {name: value if callable(value) else _listed(name, value) for name, value in values.items()})


class Compiled:
    """A checked DAG: its `graph`, and what each of `graph.specs` runs, `targets`: a task class or an `Expander`."""

    def __init__(self, dag: type[DAG], graph: Graph, targets: Sequence[type[Task] | Expander]) -> None:
        self.dag, self.graph, self.targets = dag, graph, targets
        self.label = dag.label


def compile_dag(dag: type[DAG], limits: Mapping[str, int] | None = None) -> Compiled:
    """Check `dag` and build its graph. `limits` are the named limits that `uses` may name (None: not checked).

    Raises `DagError`, naming the place and the hint, for every authoring mistake.
    """
    compiler = _Compiler(dag)
    root = compiler.root()
    for spec in compiler.specs:
        compiler.check_uses(spec, limits)
    try:
        graph = Graph(Tree(tuple(compiler.specs), root))
    except DagError as error:
        raise DagError(f"{compiler.place}, {error.place}", error.problem, error.hint) from None
    if not graph.index:
        raise DagError(compiler.place, "has no tasks", "name at least one in `tasks`")
    return Compiled(dag, graph, compiler.targets)


def check_label(dag: type[DAG]) -> None:
    """Raises `DagError` for a label that could not be told from a file's or a module's name on a command line."""
    label = dag.label
    if isinstance(label, str) and (":" in label or label.endswith(".py") or label.startswith("-")):
        place = f"DAG {dag.__qualname__} ({dag.__module__})"
        hint = "remove ':', '.py' at its end and '-' at its beginning: they mean a class, a file and an option"
        raise DagError(place, f"label is {label!r}", hint)


class _Compiler:
    def __init__(self, dag: type[DAG]) -> None:
        self.dag = dag
        self.place = f"DAG {dag.__qualname__} ({dag.__module__})"
        self.specs: list[Spec] = []
        self.targets: list[type[Task] | Expander] = []
        self._known: dict[type[Task], tuple[int, dict[str, Any]]] = {}  # its spec, and its parameters' defaults
        self._defaults: dict[type[Task], dict[str, JSON]] = {}  # those of them that were needed, as JSON

    def fail(self, problem: str, hint: str = "") -> DagError:
        return DagError(self.place, problem, hint)

    def root(self) -> Element:
        tasks = getattr(self.dag, "tasks", None)
        if not isinstance(self.dag.label, str) or not self.dag.label:
            raise self.fail(f"label is {self.dag.label!r}", "give it a name, a string")
        check_label(self.dag)
        if has_others(self.dag, DAG, ("label", "tasks", "evaluation")):
            from gluepy.exec.near_misses import near_miss_of_dag

            miss = near_miss_of_dag(self.dag, DAG, Task._configurable)
            if miss is not None:
                raise self.fail(*miss)
        if tasks is None:
            raise self.fail("has no `tasks`", "give it a sequence of tasks, or a mapping of task to dependencies")
        root = self.mapping(tasks) if isinstance(tasks, Mapping) else self.sequence("tasks", tasks)
        evaluation = self.dag.evaluation
        if evaluation is None or evaluation == ():
            return root
        first, self._known = len(self.specs), {}  # of a class that is in both, another spec
        judges = self.sequence("evaluation", evaluation)
        self.specs[first:] = [msgspec.structs.replace(spec, evaluates=True) for spec in self.specs[first:]]
        parts = [element.items if isinstance(element, Seq) else (element,) for element in (root, judges)]
        return Seq((*parts[0], *parts[1]))

    def sequence(self, name: str, tasks: Any) -> Element:
        if isinstance(tasks, (Branches, Fan)) or (isinstance(tasks, type) and issubclass(tasks, Task)):
            tasks = (tasks,)  # `tasks = Load`, or a forgotten comma
        if not isinstance(tasks, (tuple, list)):
            or_mapping = ", or a mapping of task to dependencies" if name == "tasks" else ""
            raise self.fail(f"`{name}` is {short(tasks)}", f"give it a tuple of tasks{or_mapping}")
        return self.element(tasks, frozenset())

    def element(self, item: Any, given: frozenset[str]) -> Element:
        """`item` as data; `given` are the parameters that the `each`es around it give values."""
        match item:
            case Task():
                return self.leaf(item, given)
            case tuple() | list():
                return Seq(tuple(self.element(part, given) for part in item))
            case Branches():
                if not item.branches:
                    raise self.fail("parallel() without branches", "name at least one task in it")
                return Par(tuple(self.element(part, given) for part in item.branches))
            case Fan():
                return self.fan(item, given)
            case _:
                return self.leaf(item, given)

    def leaf(self, item: Any, given: frozenset[str] = frozenset()) -> Leaf:
        if isinstance(item, str):
            item = self.resolve(item)
        task = item if isinstance(item, type) else type(item)
        if not issubclass(task, Task) or task is Task:
            raise self.fail(
                f"{short(item)} is not a task",
                "use a Task class, its name, an instance, parallel(…), each(…) or a sequence",
            )
        spec, defaults = self._known.get(task) or self.learn(task)
        takes = parameters_of(task)
        try:
            is_bare = isinstance(item, type) or takes.is_bare(item)
            id = None if isinstance(item, type) else takes.id_of(item)
            own = {} if is_bare else takes.given(item)
            fixed = {}
            for name in takes.names:
                if name in own:
                    fixed[name] = takes.codec(name).encode(own[name], f"{task.__qualname__}.{name}")
                elif name in given:
                    takes.codec(name)
                elif name in defaults:
                    if name not in self._defaults[task]:
                        default = takes.codec(name).encode(defaults[name], f"{task.__qualname__}.{name}")
                        self._defaults[task][name] = default
                    fixed[name] = self._defaults[task][name]
                else:
                    around = f" (the each around it gives {', '.join(sorted(given))})" if given else ""
                    raise self.fail(
                        f"{task.__qualname__} needs a value for its parameter {name!r}{around}",
                        f"write {task.__qualname__}({name}=…) or each({task.__qualname__}, {name}=[…])",
                    )
            if not is_bare:
                takes.check(item, fixed)
        except WrongValue as error:
            raise self.fail(error.problem, error.hint) from None
        if id is not None and (not isinstance(id, str) or not id or recordable(id) != id):
            raise self.fail(f"{task.__qualname__} has the id {id!r}", "an id is a string with at least one character")
        return Leaf(spec, fixed, id)

    def learn(self, task: type[Task]) -> tuple[int, dict[str, Any]]:
        try:
            spec = spec_of(task)
        except DagError as error:
            raise DagError(f"{self.place}, {error.place}", error.problem, error.hint) from None
        known = self._known[task] = self.append(spec, task), dict(parameters_of(task).defaults())
        self._defaults[task] = {}
        return known

    def append(self, spec: Spec, target: type[Task] | Expander) -> int:
        self.specs.append(spec)
        self.targets.append(target)
        return len(self.specs) - 1

    def fan(self, fan: Fan, given: frozenset[str]) -> Element:
        if not fan.values:
            raise self.fail(
                "each(…) without values", "give it a list of values by a parameter's name: each(Fit, region=[…])"
            )
        names = frozenset(fan.values)
        item = self.element(fan.item, given | names)
        tasks = list(leaves(item))
        declared = {name for leaf in tasks for name in self.specs[leaf.spec].params}
        for name in fan.values:
            if name not in declared:
                hint = did_you_mean(name, declared).removeprefix("; ") or self.hint_for(tasks)
                raise self.fail(f"each(…) gives {name!r}, which no task in it has as a parameter", hint)
        for leaf in tasks:
            label = self.specs[leaf.spec].label
            for name, value in fan.values.items():
                several = callable(value) or len(value) > 1
                if several and leaf.id is not None:
                    hint = "remove the id: the values tell its tasks apart"
                    raise self.fail(f"each(…, {name}=…) repeats the id {leaf.id!r}", hint)
                if several and name not in self.specs[leaf.spec].params:
                    hint = f"annotate {name} in its class, or move it out of the each"
                    raise self.fail(f"each(…, {name}=…) repeats {label!r}, which has no parameter {name!r}", hint)
                if name in leaf.fixed:
                    hint = "give it in one place only"
                    raise self.fail(f"each(…) gives {name!r}, which {label!r} has a value for already", hint)
        asked = {name: value for name, value in fan.values.items() if callable(value)}
        for name, value in asked.items():
            _check_callable(value, name, self.fail)
        columns, codecs = dict(fan.values), {name: self.codecs(name, tasks) for name in fan.values}
        for name, values in fan.values.items():
            if name not in asked:
                what = f"a value of each for {name!r}"
                try:
                    columns[name] = [encoded(value, codecs[name], what) for value in values]
                except WrongValue as error:
                    raise self.fail(error.problem, error.hint) from None
        if not asked:
            return Each(item, tuple(columns), rows=[list(row) for row in itertools.product(*columns.values())])
        if given:
            raise self.fail("an each over a callable inside another each", "let one callable return all combinations")
        first, task = self.specs[tasks[0].spec], self.targets[tasks[0].spec]
        expander = Expander(columns, () if isinstance(task, Expander) else retry_of(task).on, codecs)
        calls = ",".join(
            f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', '?')}" for value in asked.values()
        )
        spec = Spec(
            cls=calls,
            label=f"each-{first.label}",
            pool="loop" if expander.is_async else "thread",
            trigger=first.trigger,
            retry=first.retry,
            timeout_s=first.timeout_s,
            expands=True,
        )
        return Each(item, tuple(columns), expander=self.append(spec, expander))

    def codecs(self, name: str, leaves: Iterable[Leaf]) -> list[Codec]:
        """How values of the parameter become JSON, of each type that the leaves annotate it with."""
        codecs: list[Codec] = []
        for leaf in leaves:
            task = self.targets[leaf.spec]
            if isinstance(task, type) and name in parameters_of(task).names:
                codec = parameters_of(task).codec(name)
                if all(codec.annotation != known.annotation for known in codecs):
                    codecs.append(codec)
        return codecs

    def mapping(self, tasks: Mapping[Any, Any]) -> Element:
        known: dict[int, tuple[Leaf, tuple[int, str]]] = {}  # by the item's identity: most stand in several places

        def look(item: Any) -> tuple[Leaf, tuple[int, str]]:
            found = known.get(id(item))
            if found is None:
                leaf = self.leaf(item)
                found = known[id(item)] = leaf, self.key(leaf)
            return found

        leaves, keys = [], []
        for item in tasks:
            if isinstance(item, (Branches, Fan, tuple)):
                raise self.fail(
                    "a mapping's task cannot be parallel, each or a sequence", "use tasks, or write a sequence"
                )
            leaf, key = look(item)
            leaves.append(leaf)
            keys.append(key)
        positions = {key: position for position, key in enumerate(keys)}
        if len(positions) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise self.fail(f"{self.name(twice)} appears twice", "give one an id of its own")
        dependencies_of: list[list[int]] = []
        for task, dependencies in zip(keys, tasks.values(), strict=True):
            places: dict[int, None] = {}
            for item in dependencies if isinstance(dependencies, (tuple, list, set, frozenset)) else (dependencies,):
                leaf, key = look(item)
                if key not in positions:
                    raise self.fail(
                        f"{self.name(task)} depends on {self.name(key)}, which is not in the mapping",
                        f"add {self.specs[leaf.spec].cls.rpartition(':')[2]}: ()",
                    )
                places[positions[key]] = None
            dependencies_of.append(list(places))
        if all(not deps or max(deps) < position for position, deps in enumerate(dependencies_of)):
            # the order in which most authors write it
            return Deps(tuple(leaves), tuple([tuple(sorted(deps)) for deps in dependencies_of]))
        order = self.topological(dependencies_of, keys)
        place = {old: new for new, old in enumerate(order)}
        return Deps(
            tuple(leaves[old] for old in order),
            tuple(tuple(sorted(place[dep] for dep in dependencies_of[old])) for old in order),
        )

    def key(self, leaf: Leaf) -> tuple[int, str]:
        return leaf.spec, leaf.id or compact(leaf.fixed)

    def name(self, key: tuple[int, str]) -> str:
        return f"{self.specs[key[0]].label!r}" + (f" ({key[1]})" if key[1] != "{}" else "")

    def topological(self, dependencies_of: list[list[int]], keys: list[tuple[int, str]]) -> list[int]:
        # Kahn's algorithm; ties keep the order of the mapping.
        waiting = [len(deps) for deps in dependencies_of]
        dependents: list[list[int]] = [[] for _ in dependencies_of]
        for position, deps in enumerate(dependencies_of):
            for dep in deps:
                dependents[dep].append(position)
        order = [position for position, count in enumerate(waiting) if not count]
        for position in order:
            for dependent in dependents[position]:
                waiting[dependent] -= 1
                if not waiting[dependent]:
                    order.append(dependent)
        if len(order) < len(dependencies_of):
            step = next(position for position, count in enumerate(waiting) if count)
            trail: dict[int, None] = {}
            while step not in trail:
                trail[step] = None
                step = next(dep for dep in dependencies_of[step] if waiting[dep])
            steps = list(trail)
            cycle = [*steps[steps.index(step) :], step]
            raise self.fail(
                "the tasks form a cycle: " + " -> ".join(self.name(keys[step]) for step in cycle),
                "remove one of these dependencies",
            )
        return order

    def hint_for(self, leaves: Iterable[Leaf]) -> str:
        """How a task in an `each` comes to have a parameter."""
        for leaf in leaves:
            task = self.targets[leaf.spec]
            if isinstance(task, type) and task.__init__ is not Task.__init__:
                taken = ", ".join(parameters_of(task).names) or "nothing"
                return f"let the __init__ of {task.__qualname__} take it (it takes {taken})"
        return "annotate it in the task's class"

    def check_uses(self, spec: Spec, limits: Mapping[str, int] | None) -> None:
        for name, amount in spec.uses.items() if limits is not None else ():
            assert limits is not None
            if name not in limits:
                hint = did_you_mean(name, limits).removeprefix("; ")
                hint = hint or f"add it to LIMITS, as in LIMITS = {{{name!r}: {amount}}}"
                raise self.fail(f"task {spec.label!r} uses {name!r}, which LIMITS does not have", hint)
            if amount > limits[name]:
                raise self.fail(
                    f"task {spec.label!r} uses {amount} of {name!r}, of which there are {limits[name]}",
                    f"raise LIMITS[{name!r}], or use less: it could never start",
                )

    def resolve(self, name: str) -> Any:
        module: Any = sys.modules.get(self.dag.__module__)
        here = (
            {key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Task)}
            if module
            else set()
        )
        owner, _, attribute = name.rpartition(".")
        if owner:
            try:
                module = importlib.import_module(owner)
            except ImportError as error:
                raise self.fail(f"the task {name!r} cannot be imported: {error}", "check the dotted name") from None
        found = getattr(module, attribute, None)
        if found is None:
            hint = (
                did_you_mean(name, here).removeprefix("; ")
                or "define it there, import it there, or give its dotted name"
            )
            raise self.fail(f"no task {name!r} in the module {owner or self.dag.__module__}", hint)
        return found


def _check_callable(value: Callable[[], Any], name: str, fail: Any) -> None:
    if isinstance(value, type):
        raise fail(f"each(…, {name}=…) is the class {value.__qualname__}", "give a list of values, or a function")
    try:
        arguments = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return  # a builtin without a signature
    needed = [a.name for a in arguments if a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
    if needed:
        raise fail(f"the callable for {name!r} takes arguments ({', '.join(needed)})", "write one that takes none")


def _listed(name: str, values: Any) -> list[Any]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise DagError(f"each(…, {name}={short(values)})", "is not a list of values", f"write {name}=[{short(values)}]")
    return list(values)


__all__ = ["DAG", "Compiled", "Expander", "compile_dag", "each", "is_async", "parallel"]
