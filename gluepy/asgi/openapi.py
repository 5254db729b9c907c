"""The OpenAPI document of the application."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gluepy.asgi.operations import OPERATIONS, REFUSALS, STATUSES, Operation
from gluepy.core.events import JSON, json_schema
from gluepy.version import VERSION

_SCHEMAS = "#/components/schemas/"
_TEXT: dict[str, JSON] = {"type": "string"}
_NUMBER: dict[str, JSON] = {"type": "number", "minimum": 0}
_COUNT: dict[str, JSON] = {"type": "integer", "minimum": 0}
_OBJECT: dict[str, JSON] = {"type": "object"}


def openapi() -> dict[str, JSON]:
    """The document, OpenAPI 3.1."""
    paths: dict[str, dict[str, JSON]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "gluepy", "version": VERSION, "description": "The DAGs of a project, and its runs."},
        "paths": paths,
        "components": {"schemas": _components()},
    }


def _operation(operation: Operation) -> dict[str, JSON]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    in_query = [
        {"name": query.name, "in": "query", "schema": dict(query.schema), "description": query.about}
        for query in operation.queries
    ]
    told: dict[str, JSON] = {
        "operationId": operation.name,
        "summary": operation.about,
        "parameters": [*in_path, *in_query],
        "responses": _answers(operation),
    }
    if operation.options:
        schema = {"type": "object", "properties": dict(operation.options), "additionalProperties": False}
        told["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return told


def _answers(operation: Operation) -> dict[str, JSON]:
    done = {"description": operation.about}
    text = {"text/plain": {"schema": _TEXT}}
    match operation.name:
        case "read_log":
            answers = {
                "200": {**done, "content": text},
                "206": {"description": "The bytes asked for.", "content": text},
            }
        case "scrape":
            answers = {"200": {**done, "content": text | {"application/openmetrics-text": {"schema": _TEXT}}}}
        case "list_events":
            content = _json(operation.answer) | {"text/event-stream": {"schema": _TEXT}}
            answers = {"200": {**done, "content": content}, "204": {"description": "There is nothing more to come."}}
        case _:
            status = "202" if operation.method == "POST" else "200"
            answers = {status: {**done, "content": _json(operation.answer)}}
    refused = {
        str(status): {"description": REFUSALS[status], "content": _json("Refusal")}
        for status in sorted({403, *operation.refusals})
    }
    return answers | refused


def _json(schema: str) -> dict[str, JSON]:
    return {"application/json": {"schema": _of(schema)}}


def _of(schema: str) -> dict[str, JSON]:
    return {"$ref": f"{_SCHEMAS}{schema}"}


def _object(properties: Mapping[str, JSON], **optional: JSON) -> dict[str, JSON]:
    return {"type": "object", "required": list(properties), "properties": {**properties, **optional}}


def _list(items: JSON) -> dict[str, JSON]:
    return {"type": "array", "items": items}


def _components() -> dict[str, JSON]:
    events = _moved(json_schema())
    counts = {"type": "object", "additionalProperties": _COUNT}
    run = {
        "run_id": _TEXT,
        "dag": _TEXT,
        "status": {"type": "string", "enum": list(STATUSES)},
        "started_at": _TEXT,
        "duration_s": _NUMBER,
        "sessions": _COUNT,
        "counts": counts,
    }
    task = {"status": _TEXT, "attempts": _COUNT, "max_attempts": _COUNT, "duration_s": _NUMBER, "label": _TEXT}
    node = _object({"task": {"type": ["string", "null"]}}, label=_TEXT, parameters=_OBJECT)
    edge = {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2}
    schemas: dict[str, JSON] = {
        "Refusal": _object({"detail": _TEXT}),
        "Document": _OBJECT,
        "Started": _object({"run_id": _TEXT}),
        "Health": _object({"status": {"const": "ok"}, "version": _TEXT, "accepts_runs": {"type": "boolean"}}),
        "Dags": _list(_object({"dag": _TEXT, "class": _TEXT, "about": _TEXT}, tasks={"type": ["integer", "null"]})),
        "Dag": _object(
            {
                "dag": _TEXT,
                "class": _TEXT,
                "about": _TEXT,
                "tasks": _COUNT,
                "graph": _of("Graph"),
                "parameters": _OBJECT,
            }
        ),
        "Graph": _object({"nodes": _list(node), "edges": _list(edge)}),
        "Runs": _list(_object({**run, "tasks": _COUNT, "failed": _list(_TEXT), "problem": _TEXT})),
        "Run": _object(
            {**run, "tasks": {"type": "object", "additionalProperties": _object(task)}},
            parameters=_OBJECT,
            options=_OBJECT,
            timeline=_OBJECT,
            damage=_OBJECT,
        ),
        "Task": _object({"task": _TEXT, **task, "history": _list(_OBJECT)}),
        "Events": _list(_of("Event")),
        "Event": {name: value for name, value in events.items() if name not in ("$defs", "$schema")},
    }
    return schemas | {f"Event.{name}": schema for name, schema in events["$defs"].items()}


def _moved(schema: JSON) -> JSON:
    """`schema`, with its references to where the document has the schemas of the events."""
    if isinstance(schema, dict):
        return {name: _moved(value) for name, value in schema.items()}
    if isinstance(schema, list):
        return [_moved(value) for value in schema]
    if isinstance(schema, str) and schema.startswith("#/$defs/"):
        return f"{_SCHEMAS}Event.{schema.removeprefix('#/$defs/')}"
    return schema
