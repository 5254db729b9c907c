"""Which code a project has: what a run records, and what a worker on another machine compares."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from gluepy.conf.project import module_file


def code_version(modules: Iterable[str], project: Path | None) -> str:
    """The git commit of `project`, where there is one, and a digest of the sources of `modules`, which are not imported
    for it: `3f2a51d09c1e+9b1c66e0d7aa`, or the digest alone."""
    digest = hashlib.sha256()
    for name in sorted(modules):
        file = _file(name, project)
        if file is not None:
            try:
                digest.update(Path(file).read_bytes())
            except OSError:
                digest.update(name.encode())
    commit = _git_commit(project or Path())
    return f"{commit[:12]}+{digest.hexdigest()[:12]}" if commit else digest.hexdigest()[:12]


class CodeVersions:
    """The code versions of one `project`, each found out once, and again when a file of its modules has changed. The
    commit is read anew only then."""

    def __init__(self, project: Path | None) -> None:
        self._project = project
        self._known: dict[tuple[str, ...], tuple[list[object], str]] = {}

    def of(self, modules: tuple[str, ...]) -> str:
        """The version of `modules`, as `code_version` tells it."""
        stamps = [_stamp(getattr(sys.modules.get(name), "__file__", None)) for name in modules]
        known = self._known.get(modules)
        if known is not None and known[0] == stamps:
            return known[1]
        version = code_version(modules, self._project)
        if None not in stamps:
            self._known[modules] = stamps, version
        return version


def _stamp(file: str | None) -> object:
    try:
        found = os.stat(file or "")
    except OSError:
        return None
    return file, found.st_mtime_ns, found.st_size, found.st_ino


def same_code(one: str, other: str) -> bool:
    """Whether two versions are of the same sources. The commit does not count: a worker may have no git."""
    return one.rpartition("+")[2] == other.rpartition("+")[2]


def _file(module: str, project: Path | None) -> str | Path | None:
    if module in sys.modules:
        file: str | None = getattr(sys.modules[module], "__file__", None)
        return file
    folders = ([project] if project is not None else []) + [Path(entry or ".") for entry in sys.path]
    return next(filter(None, (module_file(module, folder) for folder in folders)), None)


def _git_commit(folder: Path) -> str:
    """The commit that is checked out around `folder`, read without git; empty where that is not plain."""
    try:
        git = next(
            each / ".git" for each in (folder.absolute(), *folder.absolute().parents) if (each / ".git").is_dir()
        )
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        ref = head.removeprefix("ref: ")
        if (git / ref).is_file():
            return (git / ref).read_text().strip()
        packed = (git / "packed-refs").read_text().splitlines()
        return next(line.split()[0] for line in packed if line.endswith(f" {ref}"))
    except (OSError, StopIteration, UnicodeError):
        return ""
