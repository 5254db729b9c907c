"""The event log: JSON lines, appended by one writer, one `write` an event; and its readers.

Nothing is ever cut off: a torn last line gets a newline before the next event, and readers pass over what is no event,
and count it (a proper prefix of a JSON object is never JSON, so a torn line cannot be mistaken for one).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, Self

import anyio
import msgspec

from gluepy.core.events import SCHEMA_VERSION, Event, RunResumed, RunStarted, decode
from gluepy.errors import GluepyError, UsageError
from gluepy.loop import Signal
from gluepy.runs.flusher import Flusher
from gluepy.runs.lock import Held

Sync = Literal["batch", "commit", "none"]
_BLANK = b"\x00\r\n\t "  # what may stand around an event


class LogBroken(GluepyError):
    """The log cannot be written any more: the disk is full or broken. `path` and `why` say more."""

    def __init__(self, path: str, why: str, hint: str = "") -> None:
        super().__init__(path, why, hint)
        self.path, self.why, self.hint = path, why, hint

    def __str__(self) -> str:
        return f"cannot write {self.path}: {self.why}" + (f"; {self.hint}" if self.hint else "")


def disk_hint(error: OSError) -> str:
    """What to do about a write that failed with `error`, where that can be said."""
    return "free some space, then resume the run" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""


class UnreadableLog(UsageError):
    """A log that this version cannot read. `path` and `why` say more."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


class EventLog(Protocol):
    """Where the engine writes. `size` is the number of bytes so far; under the `sync` "commit" `durable` waits."""

    size: int
    sync: Sync

    def append(self, line: bytes) -> None:
        """Write one line or several, whole. Raises `LogBroken`."""
        ...

    async def durable(self) -> None:
        """Return once everything appended so far would survive a power cut. Raises `LogBroken`."""
        ...


