"""Requests from outside to cancel a run: `gluepy cancel` leaves a file in its record."""

from __future__ import annotations

import os
from collections.abc import Callable

import anyio

from gluepy.core.scheduler import EndRun
from gluepy.exec import forks
from gluepy.exec.engine import Engine
from gluepy.loop import Signal

_POLL_S = 0.25


class StopRequests:
    """Looks, for all runs of a `Runtime` and only while there are some, whether somebody wants one to be cancelled."""

    def __init__(self, signal: Callable[[], Signal]) -> None:
        self._new_signal = signal
        self._begins: Signal | None = None  # set when the first run begins
        self._asked: dict[Engine, Callable[[], bool]] = {}

    def begin(self, engine: Engine, asked: Callable[[], bool]) -> None:
        """From now on cancel the run of `engine` once `asked()`."""
        self._asked[engine] = asked
        if self._begins is not None:
            self._begins.set()

    def end(self, engine: Engine) -> None:
        """The run is over."""
        self._asked.pop(engine, None)

    async def listen(self) -> None:
        """Until it is cancelled."""
        here = os.getpid()
        while True:
            if not self._asked:
                self._begins = self._new_signal()
                await self._begins.wait()
                self._begins = None
            for engine, asked in [*self._asked.items()]:
                if asked():
                    self.end(engine)
                    engine.stop(EndRun("cancelled"))
            await anyio.sleep(_POLL_S)  # not by the clock of the runtime: whoever asks is outside
            if os.getpid() != here:
                forks.refuse_to_go_on()
