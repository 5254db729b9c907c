"""The datasets that the tasks of a run have read and written by name."""

from __future__ import annotations

import msgspec

from gluepy.core import events as e
from gluepy.core.events import JSON
from gluepy.core.state import State
from gluepy.report.rows import Rows


class DatasetReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a task last read (or, if `written`, wrote) under a name: the fields are those of `dataset.read`."""

    task: str
    attempt: int
    written: bool
    dataset: str
    url: str
    bytes: int
    rows: int | None
    columns: dict[str, str] | None
    fingerprint: str
    timestamp: str

    @classmethod
    def from_event(cls, event: e.DatasetRead | e.DatasetWritten) -> DatasetReport:
        """Of an event."""
        return cls(
            task=event.task,
            attempt=event.attempt,
            written=isinstance(event, e.DatasetWritten),
            dataset=event.dataset,
            url=event.url,
            bytes=event.bytes,
            rows=event.rows,
            columns=event.columns,
            fingerprint=event.fingerprint,
            timestamp=event.timestamp,
        )

    def to_dict(self) -> dict[str, JSON]:
        """All fields."""
        return {name: getattr(self, name) for name in self.__struct_fields__}

    def to_json(self) -> dict[str, JSON]:
        """As `gluepy data --json` prints it."""
        return self.to_dict()


def datasets_in(state: State) -> Rows[DatasetReport]:
    """The datasets of a run, in the order of its tasks."""
    found: Rows[DatasetReport] = Rows()
    for node in sorted(state.datasets):
        found.extend(DatasetReport.from_event(event) for event in state.datasets[node].values())
    return found


def dataset_change(before: DatasetReport | None, after: DatasetReport | None) -> list[str]:
    """In what the contents of a dataset differ, in words; nothing if they are the same, as far as it was recorded."""
    if before is None or after is None:
        return ["it was not written before" if before is None else "it is not written any more"]
    if before.fingerprint == after.fingerprint:
        return []
    words = []
    if before.rows != after.rows and None not in (before.rows, after.rows):
        words.append(f"rows {before.rows:,} → {after.rows:,}")
    old, new = before.columns or {}, after.columns or {}
    if before.columns is not None and after.columns is not None:
        added, gone = [name for name in new if name not in old], [name for name in old if name not in new]
        words += [f"columns more: {', '.join(added)}"] if added else []
        words += [f"columns less: {', '.join(gone)}"] if gone else []
        other = [f"{name} {old[name]} → {kind}" for name, kind in new.items() if name in old and old[name] != kind]
        words += [f"types: {', '.join(other)}"] if other else []
    if before.bytes != after.bytes:
        words.append(f"bytes {before.bytes:,} → {after.bytes:,}")
    return words or ["the contents differ"]
