"""An index over the records of runs: what `runs` lists. Thrown away at will.

A SQLite file beside the records. `Index.refresh` looks at the size of every log and folds those that have grown; all
that it knows comes from the logs, so deleting it loses nothing.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

import msgspec

from gluepy.clock import seconds_of
from gluepy.core.events import JSON, Event
from gluepy.core.state import FAILED
from gluepy.errors import UnknownRun
from gluepy.runs.log import UnreadableLog
from gluepy.runs.reading import read_record
from gluepy.runs.record import Record, is_run_name

_VERSION = 4
_MOST = 2**63 - 1  # what SQLite can count up to
_SCHEMA = """
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, size INTEGER, dag TEXT, status TEXT, started_at TEXT, duration_s REAL, sessions INTEGER,
    tasks INTEGER, counts TEXT, failed TEXT, problem TEXT, last_at TEXT
);
CREATE INDEX runs_by_age ON runs (started_at DESC, run_id DESC);
"""
_INSERT_RUN = "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class RunSummary(msgspec.Struct, frozen=True):
    """One line of `runs`. `status` is finished, failed or cancelled; running while a driver holds the run;
    interrupted when it has no end and no driver (as are then in `counts` the tasks that ran); unreadable (`problem`
    says where and why) when its log cannot be read. `duration_s` is how long its sessions took together, or have
    taken."""

    run_id: str
    dag: str
    status: str
    started_at: str
    duration_s: float
    sessions: int
    tasks: int
    counts: dict[str, int]
    failed: list[str]
    problem: str = ""

    def to_json(self) -> dict[str, JSON]:
        """As `gluepy runs --json` has it."""
        return {name: getattr(self, name) for name in self.__struct_fields__}

    to_dict = to_json


class Index:
    """The index of the records in `root`. A context manager; entering it refreshes the index.

    Where the folder cannot be written, the index is kept in memory for this once.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._db: sqlite3.Connection

    def __enter__(self) -> Self:
        file = self.root / "index.sqlite"
        try:
            self._open(file)
        except sqlite3.OperationalError:  # read-only, or locked for long
            self._open(":memory:")
        except sqlite3.DatabaseError:  # damaged: it is only an index
            file.unlink(missing_ok=True)
            self._open(file)
        return self

    def __exit__(self, *exc: object) -> None:
        self._db.close()

    def refresh(self) -> None:
        """Take in what has happened since the last time."""
        known = dict(self._db.execute("SELECT run_id, size FROM runs"))
        sizes = dict(self._sizes())
        grown = [run_id for run_id, size in sizes.items() if known.get(run_id) != size]
        gone = [run_id for run_id in known if run_id not in sizes]
        if not grown and not gone:
            return
        with self._db:
            for run_id in (*grown, *gone):
                self._db.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))
            for run_id in grown:
                self._take(run_id, sizes[run_id])

    def runs(
        self,
        dag: str | None = None,
        status: str | None = None,
        at_most: int = 0,
        *,
        since: str | None = None,
        after: tuple[str, str] | None = None,
    ) -> list[RunSummary]:
        """The runs, newest first; of one DAG, with one status, at most so many (0: all); that started at `since` or
        later, as the log writes timestamps; that come `after` the one with this `started_at` and `run_id`."""
        where, values = ["TRUE"], list[str]()
        if dag is not None:
            where, values = [*where, "dag = ?"], [*values, dag]
        if status is not None:
            where, values = [*where, "status = ?"], [*values, "running" if status == "interrupted" else status]
        if since is not None:
            where, values = [*where, "started_at >= ?"], [*values, since]
        if after is not None:
            where, values = [*where, "(started_at, run_id) < (?, ?)"], [*values, *after]
        now = time.time()
        found = []
        columns = "run_id, dag, status, started_at, duration_s, sessions, tasks, counts, failed, problem, last_at"
        order = "ORDER BY started_at DESC, run_id DESC"
        query = f"SELECT {columns} FROM runs WHERE {' AND '.join(where)} {order}"  # noqa: S608  # all of it is named here
        for row in self._db.execute(query, values):
            summary = self._summary(row, now)
            if status is None or summary.status == status:
                found.append(summary)
                if len(found) == at_most:
                    break
        return found

    def _open(self, where: Path | str) -> None:
        if isinstance(where, Path):
            with suppress(OSError):  # SQLite tells
                os.close(os.open(where, os.O_RDWR | os.O_CREAT, 0o600))  # ids of tasks have values of parameters
        self._db = sqlite3.connect(where, timeout=10)
        try:
            self._prepare(self._db)
            self.refresh()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version != _VERSION:
            with closing(db.cursor()) as cursor:
                for (name,) in list(cursor.execute("SELECT name FROM sqlite_master WHERE type = 'table'")):
                    cursor.execute(f"DROP TABLE {name}")
                cursor.executescript(f"{_SCHEMA} PRAGMA user_version = {_VERSION};")
        db.execute("PRAGMA synchronous = OFF")

    def _sizes(self) -> Iterator[tuple[str, int]]:
        try:
            with os.scandir(self.root) as entries:
                for entry in entries:
                    if not is_run_name(entry.name):
                        continue
                    try:
                        size = os.stat(f"{entry.path}/events.jsonl").st_size
                    except OSError:
                        continue
                    if size or not Record(self.root, entry.name).is_held():  # else it is just being made
                        yield entry.name, size
        except FileNotFoundError:
            return

    def _take(self, run_id: str, size: int) -> None:
        record, started_at = Record(self.root, run_id), ""

        def see(event: Event) -> None:
            nonlocal started_at
            started_at = started_at or event.timestamp

        try:
            state = read_record(record, see=see).state
        except UnknownRun:
            return  # deleted just now
        except UnreadableLog as problem:
            row: Sequence[Any] = (run_id, size, "", "unreadable", started_at, 0.0, 0, 0, "{}", "[]", str(problem), "")
        else:
            graph, status = state.graph, state.status
            failed = [graph.task_id(node) for node in graph.tasks() if status[node] == FAILED]
            row = (
                run_id,
                size,
                state.dag,
                state.run,
                state.started_at,
                min(state.lasted_s(), sys.float_info.max),
                min(state.session, _MOST),
                len(graph.index),
                msgspec.json.encode(state.counts()).decode(),
                msgspec.json.encode(failed).decode(),
                "",
                state.last_at,
            )
        self._db.execute(_INSERT_RUN, row)

    def _summary(self, row: Sequence[Any], now: float) -> RunSummary:
        run_id, dag, status, started_at, duration_s, sessions, tasks, counts, failed, problem, last_at = row
        counts = msgspec.json.decode(counts, type=dict[str, int])
        if status == "running":
            if Record(self.root, run_id).is_held():
                duration_s += max(0.0, now - (seconds_of(last_at) or now))
            else:
                status = "interrupted"
            counts = {status if word == "running" else word: number for word, number in counts.items()}
        return RunSummary(
            run_id,
            dag,
            status,
            started_at,
            duration_s,
            sessions,
            tasks,
            counts,
            msgspec.json.decode(failed, type=list[str]),
            problem,
        )
