"""Retries: how long a task waits for its next attempt."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gluepy.core.policy import NO_RETRY, Retry


def test_waits_grow_by_the_factor_up_to_the_most() -> None:
    retry = Retry(attempts=9, wait_s=1.0, factor=2.0, max_wait_s=10.0, jitter=0.0)
    assert [retry.delay_s(failed, "k") for failed in range(1, 7)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_the_same_key_waits_the_same_time_and_others_spread() -> None:
    retry = Retry(wait_s=10.0, jitter=0.1)
    assert retry.delay_s(1, "run:task") == retry.delay_s(1, "run:task")
    spread = [retry.delay_s(1, f"run:task{number}") for number in range(200)]
    assert min(spread) < 9.3
    assert max(spread) > 10.7
    assert abs(sum(spread) / len(spread) - 10.0) < 0.2


@given(
    st.integers(1, 10**9),
    st.floats(0, 1e6),
    st.floats(1e-3, 1e6),
    st.floats(0, 1e9),
    st.floats(0, 1),
    st.text(alphabet="abc:0", max_size=5),
)
def test_a_wait_is_never_negative_and_never_more_than_the_most_and_its_jitter(
    failed: int, wait_s: float, factor: float, max_wait_s: float, jitter: float, key: str
) -> None:
    retry = Retry(wait_s=wait_s, factor=factor, max_wait_s=max_wait_s, jitter=jitter)
    delay_s = retry.delay_s(failed, key)
    assert 0 <= delay_s <= max_wait_s * (1 + jitter) + 1e-9
    assert math.isfinite(delay_s)


def test_a_wait_beyond_all_numbers_is_the_most() -> None:
    assert Retry(factor=1e300, jitter=0.0).delay_s(10**6, "k") == 60.0


@pytest.mark.parametrize(
    "wrong",
    [{"attempts": 0}, {"wait_s": -1.0}, {"factor": 0.0}, {"max_wait_s": -1.0}, {"jitter": 1.5}, {"jitter": -0.1}],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="attempts must be a positive whole number"):
        Retry(**wrong)


def test_without_a_policy_there_is_one_attempt() -> None:
    assert NO_RETRY.attempts == 1
