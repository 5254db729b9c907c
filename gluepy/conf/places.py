"""Places in nested data: the keys and indices that lead to a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gluepy.core.events import JSON

Place = tuple[str | int, ...]


def changed(values: Any, place: Sequence[str | int], change: Callable[[Any], Any]) -> Any:
    """A copy of `values` with another value at `place`; what leads there is made where it is missing."""
    if not place:
        return change(values)
    key, rest = place[0], place[1:]
    if isinstance(values, list):
        copy: Any = list(values)
        if isinstance(key, int) and key < len(copy):
            copy[key] = changed(copy[key], rest, change)
        return copy
    copy = dict(values) if isinstance(values, Mapping) else {}
    copy[key] = changed(copy.get(key), rest, change)
    return copy


def placed(values: Any, place: Sequence[str | int], value: Any) -> Any:
    """A copy of `values` with `value` at `place`."""
    return changed(values, place, lambda _: value)


def at_place(values: Any, place: Place) -> Any:
    """What is at `place`; None if there is nothing."""
    for part in place:
        if isinstance(values, list):
            values = values[part] if isinstance(part, int) and part < len(values) else None
        else:
            values = values.get(part) if isinstance(values, dict) else None
    return values


def holds(values: Any, place: Place) -> bool:
    """Whether there is something at `place`."""
    for part in place:
        if isinstance(values, dict) and part in values:
            values = values[str(part)]
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return False
    return True


def flat(values: Mapping[str, JSON], prefix: str = "") -> dict[str, JSON]:
    """The values in nested mappings, by their dotted names."""
    named: dict[str, JSON] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            named.update(flat(value, f"{prefix}{name}."))
        else:
            named[prefix + name] = value
    return named


def dotted(place: Place) -> str:
    """The place as a dotted name."""
    return ".".join(map(str, place))


def copied(value: Any) -> Any:
    """A copy of plain data, in which all text is plain too."""
    match value:
        case dict():
            return {key: copied(each) for key, each in value.items()}
        case list():
            return [copied(each) for each in value]
        case str():
            return str.__str__(value)
        case _:
            return value
