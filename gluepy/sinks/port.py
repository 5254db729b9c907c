"""What a sink is: a callable that takes one event."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from gluepy.core.events import Event
from gluepy.extension import Extension

Consumer = Callable[[Event], object]  # a sink, ready to be called; what an async one returns is awaited


class Sink(Extension):
    """Base of sinks that are made from settings. A subclass writes `__call__`, plain or async.

    A plain one is called in a thread of its own, one event after another. A sink that is a context manager, plain or
    async, is entered before the first event of a run and left after the last. It gets each stored event
    once and in order; `task.output`, which is not stored, only while it keeps up. If it raises, that is logged, and it
    gets no more events of the run.

    A callable without settings need not derive from this class.

    `replaying` is set while the events are those of a record, sent again: what only counts, as metrics do, leaves them
    alone. One that `makes_spans` of runs and attempts, with the ids of `gluepy.core.spans`, has tasks and what they
    start find the span of their attempt as the current one.
    """

    makes_spans: ClassVar[bool] = False
    replaying: bool = False
    worker_sdk: Mapping[str, str] | None = None  # how worker processes set up OpenTelemetry, if it did so here

    def samples(self, trace_id: str) -> bool:
        """Whether a trace of the run's own, with this id, is to be kept; asked of one that makes spans."""
        return True

    def __call__(self, event: Event) -> object:
        """Take `event`."""
        raise TypeError(f"{type(self).__name__} does not define __call__(event)")
