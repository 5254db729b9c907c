"""An HTTP server on a free loopback port, which answers as it is told to, or badly."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

BAD = ("refused", "error", "silent", "late", "garbage")
LATE_S = 1.0  # how late a late one answers; tests set SINK_TIMEOUT_S well below


@dataclass(frozen=True)
class Request:
    """What came."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """While entered, it listens. `how` is "well" or one of `BAD`; `answer` gives the status, type and body of a good
    answer."""

    how: str = "well"
    answer: Any = lambda request: (200, "application/json", b"{}")
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._over = threading.Event()
        if self.how == "refused":
            with socket.create_server(("127.0.0.1", 0)) as closed:  # nobody listens there once it is closed
                self.port = closed.getsockname()[1]
            self._server = None
            return self
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._handle(self)

            do_PUT = do_GET = do_PATCH = do_POST

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="receiver")
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        request = Request(handler.path, {name.lower(): value for name, value in handler.headers.items()}, body)
        self.requests.append(request)
        if self.how == "silent":
            self._over.wait()
            return
        if self.how == "garbage":
            handler.wfile.write(b"\x00\xff this is not HTTP\r\n\r\n" * 10)
            return
        if self.how == "late":
            self._over.wait(LATE_S)
        status, kind, content = (500, "text/plain", b"no") if self.how == "error" else self.answer(request)
        try:
            handler.send_response(status)
            handler.send_header("Content-Type", kind)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:
            pass  # who asked has gone away


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass
