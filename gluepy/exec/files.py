"""A task's files, on disks and in object stores alike: where names lie, publishing whole, local copies."""

from __future__ import annotations

import errno
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gluepy.exec.drafts import Room, open_room, open_temporary_room, publish
from gluepy.exec.port import Attempt, local_path

if TYPE_CHECKING:
    from upath import UPath

    Name = str | Path | UPath

_BROKEN_URL = re.compile(r"[A-Za-z][\w+.-]+:/[^/]")  # what pathlib makes of a URL


def opened(where: str, **options: Any) -> UPath:
    """The path or URL `where`. Its file system remembers no listings, since other processes write there, too."""
    from upath import UPath  # brings fsspec, which most runs of small tasks never need

    folder = local_path(where)
    if folder is not None:
        return UPath(folder)
    path: UPath = UPath(where, **{"use_listings_cache": False, **options})
    try:
        _ = path.fs
    except TypeError:  # it takes no such option
        path = UPath(where, **options)
    return path


def located(base: UPath, name: Name) -> UPath:
    """What `name` means to a task: an absolute path or a URL itself, a relative path within `base`.

    Raises `ValueError` for a URL that became a `pathlib.Path`, which loses a slash of it.
    """
    from upath import UPath

    text = str(name)
    if "://" in text:
        return opened(_normal(text), **(name.storage_options if isinstance(name, UPath) else {}))
    if os.path.isabs(text):
        return UPath(text)
    if isinstance(name, os.PathLike) and _BROKEN_URL.match(text):
        raise ValueError(f"{text!r} was a URL before it became a Path; give it as text, or as a universal-pathlib path")
    if is_local(base):
        return base / text
    text = posixpath.normpath(text)
    while text.split("/")[0] == "..":
        base, text = base.parent, text[3:] or "."
    return base if text == "." else base / text


def exists(base: UPath, name: Name) -> bool:
    """Whether there is a file or folder that `name` means."""
    path = located(base, name)
    if not is_local(path):
        path.fs.invalidate_cache()
    return path.exists()


def atomic(base: UPath, storage: UPath, name: Name, attempt: Attempt) -> AbstractContextManager[Path]:
    """A local path to write to, which becomes what `name` means when the block ends well; after an error nothing is
    left.

    The path has the target's name, and lies where no listing of `base` or `storage` shows it. What is for this machine
    is flushed to disk and renamed, a folder takes the place of a folder; what is for another is uploaded, a folder file
    by file. What cannot be published is kept, and the error says where. Raises `FileNotFoundError` if the block wrote
    nothing, `ValueError` for a relative name that leads out of `base`, and for one that means `base`, `storage` or a
    folder around them.
    """
    target = located(base, name)
    _check(target, str(name), base, storage)
    return _published(target, name, attempt)


def local(path: UPath, attempt: Attempt) -> tuple[Path, Room | None]:
    """A local file or folder with the contents of `path`: itself if it is local, else a copy in a room that the caller
    closes. Raises `FileNotFoundError` if there is nothing to copy."""
    if is_local(path):
        return Path(path.path), None
    room = open_temporary_room(attempt)
    try:
        copy = room.path / (path.path.rstrip("/").rpartition("/")[2] or "copy")
        _download(path, copy)
    except BaseException:
        room.close()
        raise
    return copy, room


def is_local(path: UPath) -> bool:
    """Whether `path` is one of this machine's file system."""
    return path.protocol in ("", "file", "local")


def _normal(url: str) -> str:
    scheme, _, path = url.partition("://")
    if {".", ".."}.intersection(path.split("/")):
        path = posixpath.normpath(path)
    return f"{scheme}://{path.rstrip('/') or '/'}"


