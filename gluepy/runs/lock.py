"""Who drives a run: whoever holds the lock on its log, `events.jsonl`, and has the descriptor to append to it.

The system gives the lock back when its holder dies. Records of versions before had it on a file of its own, `run.lock`;
of these both are taken.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

_ASKED_S = 0.05  # how long those who only ask may keep a driver waiting
_BEYOND = 0x7FFF_FFF0  # Windows: where it is locked, so that what is locked can be read

if sys.platform == "win32":
    import msvcrt

    def _lock(file: int, *, shared: bool = False) -> bool:  # noqa: ARG001  # Windows has no shared ones
        os.lseek(file, _BEYOND, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: int) -> None:
        os.lseek(file, _BEYOND, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _lock(file: int, *, shared: bool = False) -> bool:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)


class Held:
    """The log of a run, open to be read and appended to, and locked. `file` is its descriptor. A context manager, which
    releases it."""

    def __init__(self, file: int, more: Iterable[int] = ()) -> None:
        self.file = file
        self._more = tuple(more)  # other files that are locked too
        self._closes = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def leave_open(self) -> int:
        """Have `release` close the descriptor no more; the caller does."""
        self._closes = False
        return self.file

    def release(self) -> None:
        """Give the lock back, and close what is open. Idempotent."""
        file, self.file = self.file, -1
        if file < 0:
            return
        # A process that a task has forked may still have the descriptor: closing ours would not give the lock back.
        _unlock(file)
        if self._closes:
            os.close(file)
        for other in self._more:
            _unlock(other)
            os.close(other)


def take(path: str | Path, older: str | Path | None, *, new: bool) -> Held | None:
    """The log at `path`, locked; `new`: it is made, and is not there yet. None if somebody else holds it, or `older`,
    where there is such a file.

    Raises `FileNotFoundError` for a log that was deleted meanwhile, and `OSError`.
    """
    files: list[int] = []
    try:
        flags = os.O_RDWR | os.O_APPEND
        files.append(os.open(path, flags | os.O_CREAT | os.O_EXCL if new else flags, 0o600))
        if older is not None:
            try:
                files.append(os.open(older, os.O_RDWR))
            except FileNotFoundError:
                pass
        end = time.monotonic() + _ASKED_S
        while not all(map(_lock, files)):
            if time.monotonic() > end:
                break
            time.sleep(_ASKED_S / 10)
        else:
            if not new and not os.path.samestat(os.fstat(files[0]), os.stat(path)):
                raise FileNotFoundError  # it was deleted after it was opened, and another one may be there
            held = Held(files[0], files[1:])
            files.clear()
            return held
        return None
    finally:
        for file in files:
            os.close(file)


def is_free(path: str | Path) -> bool:
    """Whether nobody has locked the file; there may be none. Asking writes nothing, and is not in the way of others who
    ask."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        free = _lock(file, shared=True)
        if free:
            _unlock(file)
        return free
    finally:
        os.close(file)


def holder(path: str | Path) -> int | None:
    """The id of the process that has locked the file, where the system tells (Linux)."""
    try:
        inode = os.stat(path).st_ino
        with open("/proc/locks", encoding="ascii") as locks:
            for line in locks:
                parts = line.split()  # 1: FLOCK ADVISORY WRITE pid major:minor:inode first last
                if parts[1:4] == ["FLOCK", "ADVISORY", "WRITE"] and parts[5].endswith(f":{inode}"):
                    return int(parts[4])
    except (OSError, ValueError, IndexError):
        pass
    return None
