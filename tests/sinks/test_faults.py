"""A receiver that is dead, broken, silent, late or mad changes nothing about a run, whatever the sink.

A sink enters the tests by a line of `under_fault.UNDER_FAULT`.
"""

from __future__ import annotations

import threading
from typing import Self

import psutil
import pytest
import structlog
from receivers import BAD, Receiver
from under_fault import UNDER_FAULT

import gluepy
from gluepy import DAG, Task, each
from gluepy.conf.schema import Settings
from gluepy.core.events import Event
from gluepy.errors import SinkFailed
from gluepy.exec.port import Metric
from gluepy.runtime import Runtime
from gluepy.testing import ScriptedExecutor, Step, events_of, outline
from gluepy.testing.sinks import SinkContractDAG, outcomes, run, script

SINKS = pytest.mark.parametrize("name", UNDER_FAULT)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # the contract suite runs every sink on both


@SINKS
@pytest.mark.parametrize("how", BAD)
async def test_bad_receiver_changes_nothing_about_the_run(
    name: str, how: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    under = UNDER_FAULT[name]
    alone = await run(settings, script())
    with Receiver(how, answer=under.answer()) as receiver, structlog.testing.capture_logs() as logs:
        for variable, text in under.env(receiver.url).items():
            monkeypatch.setenv(variable, text)
        hurried = under.settings(settings, receiver.url).replaced(SINK_TIMEOUT_S=0.2)
        watched = await run(hurried, script(), under.sink)
    assert outcomes(watched) == outcomes(alone)
    assert sorted(outline(events_of(watched))) == sorted(outline(events_of(alone)))
    warnings = [line for line in logs if line.get("sink")]
    assert len(warnings) == 1 if under.tells else len(warnings) <= 1
    for warning in warnings:
        assert warning["send_again"].startswith(f"gluepy export {watched.run_id} --sink ")


@SINKS
async def test_well_receiver_gets_the_run_and_nothing_is_warned_of(
    name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    under = UNDER_FAULT[name]
    with Receiver(answer=under.answer()) as receiver, structlog.testing.capture_logs() as logs:
        for variable, text in under.env(receiver.url).items():
            monkeypatch.setenv(variable, text)
        await run(under.settings(settings, receiver.url).replaced(SINK_TIMEOUT_S=60.0), script(), under.sink)
        assert receiver.requests
    assert [line for line in logs if line.get("sink")] == []


@SINKS
async def test_record_that_cannot_be_sent_is_an_error_and_can_be_sent_again(
    name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    under = UNDER_FAULT[name]
    result = await run(settings, script())
    with Receiver("error", answer=under.answer()) as receiver:
        for variable, text in under.env(receiver.url).items():
            monkeypatch.setenv(variable, text)
        chosen = under.settings(settings, receiver.url)
        with pytest.raises(SinkFailed, match="export the run again"):
            await gluepy.export_run(result.run_id, under.sink, settings=chosen)
        receiver.how = "well"
        assert await gluepy.export_run(result.run_id, under.sink, settings=chosen) == len(events_of(result))


async def test_warning_of_a_resumed_run_counts_what_was_missed_of_that_session(settings: Settings) -> None:
    over = threading.Event()
    result = await run(settings, script())
    before = len(events_of(result))
    async with Runtime(settings.replaced(SINK_TIMEOUT_S=0.05), executor=script(fails=Step())) as runtime:
        with structlog.testing.capture_logs() as logs:
            await runtime.resume_run(result.run_id, sinks=[lambda event: over.wait(240)])
    over.set()
    (warning,) = [line for line in logs if line.get("sink")]
    assert warning["event"].endswith(f"it has missed {len(events_of(result)) - before} events")
    assert warning["taken_up_to"] == before


async def test_warning_of_a_run_without_a_record_does_not_promise_that_it_can_be_sent_again(settings: Settings) -> None:
    def fails(event: Event) -> None:
        raise ConnectionError("nobody there")

    async with Runtime(settings, executor=script()) as runtime:
        with structlog.testing.capture_logs() as logs:
            await runtime.run_dag(SinkContractDAG, check=False, sinks=[fails], record=False)
    (warning,) = [line for line in logs if line.get("sink")]
    assert "send_again" not in warning


class Tells(Task):
    number: int

    def run(self) -> None: ...


class TellsDAG(DAG):
    tasks = (each(Tells, number=range(200)),)


@pytest.mark.slow
@SINKS
async def test_memory_is_bounded_while_a_run_of_200_000_events_has_a_silent_receiver(
    name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    under = UNDER_FAULT[name]
    many = ScriptedExecutor({"tells": Step(emits=[Metric("loss", float(step)) for step in range(1_000)])})
    with Receiver("silent", answer=under.answer()) as receiver:
        for variable, text in under.env(receiver.url).items():
            monkeypatch.setenv(variable, text)
        hurried = under.settings(settings, receiver.url).replaced(SINK_TIMEOUT_S=0.2, CONCURRENCY=1)
        async with Runtime(hurried, executor=many) as runtime:
            await runtime.run_dag(TellsDAG)  # what the first run allocates once
            with Peak() as peak:
                result = await runtime.run_dag(TellsDAG, sinks=[under.sink])
    assert result.status == "finished"
    assert peak.grown < 20 << 20  # all events together have twice that


class Peak:
    """While entered, it looks at how much memory the process has; `grown` is the most that it was above the first."""

    def __enter__(self) -> Self:
        self._process, self._over = psutil.Process(), threading.Event()
        self._before, self.grown = self._process.memory_info().rss, 0
        self._thread = threading.Thread(target=self._look, name="peak")
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.01):
            self.grown = max(self.grown, self._process.memory_info().rss - self._before)
