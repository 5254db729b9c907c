"""What the tests of worker processes share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from workers import HERE, Started


@pytest.fixture
def importable_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the functions of `process_calls`."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.fixture
def nothing_is_left_behind(started: Started) -> Iterator[None]:
    """Fails a test that leaves a process."""
    yield
    assert started() == []