class FileLog:
    """An append-only file. `async with` opens it, flushes what is due at the end, and closes it; or else it writes to
    one that is `held`, and stays so.

    `sync`: "batch" flushes behind, within a fraction of a second; "commit" makes `durable()` wait for the disk, as one
    flush for all that wait; "none" leaves it to the operating system. A failed flush is never tried again: what the
    kernel could not write it has dropped (https://lwn.net/Articles/752063/). `flusher` is one that others use too.
    """

    def __init__(
        self, path: str | Path, sync: Sync = "batch", *, held: Held | None = None, flusher: Flusher | None = None
    ) -> None:
        self.path, self.sync = path, sync
        self.size = 0
        self._held, self._file = held, -1
        self._flusher = Flusher() if flusher is None else flusher
        self._has_own_flusher = flusher is None
        self._broken: LogBroken | None = None
        self._told = False  # whether somebody has been told that it is broken
        self._written = 0  # appended lines, and how many of them are flushed, as far as the event loop knows
        self._flushed = 0
        self._waiters: list[tuple[int, Signal]] = []
        # For the flusher: whether it has been asked and has not begun yet; what keeps its threads apart; whether one of
        # them may be at work; up to which line they have come; whether they must not touch the file any more.
        self._is_due = False
        self._one_at_a_time = threading.Lock()
        self._flushing = False
        self._reached = 0
        self._closing = False

    async def __aenter__(self) -> Self:
        try:
            if self._held is None:
                self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            else:
                self._file = self._held.file
            self.size = os.fstat(self._file).st_size
            if self.size and os.pread(self._file, 1, self.size - 1) != b"\n":
                self._finish(b"\n", os.write(self._file, b"\n"))
                self.size += 1
        except OSError as error:
            if self._held is None and self._file >= 0:
                os.close(self._file)
            self._break(error)
            raise self._refusal() from error
        if self.sync != "none":
            self._flusher.begin()
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            if self.sync != "none" and self._broken is None and self._flushed < self._written:
                with anyio.CancelScope(shield=True):
                    await self._flush()
        finally:
            # The flusher says that it is at work before it looks whether it may be. So either it is seen here, and the
            # file is closed when it is through, or it sees that it is too late.
            self._closing = True
            file, self._file = self._file, -1
            if self._flushing:
                if self._held is not None:
                    self._held.leave_open()
                self._flusher.call(partial(self._close, file))
            elif self._held is None:
                os.close(file)
            if self._has_own_flusher:
                self._flusher.end()
            if self.sync != "none":
                self._flusher.leave()
        if self._broken is not None and not self._told:
            raise self._refusal()

    def append(self, line: bytes) -> None:
        """Write one line or several, whole. Raises `LogBroken`, now and ever after, when it cannot be."""
        if self._broken is not None:
            raise self._refusal()
        try:
            written = os.write(self._file, line)
            if written < len(line):
                self._finish(line, written)
        except OSError as error:
            self._break(error)
            raise self._refusal() from error
        self.size += len(line)
        self._written += 1
        if not self._is_due and self.sync == "batch":
            self._is_due = True
            self._flusher.ask(self)

    async def durable(self) -> None:
        """Under "commit", wait until all that was appended is flushed; else only look whether the log is broken."""
        if self._broken is not None:
            raise self._refusal()
        if self.sync == "commit":
            await self._flush()

    async def _flush(self) -> None:
        if self._flushed >= self._written:
            return
        done = self._flusher.signal()
        self._waiters.append((self._written, done))
        self._flusher.ask_at_once(self)
        await done.wait()
        if self._broken is not None:
            raise self._refusal()

    def _finish(self, line: bytes, written: int) -> None:
        while written < len(line):  # a short write: the disk is nearly full, or a signal came
            more = os.write(self._file, line[written:])
            if not more:
                raise OSError(errno.EIO, "nothing was written")
            written += more

    def _refusal(self) -> LogBroken:
        assert self._broken is not None
        self._told = True
        return LogBroken(*self._broken.args)

    def _break(self, error: OSError) -> None:
        self._broken = LogBroken(str(self.path), error.strerror or str(error), disk_hint(error))

    def flush_now(self, tell: Callable[..., None]) -> None:
        """Called by the flusher, in its threads."""
        with self._one_at_a_time:
            self._flushing = True
            try:
                file, self._is_due = self._file, False  # before `_written` is read: what comes later says so again
                upto = self._written
                if self._closing or upto == self._reached:
                    return
                error: OSError | None = None
                try:
                    os.fdatasync(file) if hasattr(os, "fdatasync") else os.fsync(file)
                except OSError as failure:
                    error, self._closing = failure, True
                self._reached = upto
            finally:
                self._flushing = False
        tell(self._flushed_upto, upto, error)

    def _close(self, file: int) -> None:
        with self._one_at_a_time:
            os.close(file)

    def _flushed_upto(self, upto: int, error: OSError | None) -> None:
        if error is not None:
            self._break(error)
            upto = self._written
        else:
            self._flushed = upto
        waiting = []
        for number, done in self._waiters:
            if number <= upto:
                done.set()
            else:
                waiting.append((number, done))
        self._waiters = waiting


class MemoryLog:
    """A log that is kept in memory, for tests: `lines` are its lines."""

    sync: Sync = "none"

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.size = 0

    def append(self, line: bytes) -> None:
        """Keep one line or several."""
        self.lines.extend(line.splitlines(keepends=True))
        self.size += len(line)

    async def durable(self) -> None:
        """Return at once."""


