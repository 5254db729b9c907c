"""What attempts print and log: lines, to the attempt's log file and to live subscribers.

While a run captures, a proxy stands in for `sys.stdout` and `sys.stderr` of this process, and the streams that it
stands in for are diverted too, for those who got hold of them earlier. The context variable tells which attempt prints.
Worker processes are captured by their descriptors instead. A captured task that asks for input gets an error: nobody
would see that it waits.

Logging is left as the program has configured it. Handlers that print are captured as whatever else is printed. Where
none has printed a record of an attempt, it is added to the attempt's log.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from gluepy.clock import rfc3339
from gluepy.exec.executors.lines import Lines
from gluepy.exec.port import Attempt, Emission, Emit, Outcome, Output
from gluepy.exec.scope import Scope, current_scope, enter_scope, leave_scope

_lock = threading.Lock()
_depth = 0
_undo: list[Callable[[], None]] = []
_proxies: dict[
    str, _Proxy
] = {}  # kept for ever: a print that has begun in some thread holds no reference to its stream


class AttemptOutput:
    """The lines of one attempt. `write` takes text in pieces, `line` whole lines; from any thread. `redact` masks what
    a line must not tell."""

    def __init__(
        self, file: Path | None, emit: Callable[[Emission], None], redact: Callable[[str], str] | None = None
    ) -> None:
        self._path, self._emit, self.redact = file, emit, redact
        self._file: io.FileIO | None = None
        self._closed = False
        self._streams: dict[str, Lines] = {}
        self._lock = threading.RLock()  # a `__del__` may print while a line is taken

    def write(self, stream: str, text: str) -> None:
        """Take a piece of text; what ends in a newline is a line."""
        with self._lock:
            lines = self._streams.get(stream)
            if lines is None:
                lines = Lines(partial(self._line, stream), partial(self.show, stream), self.redact)
                self._streams[stream] = lines
            if len(self._streams) > 1:
                for other in self._streams.values():
                    if other is not lines:
                        other.release()
            lines.feed(text)

    def line(self, stream: str, line: str) -> None:
        """Take one line, without its newline."""
        if line.endswith("\r"):
            self.show(stream, line[:-1])
            return
        with self._lock:
            self._line(stream, line)

    def show(self, stream: str, line: str) -> None:
        """Show how a line looks that is still being drawn."""
        with self._lock:
            if not self._closed:
                self._emit(Output(stream, f"{line if self.redact is None else self.redact(line)}\r"))

    def close(self) -> None:
        """What was written without a newline is a line too."""
        with self._lock:
            streams = list(self._streams.values())
            self._streams.clear()
            for lines in streams:
                lines.end()
            self._closed = True
            if self._file is not None:
                self._file.close()
                self._file = None

    def _line(self, stream: str, line: str) -> None:
        if self.redact is not None:
            line = self.redact(line)
        if self._path is not None:
            try:
                data = line.encode("utf-8", "replace") + b"\n"
                if self._closed:  # an abandoned thread goes on: its file must not stay open for good
                    with io.FileIO(self._path, "a", opener=_private) as file:
                        _write(file, data)
                else:
                    if self._file is None:
                        self._file = io.FileIO(self._path, "a", opener=_private)
                    _write(self._file, data)
            except OSError as error:  # a full disk stops the run at its next event; output alone must not fail a task
                Context().run(_warn, self._path, error)  # as nobody's attempt, which would print into the same file
                self._path = None
        if not self._closed:
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


# --- what is printed


class _Here(threading.local):
    printed = 0.0  # when this thread has printed for an attempt


_here = _Here()


def _take(stream: str, text: str) -> bool:
    """Whether `text` is an attempt's; then it has it."""
    scope = current_scope()
    if scope is None or scope.output is None:
        return False
    scope.output.write(stream, text)
    _here.printed = time.time()
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


_watches_descriptors = False


