"""Answers, as JSON; what was asked, checked; and which answer an error is."""

from __future__ import annotations

import reprlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any
from urllib.parse import unquote

import anyio
import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

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

_MOST = 256 << 10  # bytes of a body
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_STATUS_OF: tuple[tuple[type[GluepyError], int], ...] = (
    (UnknownDag, 404),
    (UnknownRun, 404),
    (UnknownTask, 409),
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


class Stream(Response):
    """An answer that comes piece by piece. When the client goes away, what makes the pieces is closed at once."""

    def __init__(
        self, pieces: AsyncGenerator[bytes, None], status: int, headers: Mapping[str, str], media_type: str
    ) -> None:
        self._pieces = pieces
        self.status_code, self.media_type, self.background = status, media_type, None
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Servers tell in several ways that a client has gone: by a message, by an error, or by both."""
        async with anyio.create_task_group() as tasks, aclosing(self._pieces):

            async def until_gone() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            async def send_body(piece: bytes, *, more: bool) -> None:
                with suppress(OSError):
                    await send({"type": "http.response.body", "body": piece, "more_body": more})
                    return
                tasks.cancel_scope.cancel()

            tasks.start_soon(until_gone)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                async for piece in self._pieces:
                    await send_body(piece, more=True)
            await send_body(b"", more=False)
            tasks.cancel_scope.cancel()


def mounted_at(request: Request) -> str:
    """The path at which the application is mounted, without a slash at its end."""
    scope = request.scope
    if scope.get("root_path"):
        return str(scope["root_path"]).rstrip("/")
    whole = unquote(scope.get("raw_path", b"").decode("latin-1")).rstrip("/")  # Litestar tells by it alone
    return whole.removesuffix(scope["path"]) if whole.endswith(scope["path"]) else ""


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
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
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
    for name, each in value.items():
        if name not in known:
            hint = did_you_mean(name, known) or f"; known: {', '.join(known) or 'none'}"
            raise _bad(f"body: there is no option {name!r}{hint}")
        value[name] = _checked(name, each, known[name])
    return value


_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def _checked(name: str, value: JSON, schema: Mapping[str, JSON]) -> JSON:
    """The value of an option, checked as far as the runtime does not."""
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "integer" in kinds and isinstance(value, float) and value.is_integer():
        value = int(value)  # as JSON has it
    if kinds and type(value) not in [kind for each in kinds for kind in _KINDS[each]]:
        raise _bad(f"body: {name} is {reprlib.repr(value)}, not of type {' or '.join(kinds)}")
    if isinstance(value, int) and value > schema.get("maximum", value):
        raise _bad(f"body: {name} is {value}, above {schema['maximum']}")
    return value


def _bad(detail: str) -> HTTPException:
    return HTTPException(422, detail)
