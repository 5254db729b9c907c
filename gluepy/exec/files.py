"""Files that are published whole, and local copies of remote ones."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upath import UPath


@contextmanager
def atomic(target: UPath) -> Iterator[Path]:
    """A local path to write to, which becomes `target` when the block ends well; after an error nothing is left.

    The path has the suffix of `target`. A local target is written beside itself, flushed to disk and renamed; a remote
    one is uploaded from a temporary file (object stores publish an upload whole). Raises `FileNotFoundError` when the
    block wrote nothing.
    """
    if not _is_local(target):
        with tempfile.TemporaryDirectory(prefix="gluepy-") as folder:
            draft = Path(folder) / target.name
            yield draft
            _must_exist(draft, target)
            target.fs.put(str(draft), target.path, recursive=draft.is_dir())
        return
    final = Path(target.path)
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(f".{final.stem[:100]}.{os.urandom(4).hex()}{final.suffix}")
    try:
        yield draft
        _must_exist(draft, target)
        if draft.is_file():
            _flush(draft)
        elif final.is_dir():
            shutil.rmtree(final)
        os.replace(draft, final)
    except BaseException:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
        raise


def local(path: UPath) -> Path:
    """A local file or folder with the contents of `path`: itself where it is local, else a copy in a temporary folder
    that lives as long as the process."""
    if _is_local(path):
        return Path(path.path)
    copy = Path(tempfile.mkdtemp(prefix="gluepy-")) / path.name
    path.fs.get(path.path, str(copy), recursive=path.is_dir())
    return copy


def _is_local(path: UPath) -> bool:
    return path.protocol in ("", "file", "local")


def _must_exist(draft: Path, target: UPath) -> None:
    if not draft.exists():
        raise FileNotFoundError(f"nothing was written to the path that atomic gave for {target}")


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
