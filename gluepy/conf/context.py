"""The context: a run's parameters, from YAML files and from what the run was given."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from gluepy.conf.project import import_object
from gluepy.errors import ContextError, did_you_mean
from gluepy.traces import user_stack

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings
    from gluepy.core.events import JSON

_SHOWN = 15  # problems listed when a context does not fit its model: one screen


class Context(Mapping[str, Any]):
    """Parameters, read-only, by attribute and by key: `context.model.depth`, `context["model"]["depth"]`.

    Nested mappings are Contexts too, also those in lists. A parameter that is named like a method of mappings
    (`items`, `values`, …) is reached by its key. `to_dict` gives plain data.
    """

    __slots__ = ("_place", "_values")

    _values: dict[str, JSON]
    _place: str

    def __init__(self, values: Mapping[str, JSON] = MappingProxyType({}), _place: str = "") -> None:
        object.__setattr__(self, "_place", _place)
        object.__setattr__(self, "_values", {key: _wrapped(value, f"{_place}{key}.") for key, value in values.items()})

    def __getitem__(self, key: str) -> JSON:
        value = self._values[key]
        return _copied(value) if isinstance(value, list) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __getattr__(self, name: str) -> JSON:
        if name.startswith("__") or name in Context.__slots__:
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(self._missing(name)) from None

    def _missing(self, name: str) -> str:
        full = f"{self._place}{name}"
        hint = did_you_mean(name, self._values)
        if not hint and self._values:
            names = list(self._values)
            where = self._place.rstrip(".") or "it"
            hint = f"; {where} has {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
        return f"the context has no {full!r}{hint}; set it in context.yaml, or for one run with --param {full}=…"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"the context is read-only: {name!r} is set in context.yaml or by a run's params")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"the context is read-only: {name!r} cannot be deleted")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(key for key in self._values if key.isidentifier())]

    def __repr__(self) -> str:
        return f"Context({self.to_dict()!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return Context, (self.to_dict(), self._place)

    def to_dict(self) -> dict[str, JSON]:
        """The parameters as plain dicts and lists, a copy."""
        return {key: _plain(value) for key, value in self._values.items()}


def _wrapped(value: JSON, place: str) -> JSON:
    if isinstance(value, Mapping):
        return Context(value, place)
    if isinstance(value, list):
        return [_wrapped(each, place) for each in value]
    return value


def _copied(value: JSON) -> JSON:
    # Contexts are read-only, lists are not: who changes one changes a copy.
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _plain(value: JSON) -> JSON:
    if isinstance(value, Context):
        return value.to_dict()
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value


class _Layer(NamedTuple):
    source: str
    values: dict[str, JSON]


def load_context(
    settings: Settings, params: Mapping[str, JSON] = MappingProxyType({}), recorded: Path | None = None
) -> Context:
    """The context of a run: CONTEXT_FILES in order, then `params`, checked against CONTEXT_MODEL.

    Mappings merge, whatever else comes later replaces what came before. A dotted parameter reaches into mappings:
    `model.depth` is `depth` in `model`; a name with dots that the files define as such is that name. Dates and times
    become ISO 8601 text, tuples lists. With CONTEXT_MODEL the context is the model's dump, its defaults filled in.
    A context that was `recorded` takes the place of the files. Raises `ContextError`, naming the file or parameter and
    the place in it.
    """
    files = settings.context_files if recorded is None else [recorded]
    layers = [_Layer(str(_relative(file, settings)), _read(file, settings)) for file in files]
    values: dict[str, JSON] = {}
    for layer in layers:
        _merge(values, layer.values)
    for name, value in params.items():
        source = f"parameter {name!r}"
        if not isinstance(name, str):
            raise ContextError(source, "its name is not text")
        nested = _nested(values, name, _json(value, source, name), source)
        layers.append(_Layer(source, nested))
        _merge(values, nested)
    if settings.CONTEXT_MODEL:
        values = _fitted(settings.CONTEXT_MODEL, values, layers)
    return Context(values)


def _relative(file: Path, settings: Settings) -> Path:
    return file.relative_to(settings.folder) if file.is_relative_to(settings.folder) else file


def _read(file: Path, settings: Settings) -> dict[str, JSON]:
    source = str(_relative(file, settings))
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        named_by = settings.sources.get("CONTEXT_FILES", "")
        mend = f"CONTEXT_FILES ({named_by}) names it" if named_by else "CONTEXT_FILES names it"
        raise ContextError(source, f"there is no such file in {settings.folder}", mend) from None
    except OSError as error:
        raise ContextError(source, f"cannot be read: {error.strerror}") from None
    return values_of(data, source)


def values_of(data: bytes, source: str) -> dict[str, JSON]:
    """The parameters in a context file. Raises `ContextError`, naming `source` and the place in it."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ContextError(source, f"it is not UTF-8 text (byte {error.start})") from None
    from gluepy.conf.yamlfile import parse  # a run without context files does without yaml

    values = parse(text, source)
    if values is None:
        return {}
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else f"a {type(values).__name__}"
        raise ContextError(source, f"it holds {kind} where a mapping of names to values is wanted", "write name: value")
    checked: dict[str, JSON] = _json(values, source, "")
    return checked


