"""The disk below a log, as a test wants it: `os` as `gluepy.runs.log` sees it, with other writes and flushes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gluepy.runs import log

Write = Callable[[int, bytes], int]
Flush = Callable[[int], None]


class _Os:
    def __init__(self, **calls: Callable[..., Any]) -> None:
        self.__dict__.update(calls)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def stand_in(write: Write = os.write, flush: Flush = os.fdatasync) -> None:
    """From now on the log's writes and flushes come here."""
    vars(log)["os"] = _Os(write=write, fdatasync=flush)


@contextmanager
def standing_in(write: Write = os.write, flush: Flush = os.fdatasync) -> Iterator[None]:
    stand_in(write, flush)
    try:
        yield
    finally:
        vars(log)["os"] = os
