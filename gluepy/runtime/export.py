"""Sending the record of a run to a sink, as often as one likes: `export_run`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gluepy.conf import discovered_project
from gluepy.conf.schema import Settings
from gluepy.conf.sources import load_settings
from gluepy.core.events import Event
from gluepy.errors import GluepyError, SinkFailed
from gluepy.runtime.options import SinkOption, make_sinks


async def export_run(run: str, sink: SinkOption, *, settings: Settings | None = None) -> int:
    """Send every event in the record of a run to `sink`, in order, as if it had watched the run; returns how many.

    `run` is its id, the unique ending of one, "latest" or "latest:label"; `sink` a callable, a class, a dotted path or
    a short name. Sinks give what they make of a run the same ids each time, so a second export doubles nothing where
    the receiver goes by ids. `settings` are by default the project's. Raises `SinkFailed` if the sink does,
    `UnknownRun`, `UnreadableLog`, and `UsageError` for a sink that cannot be made.
    """
    from gluepy.runs.log import LogReader
    from gluepy.runs.reading import find_record

    used = load_settings(discovered_project()) if settings is None else settings.snapshot()
    return await export_events(LogReader(find_record(used.runs_root, run).events).events(), sink, used)


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
