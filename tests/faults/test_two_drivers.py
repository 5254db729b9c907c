"""Two drivers that resume one run at the same moment: one drives it, the other is refused."""

from __future__ import annotations

import os
import random

import pytest
from forking import from_pytest

RACES = int(os.environ.get("GLUEPY_TEST_RESUME_RACES", "10"))  # on both back ends together
ALL_RACES = int(os.environ.get("GLUEPY_TEST_ALL_RESUME_RACES", "1000"))


def race(backend: str, races: int, seed: int, within_s: float, *, gated: bool = True) -> dict[str, int]:
    told = from_pytest("races:race_resumes", within_s, backend=backend, races=races, seed=seed, gated=gated)
    assert told["refused"] + told["after"] == races
    return dict(told)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_of_two_drivers_that_resume_a_run_at_once_one_drives_it_and_the_other_is_refused(backend: str) -> None:
    assert race(backend, RACES // 2, seed=3, within_s=55)["after"] == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_driver_that_gets_the_run_when_another_has_just_ended_it_repeats_nothing(backend: str) -> None:
    race(backend, RACES // 4, seed=4, within_s=55, gated=False)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_of_any_two_drivers_one_drives_the_run(backend: str, gated: bool) -> None:
    race(backend, ALL_RACES // 2, seed=random.randrange(1 << 32), within_s=890, gated=gated)
