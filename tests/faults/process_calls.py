"""What the worker processes of the tests run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def code(shared: bytes, payload: bytes, send: Callable[[bytes], None]) -> Any:
    """Run the payload as Python; what it puts into `result` is the result."""
    names: dict[str, Any] = {"shared": shared, "send": send, "result": b""}
    exec(payload.decode(), names)
    return names["result"]


def echo(_shared: bytes, payload: bytes, _send: Callable[[bytes], None]) -> bytes:
    return payload


def prepared(shared: bytes, payload: bytes, send: Callable[[bytes], None]) -> Callable[[], Any]:
    """`code`, once the modules are imported that the first line of the payload names."""
    for module in payload.split(b"\n", 1)[0].decode().lstrip("# ").split():
        __import__(module)
    return lambda: code(shared, payload, send)
