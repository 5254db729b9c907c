"""Metrics for Prometheus: what the sink `prometheus` has counted in this process."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gluepy.conf.plugins import SINKS, find
from gluepy.errors import MissingExtra, OptionError
from gluepy.runtime import Runtime

_NAME = "prometheus"


async def scrape(request: Request) -> Response:
    """Answer with the metrics, in the format that is asked for."""
    try:
        find(SINKS, _NAME, "GET /metrics")
    except MissingExtra as error:
        raise HTTPException(404, str(error)) from None
    from gluepy.sinks.prometheus import exposition

    text, kind = exposition(request.headers.get("accept", ""))
    return Response(text, 200, {"content-type": kind, "cache-control": "no-store"})


def count(runtime: Runtime) -> None:
    """Have `runtime` count its runs. Raises `MissingExtra`, and `OptionError` if it is open and does not yet."""
    sink = find(SINKS, _NAME, "gluepy.asgi.metrics")
    settings = runtime.settings
    named = (find(SINKS, each, "SINKS") if isinstance(each, str) else each for each in settings.SINKS)
    if any(each is sink or isinstance(each, sink) for each in named):
        return
    if runtime.is_open:
        hint = 'set SINKS = ["prometheus"], or call gluepy.asgi.metrics before the runtime is opened'
        raise OptionError("metrics", "the runtime does not count its runs", hint)
    runtime.settings = settings.replaced(SINKS=[*settings.SINKS, _NAME])