class LogReader:
    """Reads events from a log that may still grow, from byte `offset` on. Of one that has `ended`, since nobody else
    can write to it, the last event counts even without its newline, which is the first thing that will follow.

    `events()` gives what is there now; called again, what has come since. `bad` counts the unreadable lines,
    `gaps` the events that are missing by their `seq`, `doubled` those with a `seq` that an event before them has. Of
    these, exact copies of a line are passed over. The others are events like any: two writers may have used one number.
    """

    def __init__(self, path: Path, offset: int = 0, *, ended: bool = False) -> None:
        self.path, self.offset = path, offset
        self._ended = ended
        self.bad = 0
        self.gaps = 0
        self.doubled = 0
        self._seq = 0 if offset == 0 else -1
        self._lines_of: dict[int, set[int]] | None = None  # the hashes of the lines by `seq`, once one is doubled

    def events(self, at_most: int = 0) -> Iterator[Event]:
        """The events from where the last call ended, `at_most` so many (0: all). Raises `UnreadableLog`."""
        count = 0
        for line in self._lines():
            event: Event | None
            try:
                event = decode(line)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                event = self._damaged(line)
                if event is None:
                    continue
            if isinstance(event, (RunStarted, RunResumed)):
                self._refuse_future(line.strip(_BLANK))
            if event.seq == self._seq + 1 and self._lines_of is None:
                self._seq = event.seq  # as almost all are
            elif self._is_copy(event, line):
                continue
            yield event
            count += 1
            if count == at_most:
                return

    def _lines(self) -> Iterator[bytes]:
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise UnreadableLog(str(self.path), error.strerror or str(error)) from error
        with file:
            file.seek(self.offset)
            try:
                for line in file:
                    if not line.endswith(b"\n") and not (self._ended and _is_event(line)):
                        return  # being written, or torn: complete once a newline follows
                    self.offset += len(line)
                    yield line
            except OSError as error:  # a broken disk
                raise UnreadableLog(str(self.path), error.strerror or str(error)) from error

    def _damaged(self, line: bytes) -> Event | None:
        """What is left of a line that is no event as it is."""
        text = line.strip(_BLANK)
        if not text:
            return None
        try:
            return decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            self._refuse_future(text)
            self.bad += 1
            return None

    def _is_copy(self, event: Event, line: bytes) -> bool:
        """Whether just this line was there before. Counts what is missing and what is doubled by its `seq`."""
        is_doubled = 0 <= event.seq <= self._seq
        if is_doubled and self._lines_of is None:
            self._lines_of = self._lines_before(self.offset - len(line))
        if is_doubled:
            assert self._lines_of is not None
            lines = self._lines_of.get(event.seq)
            self.doubled += lines is not None  # else it is one that was missing, out of its place
            if lines is not None and hash(line.strip(_BLANK)) in lines:
                return True
        else:
            self.gaps += event.seq - self._seq - 1 if self._seq >= 0 else 0
            self._seq = event.seq
        if self._lines_of is not None:
            self._lines_of.setdefault(event.seq, set()).add(hash(line.strip(_BLANK)))
        return False

    def _lines_before(self, offset: int) -> dict[int, set[int]]:
        lines: dict[int, set[int]] = {}
        reader = LogReader(self.path)
        for line in reader._lines():
            if reader.offset > offset:
                break
            try:
                seq = _numbered.decode(line.strip(_BLANK)).seq
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                continue
            lines.setdefault(seq, set()).add(hash(line.strip(_BLANK)))
        return lines

    def _refuse_future(self, text: bytes) -> None:
        """Refuse a session that a later version opened, whatever else its event says."""
        try:
            opening = _opening.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return
        if opening.event in ("run.started", "run.resumed") and opening.schema_version > SCHEMA_VERSION:
            raise UnreadableLog(
                str(self.path),
                f"its events have schema version {opening.schema_version}, this gluepy reads up to {SCHEMA_VERSION}: "
                "upgrade gluepy",
            )


def _is_event(line: bytes) -> bool:
    try:
        decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


class _Opening(msgspec.Struct):
    event: str
    schema_version: int


class _Numbered(msgspec.Struct):
    seq: int


_opening = msgspec.json.Decoder(_Opening)
_numbered = msgspec.json.Decoder(_Numbered)