def watch_streams() -> None:
    """In a process that is captured by its descriptors: know who prints, for what is logged besides."""
    global _watches_descriptors
    _watches_descriptors = True
    for stream in (sys.stdout, sys.stderr):
        _note_writes(stream)


def _note_writes(stream: TextIO) -> None:
    write = stream.write

    def noted(text: str) -> int:
        _here.printed = time.time()
        return write(text)

    vars(stream)["write"] = noted


# --- what is logged


class _Untouched(int):
    """The level that an unconfigured root logger has meanwhile: a log file wants what a console would not show."""


_SETTLE_S = 1.0
_INFO = _Untouched(logging.INFO)
_CONSOLE = logging.Formatter("%(asctime)s %(levelname)-8s %(name)s: %(message)s")


class _Unhandled(logging.Handler):
    """Stands in for `logging.lastResort`, which gets what no handler wants."""

    def __init__(self, original: logging.Handler | None) -> None:
        super().__init__()
        self.original = original

    def emit(self, record: logging.LogRecord) -> None:
        scope = current_scope()
        if scope is not None and scope.output is not None:
            try:
                text = _rendered(record, scope)
            except Exception:
                self.handleError(record)  # as the library's handlers do: a mistake in a log call is told, and no more
            else:
                scope.output.write("log", f"{text}\n")
        elif self.original is not None and record.levelno >= self.original.level:
            self.original.handle(record)


class _Unprinted(logging.Handler):
    """The last of the root logger's handlers: adds to the attempt's log what those before it write elsewhere."""

    def emit(self, record: logging.LogRecord) -> None:
        scope = current_scope()
        if scope is None or scope.output is None or _here.printed > record.created:
            return
        if _watches_descriptors and any(True for _ in _queues_that_are_printed()):
            return
        formatters = (handler.formatter for handler in logging.getLogger().handlers if handler is not self)
        formatter = next((each for each in formatters if each is not None), None)
        try:
            text = _rendered(record, scope) if formatter is None else formatter.format(record)
        except Exception:
            self.handleError(record)
        else:
            scope.output.write("log", f"{text}\n")


def _queues_that_are_printed() -> Iterator[Any]:
    """The queues that root's handlers put records into, to be printed by a listener of this process."""
    library = sys.modules.get("logging.handlers")
    if library is None:
        return
    for handler in logging.getLogger().handlers:
        if isinstance(handler, library.QueueHandler):
            for thread in threading.enumerate():
                listener = getattr(getattr(thread, "_target", None), "__self__", None)
                if isinstance(listener, library.QueueListener) and listener.queue is handler.queue:
                    streams = [getattr(each, "stream", None) for each in listener.handlers]
                    if sys.stdout in streams or sys.stderr in streams:
                        yield handler.queue


def settle_logging() -> None:
    """Have printed what libraries have put aside to be printed by a thread of their own. At most for a second or so."""
    loguru = sys.modules.get("loguru")
    if loguru is not None:
        loguru.logger.complete()
    for queue in _queues_that_are_printed():
        done = getattr(queue, "all_tasks_done", None)
        if done is not None:
            with done:
                done.wait_for(lambda queue=queue: not queue.unfinished_tasks, _SETTLE_S)


def tell_failure(attempt: Attempt, outcome: Outcome, output: AttemptOutput) -> None:
    """Have the attempt's log tell that it failed, if it has, and how."""
    if outcome.status != "failed":
        return
    text = outcome.error_stack or f"{outcome.error_type}: {outcome.error_message}"
    if attempt.run.log_format == "json":
        error = {"type": outcome.error_type, "message": outcome.error_message}
        text = json.dumps(
            {
                "event": f"{attempt.task} failed",
                "run_id": attempt.run.run_id,
                "task": attempt.task,
                "attempt": attempt.number,
                "level": "error",
                "timestamp": rfc3339(time.time()),
                **{f"error.{name}": value for name, value in error.items()},
                "error.stack": outcome.error_stack,
            }
        )
    output.write("log", f"{text}\n")


