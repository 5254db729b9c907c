"""Context files, read as plain JSON data."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gluepy.conf.context import SecretText
from gluepy.errors import ContextError

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings
    from gluepy.core.events import JSON


class Layer(NamedTuple):
    """Parameters, and where they came from; `is_parameter` if that is the call, which gave one of them."""

    source: str
    values: dict[str, JSON]
    is_parameter: bool = False


def read_files(settings: Settings) -> list[Layer]:
    """What CONTEXT_FILES say, in order. Raises `ContextError`."""
    return [Layer(str(_relative(file, settings)), _read(file, settings)) for file in settings.context_files]


def _relative(file: Path, settings: Settings) -> Path:
    return file.relative_to(settings.folder) if file.is_relative_to(settings.folder) else file


def _read(file: Path, settings: Settings) -> dict[str, JSON]:
    source = str(_relative(file, settings))
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        named_by = settings.sources.get("CONTEXT_FILES", "")
        hint = f"CONTEXT_FILES ({named_by}) names it" if named_by else "CONTEXT_FILES names it"
        raise ContextError(source, f"there is no such file in {settings.folder}", hint) from None
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
    checked: dict[str, JSON] = as_plain(values, source, "")
    return checked


def as_plain(value: object, source: str, place: str, above: tuple[int, ...] = ()) -> Any:
    """`value` as plain JSON data, but for `SecretText`, which stands for pydantic's secrets. Raises `ContextError` for
    what is not, naming `source` and `place`."""
    if hasattr(value, "get_secret_value"):
        secret = as_plain(without_secrecy(value), source, place)
        return SecretText(secret) if isinstance(secret, str) else secret
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
            return [as_plain(each, source, f"{place}[{number}]", above) for number, each in enumerate(value)]
        case Mapping():
            plain: dict[str, Any] = {}
            for key, each in value.items():
                if not isinstance(key, str):
                    raise ContextError(source, _at(place, f"the key {key!r} is not text"), "put it in quotes")
                plain[str.__str__(key)] = as_plain(each, source, f"{place}.{key}" if place else key, above)
            return plain
    raise ContextError(source, _at(place, f"a {type(value).__name__} is not a JSON value"))


def _at(place: str, problem: str) -> str:
    return f"at {place}: {problem}" if place else problem


def without_secrecy(value: Any) -> Any:
    """`value`, with the secrets of pydantic's in it as what they are."""
    match value:
        case Mapping():
            return {key: without_secrecy(each) for key, each in value.items()}
        case list() | tuple():
            return [without_secrecy(each) for each in value]
    if not hasattr(value, "get_secret_value"):
        return value
    secret = value.get_secret_value()
    return secret.decode() if isinstance(secret, bytes) else secret
