"""Runs in a folder of the test's own, and nothing left when it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from steps import Go, Notes
from turns import Validated

from gluepy.conf.schema import Settings
from gluepy.runtime import session


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(folder: Path, started: Callable[[], list[psutil.Process]]) -> Iterator[None]:
    def left() -> list[object]:
        return [*(thread for thread in threading.enumerate() if thread.name.startswith("gluepy")), *started()]

    yield
    deadline = time.monotonic() + 60
    while left() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left() == []


@pytest.fixture(autouse=True)
def _engines_are_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "Engine", Validated)


@pytest.fixture
def notes(folder: Path) -> Notes:
    return Notes(folder / "data")


@pytest.fixture
def go(settings: Settings) -> Go:
    return Go(settings)
