"""Judges OpenLineage events as they are sent, by the classes that the OpenLineage project generates from its JSON
Schema: every object has what is required, nothing that is unknown, and values of the right types."""

from __future__ import annotations

import types
import typing
from enum import Enum
from typing import Any

import attr
from openlineage.client import event_v2, facet_v2

FACETS = {
    kind._get_schema(): kind
    for module in vars(facet_v2).values()
    if isinstance(module, types.ModuleType)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, facet_v2.BaseFacet)
}
OWN = {facet_v2.RunFacet._get_schema()}  # of facets that only gluepy knows, which may have any fields


def judged(data: dict[str, Any]) -> dict[str, Any]:
    """`data`, if it is a valid RunEvent; else `AssertionError`, `ValueError` or `TypeError`."""
    assert data["schemaURL"] == event_v2.RunEvent._get_schema()
    _made(event_v2.RunEvent, data, "event")
    return data


def _made(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        assert value is not None, f"{where} is null"
        (kind,) = [each for each in typing.get_args(kind) if each is not type(None)]
    if typing.get_origin(kind) is list:
        assert isinstance(value, list), where
        return [_made(typing.get_args(kind)[0], each, where) for each in value]
    if typing.get_origin(kind) is dict:
        assert isinstance(value, dict), where
        return {name: _facet(each, f"{where}.{name}") for name, each in value.items()}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if attr.has(kind):
        return _object(kind, value, where)
    assert isinstance(value, kind), f"{where} is {value!r}"
    return value


def _facet(value: Any, where: str) -> Any:
    assert value["_producer"].startswith("https://"), where
    assert value["_schemaURL"] in FACETS, f"{where} has a schema that is not known"
    kind = FACETS[value["_schemaURL"]]
    if value["_schemaURL"] in OWN:
        return kind(producer=value["_producer"])
    return _object(kind, value, where)


def _object(kind: Any, value: Any, where: str) -> Any:
    assert isinstance(value, dict), where
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in attr.fields(kind)}
    assert value.keys() <= fields.keys(), f"{where} has unknown {value.keys() - fields.keys()}"
    given = {name: _made(hints[name], each, f"{where}.{name}") for name, each in value.items()}
    # What is constant in the class is not an argument of it.
    return kind(**{fields[name].alias: each for name, each in given.items() if fields[name].init})