def _rendered(record: logging.LogRecord, scope: Scope) -> str:
    attempt = scope.attempt
    if attempt.run.log_format != "json":
        return _CONSOLE.format(record)
    line = {
        "event": record.getMessage(),
        "logger": record.name,
        "run_id": attempt.run.run_id,
        "task": attempt.task,
        "attempt": attempt.number,
        "level": record.levelname.lower(),
        "timestamp": rfc3339(record.created),
    }
    if record.exc_info:
        line["exception"] = _CONSOLE.formatException(record.exc_info)
    if record.stack_info:
        line["stack"] = record.stack_info
    return json.dumps(line, default=repr)


def capture_logging() -> Callable[[], None]:
    """Have what attempts log in this process captured from now on; calling what it returns ends that.

    What the program configures meanwhile counts as in any program: `basicConfig` finds no handlers, and the level of
    the root logger is set back before the first one is added.
    """
    root, last = logging.getLogger(), logging.lastResort
    unhandled, unprinted = _Unhandled(last), _Unprinted()

    def add(handler: logging.Handler) -> None:
        if root.level is _INFO:
            root.setLevel(logging.WARNING)
        type(root).addHandler(root, handler)
        root.removeHandler(unprinted)
        type(root).addHandler(root, unprinted)

    def undo() -> None:
        if vars(root).get("addHandler") is add:
            del vars(root)["addHandler"]
        root.removeHandler(unprinted)
        if logging.lastResort is unhandled:
            logging.lastResort = last
        if root.level is _INFO:
            root.setLevel(logging.WARNING)

    logging.lastResort = unhandled
    if root.handlers:
        root.addHandler(unprinted)
    elif root.level == logging.WARNING:
        root.setLevel(_INFO)
    vars(root)["addHandler"] = add
    return undo


# --- who prints


@contextmanager
def following_threads() -> Iterator[None]:
    """While the block runs, threads that an attempt starts are its own: what they print and log, and `current_task`.

    For a process that belongs to gluepy: it changes `threading` for everybody.
    """
    undo = follow_threads()
    try:
        yield
    finally:
        undo()


def follow_threads() -> Callable[[], None]:
    """`following_threads` until what it returns is called."""
    start, submit = threading.Thread.start, None

    def started(thread: threading.Thread) -> None:
        nonlocal submit
        scope = current_scope()
        if scope is not None:
            is_pooled = getattr(getattr(thread, "_target", None), "__module__", "") == "concurrent.futures.thread"
            if not is_pooled or submit is None:
                vars(thread)["run"] = partial(_run_within, scope, thread, thread.run)
            if is_pooled and submit is None:  # its threads serve whoever submits
                submit = _follow_submitted()
        start(thread)

    threading.Thread.start = started  # type: ignore[assignment, method-assign]

    def undo() -> None:
        if threading.Thread.start is started:
            threading.Thread.start = start  # type: ignore[method-assign]
        if submit is not None:
            submit()

    return undo


def _follow_submitted() -> Callable[[], None]:
    from concurrent.futures import ThreadPoolExecutor

    submit = ThreadPoolExecutor.submit

    def submitted(executor: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return submit(executor, _within, current_scope(), function, *args, **kwargs)

    ThreadPoolExecutor.submit = submitted  # type: ignore[assignment, method-assign]

    def undo() -> None:
        if ThreadPoolExecutor.submit is submitted:
            ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]

    return undo


def _run_within(scope: Scope, thread: threading.Thread, run: Callable[[], None]) -> None:
    vars(thread).pop("run", None)  # else they would hold each other, and the scope
    enter_scope(scope)  # for good: what `threading.excepthook` prints is the attempt's too
    run()


def _within(scope: Scope | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    token = enter_scope(scope)
    try:
        return function(*args, **kwargs)
    finally:
        leave_scope(token)
