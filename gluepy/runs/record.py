"""The record of a run: a folder with its events, its context and its logs, held by one driver at a time."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from gluepy.clock import parse_rfc3339
from gluepy.core.events import JSON
from gluepy.errors import OptionError, RunLocked, RunStopped, UnknownRun

_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_ASKED_S = 0.05  # how long somebody who asks `is_held` may keep a driver waiting
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600
_BESIDE = re.compile(r"durations|index\.sqlite.*")  # what gluepy keeps beside the runs; SQLite adds endings


def new_run_id(wall: float | None = None) -> str:
    """A new UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then randomness, so that ids sort by time."""
    milliseconds = int((time.time() if wall is None else wall) * 1000) & (1 << 48) - 1
    luck = int.from_bytes(os.urandom(10))
    number = milliseconds << 80 | 7 << 76 | (luck >> 62 & 0xFFF) << 64 | 2 << 62 | luck & (1 << 62) - 1
    digits = f"{number:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


class Record:
    """`<RUNS_ROOT>/<run_id>/`: where its parts are. Only its owner can read them: they have the run's parameters."""

    def __init__(self, root: Path, run_id: str) -> None:
        self.root, self.run_id = root, run_id
        self.path = root / run_id
        self.events = self.path / "events.jsonl"
        self.context = self.path / "context.yaml"
        self.inputs = self.path / "inputs.json"
        self.logs = self.path / "logs"
        self._lock_file = self.path / "run.lock"
        self.stop_file = self.path / "stop"

    @classmethod
    def create(
        cls, root: Path, run_id: str, context: Mapping[str, JSON], inputs: Mapping[str, JSON] | None = None
    ) -> Record:
        """A new record. Raises `OptionError` where the id cannot be used, `RunStopped` where the folder cannot."""
        if not _RUN_ID.fullmatch(run_id):
            hint = "use letters, digits, '-', '_' and '.', at most 100 of them, the first a letter or a digit"
            raise OptionError("run_id", f"{run_id!r} cannot name a folder", hint)
        if run_id == "latest":
            raise OptionError("run_id", "'latest' means the newest run", "give another")
        if _BESIDE.fullmatch(run_id):
            raise OptionError("run_id", f"{run_id!r} is the name of a file beside the runs", "give another")
        record, is_new = cls(root, run_id), False
        try:
            root.mkdir(_PRIVATE_FOLDER, parents=True, exist_ok=True)
            record.path.mkdir(_PRIVATE_FOLDER)
            is_new = True
            record.path.chmod(_PRIVATE_FOLDER)  # some umasks keep even the owner out
            record.logs.mkdir(_PRIVATE_FOLDER)
            record.logs.chmod(_PRIVATE_FOLDER)
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
        files = (self.inputs, self.context, self._lock_file, self.path / "driver")
        for file in (*files, self.inputs.with_suffix(".new"), self.context.with_suffix(".new")):
            with suppress(OSError):
                file.unlink(missing_ok=True)
        for folder in (self.logs, self.path):
            with suppress(OSError):
                folder.rmdir()

    @classmethod
    def find(cls, root: Path, run: str) -> Record:
        """The record of the run with the id `run`, or the one that ends so, or `latest`.

        Raises `UnknownRun` where none or several have it.
        """
        names = list(run_names(root))
        if run == "latest" and names:
            return cls(root, max(names, key=lambda name: _age(root, name)))
        matches = [run] if run in names else [name for name in names if run and name.endswith(run)]
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

    def ask_to_stop(self) -> None:
        """Have the driver of the run cancel it, soon."""
        write_private(self.stop_file, "")

    def stop_asked(self) -> bool:
        """Whether somebody wants the run to be cancelled."""
        return os.path.exists(self.stop_file)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run, to drive it; one driver can. Raises `RunLocked`, and `UnknownRun` for one that was deleted."""
        with self.held():
            self.stop_file.unlink(missing_ok=True)  # it was meant for an earlier session
            try:
                write_private(self.path / "driver", f"{os.getpid()}\n")
            except OSError as error:
                raise self._not_writable(error, self.path / "driver") from error
            yield

    def is_held(self) -> bool:
        """Whether a driver holds the run. Asking writes nothing."""
        try:
            lock = os.open(self._lock_file, os.O_RDONLY)
        except OSError:
            return False  # it has never been driven
        try:
            return not _is_free(lock)
        finally:
            os.close(lock)

    def is_gone(self) -> bool:
        """Whether the run was deleted."""
        return not (self.events.exists() or self.context.exists())

    def gone(self) -> UnknownRun:
        """The error that says so."""
        return UnknownRun(self.run_id, (), str(self.root), ["latest"] if any(run_names(self.root)) else [])

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run, without driving it. Raises as `lock` does."""
        with _unlogged(str(self._lock_file)), self._held():
            yield

    @contextmanager
    def _held(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        if self.is_gone():
            raise self.gone()
        lock = FileLock(self._lock_file, mode=_PRIVATE_FILE, thread_local=False)
        try:
            lock.acquire(timeout=_ASKED_S, poll_interval=_ASKED_S / 10)
        except Timeout:
            raise self.gone() if self.is_gone() else RunLocked(self.run_id, self.holder()) from None
        except OSError as error:
            if self.is_gone():
                raise self.gone() from None
            raise self._not_writable(error, self._lock_file) from error
        try:
            if self.is_gone():
                # `prune` moved the record away after the look at it above: the lock is that of the record that was, or
                # of a folder that has nothing else in it, since taking the lock made it.
                with suppress(OSError):
                    self._lock_file.unlink(missing_ok=True)
                    self.path.rmdir()
                raise self.gone()
            yield
        finally:
            lock.release()

    def _not_writable(self, error: OSError, file: Path) -> RunStopped:
        few = error.errno in (errno.EMFILE, errno.ENFILE)
        hint = "close some, or raise the limit (ulimit -n)" if few else "make it writable"
        return RunStopped(self.run_id, f"cannot write {error.filename or file}: {error.strerror}", hint)

    def holder(self) -> str:
        """Which process drives the run, or did last; empty where that is not known."""
        try:
            return f"process {(self.path / 'driver').read_text().strip()}"
        except OSError:
            return ""


@contextmanager
def _unlogged(lock_file: str) -> Iterator[None]:
    """Without what filelock tells of our lock: a program that logs everything means what it does itself."""
    logger = logging.getLogger("filelock")

    def is_others(record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG or not record.args or lock_file not in map(str, record.args)

    logger.addFilter(is_others)
    try:
        yield
    finally:
        logger.removeFilter(is_others)


def _is_free(lock: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
            msvcrt.locking(lock, msvcrt.LK_UNLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: who asks is not in the way of others who ask
    except BlockingIOError:
        return False
    return True


def _age(root: Path, name: str) -> tuple[int, str]:
    """When the run was made, in milliseconds since 1970: its id says so; of an id that the user gave, its log does."""
    if _UUID7.fullmatch(name):
        return int(name[:8] + name[9:13], 16), name
    try:
        with (root / name / "events.jsonl").open("rb") as log:
            started = msgspec.json.decode(log.readline(), type=_Started)
        return int(parse_rfc3339(started.timestamp) * 1000), name
    except (OSError, ValueError):  # damaged or empty: older than any other
        return 0, name


class _Started(msgspec.Struct):
    timestamp: str


def write_private(file: Path, text: str) -> None:
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


def run_names(root: Path) -> Iterator[str]:
    """The ids of the runs recorded in `root`, in no order."""
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if is_run_name(entry.name) and os.path.isfile(os.path.join(entry.path, "events.jsonl")):
                    yield entry.name
    except FileNotFoundError:
        return
