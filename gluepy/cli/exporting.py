"""`gluepy export`: send the record of a run to a sink."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from typing import IO

import msgspec

from gluepy.cli.invocation import Invocation
from gluepy.cli.text import count, damage, log_to_stderr, tell
from gluepy.conf.plugins import SINKS, find
from gluepy.conf.schema import Settings
from gluepy.core.events import Event, decode
from gluepy.errors import ImportFailed, OptionError
from gluepy.loop import run_loop
from gluepy.runs.log import LogReader
from gluepy.runs.reading import find_record
from gluepy.runtime.export import export_events, with_output


def export(invocation: Invocation, run: str | None, sink: str | None, output: bool) -> int:
    """`gluepy export`"""
    settings = invocation.settings()
    log_to_stderr()
    if sink is None:
        run, sink = "-", _only_sink(invocation, run)
    elif run is None:
        run = "-" if _is_piped() else "latest"
    if run != "-":
        return _send_record(settings, run, sink, output)
    if output:
        raise OptionError("--output", "events on stdin have no log files beside them", "name the run and --sink")
    return _send_lines(settings, sink)


def _only_sink(invocation: Invocation, named: str | None) -> str:
    """The one argument, which names the sink where events come on stdin. Raises `OptionError` where it does not."""
    hint = f"write `{invocation.command('export', named or 'latest')} --sink NAME`"
    if named is None or not _is_piped():
        raise OptionError("--sink", "no sink is named", hint)
    try:
        find(SINKS, named, "gluepy export")
    except ImportFailed:  # it is a run, most likely
        raise OptionError("--sink", f"no sink is named, and {named!r} is none", hint) from None
    return named


def _is_piped() -> bool:
    """Whether stdin is a pipe or a file; neither a terminal nor nothing at all, as cron has it."""
    mode = os.fstat(0).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _send_record(settings: Settings, run: str, sink: str, output: bool) -> int:
    record = find_record(settings.runs_root, run)
    reader = LogReader(record.events)
    events = with_output(reader.events(), record.path) if output else reader.events()
    sent = run_loop(lambda: export_events(events, sink, settings))
    for what in damage(reader.bad, reader.gaps, reader.doubled):
        tell(f"{record.events}: {what}")
    tell(f"sent {count(sent, 'event')} of run {record.run_id} to {sink}")
    return 0


def _send_lines(settings: Settings, sink: str) -> int:
    lines = Lines(sys.stdin.buffer)
    sent = run_loop(lambda: export_events(lines.events(), sink, settings))
    for what in damage(lines.bad, 0, 0):
        tell(f"stdin: {what}")
    tell(f"sent {count(sent, 'event')} to {sink}")
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
