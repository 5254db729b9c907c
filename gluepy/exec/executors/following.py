"""Threads that an attempt starts belong to it: what they print and log, and `current_task`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from gluepy.exec.scope import Scope, current_scope, enter_scope, leave_scope


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
