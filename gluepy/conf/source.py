"""What DAGs the source of a project defines, read without importing it: its tasks may import slow libraries.

Only what can be told for sure is told. A module in which DAGs are made by calls, in a loop, under a condition or by
names that cannot be followed is `Unsure`, and has to be imported.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gluepy.conf.project import SUBMODULES, module_file
from gluepy.errors import GluepyError

# What makes or finds classes by names that are known only when it runs.
_OPAQUE = {
    "globals", "vars", "locals", "exec", "eval", "getattr", "setattr", "delattr", "type",
    "__import__", "__dict__", "import_module", "resolve_name", "modules",
}  # fmt: skip
_DISPLAYS = (ast.Tuple, ast.List, ast.Dict, ast.Set, ast.Lambda)  # what has DAGs in it, and is none
_LIBRARIES = ("site-packages", "dist-packages")


class Unsure(GluepyError):
    """The source of `module` does not tell what importing it would."""

    def __init__(self, module: str) -> None:
        super().__init__(module)
        self.module = module

    def __str__(self) -> str:
        return f"{self.module} has to be imported to be understood"


_READ = ("label", "tasks", "evaluation")  # of a DAG's attributes


@dataclass(frozen=True)
class Written:
    """A class as the source has it. `is_dag`: it derives from `gluepy.DAG`; `tasks` and `evaluation` are the
    expressions, its own or inherited; `tells` is False for a DAG whose base class makes its subclasses up, and `holds`
    is True for a class in which there may be DAGs."""

    module: str
    name: str
    is_dag: bool = False
    label: str = ""
    about: str = ""
    tasks: tuple[ast.expr, _Module] | None = None
    evaluation: tuple[ast.expr, _Module] | None = None
    tells: bool = True
    holds: bool = False

    def count(self) -> int | None:
        """How many tasks it has, as far as its source tells: an `each` that asks a callable counts as one."""
        try:
            parts = [part for part in (self.tasks, self.evaluation) if part is not None]
            return sum(_count(*part) for part in parts) if self.tasks is not None else None
        except Unsure:
            return None


class _Foreign:
    """Something that is no DAG class, whatever else it is: a library's, or an instance."""


class _Function:
    """A function of the project."""


@dataclass(frozen=True)
class _Value:
    """The value of an expression that makes no class."""

    node: ast.expr
    module: _Module
    mentions_dag: bool


@dataclass(frozen=True)
class _Imported:
    """A module, by its name."""

    name: str


_FOREIGN, _FUNCTION = _Foreign(), _Function()
_ROOT = Written("gluepy.exec.dag", "DAG", is_dag=True, label="dag")
_Binding = Written | _Foreign | _Function | _Value | _Imported


