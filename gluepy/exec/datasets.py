"""`self.read` and `self.write`: formats (`gluepy.data`) on a task's files, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gluepy.core.events import recordable
from gluepy.data import Facts, facts_of, read_file, write_file
from gluepy.exec.drafts import open_temporary_room
from gluepy.exec.files import atomic, local, located
from gluepy.exec.port import Dataset
from gluepy.exec.scope import Scope

if TYPE_CHECKING:
    from upath import UPath

    Name = str | Path | UPath


def write(scope: Scope, name: Name, value: Any, trust: bool, options: Mapping[str, Any]) -> None:
    """`Task.write`, in the attempt of `scope`."""
    with atomic(scope.run.path, scope.run.storage, name, scope.attempt) as file:
        write_file(file, str(name), value, trust=trust, options=options)
        facts = facts_of(file, value) if _is_recorded(scope) else None
    if facts is not None:
        _emit(scope, name, facts, written=True)


def read(scope: Scope, name: Name, kind: Any, trust: bool, options: Mapping[str, Any]) -> Any:
    """`Task.read`, in the attempt of `scope`."""
    path, room = local(located(scope.run.path, name), scope.attempt)
    rooms = [room] if room is not None else []

    def another() -> Path:
        rooms.append(open_temporary_room(scope.attempt))
        return rooms[-1].path

    try:
        value = read_file(path, str(name), kind, trust=trust, room=another, options=options)
    finally:
        scope.rooms = [*(scope.rooms or ()), *rooms]
    if _is_recorded(scope):
        _emit(scope, name, facts_of(path, value), written=False)
    return value


def _is_recorded(scope: Scope) -> bool:
    return bool(scope.attempt.run.settings.get("DATASET_EVENTS", True))


def _emit(scope: Scope, name: Name, facts: Facts, *, written: bool) -> None:
    where = str(located(scope.run.path, name))
    scope.emit(
        Dataset(
            written=written,
            dataset=scope.masked(recordable(_called(scope, name))),
            url=scope.masked(recordable(where if "://" in where else Path(where).absolute().as_uri())),
            bytes=facts.bytes,
            fingerprint=facts.fingerprint,
            rows=facts.rows,
            columns=facts.columns,
        )
    )


def _called(scope: Scope, name: Name) -> str:
    """What a dataset is called: its path within the run's files or the storage, so that it is the same in each run."""
    text = str(name)
    for root in (scope.run.path, scope.run.storage):
        if text.startswith(prefix := f"{root}/"):
            return text.removeprefix(prefix)
    return text
