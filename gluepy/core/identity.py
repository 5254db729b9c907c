"""Ids that other systems know a run and its attempts by. They are derived, never drawn: what is sent twice, live and
again from the record, has the same ids."""

from __future__ import annotations

import uuid
from hashlib import blake2b

_NAMESPACE = uuid.UUID("6b1d2f0e-8a55-5c0b-9d0b-6c7565707921")


def run_uuid(run_id: str) -> uuid.UUID:
    """The run's id itself where it is a UUID, as it is unless somebody named the run; else one derived from it."""
    try:
        return uuid.UUID(run_id)
    except ValueError:
        return uuid.uuid5(_NAMESPACE, run_id)


def derived_uuid(run_id: str, *parts: str | int) -> uuid.UUID:
    """A UUID of a part of the run: `derived_uuid(run_id, "task", task, attempt)`."""
    return uuid.UUID(bytes=derived(16, run_id, *parts), version=5)


def derived(size: int, *parts: str | int) -> bytes:
    """`size` bytes (up to 64) that are the same for the same parts, and different for others."""
    told = "".join(f"{len(text)}:{text}" for text in map(str, parts))
    return blake2b(told.encode("utf-8", "surrogatepass"), digest_size=size).digest()
