"""Drivers that die at any point of any write: nothing is lost, and nothing that has finished runs again.

Drivers are forked, and die by `os._exit` in the middle of what they write; `test_kill_and_resume.py` has the real
command line and `kill -9`. `crash_chains` and `cuts` say what is required.
"""

from __future__ import annotations

import os
import random

import pytest
from forking import from_pytest
from shapes import SHAPES

CRASHES = int(os.environ.get("GLUEPY_TEST_CRASHES", "100"))  # on both back ends together
ALL_CRASHES = int(os.environ.get("GLUEPY_TEST_ALL_CRASHES", "10000"))
SHARE = 500  # crashes a test of the exhaustive ones
ALWAYS = {"dynamic each": "asyncio", "retries": "trio"}
WHERE = {"before", "within", "after", "note"}


def crash(backend: str, crashes: int, seed: int, within_s: float) -> None:
    told = from_pytest("crash_chains:crash_chains", within_s, backend=backend, crashes=crashes, seed=seed)
    assert sum(told["died"].values()) == crashes
    assert set(told["died"]) == WHERE, "some kind of crash never came"
    assert told["resuming"] > crashes / 3


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_drivers_that_die_anywhere_lose_nothing_and_repeat_nothing_finished(backend: str) -> None:
    crash(backend, CRASHES // 2, seed=7, within_s=590)


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("share", range(ALL_CRASHES // (2 * SHARE)))
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_drivers_that_die_anywhere_lose_nothing_ever(backend: str, share: int) -> None:
    crash(backend, SHARE, seed=random.randrange(1 << 32), within_s=1190)


@pytest.mark.parametrize(("shape", "backend"), ALWAYS.items())
def test_a_run_ends_as_if_undisturbed_from_wherever_its_driver_died(shape: str, backend: str) -> None:
    (cuts,) = from_pytest("cuts:cut_everywhere", 590, backend=backend, names=[shape]).values()
    assert cuts >= 60


@pytest.mark.exhaustive
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_of_any_shape_ends_as_if_undisturbed(shape: str, backend: str) -> None:
    (cuts,) = from_pytest("cuts:cut_everywhere", 590, backend=backend, names=[shape]).values()
    assert cuts >= 40
