"""Policies of tasks and runs: retries with back-off, triggers, what a failure does to the rest."""

from __future__ import annotations

import zlib
from typing import Any, Literal

import msgspec

Trigger = Literal["all_success", "none_failed", "none_failed_min_one_success", "all_done", "one_failed"]
OnFailure = Literal["drain", "continue", "cancel"]
Pool = Literal["loop", "thread", "process"]


class Retry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How often and when a failed attempt is tried again.

    `attempts` counts the first one too. Attempt n + 1 waits `wait_s * factor ** (n - 1)` seconds, at most
    `max_wait_s`, spread by up to `jitter` of itself either way. `on` names the exception classes that are worth
    another attempt (subclasses too): a tuple of them, or a single one; empty means every failure.
    """

    attempts: int = 3
    wait_s: float = 1.0
    factor: float = 2.0
    max_wait_s: float = 60.0
    jitter: float = 0.1
    on: Any = ()  # exception classes, made a tuple; they stay in the process that has the task's code

    def __post_init__(self) -> None:
        on = tuple(self.on) if isinstance(self.on, (tuple, list, set, frozenset)) else (self.on,)
        msgspec.structs.force_setattr(self, "on", on)
        numbers = (self.attempts, self.wait_s, self.factor, self.max_wait_s, self.jitter)
        if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers) or not (
            isinstance(self.attempts, int)
            and self.attempts >= 1
            and self.wait_s >= 0
            and self.factor > 0
            and self.max_wait_s >= 0
            and 0 <= self.jitter <= 1
        ):
            given = "attempts={!r}, wait_s={!r}, factor={!r}, max_wait_s={!r}, jitter={!r}".format(*numbers)
            raise ValueError(
                "Retry: attempts must be a positive whole number, factor a positive number, wait_s and max_wait_s 0 or "
                f"positive numbers, jitter a number between 0 and 1; it was given {given}"
            )

    def delay_s(self, failed: int, key: str) -> float:
        """Seconds to wait after attempt number `failed`.

        The jitter is drawn from `key`, not from a generator: the same run, task and attempt wait the same time, so a
        run can be replayed.
        """
        try:
            wait = min(self.wait_s * self.factor ** (failed - 1), self.max_wait_s)
        except OverflowError:
            wait = self.max_wait_s
        spread = zlib.crc32(f"{key}:{failed}".encode()) / 0xFFFFFFFF * 2 - 1
        return max(0.0, wait * (1 + self.jitter * spread))


NO_RETRY = Retry(attempts=1)


class Goal(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which values of a metric are `better`, the lower or the higher ones. One that is worse than another by no more
    than `tolerance` counts as good as that."""

    better: Literal["lower", "higher"]
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        is_number = isinstance(self.tolerance, (int, float)) and not isinstance(self.tolerance, bool)
        if self.better not in ("lower", "higher") or not (is_number and 0 <= self.tolerance < float("inf")):
            raise ValueError(
                "Goal: better must be 'lower' or 'higher', and tolerance 0 or a positive number; it was given "
                f"better={self.better!r}, tolerance={self.tolerance!r}"
            )

    def is_worse(self, value: float | None, than: float) -> bool:
        """Whether `value`, if there is one, is worse `than` another beyond the tolerance."""
        if value is None:
            return True
        lost = value - than if self.better == "lower" else than - value
        return lost > self.tolerance


def judge(
    trigger: Trigger, *, bad: bool, skipped: bool, finished: bool
) -> Literal["start", "upstream", "trigger", "blocked"]:
    """What becomes of a task whose direct predecessors have all ended, some of them badly, skipped or finished, as the
    table at the head of `core.scheduler` says: it starts, is skipped for one of two reasons, or is blocked."""
    match trigger:
        case "all_done":
            return "start"
        case "one_failed":
            return "start" if bad else "trigger"
        case "none_failed":
            return "blocked" if bad else "start"
        case "none_failed_min_one_success":
            return "blocked" if bad else "upstream" if skipped and not finished else "start"
        case "all_success":
            return "blocked" if bad else "upstream" if skipped else "start"
