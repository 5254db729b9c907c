"""Who is served: this machine, or whom `authorize` lets in; no request that a page of another site makes."""

from __future__ import annotations

import inspect
import ipaddress
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gluepy.asgi.answers import refusal

Authorize = Callable[[Request], bool | Awaitable[bool]]

_PROXIED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),  # what tasks print is text, whatever it looks like
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """Lets requests through to `app`, or answers 403."""

    def __init__(self, app: ASGIApp, authorize: Authorize | None) -> None:
        self._app, self._authorize = app, authorize

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        request = Request(scope)
        try:
            problem = _crosses_origins(request) or await self._refuses(request)
        except HTTPException as error:
            answer = refusal(error.status_code, error.detail, error.headers)
        else:
            if problem is None:
                path = scope["path"].rstrip("/") or "/"  # Litestar adds a slash to what it mounts
                await self._app({**scope, "path": path}, receive, send_guarded)
                return
            answer = refusal(403, problem)
        await answer(scope, receive, send_guarded)

    async def _refuses(self, request: Request) -> str | None:
        if self._authorize is None:
            return _comes_from_elsewhere(request)
        allowed = self._authorize(request)
        if inspect.isawaitable(allowed):
            allowed = await allowed
        return None if allowed is True else "this request is not allowed"


def _crosses_origins(request: Request) -> str | None:
    """What is wrong with a request that a page of another origin makes; None of any other.

    Browsers say where such a request comes from; programs say nothing, and need not.
    """
    headers = request.headers
    host = headers.get("host", "")
    if len(headers.getlist("host")) > 1:
        return "there is more than one Host"
    for origin in headers.getlist("origin"):
        if _authority(origin) != _authority(f"{origin.partition('://')[0]}://{host}"):
            return f"a page of {origin!r} may not call {host!r}"
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
        return "a page of another origin may not call this one"
    return None


def _authority(url: str) -> object:
    """Host and port of an origin; for `null` and whatever else is none, something that equals nothing."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return object()
    if not host or parts.scheme not in _DEFAULT_PORTS:
        return object()
    return host, _DEFAULT_PORTS[parts.scheme] if port is None else port


def _comes_from_elsewhere(request: Request) -> str | None:
    """Why a request is not one of this machine to this machine."""
    say = "gluepy.asgi.app(runtime, authorize=…) says who else may"
    client = request.client
    if client is not None and not _is_loopback(client.host):  # there is none on a Unix socket
        return f"only this machine may call it; {say}"
    try:
        host = urlsplit(f"http://{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        host = ""
    if not _is_loopback(host):  # a name of somebody else's that leads here: DNS rebinding
        return f"it answers to localhost only, not to {request.headers.get('host', '')!r}; {say}"
    if any(name in request.headers for name in _PROXIED):
        return f"a proxy asks on behalf of somebody; {say}"
    return None


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
