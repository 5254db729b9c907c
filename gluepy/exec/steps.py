"""What the steps of a run leave in its storage, where whoever follows or collects the run reads it.

    <STORAGE_ROOT>/runs/<run_id>/run.json                       what the run is about: `RunFile`
                                 steps/<slug>.<attempt>.jsonl   the events of one attempt, without `seq`
                                 steps/<slug>.<attempt>.log     what it printed and logged

Attempt 0 is of a task that was skipped before any. A step writes only its own attempt's files. Local files are appended
to; in an object store an object is written again, at most once a second.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gluepy.core import events as e
from gluepy.core.events import JSON
from gluepy.core.spans import TraceContext
from gluepy.exec.files import is_local, opened

if TYPE_CHECKING:
    from upath import UPath

_EVERY_S = 1.0  # between two writes of an object
_SEQ = b'"seq":0,'


class RunFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`run.json`: what all steps of a run share, written by whoever is first.

    `reference` is how its DAG is found, `graph` the compiled one, `executor` the name that events have. `context` are
    the parameters without the secrets, which stood at the places `secrets`. Of a run that was resumed, `discarded` maps
    tasks to the last attempt that does not count any more. `selected` are the tasks that run, None for all.
    `trace` is the trace that the session is in, if it is in one.
    """

    schema_version: int
    gluepy_version: str
    run_id: str
    dag: str
    reference: str
    created_at: str
    graph: dict[str, JSON]
    context: dict[str, JSON]
    params_digest: str
    code_version: str
    executor: str
    secrets: list[list[str | int]] = []
    options: dict[str, JSON] = {}
    session: int = 1
    discarded: dict[str, int] = {}
    selected: list[str] | None = None
    trace: TraceContext | None = None


class StepFile(NamedTuple):
    """The events of one attempt, as they are now: of which task (its slug), which attempt, and what tells whether it
    has changed."""

    slug: str
    attempt: int
    mark: str


