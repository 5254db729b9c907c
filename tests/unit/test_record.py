"""The record of a run: where it is, how it is found, and who holds it."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gluepy.clock import rfc3339
from gluepy.core import events as e
from gluepy.errors import OptionError, RunLocked, RunStopped, UnknownRun
from gluepy.runs.prune import deleted, sweep
from gluepy.runs.record import Record, new_run_id, run_names

RACES = int(os.environ.get("GLUEPY_LOCK_RACES", "20"))
PRUNED = 150
_FOLDERS = ("runs", "run", "logs")
EXHAUSTIVE = int(os.environ.get("GLUEPY_LOCK_RACES_EXHAUSTIVE", "1000"))

DRIVER = """
import sys
from pathlib import Path
from gluepy.errors import RunLocked
from gluepy.runs.record import Record

for line in sys.stdin:
    record = Record(Path(line.rstrip("\\n")), "run")
    try:
        with record.lock():
            print("held", flush=True)
            sys.stdin.readline()
        print("released", flush=True)
    except RunLocked as error:
        print(f"locked: {error}", flush=True)
        sys.stdin.readline()
        print("refused", flush=True)
"""


class Driver:
    """Another process that takes and releases locks as it is told."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()


@contextmanager
def drivers(count: int) -> Iterator[list[Driver]]:
    them = [Driver() for _ in range(count)]
    try:
        yield them
    finally:
        for driver in them:
            driver.process.kill()
            driver.process.communicate()


def started(root: Path, run_id: str, wall: float | None = None) -> Record:
    """A record whose run has started, at `wall`."""
    record = Record.create(root, run_id, {})
    facts: tuple[Any, ...] = (1, "0", "host", 1, {}, "digest", "code", {})
    timestamp = rfc3339(time.time() if wall is None else wall)
    record.events.write_bytes(e.encode(e.RunStarted(1, 1, timestamp, "info", run_id, "dag", *facts)))
    return record


# ---- ids


@given(st.lists(st.floats(0, 2**47 / 1000), min_size=2, max_size=20))
def test_ids_are_uuid7_and_sort_by_time(walls: list[float]) -> None:
    ids = [new_run_id(wall) for wall in sorted(walls)]
    for earlier, later, wall, next_wall in zip(ids, ids[1:], sorted(walls), sorted(walls)[1:], strict=False):
        assert int(wall * 1000) == int(next_wall * 1000) or earlier < later
    for id in ids:
        digits = id.replace("-", "")
        assert [len(part) for part in id.split("-")] == [8, 4, 4, 4, 12]
        assert (digits[12], digits[16] in "89ab", len(digits)) == ("7", True, 32)


def test_ids_are_of_now_and_differ() -> None:
    before = int(time.time() * 1000)
    ids = {new_run_id() for _ in range(1000)}
    assert len(ids) == 1000
    milliseconds = {int(id[:8] + id[9:13], 16) for id in ids}
    assert before <= min(milliseconds) <= max(milliseconds) <= int(time.time() * 1000)


# ---- making one


def test_a_new_record_has_its_folders_and_its_context(tmp_path: Path) -> None:
    context: dict[str, Any] = {"date": "2026-01-01", "folds": [1, 2], "text": "é ☃ \x85 \u2028 \ufeff", "nothing": None}
    record = Record.create(tmp_path / "deep" / "runs", "run-1", context)
    assert record.path == tmp_path / "deep" / "runs" / "run-1"
    assert yaml.safe_load(record.context.read_text("utf-8")) == context
    assert (record.events.name, record.events.exists()) == ("events.jsonl", False)
    with record.lock(new=True):
        assert record.is_held()
    assert record.events.read_bytes() == b""
    record.make_logs()
    record.make_logs()
    assert record.logs.is_dir()


def test_a_new_record_has_no_files_without_content(tmp_path: Path) -> None:
    record = Record.create(tmp_path, "run", {})
    assert list(record.path.iterdir()) == []


