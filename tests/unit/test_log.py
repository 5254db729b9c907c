"""The event log: what is written stays written, what cannot be written is said, and anything at all can be read."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from simulation import World, fingerprint

from gluepy.cli.bars import timeline_text
from gluepy.cli.story import failure_text, run_text
from gluepy.conf.schema import Settings
from gluepy.core import events as e
from gluepy.core.state import State
from gluepy.errors import UnknownRun
from gluepy.report import RunReport
from gluepy.runs.flusher import Flusher
from gluepy.runs.index import Index
from gluepy.runs.lock import is_free, take
from gluepy.runs.log import FileLog, LogBroken, LogReader, MemoryLog, Sync, UnreadableLog
from gluepy.runs.reading import read_record
from gluepy.runs.record import Record

SETTINGS = Settings()  # not those of the environment, which says how many of the proofs to do
FUZZED = int(os.environ.get("GLUEPY_FUZZED_LOGS", "500"))
EXHAUSTIVE = int(os.environ.get("GLUEPY_FUZZED_LOGS_EXHAUSTIVE", "100000"))
CHUNK = 2000


def progress(seq: int, done: float = 1.0) -> e.Event:
    return e.TaskProgress(seq, 1, "2026-01-01T00:00:00.000000Z", "info", "run", "dag", "a", 1, done, 0.0)


def lines(count: int, first: int = 1) -> list[bytes]:
    return [e.encode(progress(seq)) for seq in range(first, first + count)]


def read(path: Path) -> list[int]:
    return [event.seq for event in LogReader(path).events()]


def content(path: Path) -> bytes:
    return path.read_bytes()


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


class Disk:
    """Stands in for `os.write` and `os.fdatasync` on one file; `writes` says what the n-th write does."""

    def __init__(self, patch: pytest.MonkeyPatch, path: Path) -> None:
        self.path = path
        self.writes: dict[int, OSError | int] = {}
        self.flush: Callable[[], None] = lambda: None
        self.written = self.flushed = 0
        self._write, self._fdatasync = os.write, os.fdatasync
        patch.setattr(os, "write", self.write)
        patch.setattr(os, "fdatasync", self.fdatasync)

    def write(self, file: int, data: bytes) -> int:
        if not self.path.exists() or not os.path.samestat(os.fstat(file), self.path.stat()):
            return self._write(file, data)
        self.written += 1
        what = self.writes.get(self.written)
        if isinstance(what, OSError):
            raise what
        return self._write(file, data if what is None else data[:what]) if what != 0 else 0

    def fdatasync(self, file: int) -> None:
        os.fstat(file)  # it is open
        self.flushed += 1
        self.flush()
        self._fdatasync(file)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, path: Path) -> Disk:
    return Disk(monkeypatch, path)


def broken_disk() -> None:
    raise OSError(errno.EIO, "Input/output error")


async def until(happened: Callable[[], object]) -> None:
    with anyio.fail_after(120):
        while not happened():
            await anyio.lowlevel.checkpoint()


# ---- writing


@pytest.mark.parametrize("sync", ["batch", "commit", "none"])
async def test_lines_are_appended_whole_and_in_order(path: Path, sync: Sync) -> None:
    async with FileLog(path, sync) as log:
        for line in lines(5):
            log.append(line)
        await log.durable()
        assert log.size == len(content(path))
        assert content(path) == b"".join(lines(5))
    async with FileLog(path, sync) as log:
        assert log.size == len(content(path))
        log.append(lines(1, 6)[0])
    assert read(path) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("torn", [lines(1, 3)[0][:-1], lines(1, 3)[0][:40], b"{", b"\x00" * 300])
async def test_a_torn_tail_gets_a_newline_before_the_next_event(path: Path, torn: bytes) -> None:
    put(path, b"".join(lines(2)) + torn)
    async with FileLog(path) as log:
        log.append(lines(1, 9)[0])
    assert content(path) == b"".join(lines(2)) + torn + b"\n" + lines(1, 9)[0]
    reader = LogReader(path)
    assert [event.seq for event in reader.events()][-1] == 9


async def test_a_whole_log_gets_no_newline(path: Path) -> None:
    put(path, b"".join(lines(2)))
    async with FileLog(path):
        pass
    assert content(path) == b"".join(lines(2))


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_a_short_write_is_completed(path: Path, disk: Disk, size: int) -> None:
    disk.writes = dict.fromkeys(range(1, 1000), size)
    async with FileLog(path) as log:
        for line in lines(3):
            log.append(line)
        assert log.size == len(content(path))
    assert content(path) == b"".join(lines(3))


@pytest.mark.parametrize("number", [1, 2, 20])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("short", [None, 30])
async def test_a_failed_write_breaks_the_log_for_good(
    path: Path, disk: Disk, number: int, code: int, short: int | None
) -> None:
    failure = OSError(code, os.strerror(code))
    disk.writes = {number: failure} if short is None else {number: short, number + 1: failure}
    async with FileLog(path, "none") as log:
        for line in lines(number - 1):
            log.append(line)
        with pytest.raises(LogBroken) as caught:
            log.append(lines(1, number)[0])
        assert (caught.value.path, caught.value.why) == (str(path), os.strerror(code))
        assert ("free some space" in str(caught.value)) == (code != errno.EIO)
        left = content(path)
        with pytest.raises(LogBroken):
            log.append(lines(1, number)[0])
        with pytest.raises(LogBroken):
            await log.durable()
        assert content(path) == left, "something was written after a failure"
    disk.writes = {}
    async with FileLog(path) as log:
        log.append(lines(1, number)[0])
    assert read(path) == list(range(1, number + 1))


async def test_a_write_that_writes_nothing_is_a_failure_and_no_loop(path: Path, disk: Disk) -> None:
    disk.writes = {1: 10, 2: 0}
    async with FileLog(path, "none") as log:
        with pytest.raises(LogBroken, match="nothing was written"):
            log.append(lines(1)[0])


async def test_a_log_that_cannot_be_opened_or_mended_says_so(tmp_path: Path, path: Path, disk: Disk) -> None:
    with pytest.raises(LogBroken, match="No such file or directory"):
        async with FileLog(tmp_path / "nowhere" / "events.jsonl"):
            pass
    put(path, b"{")
    disk.writes = {1: OSError(errno.ENOSPC, "No space left on device")}
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(LogBroken, match="No space left"):
        async with FileLog(path):
            pass
    assert set(os.listdir("/proc/self/fd")) == before


# ---- flushing


async def test_commit_waits_for_the_disk_and_flushes_once_for_all_that_wait(path: Path, disk: Disk) -> None:
    begun, gate = threading.Event(), threading.Event()

    def flush() -> None:
        begun.set()
        assert gate.wait(240)

    disk.flush = flush
    durable: list[int] = []

    async def commit(number: int) -> None:
        log.append(lines(1, number)[0])
        await log.durable()
        durable.append(number)

    async with FileLog(path, "commit") as log:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(commit, 1)
            await until(begun.is_set)
            for number in range(2, 12):
                tasks.start_soon(commit, number)
            await until(lambda: content(path).count(b"\n") == 11)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert durable == [], "durable() did not wait"
            gate.set()
        assert sorted(durable) == list(range(1, 12))
        assert disk.flushed == 2  # one was under way, one for all others
        await log.durable()
        assert disk.flushed == 2  # there was nothing to flush


async def threads_end() -> None:
    await until(lambda: not any(thread.name == "gluepy-log" for thread in threading.enumerate()))


async def test_who_only_waits_for_what_is_being_flushed_costs_no_flush(path: Path, disk: Disk) -> None:
    begun, gate = threading.Event(), threading.Event()

    def flush() -> None:
        begun.set()
        gate.wait(240)

    disk.flush = flush
    async with FileLog(path, "commit") as log:
        log.append(lines(1)[0])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.durable)
            await until(begun.is_set)
            tasks.start_soon(log.durable)
            await until(lambda: len(log._waiters) == 2)
            gate.set()
    await threads_end()
    assert disk.flushed == 1


@pytest.mark.parametrize("sync", ["batch", "none"])
async def test_only_commit_waits(path: Path, disk: Disk, sync: Sync) -> None:
    gate = threading.Event()

    def flush() -> None:
        gate.wait(240)

    disk.flush = flush
    async with FileLog(path, sync) as log:
        log.append(lines(1)[0])
        with anyio.fail_after(120):
            await log.durable()
        gate.set()
    assert disk.flushed == (sync == "batch")


async def test_batch_flushes_behind(path: Path, disk: Disk) -> None:
    async with FileLog(path) as log:
        for line in lines(100):
            log.append(line)
        await until(lambda: disk.flushed)
        assert disk.flushed < 10


async def test_what_is_due_is_flushed_at_the_end_even_of_a_cancelled_run(path: Path, disk: Disk) -> None:
    with anyio.CancelScope() as scope:
        async with FileLog(path) as log:
            log.append(lines(1)[0])
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert disk.flushed == 1


async def test_a_failed_flush_breaks_a_commit_and_is_never_tried_again(path: Path, disk: Disk) -> None:
    disk.flush = broken_disk
    async with FileLog(path, "commit") as log:
        log.append(lines(1)[0])
        with pytest.raises(LogBroken, match="Input/output error"):
            await log.durable()
        with pytest.raises(LogBroken):
            log.append(lines(1, 2)[0])
        with pytest.raises(LogBroken):
            await log.durable()
    assert disk.flushed == 1
    assert read(path) == [1]


async def test_a_failed_flush_is_not_tried_again_by_who_has_not_heard_of_it(path: Path, disk: Disk) -> None:
    disk.flush = broken_disk
    async with FileLog(path, "commit") as log:
        log.append(lines(1)[0])
        with pytest.raises(LogBroken):
            await log.durable()
        log._written += 1
        log._flusher.ask_at_once(log)  # as if it came at the same moment
    await threads_end()
    assert disk.flushed == 1


async def test_a_failed_flush_behind_breaks_the_next_append(path: Path, disk: Disk) -> None:
    disk.flush = broken_disk
    async with FileLog(path) as log:
        log.append(lines(1)[0])
        await until(lambda: log._broken)
        with pytest.raises(LogBroken, match="Input/output error"):
            log.append(lines(1, 2)[0])
    assert disk.flushed == 1


async def test_a_failed_flush_that_nobody_was_told_of_is_told_at_the_end(path: Path, disk: Disk) -> None:
    disk.flush = broken_disk
    with pytest.raises(LogBroken, match="Input/output error"):
        async with FileLog(path) as log:
            log.append(lines(1)[0])
            await until(lambda: log._broken)
    with pytest.raises(LogBroken, match="Input/output error"):
        async with FileLog(path) as log:
            log.append(lines(1)[0])  # and it fails while the log is closed


async def test_one_thread_flushes_for_many_logs(tmp_path: Path, disk: Disk) -> None:
    flusher = Flusher()
    paths = [tmp_path / f"{number}.jsonl" for number in range(5)]
    async with AsyncExitStack() as stack:
        logs = [await stack.enter_async_context(FileLog(path, flusher=flusher)) for path in paths]
        for log in logs:
            log.append(lines(1)[0])
        assert [thread.name for thread in threading.enumerate()].count("gluepy-log") == 1
        await until(lambda: disk.flushed == 5)
        for log in logs:
            log.append(lines(1, 2)[0])
    assert disk.flushed == 10, "each is flushed at its end"
    async with FileLog(paths[0], flusher=flusher) as log:
        log.append(lines(1, 3)[0])
    assert read(paths[0]) == [1, 2, 3]
    flusher.end()
    await threads_end()


def flushed_up_to(log: FileLog, number: int) -> bool:
    return log._flushed == number


async def test_on_a_slow_disk_a_few_threads_flush_what_comes_at_once(tmp_path: Path, disk: Disk) -> None:
    flusher, gate, most = Flusher(), threading.Event(), 0

    def flush() -> None:
        nonlocal most
        most = max(most, [thread.name for thread in threading.enumerate()].count("gluepy-log"))
        assert gate.wait(240)

    disk.flush = flush
    flusher._took_s = 1.0  # as the flush before

    async def write(number: int) -> None:
        async with FileLog(tmp_path / str(number), "commit", flusher=flusher) as log:
            log.append(lines(1)[0])
            await log.durable()

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(write, number)
        await until(lambda: most == 8)
        gate.set()
    assert disk.flushed == 20
    async with FileLog(tmp_path / "behind", flusher=flusher) as log:
        for number in range(1, 4):
            log.append(lines(1, number)[0])  # for which the threads that help do not look
            await until(partial(flushed_up_to, log, number))
    flusher.end()
    await threads_end()


async def test_what_waits_for_company_is_flushed_while_others_want_it_at_once(tmp_path: Path, disk: Disk) -> None:
    flusher = Flusher()
    async with FileLog(tmp_path / "slow", flusher=flusher) as slow, FileLog(tmp_path / "fast", flusher=flusher) as fast:
        slow.append(lines(1)[0])
        with anyio.fail_after(120):
            number = 0
            while not slow._flushed:
                number += 1
                fast.append(lines(1, number)[0])
                await fast._flush()
    flusher.end()


async def test_a_log_that_breaks_while_it_is_flushed_is_closed_after_that(path: Path, disk: Disk) -> None:
    begun, gate = threading.Event(), threading.Event()

    def flush() -> None:
        begun.set()
        assert gate.wait(240)

    disk.flush, disk.writes = flush, {2: OSError(errno.EIO, "Input/output error")}
    before = set(os.listdir("/proc/self/fd"))
    async with FileLog(path) as log:
        log.append(lines(1)[0])
        await until(begun.is_set)
        with pytest.raises(LogBroken):
            log.append(lines(1, 2)[0])
        file = log._file
    assert os.fstat(file), "another file could have the number while this one is flushed"
    gate.set()
    await threads_end()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_log_that_is_held_stays_held_when_it_is_closed(path: Path) -> None:
    held = take(path, None, new=True)
    assert held is not None
    async with FileLog(path, held=held) as log:
        log.append(lines(1)[0])
    assert not is_free(path)
    held.release()
    assert is_free(path)
    held.release()
    assert read(path) == [1]


async def test_a_closed_log_leaves_no_thread_and_no_descriptor(path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for sync in ("batch", "commit", "none", "batch"):
        async with FileLog(path, sync) as log:
            log.append(lines(1)[0])
            await log.durable()
    await threads_end()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_log_in_memory_keeps_its_lines() -> None:
    log = MemoryLog()
    for line in lines(2):
        log.append(line)
    await log.durable()
    assert (log.lines, log.size) == (lines(2), sum(map(len, lines(2))))


def test_errors_survive_pickling() -> None:
    import pickle

    for error in (LogBroken("p", "why", "hint"), UnreadableLog("p", "why")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))
    assert str(LogBroken("p", "why", "hint")) == "cannot write p: why; hint"
    assert str(LogBroken("p", "why")) == "cannot write p: why"


# ---- reading


def test_a_reader_goes_on_where_it_was(path: Path) -> None:
    path.write_bytes(b"".join(lines(3)))
    reader = LogReader(path)
    assert [event.seq for event in reader.events(at_most=2)] == [1, 2]
    assert reader.offset == len(b"".join(lines(2)))
    assert [event.seq for event in reader.events()] == [3]
    assert list(reader.events()) == []
    with path.open("ab") as log:
        log.write(lines(1, 4)[0])
    assert [event.seq for event in reader.events()] == [4]
    assert (reader.bad, reader.gaps, reader.doubled) == (0, 0, 0)


def test_a_line_that_is_being_written_is_read_once_it_is_whole(path: Path) -> None:
    line = lines(1)[0]
    reader = LogReader(path)
    for cut in range(len(line)):
        path.write_bytes(line[:cut])
        assert list(reader.events()) == []
    path.write_bytes(line)
    assert [event.seq for event in reader.events()] == [1]


def test_every_byte_prefix_of_a_log_is_the_events_of_its_whole_lines(path: Path) -> None:
    run = next(run for seed in range(99) for run in World(seed).play().runs if 8 <= len(run.lines) < 15)
    log = b"".join(run.lines)
    events = [e.decode(line) for line in run.lines]
    ends = [len(b"".join(run.lines[:count])) for count in range(len(run.lines) + 1)]
    for cut in range(len(log) + 1):
        path.write_bytes(log[:cut])
        whole = sum(end <= cut for end in ends[1:])
        reader = LogReader(path)
        assert list(reader.events()) == events[:whole], cut
        assert (reader.bad, reader.gaps, reader.doubled) == (0, 0, 0)
        if whole and cut in (ends[whole], ends[whole] + 1):
            assert fingerprint(read_record(recorded(path)).state) == fingerprint(State.from_events(events[:whole]))


@pytest.mark.parametrize(
    "noise",
    [
        b"garbage\n",
        b"{}\n",
        b"[1,2]\n",
        b"\xff\xfe\n",
        b'{"event":"task.exploded"}\n',
        lines(1)[0][:50] + b"\n",
        b"[" * 100_000 + b"\n",
    ],
)
def test_what_is_no_event_is_passed_over_and_counted(path: Path, noise: bytes) -> None:
    path.write_bytes(lines(1)[0] + noise + lines(1, 2)[0])
    reader = LogReader(path)
    assert [event.seq for event in reader.events()] == [1, 2]
    assert (reader.bad, reader.gaps) == (1, 0)


def test_blank_lines_and_nuls_are_nothing(path: Path) -> None:
    path.write_bytes(lines(1)[0] + b"\n\x00\x00\x00\n \r\n" + b"\x00" * 4096 + lines(1, 2)[0])
    reader = LogReader(path)
    assert [event.seq for event in reader.events()] == [1, 2]
    assert reader.bad == 0


def test_missing_events_are_counted_by_their_numbers(path: Path) -> None:
    whole = lines(9)
    path.write_bytes(b"".join((whole[0], whole[1], whole[4], whole[8])))
    reader = LogReader(path)
    assert [event.seq for event in reader.events()] == [1, 2, 5, 9]
    assert reader.gaps == 5
    path.write_bytes(whole[3])
    reader = LogReader(path)
    list(reader.events())
    assert reader.gaps == 3


def test_an_event_that_stands_twice_counts_once(path: Path) -> None:
    whole = lines(3)
    path.write_bytes(b"".join((whole[0], whole[1], whole[1], whole[0], whole[2])))
    reader = LogReader(path)
    assert [event.seq for event in reader.events()] == [1, 2, 3]
    assert (reader.doubled, reader.gaps) == (2, 0)


def test_an_event_with_the_number_of_another_is_kept_and_told(path: Path) -> None:
    """As two writers leave it: neither may hide what the other one wrote."""
    whole = lines(4)
    other = e.encode(progress(2, done=5.0))
    path.write_bytes(b"".join((whole[0], whole[1], other, whole[2], other, b"\r" + whole[0], whole[3], whole[1])))
    reader = LogReader(path)
    told = list(reader.events())
    assert [event.seq for event in told] == [1, 2, 2, 3, 4]
    assert e.encode(told[2]) == other
    assert (reader.doubled, reader.gaps) == (4, 0)
    with path.open("ab") as log:
        log.write(other + e.encode(progress(4, done=6.0)) + lines(1, 5)[0])
    assert [event.seq for event in reader.events()] == [4, 5]
    assert (reader.doubled, reader.gaps) == (6, 0)


def test_an_event_out_of_its_place_is_kept(path: Path) -> None:
    whole = lines(4)
    path.write_bytes(b"".join((whole[0], whole[2], whole[1], whole[3])))
    reader = LogReader(path)
    assert [event.seq for event in reader.events()] == [1, 3, 2, 4]
    assert (reader.doubled, reader.gaps) == (0, 1)


def test_a_reader_that_begins_in_the_middle_counts_gaps_from_there(path: Path) -> None:
    whole = lines(6)
    path.write_bytes(b"".join((*whole[:4], whole[5])))
    reader = LogReader(path, len(b"".join(whole[:2])))
    assert [event.seq for event in reader.events()] == [3, 4, 6]
    assert reader.gaps == 1


def opening(kind: Any, version: int) -> bytes:
    facts: tuple[Any, ...] = (
        version,
        "9.0",
        "host",
        1,
        {"specs": [], "root": {"type": "sequence", "items": []}},
        "d",
        "c",
        {},
    )
    more: tuple[Any, ...] = ([],) if kind is e.RunResumed else ()
    return e.encode(kind(1, 1, "2026-01-01T00:00:00.000000Z", "info", "run", "dag", *facts, *more))


@pytest.mark.parametrize("kind", [e.RunStarted, e.RunResumed])
def test_a_later_schema_version_is_refused(path: Path, kind: Any) -> None:
    path.write_bytes(opening(kind, e.SCHEMA_VERSION + 1))
    with pytest.raises(UnreadableLog, match=r"schema version 2, this gluepy reads up to 1: upgrade gluepy"):
        list(LogReader(path).events())
    path.write_bytes(opening(kind, e.SCHEMA_VERSION))
    assert len(list(LogReader(path).events())) == 1


def test_a_later_schema_version_is_refused_whatever_else_it_says(path: Path) -> None:
    path.write_bytes(b'{"event":"run.started","schema_version":2,"seq":"one"}\n')
    with pytest.raises(UnreadableLog, match="upgrade gluepy"):
        read_record(recorded(path))
    for line in (b'{"event":"run.ended","schema_version":2}\n', b'{"event":"run.started","schema_version":1}\n'):
        path.write_bytes(line)
        reader = LogReader(path)
        assert list(reader.events()) == []
        assert reader.bad == 1


def test_a_log_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UnreadableLog) as caught:
            list(LogReader(path).events())
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (b"", "it has no events of a run yet"),
        (lines(1)[0], r"its events make no run: a run's events begin with run\.started"),
        (b"garbage\n" + lines(1, 4)[0], r"\(1 line is damaged, 3 lines are missing\)"),
        (opening(e.RunStarted, 1) + lines(1, 2)[0], "unknown task 'a'"),
        (opening(e.RunStarted, 1).replace(b"sequence", b"sequel"), "Invalid"),
    ],
)
def test_a_log_that_makes_no_run_is_one_kind_of_error(path: Path, log: bytes, told: str) -> None:
    path.write_bytes(log)
    with pytest.raises(UnreadableLog, match=told) as caught:
        read_record(recorded(path))
    assert caught.value.path == str(path)


def test_an_authoring_error_in_a_log_is_an_unreadable_log(path: Path) -> None:
    twice = {"type": "sequence", "items": [{"type": "task", "spec": 0}] * 2}
    graph = {"specs": [{"cls": "flows:Load", "label": "load"}], "root": twice}
    path.write_bytes(e.encode(structs.replace(e.decode(opening(e.RunStarted, 1)), graph=graph)))
    with pytest.raises(UnreadableLog, match="appears twice") as caught:
        read_record(recorded(path))
    assert caught.value.path == str(path)


def test_a_run_that_was_deleted_meanwhile_is_no_such_run(tmp_path: Path) -> None:
    with pytest.raises(UnknownRun, match="no run 'gone'"):
        read_record(Record(tmp_path, "gone"))


# ---- fuzz

# What a field may be made of: times and numbers that no clock gives, text that a terminal obeys, ids of nothing.
HOSTILE: tuple[Any, ...] = (
    "", "x", "0001-01-01T00:00:00", "9999-12-31T23:59:59.999999-23:59", "2026-01-01T00:00:00",
    "\x1b]0;owned\x07\x1b[2J",
    "\u202egpj.exe", "\ud800", -1, 0, 2**63, 2**64 - 1, 1e308, -1e308, None, True, [], {}, [[1]], [[]], {"a": -1},
)  # fmt: skip


def hostile(line: bytes, rng: random.Random) -> bytes:
    """The event of `line` with one of its fields changed, at any depth."""
    try:
        event = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError):
        return line
    at = event
    while isinstance(at, (dict, list)) and at:
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], (dict, list)) or not at[key] or rng.random() < 0.3:
            at[key] = rng.choice(HOSTILE)
            break
        at = at[key]
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def damage(log: list[bytes], rng: random.Random) -> bytes:
    """A log that has been through something."""
    log = list(log)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(log))
        match rng.randrange(7):
            case 0:
                del log[at]
            case 1:
                log.insert(rng.randrange(len(log) + 1), log[at])
            case 2:
                log[at] = log[at][: rng.randrange(len(log[at]) + 1)]
            case 3:
                cut = rng.randrange(len(log[at]) + 1)
                log[at] = log[at][:cut] + b"\x00" * rng.choice((1, 512)) + log[at][cut + rng.choice((0, 5)) :]
            case 4:
                log.insert(at, bytes(rng.randrange(256) for _ in range(rng.randrange(60))) + b"\n")
            case 5:
                for _ in range(rng.choice((1, 1, 8))):
                    line = bytearray(log[at])
                    if line:
                        line[rng.randrange(len(line))] ^= 1 << rng.randrange(8)
                    log[at] = bytes(line)
            case 6:
                log[at] = hostile(log[at], rng)
        if not log:
            return b""
    return b"".join(log)


def logs() -> Iterator[list[bytes]]:
    for seed in range(40):
        for run in World(seed).play().runs:
            if len(run.lines) < 60:
                yield run.lines


def recorded(path: Path) -> Record:
    """The record whose log is `path`."""
    return Record(path.parent.parent, path.parent.name)


def told(record: Record) -> None:
    """Look at a run in every way that there is."""
    found = RunReport.from_record(record, SETTINGS)
    text = [*run_text(found, False), *timeline_text(found.timeline, False), *failure_text(found.failures, False)]
    assert not any(re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", line) for line in text)
    msgspec.json.encode(found.to_json())


def fuzz(path: Path, first: int, count: int, look: Callable[[Record], object] = read_record) -> int:
    """How many of the damaged logs could still be read."""
    sound = list(logs())
    readable = 0
    for seed in range(first, first + count):
        rng = random.Random(seed)
        path.write_bytes(damage(rng.choice(sound), rng))
        try:
            look(recorded(path))
        except UnreadableLog:
            continue
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        readable += 1
    return readable


def test_a_damaged_log_is_read_or_refused_with_one_kind_of_error(path: Path) -> None:
    assert FUZZED / 4 < fuzz(path, 0, FUZZED) < FUZZED


def test_a_damaged_log_is_told_whatever_it_holds(path: Path) -> None:
    assert fuzz(path, 0, FUZZED // 8, told) > 0


def test_damaged_logs_keep_no_other_run_from_being_listed(tmp_path: Path) -> None:
    sound, count = list(logs()), FUZZED // 16
    for seed in range(count):
        log = tmp_path / f"run-{seed}/events.jsonl"
        log.parent.mkdir()
        rng = random.Random(seed)
        log.write_bytes(damage(rng.choice(sound), rng) or b"\n")
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound/events.jsonl").write_bytes(b"".join(sound[0]))
    (tmp_path / "folder/events.jsonl").mkdir(parents=True)
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))).mkdir()
    with Index(tmp_path) as index:
        runs = {run.run_id: run for run in index.runs()}
    assert len(runs) == count + 2
    assert runs["sound"].status != "unreadable"
    unreadable = [run for run in runs.values() if run.status == "unreadable"]
    assert unreadable
    for run in unreadable:
        assert str(tmp_path / run.run_id / "events.jsonl") in run.problem
    msgspec.json.encode(list(runs.values()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("first", range(FUZZED, EXHAUSTIVE, CHUNK))
def test_many_damaged_logs_are_read_or_refused(path: Path, first: int) -> None:
    fuzz(path, first, min(CHUNK, EXHAUSTIVE - first))


@given(st.lists(st.binary(max_size=80) | st.sampled_from(lines(3)), max_size=8))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_at_all_can_be_read(tmp_path: Path, parts: list[bytes]) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\n".join(parts))
    reader = LogReader(path)
    told = [e.encode(event) for event in reader.events()]
    assert len(told) == len(set(told))
    assert reader.bad <= path.read_bytes().count(b"\n")