class StepFolder:
    """The files of the steps of one run, whose files are in `place`, a folder or the URL of one. Methods do IO."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._root = opened(place)
        self._steps = self._root / "steps"

    def read_run(self) -> RunFile | None:
        """`run.json`, or None if there is none. Raises `ValueError` for one that cannot be read."""
        try:
            data = self._bytes(self._root / "run.json")
        except FileNotFoundError:
            return None
        try:
            return msgspec.json.decode(data, type=RunFile)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{self.place}/run.json cannot be read: {error}") from error

    def create_run(self, run: RunFile) -> RunFile:
        """Write `run.json` if nobody has; returns what is in it."""
        data = _pretty(run)
        target = self._root / "run.json"
        if is_local(target):
            os.makedirs(self._root.path, exist_ok=True)
            draft = f"{target.path}.{os.getpid()}-{os.urandom(4).hex()}"
            _write_whole(draft, data)
            try:
                os.link(draft, target.path)  # whole, or not at all
            except FileExistsError:
                pass
            finally:
                os.unlink(draft)
        else:
            try:
                target.fs.pipe_file(target.path, data, mode="create")
            except Exception:
                if self.read_run() is None:
                    raise
        found = self.read_run()
        assert found is not None
        return found

    def write_run(self, run: RunFile) -> None:
        """Write `run.json`, whole, in place of what is there."""
        target = self._root / "run.json"
        if is_local(target):
            os.makedirs(self._root.path, exist_ok=True)
            draft = f"{target.path}.{os.getpid()}-{os.urandom(4).hex()}"
            _write_whole(draft, _pretty(run))
            os.replace(draft, target.path)
        else:
            target.fs.pipe_file(target.path, _pretty(run))

    def files(self) -> list[StepFile]:
        """The attempts that there are, in no order."""
        found = []
        if is_local(self._steps):
            try:
                with os.scandir(self._steps.path) as entries:
                    stats = [(entry.name, entry.stat()) for entry in entries]
            except FileNotFoundError:
                return []
            listed = [(name, f"{stat.st_size}/{stat.st_mtime_ns}") for name, stat in stats]
        else:
            self._steps.fs.invalidate_cache()
            try:
                infos = self._steps.fs.ls(self._steps.path, detail=True)
            except FileNotFoundError:
                return []
            listed = [(info["name"].rpartition("/")[2], repr(sorted(info.items(), key=str))) for info in infos]
        logs = dict(listed)
        for name, mark in listed:
            stem, _, ending = name.rpartition(".")
            slug, _, number = stem.rpartition(".")
            if ending == "jsonl" and slug and number.isdigit():
                found.append(StepFile(slug, int(number), f"{mark} {logs.get(f'{stem}.log', '')}"))
        return found

    def attempts(self, slug: str) -> list[int]:
        """The numbers of the attempts of one task, in order."""
        return sorted(file.attempt for file in self.files() if file.slug == slug)

    def events(self, slug: str, attempt: int) -> list[e.TaskEvent]:
        """The events of an attempt so far, each with the `seq` 0. Raises `FileNotFoundError`; lines that cannot be
        read, as that of a writer that died, are passed over."""
        events = []
        for line in self._bytes(self._steps / f"{slug}.{attempt}.jsonl").splitlines():
            try:
                event = e.decode(line.replace(b"{", b"{" + _SEQ, 1))
            except msgspec.MsgspecError:
                continue
            if isinstance(event, e.TaskEvent):
                events.append(event)
        return events

    def log(self, slug: str, attempt: int, since: int = 0) -> bytes:
        """What the attempt printed, from the byte `since` on; empty if there is nothing."""
        try:
            data = self._bytes(self._steps / f"{slug}.{attempt}.log", since)
        except FileNotFoundError:
            return b""
        return data

    def writer(self, slug: str, attempt: int, ending: str) -> StepWriter:
        """What writes the events (`jsonl`) or the log (`log`) of an attempt."""
        return StepWriter(self._steps / f"{slug}.{attempt}.{ending}")

    @staticmethod
    def _bytes(path: UPath, since: int = 0) -> bytes:
        if is_local(path):
            with open(path.path, "rb") as file:
                file.seek(since)
                return file.read()
        path.fs.invalidate_cache(path.parent.path)
        data: bytes = path.fs.cat_file(path.path)
        return data[since:]


class StepWriter:
    """Writes one file of a step, line by line. Not for several threads at once."""

    def __init__(self, path: UPath) -> None:
        self._path = path
        self._file = None
        self._data, self._is_behind, self._written = b"", False, 0.0
        if is_local(path):
            os.makedirs(path.parent.path, exist_ok=True)
            self._file = open(path.path, "ab", buffering=0)  # noqa: SIM115  # closed by `close`

    def write(self, line: bytes, *, at_once: bool = False) -> None:
        """Append `line`, with its newline. `at_once`: whoever reads the object store sees it when this returns."""
        if self._file is not None:
            self._file.write(line)
            return
        self._data += line
        self._is_behind = True
        if at_once or time.monotonic() - self._written >= _EVERY_S:
            self.flush()

    def event(self, event: e.TaskEvent) -> None:
        """Append `event`, without its `seq`."""
        line = e.encode(msgspec.structs.replace(event, seq=0)).replace(_SEQ, b"", 1)
        self.write(line, at_once=not isinstance(event, e.TaskProgress | e.TaskMetric))

    def touch(self) -> None:
        """Show that the step is there: the file's mark changes."""
        if self._file is not None:
            os.utime(self._path.path)
        else:
            self._is_behind = True
            self.flush()

    def flush(self) -> None:
        """Write what has not been written."""
        if self._file is None and self._is_behind:
            self._path.fs.pipe_file(self._path.path, self._data)
            self._is_behind, self._written = False, time.monotonic()

    def close(self) -> None:
        """Write the rest."""
        self.flush()
        if self._file is not None:
            self._file.close()


def has_ended(events: Sequence[e.TaskEvent]) -> bool:
    """Whether the attempt with these events has an end."""
    return bool(events) and isinstance(
        events[-1], e.TaskFinished | e.TaskFailed | e.TaskRetrying | e.TaskSkipped | e.TaskCancelled
    )


def rows_in(events: Sequence[e.TaskEvent]) -> Sequence[Sequence[JSON]] | None:
    """The values that an `each` found in the attempt with these events; None if it found none yet."""
    return next((event.values for event in events if isinstance(event, e.TaskExpanded)), None)


def _pretty(run: RunFile) -> bytes:
    values: Mapping[str, JSON] = msgspec.to_builtins(run)
    return json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n"


def _write_whole(path: str, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
