"""Ids that other systems know a run and its attempts by. They are derived, never drawn: what is sent twice, live and
again from the record, has the same ids."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uuid


def run_uuid(run_id: str) -> uuid.UUID:
    """The run's id itself where it is a UUID, as it is unless somebody named the run; else one derived from it."""
    import uuid  # runs that nobody else knows do without it

    try:
        return uuid.UUID(run_id)
    except ValueError:
        return derived_uuid(run_id)


def derived_uuid(run_id: str, *parts: str | int) -> uuid.UUID:
    """A UUID of a part of the run: `derived_uuid(run_id, "task", task, attempt)`."""
    import uuid

    return uuid.UUID(bytes=derived(16, run_id, *parts), version=5)


def derived(size: int, *parts: str | int) -> bytes:
    """`size` bytes (up to 64) that are the same for the same parts, and different for others."""
    told = "".join(f"{len(text)}:{text}" for text in map(str, parts))
    return blake2b(told.encode("utf-8", "surrogatepass"), digest_size=size).digest()
