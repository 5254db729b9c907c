"""Clients of the application, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import httpx
from starlette.types import Message


def client_of(
    application: Any, *, address: str = "127.0.0.1", host: str = "localhost:8000", **headers: str
) -> httpx.AsyncClient:
    """A client at `address` that has reached the application as `host`."""
    transport = httpx.ASGITransport(application, client=(address, 50_000))
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers)


class Connection:
    """A connection to the application without a server between: what is sent comes at once, until it is left."""

    def __init__(self, application: Any, path: str, **headers: str) -> None:
        self._application = application
        named = {"host": "localhost", **headers}
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
        where, _, query = path.partition("?")
        self._scope = {
            "type": "http",
            "method": "GET",
            "path": where,
            "query_string": query.encode(),
            "headers": pairs,
            "client": ("127.0.0.1", 1),
        }
        self._left = anyio.Event()
        self._asked = False
        self._pieces: list[bytes] = []
        self._news = anyio.Event()
        self.reads = anyio.Event()  # unset: nothing that is sent is taken
        self.reads.set()
        self.status = 0
        self.ended = False

    async def drive(self) -> None:
        """Make the request, and return when it is over."""
        await self._application(self._scope, self._receive, self._send)
        self.ended = True
        self._news.set()

    def leave(self) -> None:
        """Go away."""
        self._left.set()
        self.reads.set()

    @property
    def text(self) -> str:
        """What has come."""
        return b"".join(self._pieces).decode()

    async def until(self, has_come: Callable[[str], bool]) -> None:
        """Wait until what has come is so."""
        with anyio.fail_after(120):
            while not has_come(self.text):
                assert not self.ended, self.text
                await self._news.wait()

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self.reads.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self._pieces.append(message.get("body", b""))
            news, self._news = self._news, anyio.Event()
            news.set()
