"""What attempts log. Logging is left as the program has configured it: handlers that print are captured as whatever
else is printed, and if none has printed a record of an attempt, it is added to the attempt's log.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from gluepy.clock import rfc3339
from gluepy.exec.scope import Scope, current_scope


class _Here(threading.local):
    printed = 0.0  # when this thread has printed for an attempt


_here = _Here()


def note_print() -> None:
    """This thread has just printed for an attempt."""
    _here.printed = time.time()


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
        note_print()
        return write(text)

    vars(stream)["write"] = noted


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