class Sources:
    """The source of a project and of what it imports from beside it."""

    def __init__(self, project: Path | None) -> None:
        self._folders = [*([project] if project is not None else []), *(Path(entry or ".") for entry in sys.path)]
        self._modules: dict[str, _Module | None] = {}
        self._being_read: set[str] = set()

    def dags(self, module: str) -> list[Written]:
        """The DAG classes that importing the module called `module` would bring, bases without tasks left out.

        Raises `Unsure`.
        """
        found = self.module(module)
        if found is None:
            raise Unsure(module)
        dags = [
            each
            for each in found.names.values()
            if isinstance(each, Written) and each.is_dag and each.tasks is not None
        ]
        for dag in dags:
            if ":" in dag.label or dag.label.endswith(".py") or dag.label.startswith("-") or dag.count() == 0:
                raise Unsure(module)  # importing it tells what is wrong
        return dags

    def parts(self, name: str) -> list[str]:
        """The modules that INSTALLED_MODULES mean by `name`. Raises `Unsure` where it is not a project's."""
        file = self._file(name)
        if file is None:
            raise Unsure(name)
        if file.name != "__init__.py":
            return [name]
        return [name, *(f"{name}.{part}" for part in SUBMODULES[:2] if module_file(part, file.parent) is not None)]

    def module(self, name: str) -> _Module | None:
        """The module called `name`; None for one that has nothing to do with gluepy. Raises `Unsure`."""
        if name in self._being_read:  # a circle: of what is imported half it depends who came first
            raise Unsure(name)
        if name not in self._modules:
            self._being_read.add(name)
            try:
                self._modules[name] = self._read(name)
            finally:
                self._being_read.discard(name)
        return self._modules[name]

    def is_being_read(self, name: str) -> bool:
        """Whether it is this module that imports another one now, at one remove or several."""
        return name in self._being_read

    def check(self, name: str) -> None:
        """Raise `Unsure` where importing the module called `name` may fail."""
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and not any(_in_folder(top, folder) for folder in self._folders):
            self._file(top)

    def is_module(self, name: str) -> bool:
        """Whether there is a module of the project's with this name."""
        file = self._file(name.rpartition(".")[0])
        return file is not None and file.name == "__init__.py" and _in_folder(name.rpartition(".")[2], file.parent)

    def _read(self, name: str) -> _Module | None:
        file = self._file(name)
        if file is None:
            return None
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError):
            raise Unsure(name) from None
        module = _Module(name, file.name == "__init__.py", self)
        module.read(tree.body)
        return module

    def _file(self, name: str) -> Path | None:
        """The source of the module; None for a library that knows nothing of gluepy."""
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in sys.builtin_module_names:
            return None
        for folder in self._folders:
            if any(part in _LIBRARIES for part in folder.parts):
                continue
            if _in_folder(top, folder):
                file = module_file(name, folder)
                if file is None:
                    raise Unsure(name)
                return file
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            spec = None
        places = [*(spec.submodule_search_locations or ()), spec.origin or ""] if spec is not None else []
        if not any(part in place for place in places for part in _LIBRARIES) or top in self._built_on_gluepy:
            raise Unsure(name)
        return None

    @cached_property
    def _built_on_gluepy(self) -> set[str]:
        """The installed packages that could bring DAG classes along."""
        found: set[str] = set()
        for folder in self._folders:
            if not any(part in _LIBRARIES for part in folder.parts):
                continue
            for about in folder.glob("*.dist-info/METADATA"):
                header, _, _ = about.read_text("utf-8", errors="replace").partition("\n\n")
                if "\nRequires-Dist: gluepy" in header:
                    record = about.with_name("RECORD").read_text("utf-8", errors="replace")
                    found.update(line.partition("/")[0].partition(".")[0] for line in record.splitlines())
        return found


