"""Secrets are in no log, no event and nothing that subscribers get, wherever the task runs."""

from __future__ import annotations

from typing import Any

import pytest
from secretive import KEY, SECRET, LoopTells, OwnToken, ProcessDies, ProcessSkips, ProcessTells, Skips, Tells
from steps import Go, dag_of
from test_capture import logging_of_a_fresh_program

from gluepy import RunError, Task
from gluepy.core.events import TaskFailed, TaskMetric, TaskSkipped, encode
from gluepy.exec.executors.lines import LINE_LENGTH
from gluepy.runtime import RunResult
from gluepy.testing import events_of

PARAMS: dict[str, Any] = {
    "db": {"password": SECRET, "host": "db.example"},
    "private_key": KEY,
    "pin_secret": 87654321,
    "flag_token": "true",
    "short_secret": "abc",
}
TOLD = (SECRET, "MIIEvgIBADANBg", "kqhkiG9w0BAQEF", "from-the-environment", "rosebud", " 87654321")


async def run(go: Go, *tasks: Any, **options: Any) -> tuple[RunResult, str]:
    """The result, and all that was told: events, live ones too, and log files."""
    told = []
    with logging_of_a_fresh_program():
        async with go.runtime() as runtime:
            options = {"params": PARAMS, "capture": True, "check": False, **options}
            async with runtime.stream_dag(dag_of(*tasks), **options) as streaming:
                told += [encode(event).decode() async for event in streaming if event.seq > 1]
                result = await streaming.result()
    told += [log.read_text() for log in (result.path / "logs").iterdir()]
    return result, "\n".join(told)


@pytest.mark.parametrize("kind", [Tells, LoopTells, ProcessTells])
async def test_secrets_are_masked_wherever_a_task_tells_them(
    go: Go, kind: type[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_API_TOKEN", "from-the-environment")
    result, told = await run(go, kind)
    for secret in TOLD:
        assert secret not in told, told
    (log,) = (result.path / "logs").iterdir()
    lines = log.read_text().splitlines()
    for line in (
        "printed ***",
        "split ***",
        "err '***'",
        "drawn at last ***",
        "number *** 187654321",
        "environment ***",
        "unknown password=***; url https://me:***@host/x?token=***&page=2",
        "KeyError: '***'",
        "ValueError: cannot log in with *** or",
    ):
        assert line in lines
    assert any("structured password=*** secret=***" in line for line in lines)
    assert any("logged ***" in line for line in lines)
    (failed,) = (event for event in events_of(result) if isinstance(event, TaskFailed))
    assert failed.error_message.startswith("cannot log in with *** or\n")
    assert "KeyError: '***'" in (failed.error_stack or "")
    (metric,) = (event for event in events_of(result) if isinstance(event, TaskMetric))
    assert metric.name == "metric-***"


class Straddles(Task):
    """Prints a line that is too long, with the secret wherever the cut may be."""

    def run(self) -> None:
        secret = self.context.db.password
        for before in range(0, 2 * len(secret), 3):
            text = "x" * (LINE_LENGTH // 2 - before) + secret + "y" * LINE_LENGTH + secret
            print(text + "z" * (LINE_LENGTH // 2 - before))


class ProcessStraddles(Straddles):
    pool = "process"


@pytest.mark.parametrize("kind", [Straddles, ProcessStraddles])
async def test_no_part_of_a_secret_is_left_where_a_long_line_is_cut(go: Go, kind: type[Task]) -> None:
    _, told = await run(go, kind)
    assert "left out" in told
    for size in range(3, len(SECRET)):
        assert f"x{SECRET[:size]}" not in told
        assert f"{SECRET[-size:]}z" not in told


@pytest.mark.parametrize("capture", [True, False])
async def test_error_that_run_dag_raises_tells_no_secret_either(go: Go, capture: bool) -> None:
    with pytest.raises(RunError) as raised:
        await go(Tells, params=PARAMS, capture=capture, check=True)
    (error,) = raised.value.exceptions
    assert SECRET not in str(error)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("kind", [Skips, ProcessSkips])
async def test_reason_of_a_skip_is_masked(go: Go, kind: type[Task]) -> None:
    result, told = await run(go, kind)
    assert SECRET not in told
    (skipped,) = (event for event in events_of(result) if isinstance(event, TaskSkipped))
    assert skipped.why == "no access with ***"


async def test_parameter_of_a_task_is_masked_where_its_name_says_so(go: Go) -> None:
    _, told = await run(go, OwnToken(token="a-token-of-its-own", id="own"))
    assert "a-token-of-its-own" not in told.partition("task.started")[2]
    assert "own ***" in told


async def test_last_words_of_a_worker_are_masked(go: Go) -> None:
    _, told = await run(go, ProcessDies)
    assert "dying with ***" in told
    assert SECRET not in told


async def test_names_are_those_that_the_setting_says(go: Go) -> None:
    class Prints(Task):
        def run(self) -> None:
            print(self.context.iban, self.context.token, "password=visible")

    go.settings = go.settings.replaced(REDACT=["*iban*"])
    _, told = await run(go, Prints, params={"iban": "DE02120300000000202051", "token": "a-token"})
    assert "*** a-token password=visible" in told


async def test_nothing_is_masked_where_the_setting_is_empty(go: Go) -> None:
    go.settings = go.settings.replaced(REDACT=[])
    _, told = await run(go, Skips)
    assert f"no access with {SECRET}" in told