def _json(value: object, source: str, place: str, above: tuple[int, ...] = ()) -> Any:
    """`value` as plain JSON data. Raises `ContextError` for what is not, naming `source` and `place`."""
    match value:
        case None | bool():
            return value
        case str():
            if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
                raise ContextError(source, _at(place, "text with half a surrogate pair is not Unicode"))
            return str.__str__(value)
        case int():
            if not -(2**63) <= value < 2**64:
                raise ContextError(source, _at(place, "the number is beyond 64 bits"), "write it as text, in quotes")
            return int(value)
        case float():
            if not math.isfinite(value):
                raise ContextError(source, _at(place, f"{value} is not a JSON value"), "use null, or text")
            return float(value)
        case dt.date() | dt.time():  # a datetime is a date
            return value.isoformat()
    if id(value) in above:
        raise ContextError(source, _at(place, "it contains itself"))
    above = (*above, id(value))
    match value:
        case list() | tuple():
            return [_json(each, source, f"{place}[{number}]", above) for number, each in enumerate(value)]
        case Mapping():
            plain: dict[str, Any] = {}
            for key, each in value.items():
                if not isinstance(key, str):
                    raise ContextError(source, _at(place, f"the key {key!r} is not text"), "put it in quotes")
                plain[str.__str__(key)] = _json(each, source, f"{place}.{key}" if place else key, above)
            return plain
    raise ContextError(source, _at(place, f"a {type(value).__name__} is not a JSON value"))


def _at(place: str, problem: str) -> str:
    return f"at {place}: {problem}" if place else problem


def _merge(values: dict[str, JSON], more: Mapping[str, JSON]) -> None:
    """Put `more` over `values`, mapping by mapping. Nothing of `more` is shared: it stays as its source gave it."""
    for key, value in more.items():
        if isinstance(value, dict):
            before = values.get(key)
            below = values[key] = before if isinstance(before, dict) else {}
            _merge(below, value)
        else:
            values[key] = value


def _nested(values: Mapping[str, JSON], name: str, value: JSON, source: str) -> dict[str, JSON]:
    """The parameter `name` as the mappings that lead to it."""
    if name in values or "." not in name:
        return {name: value}
    parts = name.split(".")
    if not all(parts):
        raise ContextError(source, "a part of its dotted name is empty")
    reached: JSON = values
    for depth, part in enumerate(parts[:-1], start=1):
        reached = reached.get(part)
        if reached is None:
            break
        if not isinstance(reached, dict):
            raise ContextError(source, f"{'.'.join(parts[:depth])!r} is not a mapping, so nothing in it can be set")
    for part in reversed(parts):
        value = {part: value}
    nested: dict[str, JSON] = value
    return nested


def _fitted(path: str, values: dict[str, JSON], layers: list[_Layer]) -> dict[str, JSON]:
    """`values` as the pydantic model at the dotted `path` has them."""
    from pydantic import BaseModel, ValidationError  # settings have brought it already

    model = import_object(path, named_by="CONTEXT_MODEL")
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ContextError("CONTEXT_MODEL", f"{path} is not a pydantic model")
    try:
        dump = model.model_validate(values).model_dump(mode="json")
    except ValidationError as error:
        errors = error.errors(include_url=False)
        lines = [_misfit(each, layers, model) for each in errors[:_SHOWN]]
        if len(errors) > _SHOWN:
            lines.append(f"… and {len(errors) - _SHOWN} more")
        problem = f"the context does not fit {path}:" + "".join(f"\n  {line}" for line in lines)
        raise ContextError("CONTEXT_MODEL", problem) from None
    except Exception as error:
        problem = f"{path} failed with {type(error).__name__}: {error}\n{user_stack(error)}"
        raise ContextError("CONTEXT_MODEL", problem) from error
    fitted: dict[str, JSON] = _json(dump, f"CONTEXT_MODEL {path}", "")
    return fitted


def _misfit(error: Any, layers: list[_Layer], model: Any) -> str:
    place = tuple(error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden" and len(place) == 1:
        message += did_you_mean(str(place[0]), model.model_fields)
    where = _origin(place, layers)
    name = ".".join(map(str, place)) or "the whole"
    return f"{name}: {message}" + (f" ({where})" if where else "")


def _origin(place: tuple[int | str, ...], layers: list[_Layer]) -> str:
    """The source that set what is at `place`, or else the nearest mapping around it."""
    for length in range(len(place), 0, -1):
        for layer in reversed(layers):
            if _holds(layer.values, place[:length]):
                return layer.source
    return ""


def _holds(values: JSON, place: tuple[int | str, ...]) -> bool:
    for part in place:
        if isinstance(values, dict) and part in values:
            values = values[str(part)]
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return False
    return True
