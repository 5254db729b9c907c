"""`gluepy export`: send the record of a run to a sink."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO

import msgspec

from gluepy.cli.invocation import Invocation
from gluepy.cli.text import count, damage, is_terminal, log_to_stderr, tell
from gluepy.conf.plugins import SINKS, find
from gluepy.core.events import Event, decode
from gluepy.errors import ImportFailed, OptionError
from gluepy.loop import run_loop
from gluepy.runs.log import LogReader
from gluepy.runs.reading import find_record
from gluepy.runtime.export import export_events, with_output


def export(invocation: Invocation, run: str, sink: str | None, output: bool) -> int:
    """`gluepy export`"""
    settings = invocation.settings()
    log_to_stderr()
    if sink is not None and run != "-":
        record = find_record(settings.runs_root, run)
        reader = LogReader(record.events)
        events = with_output(reader.events(), record.path) if output else reader.events()
        sent = run_loop(lambda: export_events(events, sink, settings))
        for what in damage(reader.bad, reader.gaps, reader.doubled):
            tell(f"{record.events}: {what}")
        tell(f"sent {count(sent, 'event')} of run {record.run_id} to {sink}")
        return 0
    if output:
        raise OptionError("--output", "events on stdin have no log files beside them", "name the run and --sink")
    name = run if sink is None else sink
    if sink is None:
        hint = f"write `{invocation.command('export', run)} --sink NAME`"
        if is_terminal(sys.stdin):
            raise OptionError("--sink", "no sink is named", hint)
        try:
            find(SINKS, run, "gluepy export")
        except ImportFailed:  # it is a run, most likely
            raise OptionError("--sink", f"no sink is named, and {run!r} is none", hint) from None
    lines = Lines(sys.stdin.buffer)
    sent = run_loop(lambda: export_events(lines.events(), name, settings))
    for what in damage(lines.bad, 0, 0):
        tell(f"stdin: {what}")
    tell(f"sent {count(sent, 'event')} to {name}")
    return 0


class Lines:
    """Events as JSON lines, read once. `bad` counts what is not an event."""

    def __init__(self, file: IO[bytes]) -> None:
        self.bad = 0
        self._file = file

    def events(self) -> Iterator[Event]:
        """The events, in order."""
        for line in self._file:
            if line.strip():
                try:
                    event = decode(line)
                except (msgspec.DecodeError, UnicodeError, RecursionError):
                    self.bad += 1
                else:
                    yield event
