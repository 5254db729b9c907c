"""The sink `jsonlines`: the events of all runs in one file of JSON lines, for log shippers and `tail -f`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, ClassVar, Self

from pydantic import BaseModel

from gluepy.core.events import Event
from gluepy.sinks.lines import EventLines
from gluepy.sinks.port import Sink

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings


class JsonLinesSettings(BaseModel):
    """The group JSONLINES. `path` is the file, under the project if it is relative."""

    path: str = "events.jsonl"


class JsonLines(Sink):
    """Appends every stored event to the file at `path`, as a line of JSON. Several runs may share the file."""

    settings_group: ClassVar = ("JSONLINES", JsonLinesSettings)

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._lines: EventLines | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Made for the file that JSONLINES names."""
        return cls(settings.folder / settings.group(*cls.settings_group).path)

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        self._lines = EventLines(self._file)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __call__(self, event: Event) -> None:
        """Append `event`."""
        if self._lines is not None:
            self._lines(event)
