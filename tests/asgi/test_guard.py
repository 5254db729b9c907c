"""Only this machine is served unless `authorize` says otherwise, and no page of another site."""

from __future__ import annotations

import pytest
from clients import client_of
from starlette.exceptions import HTTPException
from starlette.requests import Request

import gluepy.asgi
from gluepy.asgi.guard import Authorize
from gluepy.runtime import Runtime


async def status_of(
    runtime: Runtime, authorize: Authorize | None = None, *, address: str = "127.0.0.1", host: str = "localhost:8000",
    **headers: str,
) -> int:  # fmt: skip
    """What a request is answered with."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client_of(gluepy.asgi.app(runtime, authorize=authorize), address=address, host=host, **named) as client:
        return (await client.get("/health")).status_code


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000"])
async def test_this_machine_is_served(runtime: Runtime, address: str, host: str) -> None:
    assert await status_of(runtime, address=address, host=host) == 200


@pytest.mark.parametrize("address", ["192.168.1.2", "2001:db8::1", "::ffff:8.8.8.8", "testclient", "", "0.0.0.0"])
async def test_other_machines_are_not(runtime: Runtime, address: str) -> None:
    assert await status_of(runtime, address=address) == 403


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example:8000", "127.0.0.1.nip.io", "localhost@evil.example", "10.0.0.1", "["],
)
async def test_name_of_another_site_that_leads_here_is_refused(runtime: Runtime, host: str) -> None:
    assert await status_of(runtime, Host=host) == 403


async def test_request_that_a_proxy_passes_on_is_refused(runtime: Runtime) -> None:
    assert await status_of(runtime, x_forwarded_for="8.8.8.8") == 403
    assert await status_of(runtime, forwarded="for=8.8.8.8") == 403


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost:9000",
        "http://evil.example:8000",
        "null",
        "file://",
        "http://[",
        "",
        "x",
    ],
)
async def test_page_of_another_origin_is_refused_whoever_is_allowed(runtime: Runtime, origin: str) -> None:
    assert await status_of(runtime, Origin=origin) == 403
    assert await status_of(runtime, lambda _: True, Origin=origin) == 403


async def test_page_of_the_same_origin_is_served(runtime: Runtime) -> None:
    assert await status_of(runtime, Origin="http://localhost:8000", sec_fetch_site="same-origin") == 200
    assert await status_of(runtime, lambda _: True, host="runs.example", Origin="http://runs.example:80") == 200
    assert await status_of(runtime, sec_fetch_site="none") == 200


async def test_image_or_script_of_another_page_is_refused(runtime: Runtime) -> None:
    assert await status_of(runtime, sec_fetch_site="cross-site", sec_fetch_mode="no-cors") == 403
    assert await status_of(runtime, sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 200


async def test_authorize_decides_on_every_request(runtime: Runtime) -> None:
    def with_token(request: Request) -> bool:
        return request.headers.get("authorization") == "Bearer one"

    async def later(request: Request) -> bool:
        return with_token(request)

    def tells(request: Request) -> bool:
        if not with_token(request):
            raise HTTPException(401, "who are you?", {"www-authenticate": "Bearer"})
        return True

    for authorize, refused in ((with_token, 403), (later, 403), (tells, 401)):
        for address in ("127.0.0.1", "8.8.8.8"):
            assert await status_of(runtime, authorize, address=address, host="a.example") == refused
            known = {"authorization": "Bearer one", "x_forwarded_for": "8.8.8.8"}
            assert await status_of(runtime, authorize, address=address, host="a.example", **known) == 200


async def test_only_true_lets_in(runtime: Runtime) -> None:
    wrong: Authorize = lambda _: "no"  # type: ignore[assignment, return-value]  # noqa: E731
    assert await status_of(runtime, wrong) == 403


async def test_every_answer_is_safe_to_be_opened_in_a_browser(runtime: Runtime) -> None:
    async with client_of(gluepy.asgi.app(runtime)) as client:
        for path in ("/health", "/nothing", "/runs/none/logs/x"):
            headers = (await client.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in headers["content-security-policy"]
