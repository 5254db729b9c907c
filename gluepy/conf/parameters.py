"""A run's parameters: read and merged, checked against a model, recorded without their secrets, and read again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from gluepy.conf.context import Context, SecretText
from gluepy.conf.contextfiles import Layer, as_plain, read_files, values_of
from gluepy.conf.places import Place, at_place, changed, copied, dotted, flat, holds, placed
from gluepy.errors import ContextError
from gluepy.redact import MASK, looks_secret, masked_text

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings
    from gluepy.core.events import JSON

_PARAMETER = "parameter"  # where a value came from that no file has
_LONG = 6  # characters of a secret that are not in other text by chance


@dataclass(frozen=True)
class RunParameters:
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

    def digest(self) -> str:
        """By what it is known whether two runs have the same parameters, secrets left out."""
        return digest_of(self.recorded())

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


def digest_of(values: Mapping[str, JSON]) -> str:
    """The digest of parameters as they are recorded."""
    return hashlib.sha256(msgspec.json.encode(values, order="sorted")).hexdigest()[:16]


NO_PARAMETERS = digest_of({})


def load_parameters(settings: Settings, params: Mapping[str, JSON] = MappingProxyType({})) -> RunParameters:
    """The parameters of a new run: CONTEXT_FILES in order, then `params`, checked against CONTEXT_MODEL.

    Mappings merge, whatever else comes later replaces what came before. A dotted parameter reaches into mappings:
    `model.depth` is `depth` in `model`; a name with dots that the files define as such is that name. Tuples become
    lists, dates and times of Python ISO 8601 text. With CONTEXT_MODEL the values are the model's dump, its defaults
    filled in. Secret is what the model declares as such (`SecretStr`), what REDACT names, a password in a URL or
    connection string, and every text that has a secret in it. Raises `ContextError`, naming the file or parameter and
    the place in it.
    """
    return _made(read_files(settings), params, settings)


def load_context(settings: Settings, params: Mapping[str, JSON] = MappingProxyType({})) -> Context:
    """The context of a new run, as `load_parameters` makes it."""
    return load_parameters(settings, params).context()


def resumed_parameters(
    settings: Settings,
    run_id: str,
    context: Path,
    inputs: Path,
    params: Mapping[str, JSON],
    earlier: Mapping[str, JSON],
    *,
    began_with_none: bool = False,
) -> RunParameters:
    """The parameters of a run that goes on: those that it recorded in the files `context` and `inputs`, as they are;
    one that `began_with_none` may have none of these.

    Only secrets are asked for anew, of where they came from. `params` change what they name, and what CONTEXT_MODEL
    makes of that; so do those that `earlier` sessions were given, for the last may not have got round to recording
    them. Raises `ContextError`.
    """
    values = {} if began_with_none and not context.exists() else _recorded(context)
    said = _recorded(inputs) if inputs.exists() else {}
    given: dict[str, JSON] = said.get("given", values)
    hidden = {tuple(place): source for place, source in said.get("hidden", ())}
    secrets = tuple(tuple(place) for place in said.get("secrets", ()))
    before = RunParameters(values, secrets, given, hidden)
    again = {name: value for name, value in earlier.items() if name not in params and not _has_mask(value)}
    params = {**again, **params}
    if not params and not secrets:
        return before
    known = _found_again(before, settings, run_id, params)
    layers = [Layer(f"the record of run {run_id}", known)]
    if not params:
        again = _made(layers, {}, settings, hidden).values
        missing = [(place, "") for place in secrets if at_place(again, place) is None]
        if missing:
            raise _not_found(missing, run_id)
        return RunParameters(_with(values, secrets, again), secrets, known, hidden)
    made = _made(layers, params, settings, hidden)
    now = made.values
    if settings.CONTEXT_MODEL:
        try:
            first, second = (_made(layers, {}, settings, hidden).values for _ in range(2))
        except ContextError:
            pass  # without the parameters it does not fit the model any more
        else:
            now = _with(_kept(values, first, second, now), made.secrets, now)
    made = RunParameters(now, made.secrets, made.given, made.hidden)
    shown = (flat(values), flat(made.recorded()))
    names = [name for name in dict.fromkeys((*shown[0], *shown[1])) if shown[0].get(name) != shown[1].get(name)]
    changes = {name: (shown[0].get(name), shown[1].get(name)) for name in names}
    return RunParameters(now, made.secrets, made.given, made.hidden, changes)


def asked_again(inputs: Path) -> list[str]:
    """The names of the parameters that a run has to be given again when it goes on: secrets that no file has."""
    try:
        hidden = _recorded(inputs).get("hidden", [])
    except ContextError:
        return []  # most runs have no such file; whoever resumes the run is told of one that is broken
    return list(dict.fromkeys(_parameter(place) for place, source in hidden if source == _PARAMETER))


def _made(
    layers: list[Layer],
    params: Mapping[str, JSON],
    settings: Settings,
    known: Mapping[Place, str] = MappingProxyType({}),
) -> RunParameters:
    """What `layers` and `params` make. `known` are places of secrets, with their sources."""
    given: dict[str, JSON] = {}
    layers = list(layers)
    for layer in layers:
        merge(given, layer.values)
    for name, value in params.items():
        source = f"parameter {name!r}"
        if not isinstance(name, str):
            raise ContextError(source, "its name is not text")
        nested = _nested(given, name, as_plain(value, source, name), source)
        layers.append(Layer(source, nested, is_parameter=True))
        merge(given, nested)
    hidden = {*known, *_secret_places(given, settings.REDACT)}
    given = copied(given)
    if settings.CONTEXT_MODEL:
        from gluepy.conf.fitting import fitted  # brings pydantic

        values, secrets, declared = fitted(settings.CONTEXT_MODEL, given, layers)
        secrets = {*secrets, *_secret_places(values, settings.REDACT)}
        hidden |= declared
        texts = [text for text in (at_place(values, place) for place in secrets) if isinstance(text, str) and text]
        secrets |= _places_with(values, texts)
        hidden |= _places_with(given, texts)
    else:
        texts = [text for text in (at_place(given, place) for place in hidden) if isinstance(text, str)]
        hidden |= _places_with(given, [text for text in texts if len(text) >= _LONG])
        values, secrets = given, hidden
    hidden = {place for place in hidden if at_place(given, place) is not None}
    sources = {place: known.get(place, "") for place in hidden}
    for layer in layers:
        for place in hidden:
            if (layer.is_parameter or not sources[place]) and holds(layer.values, place):
                sources[place] = _PARAMETER if layer.is_parameter else layer.source
    return RunParameters(values, tuple(sorted(secrets, key=str)), given, dict(sorted(sources.items(), key=str)))


def _found_again(before: RunParameters, settings: Settings, run_id: str, params: Mapping[str, JSON]) -> dict[str, JSON]:
    """What the run was given, with the secrets in it read again from where they came from: files, or `params`."""
    given: dict[str, JSON] = copied(before.given)
    if not before.hidden:
        return given
    anew: dict[str, JSON] = {}
    for name, value in params.items():
        merge(anew, _nested(before.given, name, as_plain(value, f"parameter {name!r}", name), f"parameter {name!r}"))
    files: dict[str, JSON] = {}
    if any(source != _PARAMETER for source in before.hidden.values()):
        for layer in read_files(settings):
            merge(files, layer.values)
    missing = []
    for place, source in before.hidden.items():
        value = next((found for each in (anew, files) if (found := at_place(each, place)) is not None), None)
        if source == _PARAMETER:
            value = at_place(anew, place)
        if value is None:
            missing.append((place, source))
        else:
            given = placed(given, place, value)
    if missing:
        raise _not_found(missing, run_id)
    return given


def _not_found(missing: Sequence[tuple[Place, str]], run_id: str) -> ContextError:
    names = ", ".join(dotted(place) for place, _ in missing)
    options = " ".join(f"--param {name}=…" for name in dict.fromkeys(_parameter(place) for place, _ in missing))
    sources = dict.fromkeys(source for _, source in missing if source and source != _PARAMETER)
    was = f" where it was, in {', '.join(sources)}, or" if sources else ""
    problem = f"secrets are not recorded, and run {run_id} needs them again"
    return ContextError(f"the secret {names}", problem, f"give it{was} with {options}")


def _with(values: dict[str, JSON], places: Iterable[Place], others: dict[str, JSON]) -> dict[str, JSON]:
    """`values`, with those of `others` at `places`."""
    for place in places:
        values = placed(values, place, at_place(others, place))
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


def _parameter(place: Sequence[str | int]) -> str:
    """The name of the parameter that sets what is at `place`: an item of a list is set with the list."""
    index = next((number for number, part in enumerate(place) if isinstance(part, int)), len(place))
    return dotted(tuple(place[:index]))


def merge(values: dict[str, JSON], more: Mapping[str, JSON]) -> None:
    """Put `more` over `values`, mapping by mapping. Nothing of `more` is shared: it stays as its source gave it."""
    for key, value in more.items():
        if isinstance(value, dict):
            before = values.get(key)
            below = values[key] = before if isinstance(before, dict) else {}
            merge(below, value)
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
