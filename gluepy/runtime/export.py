"""Sending the record of a run to a sink, as often as one likes: `export_run`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from gluepy.conf import discovered_project
from gluepy.conf.schema import Settings
from gluepy.conf.sources import load_settings
from gluepy.core.events import (
    Event,
    TaskCancelled,
    TaskFailed,
    TaskFinished,
    TaskOutput,
    TaskRetrying,
    TaskSkipped,
)
from gluepy.core.graph import slug_of
from gluepy.errors import GluepyError, SinkFailed
from gluepy.runtime.options import SinkOption, make_sinks

EndOfAttempt = TaskFinished | TaskFailed | TaskRetrying | TaskSkipped | TaskCancelled


async def export_run(run: str, sink: SinkOption, *, output: bool = False, settings: Settings | None = None) -> int:
    """Send every event in the record of a run to `sink`, in order, as if it had watched the run; returns how many.

    `run` is its id, the unique ending of one, "latest" or "latest:label"; `sink` a callable, a class, a dotted path or
    a short name. Sinks give what they make of a run the same ids each time, so a second export doubles nothing where
    the receiver goes by ids. `output`: what tasks printed and logged too, from their log files, as `task.output` with
    the time at which the attempt ended. `settings` are by default the project's. Raises `SinkFailed` if the sink does,
    `UnknownRun`, `UnreadableLog`, and `UsageError` for a sink that cannot be made.
    """
    from gluepy.runs.log import LogReader
    from gluepy.runs.reading import find_record

    used = load_settings(discovered_project()) if settings is None else settings.snapshot()
    record = find_record(used.runs_root, run)
    events = LogReader(record.events).events()
    return await export_events(with_output(events, record.path) if output else events, sink, used)


def with_output(events: Iterable[Event], folder: Path) -> Iterator[Event]:
    """`events`, and before the end of each attempt the lines of its log file in the record `folder`."""
    seq = 0
    for event in events:
        if isinstance(event, EndOfAttempt) and event.attempt:
            try:
                lines = (folder / "logs" / f"{slug_of(event.task)}.{event.attempt}.log").open(errors="replace")
            except FileNotFoundError:  # it printed nothing
                lines = None
            if lines is not None:
                header = (seq, event.session, event.timestamp, "info", event.run_id, event.dag)
                with lines:
                    for line in lines:
                        yield TaskOutput(*header, event.task, event.attempt, "log", line.rstrip("\n"))
        seq = event.seq
        yield event


async def export_events(events: Iterable[Event], sink: SinkOption, settings: Settings) -> int:
    """Send `events` to `sink`; returns how many. Raises as `export_run` does."""
    (delivery,) = make_sinks([sink], settings.replaced(SINKS=[]))
    taken = 0

    def counted() -> Iterator[Event]:
        nonlocal taken
        for event in events:
            taken += 1
            yield event

    try:
        await delivery.replay(counted())
    except GluepyError:
        raise
    except Exception as error:
        raise SinkFailed(delivery.name or repr(sink), delivery.seq, f"{type(error).__name__}: {error}") from error
    return taken
