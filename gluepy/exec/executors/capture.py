"""What attempts print and log: lines, to the attempt's log file and to live subscribers.

In this process a proxy stands in for `sys.stdout` and `sys.stderr` while a run captures; it knows by the context
variable which attempt prints. Worker processes are captured by their descriptors instead.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from gluepy.exec.port import Attempt, Emission, Emit, Output
from gluepy.exec.scope import current_scope

LINE_LENGTH = 65_536  # characters; the rest of a longer line is left out, and said so
_lock = threading.Lock()
_depth = 0
_undo: list[Callable[[], None]] = []
_proxies: dict[
    str, _Proxy
] = {}  # kept for ever: a print that has begun in some thread holds no reference to its stream


class AttemptOutput:
    """The lines of one attempt. `write` takes text in pieces, `line` whole lines; from any thread."""

    def __init__(self, file: Path | None, emit: Callable[[Emission], None]) -> None:
        self._path, self._emit = file, emit
        self._file: io.FileIO | None = None
        self._closed = False
        self._partial: dict[str, list[str]] = {}
        self._length: dict[str, int] = {}
        self._lock = threading.RLock()  # a `__del__` may print while a line is taken

    def write(self, stream: str, text: str) -> None:
        """Take a piece of text; what ends in a newline is a line."""
        with self._lock:
            *whole, rest = text.split("\n")
            for piece in whole:
                self._line(stream, self._joined(stream, piece))
            if rest:
                length = self._length.get(stream, 0)
                if length <= LINE_LENGTH:
                    self._partial.setdefault(stream, []).append(rest[: LINE_LENGTH + 1 - length])
                self._length[stream] = length + len(rest)

    def line(self, stream: str, line: str) -> None:
        """Take one line, without its newline."""
        with self._lock:
            self._line(stream, line)

    def close(self) -> None:
        """What was written without a newline is a line too."""
        with self._lock:
            for stream in list(self._partial):
                self._line(stream, self._joined(stream, ""))
            self._closed = True
            if self._file is not None:
                self._file.close()
                self._file = None

    def _joined(self, stream: str, last: str) -> str:
        parts = self._partial.pop(stream, [])
        length = self._length.pop(stream, 0) + len(last)
        line = "".join([*parts, last])
        return line if length <= LINE_LENGTH else f"{line[:LINE_LENGTH]} … ({length - LINE_LENGTH} characters left out)"

    def _line(self, stream: str, line: str) -> None:
        if self._path is not None:
            try:
                data = line.encode("utf-8", "replace") + b"\n"
                if self._closed:  # an abandoned thread goes on: its file must not stay open for good
                    with io.FileIO(self._path, "a", opener=_private) as file:
                        _write(file, data)
                    return
                if self._file is None:
                    self._file = io.FileIO(self._path, "a", opener=_private)
                _write(self._file, data)
            except OSError as error:  # a full disk stops the run at its next event; output alone must not fail a task
                Context().run(_warn, self._path, error)  # as nobody's attempt, which would print into the same file
                self._path = None
        self._emit(Output(stream, line))


def _private(file: str, flags: int) -> int:
    return os.open(file, flags, 0o600)


def _write(file: io.FileIO, data: bytes) -> None:
    while data:  # a file that reaches its limit takes a part, and says why with the next
        data = data[file.write(data) :]


def _warn(path: Path, error: OSError) -> None:
    import structlog

    why = error.strerror or str(error)
    structlog.get_logger("gluepy.exec").warning("the log file of a task is cut short", file=str(path), error=why)


@contextmanager
def logged(attempt: Attempt, emit: Emit) -> Iterator[Emit]:
    """`emit`, for the near end of an executor: while the run captures, lines of output also go to the attempt's log
    file."""
    record = attempt.run.record
    if not attempt.run.capture or not record:
        yield emit
        return
    output = AttemptOutput(Path(record, attempt.log), emit)
    try:
        yield lambda each: output.line(each.stream, each.line) if isinstance(each, Output) else emit(each)
    finally:
        output.close()


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


class _Proxy(io.TextIOBase):
    """Stands in for a standard stream."""

    def __init__(self, name: str, original: TextIO) -> None:
        self._name, self._original = name, original

    def stands_in_for(self, original: TextIO) -> None:
        """From now on, what nobody's attempt prints goes to `original`."""
        self._original = original

    def write(self, text: str) -> int:
        scope = current_scope()
        if scope is not None and scope.output is not None:
            scope.output.write(self._name, text)
            return len(text)
        return self._original.write(text)

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


class _LogHandler(logging.Handler):
    """Logging of attempts. `alone`: there is no other handler, so what nobody's attempt logs is for `lastResort`."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self._alone = alone

    def emit(self, record: logging.LogRecord) -> None:
        scope = current_scope()
        if scope is not None and scope.output is not None:
            scope.output.write("log", self.format(record) + "\n")
        elif self._alone and logging.lastResort is not None and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)


def log_handler(*, alone: bool = True) -> logging.Handler:
    """The handler for attempts' logging: time, level, logger, message. `alone`: the program has no other one."""
    handler = _LogHandler(alone)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s %(name)s: %(message)s"))
    return handler


def _install() -> None:
    root = logging.getLogger()
    prints = False  # whether logging goes to a standard stream, and so is captured with it
    for name in ("stdout", "stderr"):
        original = getattr(sys, name)
        proxy = _proxies.setdefault(name, _Proxy(name, original))
        if original is not proxy:
            proxy.stands_in_for(original)
        setattr(sys, name, proxy)

        def restore(name: str = name, original: Any = original, proxy: Any = proxy) -> None:
            if getattr(sys, name) is proxy:
                setattr(sys, name, original)

        _undo.append(restore)
        # A handler that was set up before holds the stream itself.
        for handler in root.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is original:
                prints = True
                handler.setStream(proxy)
                _undo.append(partial(handler.setStream, original))
    if not prints:
        alone, level = not root.handlers, root.level
        handler = log_handler(alone=alone)
        root.addHandler(handler)
        if alone and level == logging.WARNING:  # untouched: a log file wants what a console would not show
            root.setLevel(logging.INFO)
            _undo.append(lambda: root.setLevel(level))
        _undo.append(lambda: root.removeHandler(handler))
