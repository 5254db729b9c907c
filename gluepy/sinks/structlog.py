"""The sink `structlog`: a run's events as log lines of the program, or as lines of JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import msgspec
import structlog
from pydantic import BaseModel, ConfigDict

from gluepy.core.events import Event, TaskOutput, encode
from gluepy.sinks.port import Sink

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings


class StructlogSettings(BaseModel):
    """The group STRUCTLOG.

    `format` is "program", as the program has configured structlog, or "json", lines as those of `events.jsonl` on
    stderr. `output`: also what tasks print and log, line by line, where the run captures it.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["program", "json"] = "program"
    output: bool = False


class StructlogSink(Sink):
    """Logs each event under its name, at its level, with its fields, by the logger `gluepy.events`.

    The name of a metric is the field `metric`, since log records have a `name` of their own; the graph of the DAG is
    left out. Processors of the program may replace `timestamp`, which is when it happened.
    """

    settings_group: ClassVar = ("STRUCTLOG", StructlogSettings)

    def __init__(self, format: Literal["program", "json"] = "program", output: bool = False) -> None:
        self.format, self.output = format, output

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Made as STRUCTLOG says."""
        group = settings.group(*cls.settings_group)
        return cls(group.format, group.output)

    def __call__(self, event: Event) -> None:
        """Log `event`."""
        if isinstance(event, TaskOutput) and not self.output:
            return
        if self.format == "json":
            sys.stderr.write(encode(event).decode())
            return
        fields: dict[str, Any] = msgspec.to_builtins(event)
        name, level = fields.pop("event"), fields.pop("level")
        fields.pop("graph", None)
        if "name" in fields:
            fields["metric"] = fields.pop("name")
        getattr(structlog.get_logger("gluepy.events"), level)(name, **fields)