@given(
    st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.none() | st.booleans() | st.text()), max_size=4)
)
@settings(max_examples=100, deadline=None)
def test_a_context_is_read_back_as_it_was(context: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        record = Record.create(Path(folder), "run", context)
        assert (yaml.safe_load(record.context.read_text("utf-8")) if record.context.exists() else {}) == context
        assert [file.name for file in record.path.iterdir() if file.suffix == ".new"] == []


@pytest.mark.parametrize("id", ["", ".", "..", "../up", "a/b", "a b", "-x", "_x", "é", "x" * 101, "a\n", "latest"])
def test_an_id_that_cannot_name_a_run_is_refused(tmp_path: Path, id: str) -> None:
    with pytest.raises(OptionError, match="run_id"):
        Record.create(tmp_path, id, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("id", ["a", "Nightly-2026.01_01", "0", "x" * 100])
def test_an_id_of_the_users_own_names_the_folder(tmp_path: Path, id: str) -> None:
    assert Record.create(tmp_path, id, {}).path.is_dir()


def test_an_id_that_is_taken_is_refused(tmp_path: Path) -> None:
    Record.create(tmp_path, "run", {})
    with pytest.raises(OptionError, match="a run 'run' is recorded already"):
        Record.create(tmp_path, "run", {})


def test_a_folder_that_cannot_be_written_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(RunStopped, match="set RUNS_ROOT to a writable folder"):
            Record.create(root, "run", {})

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunStopped, match=r"cannot write .*runs: Permission denied; set RUNS_ROOT"):
        Record.create(tmp_path / "runs", "run", {})


# ---- finding one


def test_a_run_is_found_by_its_id_its_unique_ending_and_as_the_latest(tmp_path: Path) -> None:
    ids = [new_run_id(1_700_000_000 + number) for number in range(3)]
    for id in reversed(ids):
        started(tmp_path, id)
    assert sorted(run_names(tmp_path)) == ids
    assert Record.find(tmp_path, ids[1]).run_id == ids[1]
    assert Record.find(tmp_path, ids[1][-8:]).run_id == ids[1]
    assert Record.find(tmp_path, "latest").run_id == ids[2]
    assert Record.latest(tmp_path, "train", lambda record: "train" if record.run_id != ids[2] else "").run_id == ids[1]


def test_a_whole_id_comes_before_endings(tmp_path: Path) -> None:
    for id in ("run", "other-run"):
        started(tmp_path, id)
    assert Record.find(tmp_path, "run").run_id == "run"


def test_the_latest_run_is_the_last_one_made_whatever_its_name(tmp_path: Path) -> None:
    started(tmp_path, "zzz", 1_700_000_000)
    assert Record.find(tmp_path, "latest").run_id == "zzz"
    started(tmp_path, new_run_id(1_700_000_100))
    assert Record.find(tmp_path, "latest").run_id != "zzz"
    started(tmp_path, "aaa", 1_700_000_200)
    assert Record.find(tmp_path, "latest").run_id == "aaa"
    damaged = started(tmp_path, "zzzz")
    damaged.events.write_bytes(b"\x00garbage")
    assert Record.find(tmp_path, "latest").run_id == "aaa"
    assert Record.latest(tmp_path, "zzzz", lambda record: record.run_id).run_id == "zzzz"


@pytest.mark.parametrize("wanted", ["", "nothing", "-run", "latest"])
def test_a_run_that_is_not_there_or_not_the_only_one_is_refused(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(UnknownRun):
        Record.find(tmp_path / "nowhere", wanted)
    if wanted != "latest":
        for id in ("a-run", "b-run"):
            started(tmp_path, id)
        with pytest.raises(UnknownRun) as caught:
            Record.find(tmp_path, wanted)
        assert wanted != "-run" or ("a-run" in str(caught.value) and "b-run" in str(caught.value))
    with pytest.raises(UnknownRun, match="latest:train"):
        Record.latest(tmp_path, "train", lambda record: "other")


def test_a_misspelt_run_gets_the_nearest_name(tmp_path: Path) -> None:
    def told(find: Callable[[], Record]) -> str:
        with pytest.raises(UnknownRun) as caught:
            find()
        return str(pickle.loads(pickle.dumps(caught.value)))

    assert told(lambda: Record.find(tmp_path, "latest")) == f"no run 'latest': there are no runs in {tmp_path}"
    started(tmp_path, "before")
    assert told(lambda: Record.find(tmp_path, "")) == f"no run '' in {tmp_path}; `gluepy runs` lists them"
    near = started(tmp_path, new_run_id()).run_id[:-1] + "x"
    assert told(lambda: Record.find(tmp_path, near)) == f"no run '{near}' in {tmp_path}; `gluepy runs` lists them"
    assert told(lambda: Record.find(tmp_path, "befor")).endswith("; did you mean 'before'?")
    assert told(lambda: Record.find(tmp_path, "latst")).endswith("; did you mean 'latest'?")
    assert told(lambda: Record.latest(tmp_path, "trian", lambda _: "train")).endswith("; did you mean 'latest:train'?")


def test_folders_without_events_are_no_runs(tmp_path: Path) -> None:
    Record.create(tmp_path, "begun", {})
    (tmp_path / "file").write_text("")
    started(tmp_path, "run")
    assert list(run_names(tmp_path)) == ["run"]


# ---- holding one


def test_one_driver_holds_a_run_and_others_are_told_which(tmp_path: Path) -> None:
    record = started(tmp_path, "run")
    assert not record.is_held()
    assert [file.name for file in record.path.iterdir()] == ["events.jsonl"], "asking writes nothing"
    with drivers(2) as (first, second):
        first.say(str(tmp_path))
        assert first.answer() == "held"
        assert record.is_held()
        second.say(str(tmp_path))
        answer = second.answer()
        assert answer.startswith("locked: ")
        assert f"process {first.process.pid}" in answer
        with pytest.raises(RunLocked), record.lock():
            pass
        first.say("")
        second.say("")
        assert (first.answer(), second.answer()) == ("released", "refused")
        assert not record.is_held()
        with record.lock():
            assert record.is_held()
            second.say(str(tmp_path))
            assert f"process {os.getpid()}" in second.answer()


def test_a_driver_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    record = started(tmp_path, "run")
    with drivers(1) as (driver,):
        driver.say(str(tmp_path))
        assert driver.answer() == "held"
        driver.process.kill()
        driver.process.wait()
        assert not record.is_held()
        with record.lock():
            pass


def test_a_run_can_be_held_again_and_an_old_request_to_stop_is_forgotten(tmp_path: Path) -> None:
    record = started(tmp_path, "run")
    record.ask_to_stop()
    assert record.stop_asked()
    with record.lock():
        assert not record.stop_asked()
        record.ask_to_stop()
        assert record.stop_asked()
    with record.lock():
        assert not record.stop_asked()


def test_a_lock_that_cannot_be_taken_for_want_of_rights_says_so(tmp_path: Path) -> None:
    record = started(tmp_path, "run")
    record.events.unlink()
    record.events.mkdir()
    with pytest.raises(RunStopped, match=r"cannot write .*events\.jsonl"), record.lock():
        pass


def test_a_record_of_an_earlier_version_is_held_by_its_lock_file_too(tmp_path: Path) -> None:
    record = started(tmp_path, "run")
    older = record.path / "run.lock"
    older.touch()
    with older.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as its driver does
        assert record.is_held()
        with pytest.raises(RunLocked, match=f"process {os.getpid()}"), record.lock():
            pass
    assert not record.is_held()
    with record.lock(), older.open() as asked:
        assert record.is_held()
        with pytest.raises(BlockingIOError):
            fcntl.flock(asked, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with record.lock():
        pass


def test_the_log_that_holds_a_run_can_be_read_and_is_not_changed_by_that(tmp_path: Path) -> None:
    record = started(tmp_path, "run")
    before = record.events.read_bytes()
    with record.lock() as held:
        assert record.events.read_bytes() == before
        os.write(held.file, b"more\n")
    assert record.events.read_bytes() == before + b"more\n"


def test_a_forked_process_that_still_has_the_log_does_not_hold_the_run(tmp_path: Path) -> None:
    record = started(tmp_path, "run")
    with record.lock() as held:
        copy = os.dup(held.file)  # as what a task has forked has one
    assert not record.is_held()
    with record.lock():
        pass
    os.close(copy)


def test_where_the_system_does_not_tell_who_holds_a_run_its_log_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gluepy.runs.record.holder", lambda path: None)
    record = started(tmp_path, "run")
    assert record.holder() == "process 1"
    record.events.write_bytes(b'{"event":"run.started",\n')
    assert record.holder() == ""


def race(root: Path, times: int) -> None:
    record = started(root, "run")
    with drivers(3) as them:
        for number in range(times):
            for driver in them:
                driver.say(str(root))
            answers = [driver.answer()[:4] for driver in them]
            assert sorted(answers) == ["held", "lock", "lock"], f"race {number}: {answers}"
            assert record.is_held()
            for driver in them:
                driver.say("")
            assert sorted(driver.answer() for driver in them) == ["refused", "refused", "released"]


def test_of_drivers_that_come_at_once_exactly_one_holds_the_run(tmp_path: Path) -> None:
    race(tmp_path, RACES)


@pytest.mark.exhaustive
def test_of_many_drivers_that_come_at_once_exactly_one_holds_the_run(tmp_path: Path) -> None:
    race(tmp_path, EXHAUSTIVE)


def test_asking_whether_a_run_is_held_keeps_no_driver_from_it(tmp_path: Path) -> None:
    record = started(tmp_path, "run")
    with record.events.open() as asked:
        fcntl.flock(asked, fcntl.LOCK_SH)  # as somebody who asks at the same moment
        assert not record.is_held()
    with drivers(1) as (driver,):
        driver.say(str(tmp_path))
        while not record.is_held():
            pass  # asks as often as it can while the driver comes
        assert driver.answer() == "held"


# ---- deleting one


def test_a_run_that_is_deleted_is_held_by_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    record = started(tmp_path, "run")
    with record.lock(), pytest.raises(RunLocked), deleted(tmp_path, "run"):
        pass
    assert record.events.is_file()
    with deleted(tmp_path, "run"):
        assert record.is_gone()
        assert list(run_names(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []
    for find in (record.lock, lambda: deleted(tmp_path, "run")):
        with pytest.raises(UnknownRun, match="no run 'run': there are no runs in"), find():
            pass
    assert list(tmp_path.iterdir()) == []


def test_of_a_record_that_is_a_link_the_link_goes(tmp_path: Path) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "runs"
    record = started(elsewhere, "run")
    root.mkdir()
    for driven in (False, True):
        if driven:
            with record.lock():
                pass
        before = sorted(each.name for each in record.path.iterdir())
        (root / "run").symlink_to(record.path)
        with deleted(root, "run"):
            pass
        assert list(root.iterdir()) == []
        assert sorted(each.name for each in record.path.iterdir()) == before
    (root / "run").symlink_to(record.path)
    with record.lock(), pytest.raises(RunLocked), deleted(root, "run"):
        pass
    assert (root / "run").is_symlink()


def test_what_links_in_a_record_lead_to_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.bin").write_text("1")
    record = started(tmp_path / "runs", "run")
    record.logs.symlink_to(outside)
    (record.path / "more").symlink_to(outside)
    with deleted(tmp_path / "runs", "run"):
        pass
    assert [file.name for file in outside.iterdir()] == ["model.bin"]


def test_what_an_interrupted_deletion_leaves_is_no_run_and_goes_with_the_next(tmp_path: Path) -> None:
    started(tmp_path, "run")
    with pytest.raises(KeyboardInterrupt), deleted(tmp_path, "run"):
        raise KeyboardInterrupt
    (left,) = tmp_path.iterdir()
    assert (left / "events.jsonl").is_file()
    assert list(run_names(tmp_path)) == []
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_deleted_while_it_is_resumed_is_whole_or_gone(tmp_path: Path) -> None:
    gate = threading.Barrier(2)
    told: list[str] = []

    def resume(record: Record) -> None:
        gate.wait()
        try:
            Record.find(tmp_path, record.run_id)
            with record.lock():
                assert record.events.is_file() and record.path.is_dir()
                told.append("held")
        except (UnknownRun, RunLocked) as error:
            told.append(str(error))

    for number in range(PRUNED):
        record = started(tmp_path, f"run-{number}")
        thread = threading.Thread(target=resume, args=(record,))
        thread.start()
        gate.wait()
        if number % 3:
            time.sleep(number % 30 / 1e5)  # the one comes first now, the other then
        try:
            with deleted(tmp_path, record.run_id):
                pass
        except RunLocked:
            pass
        thread.join()
        if told[-1] == "held" and record.path.exists():
            with deleted(tmp_path, record.run_id):
                pass
        assert list(tmp_path.iterdir()) == [], f"{number}: {told[-1]}"
        assert told[-1] == "held" or told[-1].startswith((f"no run 'run-{number}'", f"run run-{number} is")), told[-1]
    assert len(told) == PRUNED


# ---- who may read it


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o177])
def test_only_its_owner_can_read_a_record_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    root = tmp_path / "runs"
    before = os.umask(umask)
    try:
        record = Record.create(root, "run", {"token": "secret"}) if umask != 0o177 else None
        if record is None:
            root.mkdir()
            root.chmod(0o700)
            record = Record.create(root, "run", {"token": "secret"})
        with record.lock(new=True):
            record.ask_to_stop()
            record.make_logs()
            record.write_context({"token": "another"})
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (root, record.path, *record.path.rglob("*"))}
    assert set(modes) == {"runs", "run", "logs", "context.yaml", "events.jsonl", "stop"}
    assert {name: mode for name, mode in modes.items() if mode != (0o700 if name in _FOLDERS else 0o600)} == {}


def test_a_record_that_cannot_be_made_leaves_its_id_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "context.new")

    with monkeypatch.context() as patch:
        patch.setattr(Record, "write_context", full)
        with pytest.raises(RunStopped, match=r"context\.new: No space left on device; free some space"):
            Record.create(tmp_path, "first", {"depth": 3})
    assert Record.create(tmp_path, "first", {"depth": 3}).context.is_file()
