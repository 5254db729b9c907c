"""Nothing of a sink is left when its test ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_sink_is_left_behind() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 60
    while (left := [each for each in threading.enumerate() if each.name.startswith("gluepy")]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.01)
    assert left == []
