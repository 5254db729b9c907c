"""The record of a run: a folder with its events, its context and its logs, held by one driver at a time."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import msgspec

from gluepy.clock import parse_rfc3339
from gluepy.core.events import JSON
from gluepy.errors import OptionError, RunLocked, RunStopped, UnknownRun, UnrecordedRun
from gluepy.runs.lock import Held, holder, is_free, take

_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_UNRECORDED = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
RUN_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")

_EVENTS = "events.jsonl"
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600
_BESIDE = re.compile(r"durations|index\.sqlite.*")  # what gluepy keeps beside the runs; SQLite adds endings


def new_run_id(wall: float | None = None, *, recorded: bool = True) -> str:
    """A new UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then randomness, so that ids sort by time.

    For a run that is not `recorded` it is the same but for its version, 8: so whoever asks for it can be told."""
    milliseconds = int((time.time() if wall is None else wall) * 1000) & (1 << 48) - 1
    luck = int.from_bytes(os.urandom(10))
    number = (
        milliseconds << 80 | (7 if recorded else 8) << 76 | (luck >> 62 & 0xFFF) << 64 | 2 << 62 | luck & (1 << 62) - 1
    )
    digits = f"{number:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def check_run_id(run_id: str) -> None:
    """Raises `OptionError` where it cannot be the id of a run."""
    if not RUN_ID.fullmatch(run_id):
        hint = "use letters, digits, '-', '_' and '.', at most 100 of them, the first a letter or a digit"
        raise OptionError("run_id", f"{run_id!r} cannot name a folder", hint)
    if run_id == "latest":
        raise OptionError("run_id", "'latest' means the newest run", "give another")
    if _BESIDE.fullmatch(run_id):
        raise OptionError("run_id", f"{run_id!r} is the name of a file beside the runs", "give another")


class Record:
    """`<RUNS_ROOT>/<run_id>/`: where its parts are. Only its owner can read them: they have the run's parameters."""

    def __init__(self, root: Path, run_id: str) -> None:
        self.root, self.run_id = root, run_id
        self.folder = os.path.join(root, run_id)  # as text: a service makes many records

    @cached_property
    def path(self) -> Path:
        """The folder."""
        return self.root / self.run_id

    @cached_property
    def events(self) -> Path:
        """The log."""
        return self.path / _EVENTS

    @cached_property
    def context(self) -> Path:
        """The run's parameters; there may be none."""
        return self.path / "context.yaml"

    @cached_property
    def inputs(self) -> Path:
        """What the parameters were made of, where they do not say it all."""
        return self.path / "inputs.json"

    @cached_property
    def logs(self) -> Path:
        """The folder with the attempts' log files, if output is captured."""
        return self.path / "logs"

    @property
    def _log(self) -> str:
        return os.path.join(self.folder, _EVENTS)

    @property
    def _older_lock(self) -> str:
        return os.path.join(self.folder, "run.lock")

    @property
    def _stop_file(self) -> str:
        return os.path.join(self.folder, "stop")

    @classmethod
    def create(
        cls, root: Path, run_id: str, context: Mapping[str, JSON], inputs: Mapping[str, JSON] | None = None
    ) -> Record:
        """A new record. Raises `OptionError` where the id cannot be used, `RunStopped` where the folder cannot."""
        check_run_id(run_id)
        record, is_new = cls(root, run_id), False
        try:
            try:
                os.mkdir(record.folder, _PRIVATE_FOLDER)
            except FileNotFoundError:
                root.mkdir(_PRIVATE_FOLDER, parents=True, exist_ok=True)
                os.mkdir(record.folder, _PRIVATE_FOLDER)
            is_new = True
            os.chmod(record.folder, _PRIVATE_FOLDER)  # some umasks keep even the owner out
            if context or inputs:
                record.write_context(context, inputs)
        except FileExistsError:
            if not root.is_dir():
                raise RunStopped(run_id, f"{root} is not a folder", "set RUNS_ROOT to a writable folder") from None
            raise OptionError(
                "run_id", f"a run {run_id!r} is recorded already in {root}", "give another, or resume it"
            ) from None
        except OSError as error:
            if is_new:
                record.discard()  # the id is still free
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "free some space, or set RUNS_ROOT to another" if full else "set RUNS_ROOT to a writable"
            where = error.filename or record.path
            raise RunStopped(run_id, f"cannot write {where}: {error.strerror}", f"{hint} folder") from error
        return record

    def discard(self) -> None:
        """Remove the record of a run that has not begun. Opens nothing: there may be no descriptors."""
        for file in (
            self.inputs,
            self.context,
            self.events,
            self.inputs.with_suffix(".new"),
            self.context.with_suffix(".new"),
        ):
            with suppress(OSError):
                file.unlink(missing_ok=True)
        for folder in (self.logs, self.path):
            with suppress(OSError):
                folder.rmdir()

    @classmethod
    def find(cls, root: Path, run: str) -> Record:
        """The record of the run with the id `run`, or the one that ends so, or `latest`.

        Raises `UnknownRun` where none or several have it, `UnrecordedRun` for the id of one without a record.
        """
        names = list(run_names(root))
        if run == "latest" and names:
            return cls(root, max(names, key=lambda name: _age(root, name)))
        matches = [run] if run in names else [name for name in names if run and name.endswith(run)]
        if not matches and _UNRECORDED.fullmatch(run):
            raise UnrecordedRun(run, str(root))
        if len(matches) != 1:
            given = [name for name in names if not _UUID7.fullmatch(name)]  # those are all alike
            known = ["latest", *given] if names else []
            raise UnknownRun(run, sorted(matches, key=lambda name: _age(root, name)), str(root), known)
        return cls(root, matches[0])

    @classmethod
    def latest(cls, root: Path, label: str, label_of: Callable[[Record], str]) -> Record:
        """The newest record of a run of the DAG with this label, as `label_of` tells. Raises `UnknownRun`."""
        seen = set()
        for name in sorted(run_names(root), key=lambda name: _age(root, name), reverse=True):
            record = cls(root, name)
            found = label_of(record)
            if found == label:
                return record
            seen.add(f"latest:{found}")
        raise UnknownRun(f"latest:{label}", (), str(root), sorted(seen))

    def write_context(self, context: Mapping[str, JSON], inputs: Mapping[str, JSON] | None = None) -> None:
        """Write `context.yaml`, and what it was made of where that says more, each whole."""
        for file, values in ((self.inputs, inputs), (self.context, context)):
            if values is None:
                file.unlink(missing_ok=True)
                continue
            draft = file.with_suffix(".new")
            text = msgspec.json.format(msgspec.json.encode(dict(values)).decode(), indent=2)
            # JSON is YAML, but for characters that YAML wants escaped
            escaped = _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
            draft.unlink(missing_ok=True)
            write_private(draft, f"{escaped}\n")
            draft.replace(file)

    def make_logs(self) -> None:
        """Make the folder for log files, if there is none. Raises `RunStopped`."""
        try:
            self.logs.mkdir(_PRIVATE_FOLDER, exist_ok=True)
            self.logs.chmod(_PRIVATE_FOLDER)
        except OSError as error:
            raise self._not_writable(error, self.logs) from error

    def ask_to_stop(self) -> None:
        """Have the driver of the run cancel it, soon."""
        write_private(self._stop_file, "")

    def stop_asked(self) -> bool:
        """Whether somebody wants the run to be cancelled."""
        return os.path.exists(self._stop_file)

    def lock(self, *, new: bool = False) -> Held:
        """Hold the run, to drive it; one driver can. `new`: it was just created.

        Raises `RunLocked`, and `UnknownRun` for one that was deleted.
        """
        held = self.held(new=new)
        if not new:
            with suppress(FileNotFoundError):
                os.unlink(self._stop_file)  # it was meant for an earlier session
        return held

    def held(self, *, new: bool = False) -> Held:
        """Hold the run, without driving it. Raises as `lock` does."""
        try:
            held = take(self._log, None if new else self._older_lock, new=new)
        except FileNotFoundError as error:
            if new:
                raise self._not_writable(error, self.events) from error
            raise self.gone() from None
        except OSError as error:
            raise self._not_writable(error, self.events) from error
        if held is None:
            raise self.gone() if self.is_gone() else RunLocked(self.run_id, self.holder()) from None
        return held

    def is_held(self) -> bool:
        """Whether a driver holds the run. Asking writes nothing."""
        return not (is_free(self._log) and is_free(self._older_lock))

    def is_gone(self) -> bool:
        """Whether the run was deleted."""
        return not self.events.exists()

    def gone(self) -> UnknownRun:
        """The error that says so."""
        return UnknownRun(self.run_id, (), str(self.root), ["latest"] if any(run_names(self.root)) else [])

    def _not_writable(self, error: OSError, file: Path) -> RunStopped:
        few = error.errno in (errno.EMFILE, errno.ENFILE)
        hint = "close some, or raise the limit (ulimit -n)" if few else "make it writable"
        return RunStopped(self.run_id, f"cannot write {error.filename or file}: {error.strerror}", hint)

    def holder(self) -> str:
        """Which process drives the run, or did last; empty where that is not known."""
        process = holder(self._log) or holder(self._older_lock) or self._last_driver()
        return f"process {process}" if process else ""

    def _last_driver(self) -> int:
        """The process of the last session that has begun."""
        process = 0
        try:
            with self.events.open("rb") as log:
                for line in log:
                    if line.startswith(_OPENINGS):
                        with suppress(msgspec.MsgspecError):
                            process = msgspec.json.decode(line, type=_Opened).pid
        except OSError:
            pass
        return process


