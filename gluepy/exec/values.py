"""Values of annotated types, and their way through JSON: `Codec`.

Exact values of the plain types are judged here; pydantic, which is slow to import, is asked about everything else.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from gluepy.core.events import JSON, recordable


class WrongValue(ValueError):
    """A value that a parameter cannot have. `problem` names the parameter, what it was given and what it expects."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem, hint)
        self.problem, self.hint = problem, hint

    def __str__(self) -> str:
        return f"{self.problem}; {self.hint}"


class Codec:
    """How values of one annotation become JSON and come back. With `Any` every JSON value will do."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = Any if annotation is object else annotation
        self._exact = _exact(self.annotation)
        self._adapter: Any = None

    def encode(self, value: Any, what: str) -> JSON:
        """`value` as JSON, of which `decode` makes the same value. Raises `WrongValue`, naming `what`."""
        if self._exact is not None:
            try:
                typed = self._exact(value)
            except _Unsure:
                pass
            else:
                try:
                    return as_json(value, what)
                except ValueError:  # as a number of numpy's
                    return as_json(typed, what)
        typed = self._validated(value, what)
        recorded = self._recorded(typed, value, what)
        try:
            given = as_json(value, what)
        except ValueError:
            return recorded
        return given if given == recorded else recorded  # a 3 that is a float is the 3 of an id

    def decode(self, recorded: JSON, what: str) -> Any:
        """The value that JSON stands for. Raises `WrongValue`, naming `what`."""
        if self._exact is not None:
            try:
                return self._exact(recorded)
            except _Unsure:
                pass
        return self._asked(recorded, what, lambda adapter: adapter.validate_json(msgspec.json.encode(recorded)))

    def convert(self, value: Any, what: str) -> Any:
        """`value` as the annotated type. Raises `WrongValue`, naming `what`."""
        if self._exact is not None:
            try:
                return self._exact(value)
            except _Unsure:
                pass
        return self._validated(value, what)

    def _validated(self, value: Any, what: str) -> Any:
        return self._asked(value, what, lambda adapter: adapter.validate_python(value))

    def _asked(self, value: Any, what: str, ask: Callable[[Any], Any]) -> Any:
        if self._adapter is None:
            from pydantic import TypeAdapter  # half of what a short run would import

            try:
                self._adapter = TypeAdapter(self.annotation)
            except Exception as error:  # of pydantic, or of what is in the annotation
                problem = f"{what} is annotated with {name_of(self.annotation)}, of which pydantic cannot check values"
                raise WrongValue(
                    f"{problem} ({_told(error)})", "annotate it with a type that has a JSON form"
                ) from None
        try:
            return ask(self._adapter)
        except Exception as error:  # a validator may be anybody's code
            problem = f"{what} is {short(value)}; expected {name_of(self.annotation)} ({_told(error)})"
            raise WrongValue(problem, "give a value of that type, or change the annotation") from None

    def _recorded(self, typed: Any, value: Any, what: str) -> JSON:
        why = ""
        for by_alias in (True, False):
            try:
                dumped = self._adapter.dump_python(
                    typed, mode="json", by_alias=by_alias, round_trip=True, warnings="error"
                )
                recorded = as_json(dumped, what)
                again = self._adapter.validate_json(msgspec.json.encode(recorded))
            except Exception as error:  # a serializer may be anybody's code
                why = why or _told(error)
                continue
            if same(typed, again):
                return recorded
            why = why or f"{short(recorded)} would be read as {short(again)}"
        problem = f"{what} is {short(value)}, which cannot be recorded as JSON and read again as "
        hint = "annotate it so that its JSON form means that value alone, or put it in a file"
        raise WrongValue(f"{problem}{name_of(self.annotation)} ({why})", hint)


class _Unsure(Exception):
    """It takes pydantic to tell."""


_Convert = Callable[[Any], Any]


def _exact(annotation: Any) -> _Convert | None:
    """What takes exact values of a plain type, and raises `_Unsure` for all others; None for any other type."""
    if hasattr(annotation, "__supertype__"):  # a NewType
        return _exact(annotation.__supertype__)
    plain = _PLAIN.get(annotation) if isinstance(annotation, type) else None
    if plain is not None:
        return plain
    if annotation is Any or annotation is None:
        return _any if annotation is Any else _none
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is list:
        item = _exact(args[0])
        return None if item is None else lambda value: [item(each) for each in _list(value)]
    if origin is dict and args[0] is str:
        values = _exact(args[1])
        return None if values is None else lambda value: {key: values(each) for key, each in _dict(value).items()}
    if origin is Literal:
        known = {(type(arg), arg) for arg in args}
        return _one_of(known) if {kind for kind, _ in known} <= {str, int, bool, NoneType} else None
    if origin in (Union, UnionType):
        return _any_of([found for arg in args if (found := _exact(arg)) is not None])
    return None


def _any(value: Any) -> Any:
    return value


def _none(value: Any) -> None:
    if value is not None:
        raise _Unsure


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unsure
    return value if type(value) is str else str.__str__(value)  # of an enum the value, not its name


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _Unsure
    return value


def _int(value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise _Unsure
    return int(_of(operator.index, value))


def _float(value: Any) -> float:
    if type(value) is float:
        return value
    if isinstance(value, (str, bool)) or not hasattr(value, "__float__"):
        raise _Unsure
    number = float(_of(float, value))
    if number != value:
        raise _Unsure
    return number


def _of(make: Callable[[Any], Any], value: Any) -> Any:
    try:
        return make(value)
    except Exception:
        raise _Unsure from None


def _list(value: Any) -> list[Any]:
    if type(value) not in (list, tuple):
        raise _Unsure
    return list(value)


def _dict(value: Any) -> dict[str, Any]:
    if type(value) is not dict or not all(isinstance(key, str) for key in value):
        raise _Unsure
    return value


def _one_of(known: set[tuple[type, Any]]) -> _Convert:
    def convert(value: Any) -> Any:
        try:
            if (type(value), value) in known:
                return value
        except TypeError:  # it cannot be hashed
            pass
        raise _Unsure

    return convert


def _any_of(options: list[_Convert]) -> _Convert:
    options = [option for option in options if option is not _float] + [_float] * (_float in options)  # 3 is an int

    def convert(value: Any) -> Any:
        for option in options:
            try:
                return option(value)
            except _Unsure:
                continue
        raise _Unsure

    return convert


_PLAIN: dict[Any, _Convert] = {
    str: _str, bool: _bool, int: _int, float: _float, list: _list, dict: _dict, NoneType: _none,
}  # fmt: skip


def as_json(value: Any, what: str) -> JSON:
    """`value` as plain JSON data (tuples become lists). Raises `WrongValue`, naming `what`, if it is none."""
    try:
        return _plain(value, what)
    except RecursionError:
        raise WrongValue(f"{what} is nested too deeply, or contains itself", _JSON_MEND) from None


_JSON_MEND = "parameters are JSON values; annotate the parameter with the type of the value, or put it in a file"


def _plain(value: Any, what: str) -> JSON:
    if value is None or type(value) in (int, bool):
        return value
    if isinstance(value, str):
        return _text(value, what)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item, what) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {_text(key, what): _plain(item, what) for key, item in value.items()}
    raise WrongValue(f"{what} is {short(value)} ({type(value).__name__}), which is not a JSON value", _JSON_MEND)


def _text(value: str, what: str) -> str:
    text = value if type(value) is str else str.__str__(value)  # of an enum the value, not its name
    if recordable(text) != text:
        hint = "name it in text that can be encoded"
        raise WrongValue(f"{what} is {short(text)}, text that cannot be encoded (as odd file names are)", hint)
    return text


def same(one: Any, other: Any) -> bool:
    """Whether they are equal and of the same types; a tuple may have become a list, and 3 may be 3.0."""
    if one is other:
        return True
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (one, other))
    if type(one) is not type(other) and not numbers:
        return False
    try:
        equals: Any = type(one).__eq__
        if equals is object.__eq__ and hasattr(one, "__dict__"):
            return same(vars(one), vars(other))
        return bool(one == other)
    except Exception:  # of anybody's __eq__, as of an array's
        return False


def short(value: Any) -> str:
    """`value` as a message has it."""
    if isinstance(value, type):
        return value.__qualname__
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def name_of(annotation: Any) -> str:
    """An annotation as a message has it."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__qualname__
    if get_origin(annotation) is Annotated:
        return name_of(get_args(annotation)[0])
    if hasattr(annotation, "__supertype__"):
        return str(annotation.__name__)
    return "None" if annotation is None else str(annotation).replace("typing.", "")


def _told(error: Exception) -> str:
    """What is wrong, of which pydantic tells a list."""
    errors = getattr(error, "errors", None)
    if not callable(errors):
        return f"{type(error).__name__}: {error}".partition("\n")[0].partition(". ")[0]
    first: dict[str, Any] = errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return (f"at {place}: " if place else "") + str(first["msg"][:1].lower() + first["msg"][1:])
