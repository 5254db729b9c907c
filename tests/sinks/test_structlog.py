"""The sink `structlog` logs what a run tells, as its program logs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from gluepy.conf.schema import Settings, Source
from gluepy.core.events import decode
from gluepy.sinks import Consumer
from gluepy.sinks.structlog import StructlogSink
from gluepy.testing import SinkContract, events_of
from gluepy.testing.sinks import run, script


class TestStructlog(SinkContract):
    @pytest.fixture
    def sink(self) -> Consumer:
        return StructlogSink(output=True)


@pytest.fixture
def lines() -> Iterator[list[dict[str, object]]]:
    with structlog.testing.capture_logs() as logs:
        yield logs  # type: ignore[misc]


async def test_each_event_is_a_line_with_its_fields(settings: Settings, lines: list[dict[str, object]]) -> None:
    result = await run(settings.replaced(SINKS=["structlog"]), script())
    events = events_of(result)
    assert [line["event"] for line in lines] == [json.loads(line)["event"] for line in result_lines(result.path)]
    assert [line["log_level"] for line in lines] == [event.level for event in events]
    (failed,) = [line for line in lines if line["event"] == "task.failed"]
    assert (failed["task"], failed["reason"], failed["error.message"]) == ("fails", "exception", "größe ☃")
    assert {line["metric"] for line in lines if line["event"] == "task.metric"} == {"größe ☃", "nan"}


async def test_output_is_logged_on_request_only(settings: Settings, lines: list[dict[str, object]]) -> None:
    await run(settings, script(), "structlog")
    assert [line for line in lines if line["event"] == "task.output"] == []
    wants = settings.replaced(groups={"STRUCTLOG": {"output": (True, Source("module", "settings.py"))}})
    await run(wants, script(), "structlog")
    (line,) = [line for line in lines if line["event"] == "task.output"]
    assert (line["task"], line["stream"], line["line"]) == ("loads", "stdout", "ü ☃\x1b[0m")


async def test_json_lines_are_those_of_the_record(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    result = await run(settings, script(), StructlogSink("json"))
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [decode(line) for line in told] == events_of(result)


async def test_program_whose_structlog_ends_in_logging_gets_records(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    before = structlog.get_config()
    try:
        structlog.configure(
            processors=[structlog.stdlib.add_log_level, structlog.stdlib.render_to_log_kwargs],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
        )
        with caplog.at_level(logging.INFO):
            result = await run(settings, script(), "structlog")
    finally:
        structlog.configure(**before)
    records = [record for record in caplog.records if record.name == "gluepy.events"]
    assert len(records) == len(events_of(result))


def result_lines(path: object) -> list[str]:
    with open(f"{path}/events.jsonl") as file:
        return file.read().splitlines()
