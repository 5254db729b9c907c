"""Answers, as JSON; what was asked, checked; and which answer an error is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gluepy.asgi.operations import QUERIES
from gluepy.core.events import JSON
from gluepy.errors import (
    GluepyError,
    NotRunning,
    RunLocked,
    RunStopped,
    UnknownDag,
    UnknownRun,
    UnknownTask,
    UsageError,
    did_you_mean,
)
from gluepy.runs.log import UnreadableLog

Endpoint = Callable[[Request], Awaitable[Response]]

_MOST = 256 << 10  # bytes of a body
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_STATUS_OF: tuple[tuple[type[GluepyError], int], ...] = (
    (UnknownDag, 404),
    (UnknownRun, 404),
    (UnknownTask, 404),
    (RunLocked, 409),
    (NotRunning, 409),
    (UnreadableLog, 500),
    (UsageError, 422),
    (RunStopped, 503),
)


def answer(value: JSON, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as JSON."""
    headers = {"cache-control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def refusal(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """A refusal: `{"detail": …}`."""
    return answer({"detail": detail}, status, headers)


def refuse_error(_: Request, error: Exception) -> Response:
    """What an error of gluepy's or Starlette's is answered with."""
    if isinstance(error, HTTPException):
        return refusal(error.status_code, error.detail, error.headers)
    for kind, status in _STATUS_OF:
        if isinstance(error, kind):
            return refusal(status, str(error))
    return refusal(500, str(error))


def queries(request: Request, operation: str) -> dict[str, Any]:
    """The query of a request, by the parameters that its `operation` has; those that are missing have their defaults.
    Raises `HTTPException`."""
    known = {query.name: query for query in QUERIES[operation]}
    found: dict[str, Any] = {name: query.schema.get("default") for name, query in known.items()}
    for name in request.query_params:
        if name not in known:
            raise _bad(f"query: there is no {name!r}{did_you_mean(name, known)}")
        values = request.query_params.getlist(name)
        if len(values) > 1:
            raise _bad(f"query: {name!r} is given more than once")
        found[name] = _value(name, values[0], known[name].schema)
    return found


def _value(name: str, text: str, schema: Mapping[str, JSON]) -> Any:
    match schema["type"]:
        case "boolean":
            if text not in _BOOLEANS:
                raise _bad(f"query: {name} is {text!r}, neither true nor false")
            return _BOOLEANS[text]
        case "integer":
            low, high = schema.get("minimum", 0), schema.get("maximum", 2**53)
            if not (text.isascii() and text.isdigit() and len(text) < 17 and low <= int(text) <= high):
                raise _bad(f"query: {name} is {text!r}, not a whole number from {low} to {high}")
            return int(text)
        case _:
            choices = schema.get("enum")
            if choices is not None and text not in choices:
                raise _bad(f"query: {name} is {text!r}, not one of {', '.join(choices)}{did_you_mean(text, choices)}")
            if len(text) > schema.get("maxLength", 1000):
                raise _bad(f"query: {name} is too long")
            return text


async def body(request: Request, known: Mapping[str, JSON]) -> dict[str, JSON]:
    """The JSON object that a request brings, empty if it brings nothing, with names that are `known`. Raises
    `HTTPException`."""
    text = bytearray()
    async for chunk in request.stream():
        text += chunk
        if len(text) > _MOST:
            raise HTTPException(413, f"a body may have {_MOST:,} bytes", {"connection": "close"})
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not text and not kind:
        return {}
    if kind != "application/json":  # what a form of another page can send is none
        raise HTTPException(415, "send JSON, with Content-Type: application/json")
    try:
        value = msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _bad(f"body: it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _bad("body: it is not a JSON object")
    for name in value:
        if name not in known:
            raise _bad(
                f"body: there is no option {name!r}{did_you_mean(name, known) or '; known: ' + ', '.join(known)}"
            )
    return value


def _bad(detail: str) -> HTTPException:
    return HTTPException(422, detail)
