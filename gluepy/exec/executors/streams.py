"""What attempts print in this process.

While a run captures, a proxy stands in for `sys.stdout` and `sys.stderr`, and the streams that it stands in for are
diverted too, for those who got hold of them earlier. The context variable tells which attempt prints. (Worker processes
are captured by their descriptors instead.) A captured task that asks for input gets an error: nobody would see that it
waits.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from gluepy.exec.executors.logs import capture_logging, note_print
from gluepy.exec.scope import current_scope

_lock = threading.Lock()
_depth = 0
_undo: list[Callable[[], None]] = []
# Kept for ever: a print that has begun in some thread holds no reference to its stream.
_proxies: dict[str, _Proxy] = {}


@contextmanager
def capturing() -> Iterator[None]:
    """While the block runs, what attempts in this process print or log goes to their `AttemptOutput`.

    What nobody's attempt prints goes where it went before. Nested and concurrent uses share one proxy.
    """
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            _install()
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                while _undo:
                    _undo.pop()()


def _take(stream: str, text: str) -> bool:
    """Whether `text` is an attempt's; then it has it."""
    scope = current_scope()
    if scope is None or scope.output is None:
        return False
    scope.output.write(stream, text)
    note_print()
    return True


class _Proxy(io.TextIOBase):
    """Stands in for a standard stream."""

    def __init__(self, name: str, original: TextIO) -> None:
        self._name, self._original = name, original

    def stands_in_for(self, original: TextIO) -> None:
        """From now on, what nobody's attempt prints goes to `original`."""
        self._original = original

    def write(self, text: str) -> int:
        return len(text) if _take(self._name, text) else self._original.write(text)

    def flush(self) -> None:
        self._original.flush()

    def close(self) -> None:
        """Do nothing: others print here too, also when the proxy itself is collected."""

    def isatty(self) -> bool:
        scope = current_scope()
        return (scope is None or scope.output is None) and self._original.isatty()

    def fileno(self) -> int:
        return self._original.fileno()

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        if name == "_original":  # not set yet
            raise AttributeError(name)
        return getattr(self._original, name)  # `name`, `reconfigure` and whatever else a stream of its kind has

    @property
    def buffer(self) -> Any:
        """Bytes go through `write` too, so that they are captured."""
        return _Bytes(self)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As the stream itself."""
        return getattr(self._original, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """Never an error on output."""
        return "replace"


class _Bytes(io.RawIOBase):
    def __init__(self, proxy: _Proxy) -> None:
        self._proxy = proxy

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._proxy.write(bytes(data).decode("utf-8", "replace"))
        return len(data)


class _NoInput(io.TextIOBase):
    """Stands in for `sys.stdin`: nobody sees that a captured task waits for input, so it gets an error."""

    def __init__(self, original: TextIO) -> None:
        self._original = original

    def _open(self) -> TextIO:
        scope = current_scope()
        if scope is not None and scope.output is not None:
            raise EOFError("a task has no standard input: make it a parameter, or run with --debug")
        return self._original

    def read(self, size: int | None = -1) -> str:
        return self._open().read(-1 if size is None else size)

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        return self._open().readline(size)

    def readable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._open().isatty()

    def fileno(self) -> int:
        try:
            return self._open().fileno()
        except EOFError as error:  # `input` then reads from here
            raise io.UnsupportedOperation(str(error)) from None

    def close(self) -> None:
        """Do nothing, as of the others."""

    def __getattr__(self, name: str) -> Any:
        if name == "_original":
            raise AttributeError(name)
        return getattr(self._open(), name)


def _no_debugger(*args: Any, **kwargs: Any) -> Any:
    """Stands in for `sys.breakpointhook`: the debugger of a captured task would wait for commands that nobody gives."""
    scope = current_scope()
    if scope is None or scope.output is None or os.environ.get("PYTHONBREAKPOINT", "") not in ("", "pdb.set_trace"):
        return sys.__breakpointhook__(*args, **kwargs)
    raise RuntimeError("breakpoint() in a task whose output is captured; run with --debug")


def _install() -> None:
    if sys.breakpointhook is sys.__breakpointhook__:
        sys.breakpointhook = _no_debugger
        _undo.append(lambda: setattr(sys, "breakpointhook", sys.__breakpointhook__))
    stdin = sys.stdin
    if stdin is not None:
        proxy_of_stdin = sys.stdin = _NoInput(stdin)

        def restore_stdin() -> None:
            if sys.stdin is proxy_of_stdin:
                sys.stdin = stdin

        _undo.append(restore_stdin)
    for name in ("stdout", "stderr"):
        original = getattr(sys, name)
        if original is None:  # a program without a console
            continue
        proxy = _proxies.setdefault(name, _Proxy(name, original))
        if original is not proxy:
            proxy.stands_in_for(original)
        setattr(sys, name, proxy)

        def restore(name: str = name, original: Any = original, proxy: Any = proxy) -> None:
            if getattr(sys, name) is proxy:
                setattr(sys, name, original)

        _undo.append(restore)
        for stream in {id(each): each for each in (original, getattr(sys, f"__{name}__"))}.values():
            if stream is not None and stream is not proxy:
                _divert(stream, name)
    _undo.append(capture_logging())


def _divert(stream: TextIO, name: str) -> None:
    """Have those who hold the stream itself captured too: handlers of logging, loguru, consoles."""
    write, attributes = stream.write, getattr(stream, "__dict__", None)
    if attributes is None:
        return
    earlier = attributes.get("write")

    def diverted(text: str) -> int:
        return len(text) if _take(name, text) else write(text)

    def restore() -> None:
        if attributes.get("write") is diverted:
            if earlier is None:
                del attributes["write"]
            else:
                attributes["write"] = earlier

    attributes["write"] = diverted
    _undo.append(restore)
