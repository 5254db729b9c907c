"""The context: a run's parameters, from YAML files and from what the run was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gluepy.conf.places import changed
from gluepy.errors import did_you_mean

if TYPE_CHECKING:
    from gluepy.core.events import JSON


class SecretText(str):
    """A parameter that is secret: text like any other, but for its `repr`, which shows nothing of it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    def get_secret_value(self) -> str:
        """The text as a plain `str`: what pydantic's `SecretStr` calls it."""
        return str(self)


class Context(Mapping[str, Any]):
    """Parameters, read-only, by attribute and by key: `context.model.depth`, `context["model"]["depth"]`.

    Nested mappings are Contexts too, also those in lists. A parameter that is named like a method of mappings
    (`items`, `values`, …) is reached by its key. Text that is secret is `SecretText`. `to_dict` gives plain data.
    """

    __slots__ = ("_place", "_values")

    _values: dict[str, JSON]
    _place: str

    def __init__(
        self,
        values: Mapping[str, JSON] = MappingProxyType({}),
        _place: str = "",
        _secrets: Sequence[Sequence[str | int]] = (),
    ) -> None:
        if _secrets:
            values = _with_secrets(values, _secrets)
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
        return f"Context({_shown(self)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return Context, (self._values, self._place)

    def to_dict(self) -> dict[str, JSON]:
        """The parameters as plain dicts and lists, a copy."""
        return {key: _plain(value) for key, value in self._values.items()}


def _wrapped(value: JSON, place: str) -> JSON:
    if isinstance(value, Mapping):
        return Context(value, place)
    if isinstance(value, list):
        return [_wrapped(each, place) for each in value]
    if hasattr(value, "get_secret_value") and not isinstance(value, SecretText):
        return SecretText(value.get_secret_value())  # of a test
    return value


def _copied(value: JSON) -> JSON:
    # Contexts are read-only, lists are not: who changes one changes a copy.
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _plain(value: JSON) -> JSON:
    if isinstance(value, Context):
        return value.to_dict()
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, SecretText) else value


def _shown(value: JSON) -> JSON:
    if isinstance(value, Context):
        return {key: _shown(each) for key, each in value._values.items()}
    return [_shown(each) for each in value] if isinstance(value, list) else value


def _with_secrets(values: Mapping[str, JSON], places: Sequence[Sequence[str | int]]) -> Mapping[str, JSON]:
    """`values`, with the text at `places` as `SecretText`; what leads there is copied."""
    for place in places:
        values = changed(values, place, lambda value: SecretText(value) if isinstance(value, str) else value)
    return values
