"""What a sink is: a callable that takes one event."""

from __future__ import annotations

from collections.abc import Callable

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
    """

    def __call__(self, event: Event) -> object:
        """Take `event`."""
        raise TypeError(f"{type(self).__name__} does not define __call__(event)")
