"""gluepy's own sink and sinks of every form keep the contract of sinks, and the contract has every event."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self, get_args

import anyio
import pytest
from pydantic import BaseModel

from gluepy.conf.schema import Settings, Source
from gluepy.core.events import Event
from gluepy.runtime import Runtime
from gluepy.sinks import Consumer, Sink
from gluepy.sinks.jsonlines import JsonLines
from gluepy.testing import HELD, SinkContract, Step, events_of, name_of
from gluepy.testing.sinks import SinkContractDAG, run, script


class TestJsonLines(SinkContract):
    @pytest.fixture
    def sink(self, tmp_path: Path) -> JsonLines:
        return JsonLines(tmp_path / "deep/events.jsonl")


class TallySettings(BaseModel):
    folder: str = "."


class Tally(Sink):
    """A sink written outside the package, by the documentation alone: counts events by name, in a file at the end."""

    settings_group: ClassVar = ("TALLY", TallySettings)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: dict[str, int] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(settings.folder / settings.group(*cls.settings_group).folder)

    async def __aenter__(self) -> Self:
        await anyio.Path(self.folder).mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await anyio.Path(self.folder / "counts").write_text(str(self.counts))

    async def __call__(self, event: Event) -> None:
        await anyio.lowlevel.checkpoint()
        self.counts[name_of(event)] = self.counts.get(name_of(event), 0) + 1


class TestAnOutsideSink(SinkContract):
    @pytest.fixture
    def sink(self, tmp_path: Path) -> Tally:
        return Tally(tmp_path / "tally")


class TestAPlainFunction(SinkContract):
    @pytest.fixture
    def sink(self) -> Consumer:
        events: list[Event] = []
        return events.append


class TestAnAsyncFunction(SinkContract):
    @pytest.fixture
    def sink(self) -> Consumer:
        async def take(event: Event) -> None:
            await anyio.lowlevel.checkpoint()

        return take


async def test_the_runs_of_the_contract_have_every_event_that_there_is(settings: Settings) -> None:
    seen: set[str] = set()

    def see(event: Event) -> None:
        seen.add(name_of(event))

    failed = await run(settings, script(), see)
    async with Runtime(settings, executor=script(fails=Step())) as runtime:
        await runtime.resume_run(failed.run_id, force="skips", sinks=[see])
    executor = script(fails=HELD)
    async with (
        Runtime(settings, executor=executor) as runtime,
        runtime.stream_dag(SinkContractDAG, sinks=[see], check=False) as stream,
    ):
        await executor.wait_for("fails")
        stream.cancel()
        await stream.result()
    assert seen == {str(kind.__struct_config__.tag) for kind in get_args(Event)}


async def test_outside_sink_is_made_from_settings_and_writes_at_the_end(settings: Settings, folder: Path) -> None:
    named = settings.replaced(SINKS=[Tally], groups={"TALLY": {"folder": ("tallies", Source("module", "settings.py"))}})
    result = await run(named, script())
    counts = (folder / "tallies/counts").read_text()
    assert "'run.failed': 1" in counts
    assert f"'task.skipped': {sum(name_of(event) == 'task.skipped' for event in events_of(result))}" in counts
