"""The application: which request is answered by what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gluepy.asgi.answers import refusal, refuse_error
from gluepy.asgi.driving import Driving
from gluepy.asgi.guard import Authorize, Guard
from gluepy.asgi.looking import Looking
from gluepy.asgi.operations import OPERATIONS
from gluepy.asgi.scraping import count, scrape
from gluepy.errors import GluepyError
from gluepy.runtime import Runtime

_HANDLERS: Any = {GluepyError: refuse_error, HTTPException: refuse_error}


def make_app(runtime: Runtime, authorize: Authorize | None) -> ASGIApp:
    """What `gluepy.asgi.app` returns."""
    looking = Looking(runtime)
    driving = Driving(runtime, looking)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if runtime.is_open:
            yield
        else:
            async with runtime:
                yield

    routes = [
        Route(
            operation.path.replace("{task}", "{task:path}"),
            getattr(looking if operation.method == "GET" else driving, operation.name),
            methods=[operation.method],
            name=operation.name,
        )
        for operation in OPERATIONS
    ]
    application = Starlette(routes=routes, lifespan=lifespan, exception_handlers=_HANDLERS)
    application.router.redirect_slashes = False
    return Guard(application, authorize)


def make_metrics(runtime: Runtime, authorize: Authorize | None) -> ASGIApp:
    """What `gluepy.asgi.metrics` returns."""
    count(runtime)

    async def scraped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in ("GET", "HEAD"):
            answer = await scrape(Request(scope))
        else:
            answer = refusal(405, "metrics are read by GET", {"allow": "GET, HEAD"})
        await answer(scope, receive, send)

    return Guard(scraped, authorize)