def _check(target: UPath, name: str, base: UPath, storage: UPath) -> None:
    scheme, _, given = name.rpartition("://")
    is_relative = not scheme and not os.path.isabs(name)
    path = posixpath.normpath(target.path)
    for root, means in ((base, "the run's files"), (storage, "the storage")):
        if root.protocol != target.protocol and not (is_local(root) and is_local(target)):
            continue
        folder = posixpath.normpath(root.path)
        if f"{folder}/".startswith(f"{path.rstrip('/')}/"):
            raise ValueError(f"atomic({name!r}) would take the place of {means} in {root}; name something in there")
        begins_there = given.startswith(f"{folder}/") or (is_relative and root is base)
        if begins_there and not path.startswith(f"{folder}/"):
            raise ValueError(f"atomic({name!r}) leads out of {root}, {means}; name what lies elsewhere by its own path")


@contextmanager
def _published(target: UPath, name: Name, attempt: Attempt) -> Iterator[Path]:
    final = Path(os.path.normpath(target.path)) if is_local(target) else None
    if final is not None:
        final.parent.mkdir(parents=True, exist_ok=True)
    room = open_room(attempt, final.parent if final is not None else None)
    try:
        draft = room.path / (final.name if final is not None else target.path.rpartition("/")[2])
        yield draft
        if not room.is_ours:
            return
        if not draft.exists():
            raise FileNotFoundError(f"nothing was written to the path that atomic gave for {target}")
    except BaseException:
        room.close()
        raise
    try:
        if final is not None:
            publish(draft, final, attempt)
        else:
            _upload(draft, target)
            if not isinstance(name, str):
                getattr(name, "fs", target.fs).invalidate_cache()  # the caller's own
    except Exception as error:
        raise _told(error, room.keep() / draft.name) from error.__cause__
    except BaseException:
        room.close()
        raise
    room.close()


def _told(error: Exception, draft: Path) -> Exception:
    """`error`, which says where what could not be published is."""
    kept = f"what was written is kept in {draft}"
    if isinstance(error, OSError) and error.errno is not None and type(error).__module__ == "builtins":
        told = type(error)(error.errno, f"{error.strerror}; {kept}", error.filename, None, error.filename2)
        return told.with_traceback(error.__traceback__)
    error.add_note(kept)
    return error


def _upload(draft: Path, target: UPath) -> None:
    files, path = target.fs, target.path.rstrip("/")
    files.invalidate_cache()
    if not draft.is_dir():
        if files.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "a file cannot take the place of a folder", str(target))
        files.put_file(str(draft), path)
        return
    if files.isfile(path):
        raise NotADirectoryError(errno.ENOTDIR, "a folder cannot take the place of a file", str(target))
    before = set(files.find(path))
    new = {f"{path}/{file.relative_to(draft).as_posix()}": str(file) for file in draft.rglob("*") if file.is_file()}
    if new:
        try:
            files.put(list(new.values()), list(new))
        except BaseException:
            if not before:
                _remove(files, set(files.find(path)))
            raise
    _remove(files, before - new.keys())
    if not new:
        files.makedirs(path, exist_ok=True)
        if not files.exists(path):
            raise FileNotFoundError(errno.ENOENT, "there are no empty folders in an object store", str(target))


def _remove(files: Any, names: Iterable[str]) -> None:
    gone = list(names)
    if gone:
        files.rm(gone)


def _download(path: UPath, copy: Path) -> None:
    files, source = path.fs, path.path.rstrip("/")
    files.invalidate_cache()
    if files.isfile(source):
        files.get_file(source, str(copy))
        return
    found = {name: name[len(source) + 1 :] for name in files.find(source) if name.startswith(f"{source}/")}
    if not found and not files.isdir(source):
        raise FileNotFoundError(errno.ENOENT, "no such file or folder", str(path))
    copy.mkdir()
    wanted: dict[str, str] = {}
    for name, rest in found.items():
        if not rest or rest.endswith("/"):  # what stands for a folder itself
            continue
        if ".." in rest.split("/"):
            raise ValueError(f"{name} leads out of the folder {path}")
        (copy / rest).parent.mkdir(parents=True, exist_ok=True)
        wanted[name] = str(copy / rest)
    if wanted:
        files.get(list(wanted), list(wanted.values()))
