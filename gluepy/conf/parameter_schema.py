"""What parameters a project's runs take, as a JSON Schema: what a form for them is made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gluepy.conf.contextfiles import read_files
from gluepy.conf.parameters import merge
from gluepy.conf.project import import_object
from gluepy.errors import ContextError

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings
    from gluepy.core.events import JSON

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", type(None): "null"}


def parameter_schema(settings: Settings) -> dict[str, JSON]:
    """The JSON Schema of the parameters: that of CONTEXT_MODEL, or else what the values in CONTEXT_FILES show.

    The values in the files are the defaults; of secrets there is none, and they are `writeOnly`. Raises `ContextError`
    and `ImportFailed`.
    """
    values: dict[str, JSON] = {}
    for layer in read_files(settings):
        merge(values, layer.values)
    shown: dict[str, JSON] = settings.mask("", values)
    if not settings.CONTEXT_MODEL:
        return _of_mapping(values, shown)
    from pydantic import BaseModel

    model = import_object(settings.CONTEXT_MODEL, named_by="CONTEXT_MODEL")
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ContextError("CONTEXT_MODEL", f"{settings.CONTEXT_MODEL} is not a pydantic model")
    schema: dict[str, JSON] = model.model_json_schema()
    for name, about in schema.get("properties", {}).items():
        if name in values:
            about.pop("default", None)
            if not _declares_secret(about, schema.get("$defs", {}), set()):
                about |= _default(values[name], shown[name])
    required = [name for name in schema.get("required", ()) if name not in values]
    return {**schema, "required": required}


def _of_mapping(values: Mapping[str, JSON], shown: Mapping[str, JSON]) -> dict[str, JSON]:
    return {"type": "object", "properties": {name: _of_value(value, shown[name]) for name, value in values.items()}}


def _of_value(value: JSON, shown: JSON) -> dict[str, JSON]:
    if isinstance(value, dict) and isinstance(shown, dict):
        return _of_mapping(value, shown)
    if isinstance(value, dict):
        return {"type": "object", "writeOnly": True}
    return {"type": _TYPES[type(value)], **_default(value, shown)}


def _default(value: JSON, shown: JSON) -> dict[str, JSON]:
    return {"default": value} if value == shown else {"writeOnly": True}


def _declares_secret(schema: JSON, definitions: Mapping[str, JSON], seen: set[str]) -> bool:
    """Whether the model declares a secret at `schema` or below."""
    match schema:
        case {"writeOnly": True}:
            return True
        case {"$ref": str(reference)} if reference not in seen:
            name = reference.rpartition("/")[2]
            return _declares_secret(definitions.get(name), definitions, {*seen, reference})
        case dict():
            return any(_declares_secret(each, definitions, seen) for each in schema.values())
        case list():
            return any(_declares_secret(each, definitions, seen) for each in schema)
    return False
