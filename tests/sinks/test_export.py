"""The record of a run can be sent to a sink, again and again."""

from __future__ import annotations

import uuid

import pytest

import gluepy
from gluepy import DAG, Task
from gluepy.conf.schema import Settings
from gluepy.core.events import Event
from gluepy.core.identity import derived, derived_uuid, run_uuid
from gluepy.errors import SinkFailed, UnknownRun
from gluepy.testing import events_of, name_of, outline
from gluepy.testing.sinks import run, script


class Fails:
    def __call__(self, event: Event) -> None:
        if event.seq == 3:
            raise ConnectionRefusedError("nobody there")


async def test_export_hands_every_event_of_the_record_to_the_sink(settings: Settings) -> None:
    result = await run(settings, script())
    seen: list[Event] = []
    assert await gluepy.export_run("latest", seen.append, settings=settings) == len(seen)
    assert seen == events_of(result)


class Prints(Task):
    def run(self) -> None:
        print("größe ☃")
        print("two")


class PrintsDAG(DAG):
    tasks = (Prints,)


async def test_export_hands_the_sink_what_was_printed_too_where_that_is_wanted(settings: Settings) -> None:
    async with gluepy.Runtime(settings) as runtime:
        result = await runtime.run_dag(PrintsDAG, capture=True)
    seen: list[Event] = []
    await gluepy.export_run("latest", seen.append, output=True, settings=settings)
    assert outline(seen, without=())[-4:] == [
        "task.output prints: größe ☃",
        "task.output prints: two",
        "task.finished prints",
        "run.finished",
    ]
    assert [event for event in seen if name_of(event) != "task.output"] == events_of(result)


async def test_export_tells_how_far_it_came_when_the_sink_fails(settings: Settings) -> None:
    await run(settings, script())
    with pytest.raises(SinkFailed) as caught:
        await gluepy.export_run("latest", Fails(), settings=settings)
    assert (caught.value.seq, "ConnectionRefusedError: nobody there" in str(caught.value)) == (2, True)


async def test_export_of_an_unknown_run_is_a_mistake_of_who_asks(settings: Settings) -> None:
    with pytest.raises(UnknownRun):
        await gluepy.export_run("nothing", print, settings=settings)


def test_ids_are_derived_and_differ_where_parts_do() -> None:
    run_id = "0192f0c4-7a11-7cc1-8b57-3c5bb0b1a001"
    assert run_uuid(run_id) == uuid.UUID(run_id)
    assert run_uuid("nightly") == run_uuid("nightly") != run_uuid("daily")
    assert derived_uuid("r", "a", 1) == derived_uuid("r", "a", 1) != derived_uuid("r", "a1")
    assert derived(8, "ab", "c") != derived(8, "a", "bc")
    assert len(derived(8, "r")) == 8
