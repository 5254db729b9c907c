"""Rooms for drafts: folders that no listing of a run's files or the storage shows; and how drafts get out of them."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from gluepy.exec.port import Attempt, RunInfo, local_path

_FOLDER = ".gluepy-drafts"
_UNPUBLISHED = "unpublished"
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100  # of Linux
_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)  # what file systems without them say


class _Home(NamedTuple):
    """A folder for the rooms of one run, and the folder from which on it is made."""

    path: str
    above: str


_Homes = tuple[_Home | None, _Home | None, _Home | None]


class Room:
    """An empty folder of an attempt's own; `path` is where. Raises `OSError` if `home` cannot have one."""

    def __init__(self, home: str, attempt: Attempt) -> None:
        self._home, self._pid = home, os.getpid()
        self.path = Path(home, f"{attempt.slug}.{attempt.number}.{os.urandom(4).hex()}")
        while True:
            try:
                os.mkdir(self.path, mode=0o700)
            except FileNotFoundError:  # there is no home yet; or another room was closed, and took the home with it
                with suppress(FileNotFoundError):
                    os.makedirs(home, exist_ok=True)
            else:
                break

    @property
    def is_ours(self) -> bool:
        """False in a process that was forked since: it neither publishes nor removes anything."""
        return os.getpid() == self._pid

    def close(self) -> None:
        """Remove it, with all that is in it."""
        if not self.is_ours:
            return
        try:
            os.rmdir(self.path)
        except OSError:
            shutil.rmtree(self.path, ignore_errors=True)
        _remove_empty(self._home)

    def keep(self) -> Path:
        """Put it where no sweep comes, in place of what earlier attempts at the task have kept. Returns its path."""
        kept = Path(self._home, _UNPUBLISHED, self.path.name)
        try:
            kept.parent.mkdir(exist_ok=True)
            os.rename(self.path, kept)
        except OSError:
            return self.path
        slug, number, _ = kept.name.split(".")
        for other in kept.parent.iterdir():
            if other.name.startswith(f"{slug}.") and not other.name.startswith(f"{slug}.{number}."):
                shutil.rmtree(other, ignore_errors=True)
        return kept


def open_room(attempt: Attempt, near: Path | None = None) -> Room:
    """A room on the file system of the folder `near`, if the run has a home there, else on another."""
    record, sibling, temporary = _homes(attempt.run)
    homes = [home for home in (record, temporary) if home is not None]
    if near is not None:
        same = [home for home in (record, sibling, temporary) if home is not None and _can_rename(home.above, near)]
        homes = [*same, *homes]
    for home in homes:
        with suppress(OSError):
            return Room(home.path, attempt)
    return _room_at(near or Path(tempfile.gettempdir()), attempt)


def open_temporary_room(attempt: Attempt) -> Room:
    """A room for what need not outlive the attempt, if possible in the folder for temporary files."""
    record, _, temporary = _homes(attempt.run)
    for home in (temporary, record):
        if home is not None:
            with suppress(OSError):
                return Room(home.path, attempt)
    return _room_at(Path(tempfile.gettempdir()), attempt)


def sweep(run: RunInfo, before: Attempt | None = None) -> None:
    """Remove the rooms that attempts have left: all of the run's, or those of attempts at one task `before` this one.
    What could not be published stays."""
    homes = [home.path for home in _homes(run) if home is not None]
    storage = local_path(run.storage)
    if storage:
        homes.append(os.path.join(storage, _FOLDER, run.run_id))
    for home in homes:
        _sweep(home, before)


def discard(run: RunInfo) -> None:
    """Remove what attempts of the run have left outside its record, also what could not be published."""
    sweep(run)
    for home in _homes(run)[1:]:
        if home is not None:
            shutil.rmtree(home.path, ignore_errors=True)
            _remove_empty(home.path)


