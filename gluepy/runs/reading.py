"""Reading a run: its log folded into its state. Whoever looks at a run reads it here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from gluepy.core.events import Event, TaskSkipped
from gluepy.core.state import State
from gluepy.errors import DagError
from gluepy.runs.log import LogReader, UnreadableLog
from gluepy.runs.record import Record

# What folding events raises that contradict each other, or that no engine ever wrote.
_CONTRADICTIONS = (
    ValueError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    AssertionError,
    RecursionError,
    MemoryError,
    msgspec.MsgspecError,
    DagError,
)


class RunReader:
    """Reads the events of a run from its log, which may still grow, and folds them into its `state`.

    `bad`, `gaps` and `doubled` are what is wrong with the log, as `LogReader` counts it. Whatever the log holds, the
    one error is `UnreadableLog`, which has its path.
    `seen` counts the events that were read; `skip_messages` maps the tasks that skipped themselves to what they said.
    """

    def __init__(self, path: Path, *, ended: bool = False) -> None:
        self.path = path
        self._log = LogReader(path, ended=ended)
        self._state: State | None = None
        self.seen = 0
        self.skip_messages: dict[str, str] = {}

    @property
    def bad(self) -> int:
        """Unreadable lines."""
        return self._log.bad

    @property
    def gaps(self) -> int:
        """Events that are missing, by their `seq`."""
        return self._log.gaps

    @property
    def doubled(self) -> int:
        """Events with a `seq` that was there before."""
        return self._log.doubled

    @property
    def size(self) -> int:
        """How many bytes of the log have been read."""
        return self._log.offset

    @property
    def state(self) -> State:
        """The state after the events read so far. Raises `UnreadableLog` before the first."""
        if self._state is None:
            raise self._error("it has no events of a run yet")
        return self._state

    def events(self) -> Iterator[Event]:
        """The events that have come since the last call, each folded before it is given."""
        for event in self._log.events():
            try:
                if self._state is None:
                    self._state = State.from_events([event])
                else:
                    self._state.apply(event)
            except _CONTRADICTIONS as error:
                why = f"unknown task {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
                raise self._error(f"its events make no run: {why}") from error
            self.seen += 1
            if isinstance(event, TaskSkipped) and event.why:
                self.skip_messages[event.task] = event.why
            yield event

    def _error(self, why: str) -> UnreadableLog:
        found = (("damaged", self.bad), ("missing", self.gaps), ("numbered twice", self.doubled))
        damage = ", ".join(
            f"{number} {'line is' if number == 1 else 'lines are'} {what}" for what, number in found if number
        )
        return UnreadableLog(str(self.path), f"{why} ({damage})" if damage else why)


def read_record(record: Record, *, ended: bool = False, see: Callable[[Event], object] | None = None) -> RunReader:
    """Read all that the log of a run has now; `see` is called with each event. `ended`: nobody else writes to it.

    Raises `UnreadableLog`, and `UnknownRun` for a run that was deleted meanwhile.
    """
    reader = RunReader(record.events, ended=ended)
    try:
        for event in reader.events():
            if see is not None:
                see(event)
        reader.state  # noqa: B018  # raises for a log without a run
    except UnreadableLog:
        if record.is_gone():
            raise record.gone() from None
        raise
    return reader


def find_record(root: Path, run: str) -> Record:
    """The record in `root` that `run` names: an id, its unique ending, `latest`, `latest:DAG`. Raises `UnknownRun`."""
    name, colon, label = run.partition(":")
    if name == "latest" and colon:
        return Record.latest(root, label, _label)
    return Record.find(root, run)


def _label(record: Record) -> str:
    try:
        first = next(LogReader(record.events).events(1), None)
    except UnreadableLog:  # it is not the one that is meant
        return ""
    return first.dag if first is not None else ""
