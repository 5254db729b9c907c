"""Reports as tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from gluepy.core.events import JSON

T = TypeVar("T")


class Rows(list[T]):
    """A list of reports, and a table: `polars.DataFrame(rows.to_dicts())`, `pandas.DataFrame(rows.to_dicts())`."""

    def to_dicts(self) -> list[dict[str, JSON]]:
        """Each as a plain dict; all have the same keys, but for events, which have those of their line in the log."""
        return _dicts(self)


class NamedRows(dict[str, T]):
    """Reports by their names, and a table."""

    def to_dicts(self) -> list[dict[str, JSON]]:
        """Each as a plain dict, with the same keys."""
        return _dicts(self.values())


class Parameters(dict[str, JSON]):
    """Parameters by their dotted names."""

    def to_dicts(self) -> list[dict[str, JSON]]:
        """One dict a parameter, with `name` and `value`."""
        return [{"name": name, "value": value} for name, value in self.items()]


def _dicts(rows: Iterable[object]) -> list[dict[str, JSON]]:
    found = []
    for row in rows:
        to_dict = getattr(row, "to_dict", None)
        found.append(msgspec.to_builtins(row) if to_dict is None else to_dict())
    return found