def _age(root: Path, name: str) -> tuple[int, str]:
    """When the run was made, in milliseconds since 1970: its id says so; of an id that the user gave, its log does."""
    if _UUID7.fullmatch(name):
        return int(name[:8] + name[9:13], 16), name
    try:
        with (root / name / _EVENTS).open("rb") as log:
            started = msgspec.json.decode(log.readline(), type=_Started)
        return int(parse_rfc3339(started.timestamp) * 1000), name
    except (OSError, ValueError):  # damaged or empty: older than any other
        return 0, name


class _Started(msgspec.Struct):
    timestamp: str


_OPENINGS = (b'{"event":"run.started",', b'{"event":"run.resumed",')


class _Opened(msgspec.Struct):
    pid: int


def write_private(file: str | Path, text: str) -> None:
    """Write a file that only its owner can read."""
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE_FILE), "w", encoding="utf-8") as stream:
        stream.write(text)


def is_run_name(name: str) -> bool:
    """Whether a folder of this name can be a run's. Hidden ones are being deleted, and what is no text nobody asked
    for: ids are letters and digits."""
    if name.startswith("."):
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_run_id(name: str) -> bool:
    """Whether a new run may have this id, which names its folder."""
    return RUN_ID.fullmatch(name) is not None


def run_names(root: Path) -> Iterator[str]:
    """The ids of the runs recorded in `root`, in no order."""
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if is_run_name(entry.name) and os.path.isfile(os.path.join(entry.path, _EVENTS)):
                    yield entry.name
    except FileNotFoundError:
        return
