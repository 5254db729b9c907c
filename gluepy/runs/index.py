"""An index over the records of runs: what `runs` lists. Thrown away at will.

A SQLite file beside the records. `Index.refresh` looks at the size of every log and folds those that have grown; all
that it knows comes from the logs, so deleting it loses nothing.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import msgspec

from gluepy.core.state import FAILED, State
from gluepy.runs.log import LogReader, UnreadableLog
from gluepy.runs.record import Record

_VERSION = 1
_SCHEMA = """
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, size INTEGER, dag TEXT, status TEXT, started_at TEXT, duration_s REAL, sessions INTEGER,
    tasks INTEGER, counts TEXT, failed TEXT, problem TEXT
);
CREATE INDEX runs_by_dag ON runs (dag, run_id);
"""


_INSERT_RUN = "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class RunSummary(msgspec.Struct, frozen=True):
    """One line of `runs`. `status` is finished, failed or cancelled; running while a driver holds the run;
    interrupted when it has no end and no driver; unreadable (`problem` says why) when its log cannot be read."""

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


class Index:
    """The index of the records in `root`. A context manager; entering it refreshes the index.

    Where the folder cannot be written, the index is kept in memory for this once.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._db: sqlite3.Connection

    def __enter__(self) -> Self:
        self._db = self._opened()
        self.refresh()
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

    def runs(self, dag: str | None = None, status: str | None = None, at_most: int = 0) -> list[RunSummary]:
        """The runs, newest first; of one DAG, with one status, at most so many (0: all)."""
        where, values = ("WHERE dag = ?", (dag,)) if dag is not None else ("", ())
        found = []
        columns = "run_id, dag, status, started_at, duration_s, sessions, tasks, counts, failed, problem"
        for row in self._db.execute(f"SELECT {columns} FROM runs {where} ORDER BY run_id DESC", values):  # noqa: S608
            summary = self._summary(row)
            if status is None or summary.status == status:
                found.append(summary)
                if len(found) == at_most:
                    break
        return found

    def _opened(self) -> sqlite3.Connection:
        file = self.root / "index.sqlite"
        try:
            return self._prepared(file)
        except sqlite3.OperationalError:  # read-only, or locked for long
            return self._prepared(":memory:")
        except sqlite3.DatabaseError:  # damaged: it is only an index
            file.unlink(missing_ok=True)
            return self._prepared(file)

    def _prepared(self, where: Path | str) -> sqlite3.Connection:
        db = sqlite3.connect(where, timeout=10)
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version != _VERSION:
            with closing(db.cursor()) as cursor:
                for (name,) in list(cursor.execute("SELECT name FROM sqlite_master WHERE type = 'table'")):
                    cursor.execute(f"DROP TABLE {name}")
                cursor.executescript(f"{_SCHEMA} PRAGMA user_version = {_VERSION};")
        db.execute("PRAGMA synchronous = OFF")
        return db

    def _sizes(self) -> Iterator[tuple[str, int]]:
        try:
            with os.scandir(self.root) as entries:
                for entry in entries:
                    try:
                        yield entry.name, os.stat(f"{entry.path}/events.jsonl").st_size
                    except OSError:
                        continue
        except FileNotFoundError:
            return

    def _take(self, run_id: str, size: int) -> None:
        reader = LogReader(self.root / run_id / "events.jsonl")
        try:
            state = State.of(reader.events())
        except (UnreadableLog, ValueError, KeyError) as problem:
            row: Sequence[Any] = (run_id, size, "", "unreadable", "", 0.0, 0, 0, "{}", "[]", str(problem))
            self._db.execute(_INSERT_RUN, row)
            return
        graph, status = state.graph, state.status
        failed = [graph.id(node) for node in graph.tasks() if status[node] == FAILED]
        row = (
            run_id,
            size,
            state.dag,
            state.run,
            state.started_at,
            state.run_duration_s,
            state.session,
            len(graph.index),
            msgspec.json.encode(state.counts()).decode(),
            msgspec.json.encode(failed).decode(),
            "",
        )
        self._db.execute(_INSERT_RUN, row)

    def _summary(self, row: Sequence[Any]) -> RunSummary:
        run_id, dag, status, started_at, duration_s, sessions, tasks, counts, failed, problem = row
        if status == "running":
            status = "running" if Record(self.root, run_id).is_held() else "interrupted"
        return RunSummary(
            run_id,
            dag,
            status,
            started_at,
            duration_s,
            sessions,
            tasks,
            msgspec.json.decode(counts, type=dict[str, int]),
            msgspec.json.decode(failed, type=list[str]),
            problem,
        )
