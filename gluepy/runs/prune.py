"""Deleting old records."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gluepy.runs.index import RunSummary
from gluepy.runs.record import Record

_AWAY = ".pruned-"  # what a record's name begins with, once it is no run any more


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


@contextmanager
def deleted(root: Path, run_id: str) -> Iterator[None]:
    """Make the run unknown, and delete its record after the block.

    Raises `RunLocked` when a driver has taken the run up, `UnknownRun` when somebody else has deleted it, `OSError`
    when it cannot be deleted. After an error in the block the run is known as before. Of a record that is a link, the
    link goes, and what it leads to stays as it is.
    """
    record = Record(root, run_id)
    away = root / f"{_AWAY}{os.urandom(6).hex()}"
    with record.held():
        os.rename(record.path, away)  # whole: nobody ever finds a part of a record, nor resumes one
    try:
        yield
    except Exception:
        os.rename(away, record.path)
        raise
    _remove(away)


def sweep(root: Path) -> None:
    """Delete what calls that were interrupted have left."""
    for away in root.glob(f"{_AWAY}*"):
        with suppress(OSError):  # the next call tries again
            _remove(away)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    while path.is_dir():
        with suppress(FileNotFoundError):  # another call sweeps it at the same time
            shutil.rmtree(path)
