"""What an attempt has printed: its log file, or a part of it, or all of it as it grows."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import anyio.to_thread

from gluepy.asgi.polling import Polled
from gluepy.asgi.watching import Watch
from gluepy.core.graph import slug_of
from gluepy.runs.record import Record

_PIECE = 64 << 10
_KEPT = 256 << 10  # of what has come last, bytes that are in memory
_LOOK_S = 1.0  # how often those who follow look whether the attempt has ended
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class Tail(Polled):
    """A log file that grows. `size` is how many bytes it has; there may be no file yet."""

    def __init__(self, path: Path, threads: anyio.CapacityLimiter) -> None:
        super().__init__(threads)
        self.path, self.size = path, 0
        self._last = b""

    async def piece(self, offset: int) -> bytes:
        """What stands at `offset`, not all of it if it is much; empty at the end."""
        begin = self.size - len(self._last)
        if offset >= begin:
            return self._last[offset - begin :][:_PIECE]
        return await anyio.to_thread.run_sync(read_piece, self.path, offset, _PIECE, limiter=self._threads)

    def rest(self) -> None:
        """Forget what has come last."""
        self._last = b""

    def _mark(self) -> object:
        return self.size

    def _read(self) -> None:
        try:
            size = os.stat(self.path).st_size
        except OSError:
            return
        if size > self.size:
            begin = max(self.size, size - _KEPT)
            more = read_piece(self.path, begin, size - begin)
            kept = self._last if begin == self.size else b""
            self._last, self.size = (kept + more)[-_KEPT:], begin + len(more)


def read_piece(path: Path, offset: int, size: int) -> bytes:
    """At most `size` bytes of a file, from `offset` on; none if it is gone."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError:
        return b""


def log_file(record: Record, task: str, attempt: int) -> Path:
    """The log file of an attempt, which there may not be."""
    return record.logs / f"{slug_of(task)}.{attempt}.log"


def attempts_logged(record: Record, task: str) -> list[int]:
    """The attempts of a task that have a log file, in order."""
    name = re.compile(rf"{re.escape(slug_of(task))}\.([0-9]+)\.log")
    try:
        found = [name.fullmatch(each) for each in os.listdir(record.logs)]
    except OSError:
        return []
    return sorted(int(match[1]) for match in found if match)


def part(header: str | None, size: int) -> tuple[int, int] | None:
    """The bytes that the header `Range` asks for of `size`, as begin and end; None if it is not one range of bytes, and
    then all is meant (RFC 9110, section 14.2). Raises `ValueError` if there are none there."""
    found = _RANGE.fullmatch(header.replace(" ", "")) if header is not None else None
    if found is None or found[0] == "bytes=-":
        return None
    first, last = found[1], found[2]
    if not first:
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < begin:
            return None
    if begin >= end:
        raise ValueError(f"there are {size} bytes")
    return begin, end


async def pieces(path: Path, begin: int, end: int, threads: anyio.CapacityLimiter) -> AsyncGenerator[bytes, None]:
    """The bytes of a file from `begin` to `end`."""
    while begin < end:
        size = min(_PIECE, end - begin)
        piece = await anyio.to_thread.run_sync(read_piece, path, begin, size, limiter=threads)
        if not piece:
            return
        begin += len(piece)
        yield piece


async def followed(watch: Watch, tail: Tail, task: str, attempt: int, offset: int) -> AsyncGenerator[bytes, None]:
    """The log of an attempt from `offset` on, until the attempt has ended."""
    while True:
        ended = watch.over or watch.running.get(task) != attempt  # first, so that its last words are read below
        await tail.look()
        while piece := await tail.piece(offset):
            offset += len(piece)
            yield piece
        if ended:
            return
        await tail.news(_LOOK_S)
        await watch.look()
