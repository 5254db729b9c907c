"""Deleting old records."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from gluepy.runs.index import RunSummary
from gluepy.runs.record import Record


def prunable(runs: Sequence[RunSummary], keep: int | None, before: str | None) -> list[RunSummary]:
    """Which of `runs`, newest first, go: those beyond the newest `keep`, and those that started before the timestamp
    `before`; with both, those that meet both. Never one that is running, nor one of which it is not known when it
    started."""
    chosen = []
    for place, run in enumerate(runs):
        too_many = keep is not None and place >= keep
        too_old = before is not None and run.started_at < before
        wanted = (too_many or keep is None) and (too_old or before is None)
        if wanted and run.status != "running" and run.started_at:
            chosen.append(run)
    return chosen


def delete(root: Path, run_id: str) -> None:
    """Delete the record of a run, holding it: raises `RunLocked` when a driver has taken it up. Files of tasks stay.

    The events go last, so that what an interrupted call leaves is still a record, and can be deleted again.
    """
    record = Record(root, run_id)
    with record.lock():
        for entry in sorted(record.path.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry not in (record.events, record.path / "run.lock"):
                entry.unlink(missing_ok=True)
        record.events.unlink(missing_ok=True)
        shutil.rmtree(record.path)