class _Module:
    """The names at the top of a module, as far as its source tells what they are."""

    def __init__(self, name: str, is_package: bool, sources: Sources) -> None:
        self.name, self._is_package, self._sources = name, is_package, sources
        self.names: dict[str, _Binding] = {}

    def read(self, body: Iterable[ast.stmt], *, plain: bool = True) -> None:
        """Take statements in. Not `plain`: they may be carried out or not, or often."""
        for node in body:
            match node:
                case ast.Import():
                    for alias in node.names:
                        if plain:
                            self._sources.check(alias.name)
                        top = alias.name.partition(".")[0]
                        self._bind(alias.asname or top, _Imported(alias.name if alias.asname else top), plain)
                case ast.ImportFrom():
                    self._take(node, plain)
                case ast.ClassDef():
                    self._bind(node.name, self._class(node), plain)
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    for decorator in node.decorator_list:
                        self._value(decorator)
                        if isinstance(self._of(decorator), _Function):
                            self._unsure()
                    self._bind(node.name, _FUNCTION, plain)
                case ast.Assign():
                    value = self._value(node.value)
                    for target in node.targets:
                        self._assign(target, value, plain)
                case ast.AnnAssign():
                    if node.value is not None:
                        self._assign(node.target, self._value(node.value), plain)
                case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                    self.read(node.orelse, plain=plain)
                case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                    self.read(node.orelse, plain=plain)
                case ast.If() | ast.While():
                    self._value(node.test)
                    self.read([*node.body, *node.orelse], plain=False)
                case ast.For():
                    self._assign(node.target, self._value(node.iter), False)
                    self.read([*node.body, *node.orelse], plain=False)
                case ast.With():
                    for item in node.items:
                        value = self._value(item.context_expr)
                        if item.optional_vars is not None:
                            self._assign(item.optional_vars, value, plain)
                    self.read(node.body, plain=plain)
                case ast.Try():
                    handled = [each for handler in node.handlers for each in handler.body]
                    self.read([*node.body, *handled, *node.orelse, *node.finalbody], plain=False)
                case ast.Expr():
                    self._value(node.value)
                case ast.Pass() | ast.Assert() | ast.Raise() | ast.Global():
                    pass
                case ast.AugAssign():
                    self._assign(node.target, self._value(node.value), False)
                case _:
                    self._unsure()

    def get(self, name: str) -> _Binding:
        """What `name` is in this module. Raises `Unsure`."""
        if name in self.names:
            return self.names[name]
        if self._is_package and self._sources.is_module(f"{self.name}.{name}"):
            return _Imported(f"{self.name}.{name}")
        raise Unsure(self.name)

    def _unsure(self) -> None:
        raise Unsure(self.name)

    def _bind(self, name: str, what: _Binding, plain: bool) -> None:
        is_dag = isinstance(what, Written) and what.is_dag
        if not plain and (is_dag or isinstance(self.names.get(name), Written)):
            self._unsure()
        if not plain and isinstance(what, _Value):
            what = _FOREIGN
        self.names[name] = what

    def _take(self, node: ast.ImportFrom, plain: bool) -> None:
        package = self.name.split(".") if self._is_package else self.name.split(".")[:-1]
        if node.level > len(package) + 1:
            self._unsure()
        base = [*package[: len(package) - node.level + 1]] if node.level else []
        place = ".".join([*base, *([node.module] if node.module else [])])
        if place == "gluepy" or place.startswith("gluepy."):
            for alias in node.names:
                names = ["DAG"] if alias.name == "*" else [alias.name]
                for name in names:
                    self._bind(alias.asname or name, _ROOT if name == "DAG" else _FOREIGN, plain)
            return
        if self._sources.is_being_read(place) and all(
            self._sources.is_module(f"{place}.{alias.name}") for alias in node.names
        ):
            for alias in node.names:  # a package imports a module of its own, which imports another one of them
                self._bind(alias.asname or alias.name, _Imported(f"{place}.{alias.name}"), plain)
            return
        source = self._sources.module(place)
        for alias in node.names:
            if alias.name == "*":
                if source is None:
                    continue
                if "__all__" in source.names:
                    self._unsure()
                for name, what in source.names.items():
                    if not name.startswith("_"):
                        self._bind(name, what, plain)
            elif source is not None:
                self._bind(alias.asname or alias.name, source.get(alias.name), plain)
            else:
                self._bind(alias.asname or alias.name, _FOREIGN, plain)

    def _assign(self, target: ast.expr, value: _Binding, plain: bool) -> None:
        if isinstance(value, _Value) and value.mentions_dag and not (plain and isinstance(value.node, _DISPLAYS)):
            self._unsure()
        match target:
            case ast.Name():
                self._bind(target.id, value, plain)
            case ast.Tuple() | ast.List() if isinstance(value, _Value) and value.mentions_dag:
                self._unsure()
            case ast.Tuple() | ast.List():
                for each in target.elts:
                    self._assign(each, _FOREIGN, plain)
            case ast.Starred():
                self._assign(target.value, _FOREIGN, plain)
            case _:  # an attribute or an item: of what?
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        known = self.names.get(name.id, _FOREIGN)
                        if isinstance(known, Written | _Imported) or name.id in _OPAQUE:
                            self._unsure()

    def _class(self, node: ast.ClassDef) -> Written:
        bases = [self._of(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases]
        dags = [base for base in bases if isinstance(base, Written) and base.is_dag]
        if any(isinstance(base, _Function | _Value) for base in bases):
            self._unsure()
        for expression in (*node.decorator_list, *(keyword.value for keyword in node.keywords)):
            self._value(expression)
        if not dags:
            if any(isinstance(self._of(each), _Function) for each in node.decorator_list):
                self._unsure()
            inside = [each for each in ast.walk(node) if isinstance(each, ast.ClassDef | ast.Name) and each is not node]
            held = any(isinstance(each, ast.ClassDef) or self._mentions_dag(each) for each in inside)
            return Written(self.name, node.name, holds=held or any(isinstance(b, Written) and b.holds for b in bases))
        if node.decorator_list or node.keywords or not all(base.tells for base in dags):
            self._unsure()
        label, tells = node.name.lower(), True
        tasks = next((base.tasks for base in dags if base.tasks), None)
        evaluation = next((base.evaluation for base in dags if base.evaluation), None)
        for name, value in _attributes(node.body):
            match name, value:
                case "label", ast.Constant(value=str(text)):
                    label = text
                case "label", _:
                    self._unsure()
                case "tasks", ast.expr():
                    tasks = value, self
                case "evaluation", ast.expr():
                    evaluation = value, self
                case "tasks" | "evaluation", _:
                    self._unsure()
                case "__init_subclass__", _:
                    tells = False
                case "", _:
                    self._unsure()
        about = inspect.cleandoc(ast.get_docstring(node) or "").partition("\n")[0]
        return Written(self.name, node.name, True, label, about, tasks, evaluation, tells)

    def _value(self, node: ast.expr) -> _Binding:
        """What `node` makes, which is evaluated while the module is imported."""
        for each in _evaluated(node):
            match each:
                case ast.Name(id=name) | ast.Attribute(attr=name) if name in _OPAQUE:
                    self._unsure()
                case ast.NamedExpr() | ast.Await() | ast.Yield() | ast.YieldFrom():
                    self._unsure()
                case ast.Call(func=func):
                    called = self._of(func)
                    given = [*each.args, *(keyword.value for keyword in each.keywords)]
                    if isinstance(called, _Function) or (isinstance(called, Written) and called.is_dag):
                        self._unsure()
                    if any(self._mentions_dag(value) for value in given):
                        self._unsure()
                case ast.IfExp() | ast.BoolOp() if self._mentions_dag(each):
                    self._unsure()
        if isinstance(node, ast.Name | ast.Attribute):
            return self._of(node)
        return _Value(node, self, self._mentions_dag(node))

    def _mentions_dag(self, node: ast.expr) -> bool:
        for each in ast.walk(node):
            if isinstance(each, ast.Name | ast.Attribute):
                match self._of(each):
                    case Written(is_dag=True) | _Value(mentions_dag=True):
                        return True
        return False

    def _of(self, node: ast.expr) -> _Binding:
        """What a name, or an attribute of a module, is."""
        match node:
            case ast.Name():
                return self.names.get(node.id, _FOREIGN)  # a builtin
            case ast.Attribute():
                owner = self._of(node.value)
                if not isinstance(owner, _Imported):
                    if (isinstance(owner, Written) and (owner.is_dag or owner.holds)) or (
                        isinstance(owner, _Value) and owner.mentions_dag
                    ):
                        self._unsure()
                    return _FOREIGN
                if owner.name == "gluepy" or owner.name.startswith("gluepy."):
                    return _ROOT if node.attr == "DAG" else _Imported(f"{owner.name}.{node.attr}")
                source = self._sources.module(owner.name)
                return source.get(node.attr) if source is not None else _Imported(f"{owner.name}.{node.attr}")
            case ast.Call():
                return self._of(node.func) if isinstance(self._of(node.func), _Function) else _FOREIGN
            case _:
                return _FOREIGN


def _in_folder(name: str, folder: Path) -> bool:
    return (folder / name).is_dir() or (folder / f"{name}.py").is_file()


def _attributes(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """The names that a class's body gives, with what is assigned; an empty one for what cannot be told."""
    for node in body:
        match node:
            case ast.Assign():
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        yield target.id, node.value
                    elif any(isinstance(each, ast.Name) and each.id in _READ for each in ast.walk(target)):
                        yield "", node
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node
            case ast.AnnAssign() | ast.Expr() | ast.Pass():
                pass
            case _:
                yield "", node


def _evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and what is in it, without the bodies of lambdas, which nobody calls yet."""
    yield node
    if not isinstance(node, ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _evaluated(child)


def _count(node: ast.expr, module: _Module) -> int:
    """How many tasks the expression of a DAG's `tasks` stands for. Raises `Unsure`."""
    match node:
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return sum(_count(item, module) for item in items)
        case ast.Dict(keys=keys):
            return sum(_count(key, module) if key is not None else _unknown(module) for key in keys)
        case ast.Constant(value=str()):
            return 1
        case ast.Name():
            known = module.get(node.id)
            if isinstance(known, _Value):
                return _count(known.node, known.module)
            return 1 if isinstance(known, Written) else _unknown(module)
        case ast.Call(func=ast.Name(id="parallel") | ast.Attribute(attr="parallel"), keywords=[]):
            return sum(_count(item, module) for item in node.args)
        case ast.Call(func=ast.Name(id="each") | ast.Attribute(attr="each"), args=[item]):
            sizes = [_size(keyword.value, module) for keyword in node.keywords]
            return 1 if None in sizes else _count(item, module) * math.prod(size or 0 for size in sizes)
        case ast.Call(func=ast.Name(id=name)):
            return 1 if isinstance(module.get(name), Written) else _unknown(module)
    return _unknown(module)


def _size(node: ast.expr, module: _Module) -> int | None:
    """How many values an `each` gives a parameter; None for a callable, which is asked later. Raises `Unsure`."""
    match node:
        case ast.Tuple(elts=items) | ast.List(elts=items) if not any(isinstance(item, ast.Starred) for item in items):
            return len(items)
        case ast.Lambda():
            return None
        case ast.Call(func=ast.Name(id="range"), args=[ast.Constant(value=int(stop))]):
            return max(stop, 0)
        case ast.Name():
            known = module.get(node.id)
            if isinstance(known, _Function):
                return None
            if isinstance(known, _Value):
                return _size(known.node, known.module)
    return _unknown(module)


def _unknown(module: _Module) -> int:
    raise Unsure(module.name)
