"""A run's parameters: read and merged, checked against a model, recorded without their secrets, and read again."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gluepy.conf.context import Context, SecretText
from gluepy.conf.project import import_object
from gluepy.errors import ContextError, did_you_mean
from gluepy.redact import MASK, looks_secret, masked_text
from gluepy.traces import user_stack

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings
    from gluepy.core.events import JSON

Place = tuple[str | int, ...]  # keys and indices that lead to a value

_SHOWN = 15  # problems listed when a context does not fit its model: one screen
_PARAMETER = "parameter"  # where a value came from that no file has
_LONG = 6  # characters of a secret that are not in other text by chance


@dataclass(frozen=True)
class Parameters:
    """What a run's tasks read as their context, and how it came about.

    `values` are the context, with its secrets at the places `secrets`. `given` is what the files and parameters said
    before CONTEXT_MODEL made the values of it, with its secrets at the places `hidden`, each with its source. Of a
    resumed run `changes` are the values that parameters change, by their dotted names: before and after, masked.
    """

    values: dict[str, JSON]
    secrets: tuple[Place, ...] = ()
    given: dict[str, JSON] = field(default_factory=dict)
    hidden: Mapping[Place, str] = field(default_factory=dict)
    changes: Mapping[str, tuple[JSON, JSON]] = field(default_factory=dict)

    def context(self) -> Context:
        """As tasks have it."""
        return Context(self.values, "", self.secrets)

    def recorded(self) -> dict[str, JSON]:
        """The values as the record has them, without the secrets."""
        return _masked(self.values, self.secrets)

    def recorded_inputs(self) -> dict[str, JSON] | None:
        """What else the record needs for the run to go on with other parameters, or with its secrets; None where the
        values say it all."""
        if not self.secrets and not self.hidden and self.given == self.values:
            return None
        hidden = [[list(place), source] for place, source in self.hidden.items()]
        return {"given": _masked(self.given, self.hidden), "hidden": hidden, "secrets": list(map(list, self.secrets))}

    def mask_params(self, params: Mapping[str, JSON]) -> dict[str, JSON]:
        """`params`, as a run was given them, without the secrets."""
        shown = {}
        for name, value in params.items():
            at = _place_of(self.given, name)
            below = [place[len(at) :] for place in self.hidden if place[: len(at)] == at]
            secret = any(at[: len(place)] == place for place in self.hidden)
            shown[name] = MASK if secret else _masked({"": value}, [("", *place) for place in below])[""]
        return shown


class _Layer(NamedTuple):
    source: str
    values: dict[str, JSON]


def load_parameters(settings: Settings, params: Mapping[str, JSON] = MappingProxyType({})) -> Parameters:
    """The parameters of a new run: CONTEXT_FILES in order, then `params`, checked against CONTEXT_MODEL.

    Mappings merge, whatever else comes later replaces what came before. A dotted parameter reaches into mappings:
    `model.depth` is `depth` in `model`; a name with dots that the files define as such is that name. Tuples become
    lists, dates and times of Python ISO 8601 text. With CONTEXT_MODEL the values are the model's dump, its defaults
    filled in. Secret is what the model declares as such (`SecretStr`), what REDACT names, a password in a URL or
    connection string, and every text that has a secret in it. Raises `ContextError`, naming the file or parameter and
    the place in it.
    """
    return _made(_files(settings), params, settings)


def resumed_parameters(
    settings: Settings,
    run_id: str,
    context: Path,
    inputs: Path,
    params: Mapping[str, JSON],
    earlier: Mapping[str, JSON],
) -> Parameters:
    """The parameters of a run that goes on: those that it recorded in the files `context` and `inputs`, as they are.

    Only secrets are asked for anew, of where they came from. `params` change what they name, and what CONTEXT_MODEL
    makes of that; so do those that `earlier` sessions were given, for the last may not have got round to recording
    them. Raises `ContextError`.
    """
    values = _recorded(context)
    said = _recorded(inputs) if inputs.exists() else {}
    given: dict[str, JSON] = said.get("given", values)
    hidden = {tuple(place): source for place, source in said.get("hidden", ())}
    secrets = tuple(tuple(place) for place in said.get("secrets", ()))
    before = Parameters(values, secrets, given, hidden)
    again = {name: value for name, value in earlier.items() if name not in params and not _has_mask(value)}
    params = {**again, **params}
    if not params and not secrets:
        return before
    known = _found_again(before, settings, run_id, params)
    layers = [_Layer(f"the record of run {run_id}", known)]
    if not params:
        again = _made(layers, {}, settings, hidden).values
        missing = [(place, "") for place in secrets if _at_place(again, place) is None]
        if missing:
            raise _not_found(missing, run_id)
        return Parameters(_with(values, secrets, again), secrets, known, hidden)
    made = _made(layers, params, settings, hidden)
    now = made.values
    if settings.CONTEXT_MODEL:
        try:
            first, second = (_made(layers, {}, settings, hidden).values for _ in range(2))
        except ContextError:
            pass  # without the parameters it does not fit the model any more
        else:
            now = _with(_kept(values, first, second, now), made.secrets, now)
    made = Parameters(now, made.secrets, made.given, made.hidden)
    shown = (_flat(values), _flat(made.recorded()))
    names = [name for name in dict.fromkeys((*shown[0], *shown[1])) if shown[0].get(name) != shown[1].get(name)]
    changes = {name: (shown[0].get(name), shown[1].get(name)) for name in names}
    return Parameters(now, made.secrets, made.given, made.hidden, changes)


def asked_again(inputs: Path) -> list[str]:
    """The names of the parameters that a run has to be given again when it goes on: secrets that no file has."""
    try:
        hidden = _recorded(inputs).get("hidden", [])
    except ContextError:
        return []  # most runs have no such file; whoever resumes the run is told of one that is broken
    return list(dict.fromkeys(_parameter(place) for place, source in hidden if source == _PARAMETER))


def _made(
    layers: list[_Layer],
    params: Mapping[str, JSON],
    settings: Settings,
    known: Mapping[Place, str] = MappingProxyType({}),
) -> Parameters:
    """What `layers` and `params` make. `known` are places of secrets, with their sources."""
    given: dict[str, JSON] = {}
    layers = list(layers)
    for layer in layers:
        _merge(given, layer.values)
    for name, value in params.items():
        source = f"parameter {name!r}"
        if not isinstance(name, str):
            raise ContextError(source, "its name is not text")
        nested = _nested(given, name, _json(value, source, name), source)
        layers.append(_Layer(source, nested))
        _merge(given, nested)
    hidden = {*known, *_secret_places(given, settings.REDACT)}
    given = _copy(given)
    if settings.CONTEXT_MODEL:
        values, secrets, declared = _fitted(settings.CONTEXT_MODEL, given, layers)
        secrets = {*secrets, *_secret_places(values, settings.REDACT)}
        hidden |= declared
        texts = [text for text in (_at_place(values, place) for place in secrets) if isinstance(text, str) and text]
        secrets |= _places_with(values, texts)
        hidden |= _places_with(given, texts)
    else:
        texts = [text for text in (_at_place(given, place) for place in hidden) if isinstance(text, str)]
        hidden |= _places_with(given, [text for text in texts if len(text) >= _LONG])
        values, secrets = given, hidden
    hidden = {place for place in hidden if _at_place(given, place) is not None}
    sources = {place: known.get(place, "") for place in hidden}
    for layer in layers:
        for place in hidden:
            if (layer.source.startswith("parameter ") or not sources[place]) and _holds(layer.values, place):
                sources[place] = _PARAMETER if layer.source.startswith("parameter ") else layer.source
    return Parameters(values, tuple(sorted(secrets, key=str)), given, dict(sorted(sources.items(), key=str)))


def _found_again(before: Parameters, settings: Settings, run_id: str, params: Mapping[str, JSON]) -> dict[str, JSON]:
    """What the run was given, with the secrets in it read again from where they came from: files, or `params`."""
    given: dict[str, JSON] = _copy(before.given)
    if not before.hidden:
        return given
    anew: dict[str, JSON] = {}
    for name, value in params.items():
        _merge(anew, _nested(before.given, name, _json(value, f"parameter {name!r}", name), f"parameter {name!r}"))
    files: dict[str, JSON] = {}
    if any(source != _PARAMETER for source in before.hidden.values()):
        for layer in _files(settings):
            _merge(files, layer.values)
    missing = []
    for place, source in before.hidden.items():
        value = next((found for each in (anew, files) if (found := _at_place(each, place)) is not None), None)
        if source == _PARAMETER:
            value = _at_place(anew, place)
        if value is None:
            missing.append((place, source))
        else:
            given = placed(given, place, value)
    if missing:
        raise _not_found(missing, run_id)
    return given


def _not_found(missing: Sequence[tuple[Place, str]], run_id: str) -> ContextError:
    names = ", ".join(_dotted(place) for place, _ in missing)
    options = " ".join(f"--param {name}=…" for name in dict.fromkeys(_parameter(place) for place, _ in missing))
    sources = dict.fromkeys(source for _, source in missing if source and source != _PARAMETER)
    was = f" where it was, in {', '.join(sources)}, or" if sources else ""
    problem = f"secrets are not recorded, and run {run_id} needs them again"
    return ContextError(f"the secret {names}", problem, f"give it{was} with {options}")


def _with(values: dict[str, JSON], places: Iterable[Place], others: dict[str, JSON]) -> dict[str, JSON]:
    """`values`, with those of `others` at `places`."""
    for place in places:
        values = placed(values, place, _at_place(others, place))
    return values


def _kept(recorded: JSON, first: JSON, second: JSON, made: JSON) -> JSON:
    """`made`, but with what is `recorded` wherever the parameters make no difference: where the same comes about
    without them (`first`), or something else each time (`second`), such as the time."""
    if not all(isinstance(each, dict) for each in (recorded, first, second, made)):
        return recorded if made == first or first != second else made
    kept = {key: value for key, value in recorded.items() if key not in first}
    for key, value in made.items():
        here = all(key in each for each in (recorded, first, second))
        kept[key] = _kept(recorded[key], first[key], second[key], value) if here else value
    return {key: kept[key] for key in [*recorded, *made] if key in kept}


def _recorded(file: Path) -> dict[str, JSON]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ContextError(str(file), f"cannot be read: {error.strerror}") from None
    try:
        values = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return values_of(data, str(file))  # somebody wrote it by hand
    if not isinstance(values, dict):
        raise ContextError(str(file), "it does not hold a run's parameters")
    return values


# --- places


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


def _at_place(values: Any, place: Place) -> Any:
    for part in place:
        if isinstance(values, list):
            values = values[part] if isinstance(part, int) and part < len(values) else None
        else:
            values = values.get(part) if isinstance(values, dict) else None
    return values


def _masked(values: dict[str, JSON], places: Iterable[Place]) -> dict[str, JSON]:
    for place in places:
        values = changed(values, place, _mask)
    return values


def _mask(value: JSON) -> JSON:
    if isinstance(value, str) and "://" in value and (shown := masked_text(value)) != value:
        return shown  # the rest of a URL helps
    return MASK


def _has_mask(value: JSON) -> bool:
    match value:
        case dict():
            return any(map(_has_mask, value.values()))
        case list():
            return any(map(_has_mask, value))
        case _:
            return isinstance(value, str) and MASK in value


def _secret_places(values: JSON, patterns: Sequence[str]) -> set[Place]:
    """Where secrets are, by their names and by their looks."""
    found: set[Place] = set()

    def look(value: JSON, place: Place, secret: bool) -> None:
        match value:
            case dict():
                for key, each in value.items():
                    look(each, (*place, key), secret or looks_secret(key, patterns))
            case list():
                for number, each in enumerate(value):
                    look(each, (*place, number), secret)
            case str():
                if (
                    isinstance(value, SecretText)
                    or (secret and value)
                    or (("://" in value or ";" in value) and _has_login(value, patterns))
                ):
                    found.add(place)
            case int() | float() if secret and not isinstance(value, bool):
                found.add(place)

    look(values, (), False)
    return found


def _has_login(text: str, patterns: Sequence[str]) -> bool:
    """Whether `text` is a URL or a connection string with a password in it."""
    return " " not in text.partition(";")[0].strip() and masked_text(text, patterns) != text


def _places_with(values: JSON, secrets: Sequence[str]) -> set[Place]:
    """Where text has one of the `secrets` in it."""
    found: set[Place] = set()
    if not secrets:
        return found

    def look(value: JSON, place: Place) -> None:
        match value:
            case dict():
                for key, each in value.items():
                    look(each, (*place, key))
            case list():
                for number, each in enumerate(value):
                    look(each, (*place, number))
            case str():
                if any(value == secret or (len(secret) >= _LONG and secret in value) for secret in secrets):
                    found.add(place)

    look(values, ())
    return found


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))


def _parameter(place: Sequence[str | int]) -> str:
    """The name of the parameter that sets what is at `place`: an item of a list is set with the list."""
    index = next((number for number, part in enumerate(place) if isinstance(part, int)), len(place))
    return _dotted(tuple(place[:index]))


def _flat(values: Mapping[str, JSON], prefix: str = "") -> dict[str, JSON]:
    flat: dict[str, JSON] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _copy(value: JSON) -> Any:
    match value:
        case dict():
            return {key: _copy(each) for key, each in value.items()}
        case list():
            return [_copy(each) for each in value]
        case SecretText():
            return str(value)
        case _:
            return value


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


# --- reading


def _files(settings: Settings) -> list[_Layer]:
    return [_Layer(str(_relative(file, settings)), _read(file, settings)) for file in settings.context_files]


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
    """`value` as plain JSON data, but for `SecretText`, which stands for pydantic's secrets. Raises `ContextError` for
    what is not, naming `source` and `place`."""
    if hasattr(value, "get_secret_value"):
        secret = _json(without_secrecy(value), source, place)
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


def _place_of(values: Mapping[str, JSON], name: str) -> Place:
    """The place that the parameter `name` sets."""
    return (name,) if name in values or "." not in name else tuple(name.split("."))


def _fitted(path: str, values: dict[str, JSON], layers: list[_Layer]) -> tuple[dict[str, JSON], set[Place], set[Place]]:
    """`values` as the pydantic model at the dotted `path` has them; the places of what it declares as secret there, and
    in `values`."""
    from pydantic import BaseModel, ValidationError

    model = import_object(path, named_by="CONTEXT_MODEL")
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ContextError("CONTEXT_MODEL", f"{path} is not a pydantic model")
    try:
        made = model.model_validate(_copy(values))
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
    fitted: dict[str, JSON] = _json(dump, f"CONTEXT_MODEL {path}", "")
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
        here = _at_place(dump, (key,))
        if here is None:
            continue
        where = next((path for path in map(_path, inputs) if _at_place(given, path) is not None), None)
        below = None if where is None or origin is None else (*origin, *where)
        yield from _declared_secrets(each, here, _at_place(given, where or ()), (*place, key), below)


def _inputs_of(name: str, field: Any) -> tuple[Any, ...]:
    """By what a model's field may be given: names, or paths of them."""
    alias = getattr(field, "validation_alias", None)
    choices = getattr(alias, "choices", [alias])
    return (*(getattr(each, "path", each) for each in choices if each is not None), name)


def _path(each: Any) -> Place:
    return tuple(each) if isinstance(each, (list, tuple)) else (each,)


def _spelled(each: Any) -> str:
    return ".".join(map(str, _path(each)))


def _misfit(error: Any, layers: list[_Layer], model: Any) -> str:
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
