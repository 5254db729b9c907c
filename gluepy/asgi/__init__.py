"""Runs over HTTP: an ASGI application to be mounted in Starlette, FastAPI or Litestar, or served by itself.

    runtime = gluepy.Runtime(concurrency=8)
    application = gluepy.asgi.app(runtime)  # uvicorn module:application

It needs the extra `asgi`. docs/embedding.md tells of its paths, `GET /openapi.json` of their parameters and answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gluepy.errors import MissingExtra

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from gluepy.asgi.guard import Authorize
    from gluepy.runtime import Runtime

__all__ = ["app", "metrics"]


def app(runtime: Runtime, *, authorize: Authorize | None = None) -> ASGIApp:
    """The application for the DAGs of `runtime` and the runs in its RUNS_ROOT, whichever process drives them.

    `authorize` is called with every request (`starlette.requests.Request`, without its body), plain or async, and says
    whether it is served; it may raise Starlette's `HTTPException`. Without it, requests are served that come from
    this machine to an address of this machine (`localhost`, `127.0.0.1`, `[::1]`), and no others. Requests that a page
    of another origin makes are refused in any case.

    An application that is served by itself opens `runtime` and closes it at the end. A mounted one leaves that to the
    program, which has to open it before a run is started. Raises `MissingExtra`.
    """
    with _extra("asgi", "starlette"):
        from gluepy.asgi.application import make_app
    return make_app(runtime, authorize)


def metrics(runtime: Runtime, *, authorize: Authorize | None = None) -> ASGIApp:
    """The metrics of this process for Prometheus, alone, at whatever path it is mounted: as `GET /metrics` of `app`.

    The runs of `runtime` are counted from now on, also if SINKS does not name `prometheus`. `authorize` is as for
    `app`. Raises `MissingExtra` (it needs the extra `prometheus` too), and `OptionError` if `runtime` is open and does
    not count.
    """
    with _extra("asgi", "starlette"):
        from gluepy.asgi.application import make_metrics
    return make_metrics(runtime, authorize)


@contextmanager
def _extra(name: str, package: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtra("gluepy.asgi", name) from None
