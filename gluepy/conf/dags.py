"""Finding the DAGs of a project, by label, by file, by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from gluepy.conf.project import SUBMODULES, import_modules, import_object, load_file
from gluepy.errors import DagError, ImportFailed, OptionError, UnknownDag, did_you_mean
from gluepy.exec.dag import DAG, check_label

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings

_PARTS = SUBMODULES[:2]  # only the command line needs `commands`


@dataclass(frozen=True)
class Listed:
    """A DAG of the project: `module` and `name` are those of its class, `about` is its first line, `tasks` how many it
    has, None where only importing it would tell. `dag` is the class, where its module had to be imported."""

    label: str
    module: str
    name: str
    about: str
    tasks: int | None = None
    dag: type[DAG] | None = None

    @classmethod
    def from_class(cls, dag: type[DAG]) -> Listed:
        """What there is to say about `dag`."""
        about = inspect.cleandoc(dag.__doc__).partition("\n")[0] if dag.__doc__ else ""
        return cls(dag.label, dag.__module__, dag.__qualname__, about, dag=dag)


def list_dags(settings: Settings) -> list[Listed]:
    """`find_dags`, as the source of the modules tells: only those are imported whose source does not.

    Raises as `find_dags` does for what is imported.
    """
    from gluepy.conf.source import Sources, Unsure  # a run imports its modules anyway

    sources = Sources(settings.project)
    found: dict[str, Listed] = {}
    for name in settings.INSTALLED_MODULES:
        try:
            written = [dag for part in sources.parts(name) for dag in sources.dags(part)]
            listed = [Listed(dag.label, dag.module, dag.name, dag.about, dag.count()) for dag in written]
        except Unsure:
            dags = list(_dags(import_modules(settings, _PARTS, only=name)))
            for dag in dags:
                check_label(dag)
            listed = [Listed.from_class(dag) for dag in dags]
        for each in listed:
            other = found.setdefault(each.label, each)
            if (other.module, other.name) != (each.module, each.name):
                return [Listed.from_class(dag) for dag in find_dags(settings).values()]  # raises: two have this label
    return list(found.values())


def find_dags(settings: Settings) -> dict[str, type[DAG]]:
    """The DAGs in INSTALLED_MODULES, by label, in the order of their modules. A DAG class without `tasks` is a base.

    Raises `ImportFailed`, and `DagError` when two have the same label or one has a label that cannot be typed.
    """
    found: dict[str, type[DAG]] = {}
    for dag in _dags(import_modules(settings, _PARTS)):
        check_label(dag)
        other = found.setdefault(dag.label, dag)
        if other is not dag:
            places = " and ".join(f"{each.__qualname__} ({each.__module__})" for each in (other, dag))
            raise DagError(f"DAG {dag.label!r}", f"{places} have the same label", "give one a label of its own")
    return found


def find_dag(what: str | type[DAG], settings: Settings) -> type[DAG]:
    """The DAG that `what` means: a class, a label, `file.py:Class`, `file.py` with one DAG in it, or `module:Class`.

    Raises `UnknownDag`, `ImportFailed`, `OptionError`.
    """
    if isinstance(what, type) and issubclass(what, DAG):
        return what
    if not isinstance(what, str):
        raise OptionError("dag", f"{what!r} is not a DAG", "give a label, a DAG class or 'file.py:TrainDAG'")
    if not what.isascii() and any("\ud800" <= character <= "\udfff" for character in what):
        raise OptionError("dag", f"{what!r} is not UTF-8, which everything in a run's record has to be", "rename it")
    place, colon, name = what.rpartition(":")
    if what.endswith(".py"):
        place, colon, name = what, "", ""
    if place.endswith(".py"):
        return _in_module(load_file(Path(place)), name, place)
    if colon:
        try:
            found = import_object(what)
        except ImportFailed:
            find_dags(settings)  # tells of a label that has a colon
            raise
        if isinstance(found, type) and issubclass(found, DAG):
            return found
        raise OptionError("dag", f"{what!r} is not a DAG class")
    dags = find_dags(settings)
    if what not in dags:
        raise UnknownDag(what, tuple(dags), settings.INSTALLED_MODULES)
    return dags[what]


def _in_module(module: ModuleType, name: str, file: str) -> type[DAG]:
    own = {dag.__name__: dag for dag in _dags([module]) if dag.__module__ == module.__name__}
    if not name and len(own) == 1:
        return next(iter(own.values()))
    by_label = {dag.label: dag for dag in own.values()}
    found = own.get(name) or by_label.get(name) or vars(module).get(name)
    if isinstance(found, type) and issubclass(found, DAG):
        return found
    if not own:
        bases = [each for each, value in vars(module).items() if _is_own_dag(value, module)]
        if bases:
            raise OptionError("dag", f"{bases[0]} in {file} has no tasks", "give it some: tasks = (First, Second)")
        raise OptionError("dag", f"{file} defines no DAG", "write a class that derives from gluepy.exec.DAG")
    if not name:
        raise OptionError("dag", f"{file} defines {len(own)} DAGs", f"name one: {file}:{next(iter(own))}")
    near = did_you_mean(name, own) or f"; it has {', '.join(own)}"
    raise OptionError("dag", f"{file} has no DAG {name!r}{near}")


def _is_own_dag(value: object, module: ModuleType) -> bool:
    return isinstance(value, type) and issubclass(value, DAG) and value.__module__ == module.__name__


def _dags(modules: Iterable[ModuleType]) -> Iterable[type[DAG]]:
    seen: set[type[DAG]] = set()
    for module in modules:
        for value in list(vars(module).values()):
            if isinstance(value, type) and issubclass(value, DAG) and hasattr(value, "tasks") and value not in seen:
                seen.add(value)
                yield value
