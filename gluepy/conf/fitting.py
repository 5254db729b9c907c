"""CONTEXT_MODEL: a context as a pydantic model has it, and which of it the model declares as secret."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gluepy.conf.contextfiles import Layer, as_plain, without_secrecy
from gluepy.conf.places import Place, at_place, copied, holds, placed
from gluepy.conf.project import import_object
from gluepy.errors import ContextError, did_you_mean
from gluepy.traces import user_stack

if TYPE_CHECKING:
    from gluepy.core.events import JSON

_SHOWN = 15  # problems listed when a context does not fit its model: one screen


def fitted(path: str, values: dict[str, JSON], layers: list[Layer]) -> tuple[dict[str, JSON], set[Place], set[Place]]:
    """`values` as the pydantic model at the dotted `path` has them; the places of what it declares as secret there, and
    in `values`."""
    from pydantic import BaseModel, ValidationError

    model = import_object(path, named_by="CONTEXT_MODEL")
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ContextError("CONTEXT_MODEL", f"{path} is not a pydantic model")
    try:
        made = model.model_validate(copied(values))
        dump = made.model_dump(mode="json", by_alias=False)
        found = list(_declared_secrets(made, dump, values, (), ()))
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
    for place, _, secret in found:
        dump = placed(dump, place, secret)
    fitted: dict[str, JSON] = as_plain(dump, f"CONTEXT_MODEL {path}", "")
    return fitted, {place for place, _, _ in found}, {origin for _, origin, _ in found if origin is not None}


def _declared_secrets(
    value: Any, dump: Any, given: Any, place: Place, origin: Place | None
) -> Iterator[tuple[Place, Place | None, Any]]:
    """Each secret in `value`, which the model made of what is `given` at `origin` and dumped as `dump` at `place`: its
    place, where it was given (None: somewhere else), and what it is."""
    from pydantic import BaseModel

    if hasattr(value, "get_secret_value"):
        yield place, origin, without_secrecy(value)
        return
    pairs: list[
        tuple[Any, Any, tuple[Any, ...]]
    ] = []  # what is below: the value, its key in the dump, in what was given
    match value:
        case BaseModel():
            names = [*type(value).model_fields, *type(value).model_computed_fields, *(value.model_extra or ())]
            fields = type(value).model_fields
            pairs = [(getattr(value, name), name, _inputs_of(name, fields.get(name))) for name in names]
        case Mapping():
            keys = list(dump) if isinstance(dump, dict) else []
            pairs = [(each, key, (key,)) for key, each in zip(keys, value.values(), strict=False)]
        case list() | tuple() | set() | frozenset():
            pairs = [(each, number, (number,)) for number, each in enumerate(value)]
    for each, key, inputs in pairs:
        here = at_place(dump, (key,))
        if here is None:
            continue
        where = next((path for path in map(_path, inputs) if at_place(given, path) is not None), None)
        below = None if where is None or origin is None else (*origin, *where)
        yield from _declared_secrets(each, here, at_place(given, where or ()), (*place, key), below)


def _inputs_of(name: str, field: Any) -> tuple[Any, ...]:
    """By what a model's field may be given: names, or paths of them."""
    alias = getattr(field, "validation_alias", None)
    choices = getattr(alias, "choices", [alias])
    return (*(getattr(each, "path", each) for each in choices if each is not None), name)


def _path(each: Any) -> Place:
    return tuple(each) if isinstance(each, (list, tuple)) else (each,)


def _spelled(each: Any) -> str:
    return ".".join(map(str, _path(each)))


def _misfit(error: Any, layers: list[Layer], model: Any) -> str:
    place = tuple(error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden" and len(place) == 1:
        names = {name: _inputs_of(name, field)[0] for name, field in model.model_fields.items()}
        if place[0] in names:  # it has an alias
            message += f"; it is given as {_spelled(names[place[0]])!r}"
        else:
            message += did_you_mean(str(place[0]), map(_spelled, names.values()))
    where = _origin(place, layers)
    name = ".".join(map(str, place)) or "the whole"
    return f"{name}: {message}" + (f" ({where})" if where else "")


def _origin(place: tuple[int | str, ...], layers: list[Layer]) -> str:
    """The source that set what is at `place`, or else the nearest mapping around it."""
    for length in range(len(place), 0, -1):
        for layer in reversed(layers):
            if holds(layer.values, place[:length]):
                return layer.source
    return ""