def publish(draft: Path, final: Path, attempt: Attempt) -> None:
    """Make the file or folder `draft` appear as `final`, in one step, also in place of what is there.

    A file takes the place of a file, a folder that of a folder, either that of a symbolic link. Raises `OSError`, with
    `draft` and what was there both as they were.
    """
    if draft.is_file():
        _flush(draft)
    final.parent.mkdir(parents=True, exist_ok=True)  # again: the block may have removed it
    _take_on_group(draft, final.parent)
    try:
        _move(draft, final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(draft, final, attempt)


def _homes(run: RunInfo) -> _Homes:
    """The homes that `run` may have: in its record, beside the storage, among temporary files. None lies in a folder
    that its tasks may list."""
    record = run.record if run.record and os.path.isdir(run.record) else None
    return _homes_of(run.run_id, record, local_path(run.storage), local_path(run.path), _temporary())


@lru_cache(maxsize=64)
def _homes_of(run_id: str, record: str | None, storage: str | None, path: str | None, temporary: str | None) -> _Homes:
    listed = [os.path.realpath(folder) for folder in (storage, path) if folder]

    def home(above: str, *parts: str) -> _Home | None:
        path = os.path.join(os.path.realpath(above), *parts)
        return None if any(_lies_in(path, folder) for folder in listed) else _Home(path, above)

    return (
        home(record, "drafts") if record is not None else None,
        home(os.path.dirname(os.path.realpath(storage)), _FOLDER, run_id) if storage is not None else None,
        home(temporary, f"gluepy-{_user()}", run_id) if temporary is not None else None,
    )


def _temporary() -> str | None:
    """The folder for temporary files, if there is one and nobody else has taken our name in it."""
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:
        return None
    return folder if _is_ours(os.path.join(folder, f"gluepy-{_user()}")) else None


def _lies_in(path: str, folder: str) -> bool:
    return os.path.commonpath((path, folder)) == folder


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _is_ours(folder: str) -> bool:
    """Whether the folder, which has a name that anybody can foretell, is ours or is not there yet."""
    try:
        found = os.lstat(folder)
    except FileNotFoundError:
        return True
    return stat.S_ISDIR(found.st_mode) and found.st_uid in (_user(), 0)


def _room_at(folder: Path, attempt: Attempt) -> Room:
    """A room in `folder`, where it can be seen."""
    home = str(folder / _FOLDER / attempt.run.run_id)
    _sweep(home, attempt)
    return Room(home, attempt)


def _sweep(home: str, before: Attempt | None) -> None:
    try:
        rooms = [entry.split(".") for entry in os.listdir(home)]
    except OSError:
        return
    for slug, number, name in (room for room in rooms if len(room) == 3 and room[1].isdecimal()):
        if before is None or (slug == before.slug and int(number) < before.number):
            shutil.rmtree(os.path.join(home, f"{slug}.{number}.{name}"), ignore_errors=True)
    _remove_empty(home)


def _remove_empty(home: str) -> None:
    """Remove the home, and the folder above that has those of other runs, if they are empty."""
    with suppress(OSError):
        os.rmdir(home)
        os.rmdir(os.path.dirname(home))  # a record never is


def _can_rename(one: str, other: Path) -> bool:
    """Whether a file can be renamed from the one folder into the other: there is none of that name, and to say so comes
    after the complaint about two file systems."""
    name = f".gluepy-{os.urandom(8).hex()}"
    try:
        os.rename(os.path.join(one, name), other / name)
    except FileNotFoundError:
        return os.stat(one).st_dev == os.stat(other).st_dev
    except OSError:
        return False
    return False


def _move(draft: Path, final: Path) -> None:
    if not draft.is_dir() or draft.is_symlink():
        os.replace(draft, final)
    elif final.is_symlink():
        _replace_folder(draft, final)
    else:
        try:
            os.rename(draft, final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _replace_folder(draft, final)


def _replace_folder(draft: Path, final: Path) -> None:
    """Afterwards what was at `final` is at `draft` or beside it, for its room to be closed."""
    if _exchange(draft, final):
        return
    before = draft.parent / os.urandom(4).hex()
    os.rename(final, before)
    try:
        os.rename(draft, final)
    except OSError:
        os.rename(before, final)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Have two paths change places, so that there is no moment without either; False if the system cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _copy(draft: Path, final: Path, attempt: Attempt) -> None:
    """Publish across file systems. A copy of a file has no name until it is whole."""
    if draft.is_file():
        with _unnamed_copy(draft, final.parent) as copy:
            if copy is not None:
                try:
                    _name(copy, final)
                except FileExistsError:
                    with _room_beside(final, attempt) as room:
                        _name(copy, room / "draft")
                        os.replace(room / "draft", final)
                return
    with _room_beside(final, attempt) as room:
        copied = room / "draft"  # without a suffix, which patterns would match
        if draft.is_dir():
            shutil.copytree(draft, copied, symlinks=True)
        else:
            shutil.copy2(draft, copied)
            _flush(copied)
        _move(copied, final)


@contextmanager
def _room_beside(final: Path, attempt: Attempt) -> Iterator[Path]:
    """A room from which `final` can be reached by renaming; it has to be where it can be seen."""
    storage = local_path(attempt.run.storage)
    is_near = storage is not None and _can_rename(storage, final.parent)
    room = _room_at(Path(storage) if storage is not None and is_near else final.parent, attempt)
    try:
        yield room.path
    finally:
        room.close()


@contextmanager
def _unnamed_copy(file: Path, folder: Path) -> Iterator[int | None]:
    """The descriptor of a copy on the file system of `folder` that is in no folder; None if there can be none."""
    if sys.platform != "linux":
        yield None
        return
    try:
        copy = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        if error.errno not in _NO_UNNAMED_FILES:
            raise
        yield None
        return
    with open(copy, "wb") as target:
        with file.open("rb") as source:
            shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        os.fchmod(copy, stat.S_IMODE(file.stat().st_mode))
        os.fsync(copy)
        yield copy


def _name(descriptor: int, path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.link(f"/proc/self/fd/{descriptor}", path.name, dst_dir_fd=folder)  # only with a folder is the link followed
    finally:
        os.close(folder)


def _take_on_group(draft: Path, folder: Path) -> None:
    """In a folder that hands its group on, what is published belongs to that group, as if it had been made there."""
    above = folder.stat()
    if not above.st_mode & stat.S_ISGID:
        return
    for path in (draft, *(draft.rglob("*") if draft.is_dir() and not draft.is_symlink() else ())):
        with suppress(OSError):
            os.chown(path, -1, above.st_gid, follow_symlinks=False)
            if path.is_dir() and not path.is_symlink():
                path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_ISGID)


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
