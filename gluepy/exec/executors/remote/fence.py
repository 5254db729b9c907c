"""The fence: an attempt begins at most once, however often an engine delivers it.

Engines deliver twice: when a worker died, when one was asked to leave, when a connection broke and nobody knows whether
the first delivery arrived. Whoever creates the claim of an attempt runs it; creating it is atomic, and fails where it
is there already.
"""

from __future__ import annotations

import os
import posixpath
from typing import Protocol

from gluepy.exec.port import Attempt, RunInfo, local_path

_FOLDER = ".gluepy-attempts"  # in the storage, beside `runs`: a task that lists the run's files finds none of ours
_DRIVER_FILE = "driver"


class Fence(Protocol):
    """Where attempts are claimed. `StorageFence` is one for every storage; a broker may have a faster one."""

    def claim(self, attempt: Attempt, who: str) -> str | None:
        """Claim `attempt` for `who`, a text that no other claim has. Returns None if it is theirs now, or was already;
        else who has it. Called in a thread; raises `OSError` or what the storage's library does."""
        ...


class StorageFence:
    """Claims are files in the run's storage: created exclusively on a disk, on condition (`If-None-Match: *` and its
    like) in an object store."""

    def claim(self, attempt: Attempt, who: str) -> str | None:
        """See `Fence.claim`."""
        place = posixpath.join(claims_of(attempt.run), f"{attempt.slug}.{attempt.number}")
        path = local_path(place)
        return _create_object(place, who) if path is None else _create(path, who)


def write_token(run: RunInfo, token: str) -> None:
    """Leave `token` in the local storage of `run`: a worker that does not find it there has another storage."""
    folder = local_path(claims_of(run))
    if folder is not None:
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, _DRIVER_FILE)
        with open(f"{path}.{token}", "w", encoding="ascii") as file:
            file.write(token)
        os.replace(f"{path}.{token}", path)


def has_token(run: RunInfo, token: str) -> bool:
    """Whether the storage of `run`, as this machine sees it, is the driver's."""
    folder = local_path(claims_of(run))
    if folder is None:
        return True
    try:
        with open(os.path.join(folder, _DRIVER_FILE), encoding="ascii") as file:
            return file.read() == token
    except OSError:
        return False


def claims_of(run: RunInfo) -> str:
    """The folder, or its URL, with the claims of a run's attempts, for who removes the run."""
    return posixpath.join(run.storage, _FOLDER, run.run_id)


def _create(path: str, who: str) -> str | None:
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        except FileExistsError:
            break
        else:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(who)
            return None
    try:
        with open(path, encoding="utf-8") as file:
            holder = file.read()
    except FileNotFoundError:
        holder = ""
    # NFS may have created it and lost the answer, and says then that it exists
    return None if holder == who else holder or "another delivery"


def _create_object(url: str, who: str) -> str | None:
    from gluepy.exec.files import opened

    path = opened(url)
    try:
        path.fs.pipe_file(path.path, who.encode(), mode="create")
    except Exception as error:
        # Not every library says FileExistsError where the condition does not hold. And where an answer was lost on its
        # way, the library sends the request again, which then finds what it has created itself.
        if not isinstance(error, FileExistsError) and not path.exists():
            raise
    else:
        return None
    holder = path.fs.cat_file(path.path).decode()
    return None if holder == who else holder or "another delivery"
