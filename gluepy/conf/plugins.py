"""How executors, sinks and commands of others are found.

A setting or an option gives an object itself, the dotted path of one (`package.module.Name`), or a short name: an entry
point that an installed package declares in the group `gluepy.executors`, `gluepy.sinks` or `gluepy.commands`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from gluepy.conf.project import import_object
from gluepy.errors import ImportFailed, MissingExtra, OptionError, did_you_mean
from gluepy.extension import Extension

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from gluepy.conf.schema import Settings

EXECUTORS, SINKS, COMMANDS = "gluepy.executors", "gluepy.sinks", "gluepy.commands"  # groups of entry points


class Kind(NamedTuple):
    """A kind of extension. `article` and `name` are what errors call it, `entry_points` is its group, `base` the class
    it derives from. `plain` says whether an object that does not will do; its class is then made without arguments."""

    article: str
    name: str
    entry_points: str
    base: type[Extension]
    plain: Callable[[object], bool] = lambda found: False


def resolve(kind: Kind, option: object, settings: Settings, named_by: str) -> Any:
    """The extension that `option` means: an instance, or one made from a class. `named_by` is the setting or option
    that it comes from. Raises `UsageError`."""
    found = find(kind.entry_points, option, named_by) if isinstance(option, str) else option
    where = named_by.removeprefix("the option ")
    base = f"{kind.base.__module__}.{kind.base.__qualname__}"
    if isinstance(found, type):
        if issubclass(found, kind.base):
            return found.from_settings(settings)
        if not kind.plain(found) or hasattr(found, "from_settings"):
            problem = f"{found.__qualname__} is not {kind.article} {kind.name}: it does not derive from {base}"
            raise OptionError(where, problem)
        found = found()
    if isinstance(found, kind.base) or kind.plain(found):
        return found
    problem = f"{option!r} is not {kind.article} {kind.name}"
    raise OptionError(where, problem, f"name a class that derives from {base}")


def find(group: str, name: str, named_by: str) -> Any:
    """The object that `name` means: a dotted path, or an entry point of `group`. Raises `ImportFailed`, and
    `MissingExtra` if the package of the entry point needs an extra that is not installed."""
    if "." in name or ":" in name:
        return import_object(name, named_by=named_by)
    known = entry_points(group)
    if name not in known:
        near = did_you_mean(name, known) or (f"; known are {', '.join(sorted(known))}" if known else "")
        why = f"it is neither a dotted path such as 'package.module.Name' nor an entry point of {group!r}{near}"
        raise ImportFailed(name, why, hint=f"{named_by} names it")
    return load(known[name])


def load(point: EntryPoint) -> Any:
    """The object of an entry point. Raises as `find` does."""
    try:
        return import_object(point.value.partition("[")[0].strip(), named_by=f"entry point {point.name!r}")
    except ImportFailed as error:
        missing = error.__cause__
        is_package = isinstance(missing, ModuleNotFoundError) and _top(missing.name or "") != _top(point.module)
        extra = _extra_of(point) if is_package else None
        if extra is None:
            raise
        raise MissingExtra(repr(point.name), extra, point.dist.name if point.dist else "gluepy") from missing


def _top(module: str) -> str:
    return module.partition(".")[0]


def _extra_of(point: EntryPoint) -> str | None:
    """The extra of the entry point's package that brings what it imports: one that it names, or one of its own name."""
    if point.extras:
        return point.extras[0]
    offered = (point.dist.metadata.get_all("Provides-Extra") or []) if point.dist else []
    return point.name if point.name in offered else None


def entry_points(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of a group by name, of all packages on `sys.path`."""
    return _entry_points(group, tuple(sys.path))


@lru_cache(8)
def _entry_points(group: str, path: tuple[str, ...]) -> Mapping[str, EntryPoint]:  # noqa: ARG001  # a key of the cache
    import importlib.metadata  # takes 10 ms, and is for short names only

    return {each.name: each for each in importlib.metadata.entry_points(group=group)}
