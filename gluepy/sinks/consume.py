"""Consumers of a run's events, which cannot slow or change the run.

A sink is a callable that takes one event: plain (called in a thread of its own, one event after another) or async. It
may be a context manager, plain or async; then it is entered before the first event and left after the last.
"""

from __future__ import annotations

import contextvars
import inspect
import queue
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import Any

import anyio

from gluepy.core.events import Event
from gluepy.loop import Doorbell
from gluepy.sinks.feed import Subscription
from gluepy.sinks.port import Consumer, Sink

_BATCH = 1_000  # events of a record that are in memory at a time


class Delivery:
    """One sink of a run, and how far it has come. `name` is by what it can be named again, empty if it cannot be.

    `seq` is that of the last stored event that the sink has taken, or that came before it was there.
    """

    def __init__(self, sink: Consumer, name: str = "") -> None:
        self.sink, self.name = sink, name
        self.seq = 0
        self._warned, self._is_recorded = False, True

    def begin(self, seq: int, is_recorded: bool) -> None:
        """The run's events follow that of number `seq`; they are recorded, or nowhere but here."""
        self.seq, self._is_recorded = seq, is_recorded

    async def consume(self, subscription: Subscription, run_id: str) -> None:
        """Feed the sink until the subscription ends. A sink that raises gets nothing more, and a warning in the log
        says so.

        When this is cancelled, a plain sink that has not returned is left behind: it is left (as a context manager)
        when it returns, and neither the event loop nor the interpreter waits for it.
        """
        try:
            await self._feed(subscription.take)
        except (Exception, SystemExit) as error:
            problem = "a sink failed; it gets no more events of this run"
            self._warn(run_id, problem, error=f"{type(error).__name__}: {error}")

    def left_behind(self, run_id: str, seq: int) -> None:
        """The run is over, its last event was number `seq`, and the sink is not waited for any longer: warn of it."""
        problem = "a sink was not done in time; it may not have sent all that it took"
        if lost := seq - self.seq:
            problem = f"a sink was not done in time; it has missed {lost:,} event{'s' if lost > 1 else ''}"
        self._warn(run_id, problem, setting="SINK_TIMEOUT_S")

    async def replay(self, events: Iterable[Event]) -> None:
        """Call the sink with each of `events`, entered and left as in a run. Raises what it raises."""
        rest = iter(events)

        async def take() -> list[Event]:
            return list(islice(rest, _BATCH))

        if not isinstance(self.sink, Sink):
            await self._feed(take)
            return
        self.sink.replaying = True
        try:
            await self._feed(take)
        finally:
            self.sink.replaying = False

    def _warn(self, run_id: str, problem: str, **facts: object) -> None:
        if self._warned:
            return
        self._warned = True
        import structlog

        if self._is_recorded:
            again = f"gluepy export {run_id} --sink {self.name}" if self.name else f"gluepy.export_run({run_id!r}, …)"
            facts["send_again"] = again
        structlog.get_logger("gluepy.sinks").warning(
            problem, sink=self.name or repr(self.sink), run_id=run_id, taken_up_to=self.seq, **facts
        )

    async def _feed(self, take: Callable[[], Awaitable[list[Event]]]) -> None:
        consumer: Any = self.sink
        thread = _SinkThread()
        try:
            async with _entered(consumer, thread):
                is_async = inspect.iscoroutinefunction(consumer) or inspect.iscoroutinefunction(
                    getattr(consumer, "__call__", None)  # noqa: B004  # whether it is async, not whether it is there
                )
                while events := await take():
                    if is_async:
                        for event in events:
                            await consumer(event)
                            self.seq = event.seq
                    else:
                        await thread.call(partial(self._each, events))
        finally:
            thread.end()

    def _each(self, events: list[Event]) -> None:
        consumer = self.sink
        for event in events:
            consumer(event)
            self.seq = event.seq


@asynccontextmanager
async def _entered(consumer: Any, thread: _SinkThread) -> AsyncIterator[None]:
    if hasattr(consumer, "__aenter__"):
        async with consumer:
            yield
    elif hasattr(consumer, "__enter__"):
        await thread.call(consumer.__enter__)
        try:
            yield
        finally:
            await thread.call(partial(consumer.__exit__, *sys.exc_info()))
    else:
        yield


class _SinkThread:
    """A thread for the plain calls of one sink, in order; started with the first. Nobody waits for it to end."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._doorbell: Doorbell | None = None

    async def call(self, work: Callable[[], object]) -> None:
        """Have `work` called, and wait for it. Raises what it raises. When the wait is cancelled it is called still."""
        if self._doorbell is None:
            self._doorbell = Doorbell()
            threading.Thread(target=self._serve, name="gluepy-sink", daemon=True).start()
        doorbell, context, done, failed = self._doorbell, contextvars.copy_context(), anyio.Event(), []

        def called() -> None:
            try:
                context.run(work)
            except BaseException as error:
                failed.append(error)
            doorbell.ring(done.set)

        self._calls.put(called)
        await done.wait()
        for error in failed:
            raise error

    def end(self) -> None:
        """End the thread when it has done what it was called for."""
        if self._doorbell is not None:
            self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
