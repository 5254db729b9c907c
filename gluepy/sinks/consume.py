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
from typing import Any

import anyio

from gluepy.core.events import Event
from gluepy.loop import Doorbell
from gluepy.sinks.feed import Subscription
from gluepy.sinks.port import Consumer


async def consume(subscription: Subscription, sink: Consumer) -> None:
    """Feed `sink` until the subscription ends. A sink that raises is told so in the log, and gets nothing more.

    When this is cancelled, a plain sink that has not returned is left behind: it is left (as a context manager) when it
    returns, and neither the event loop nor the interpreter waits for it.
    """
    try:
        await _feed(sink, subscription.take)
    except (Exception, SystemExit) as error:
        import structlog

        structlog.get_logger("gluepy.sinks").warning(
            "a sink failed; it gets no more events of this run",
            sink=repr(sink),
            error=f"{type(error).__name__}: {error}",
        )


async def replay(events: Iterable[Event], sink: Consumer) -> None:
    """Call `sink` with each of `events`, entered and left as in a run. Raises what it raises."""
    batches = [list(events)]

    async def take() -> list[Event]:
        return batches.pop() if batches else []

    await _feed(sink, take)


async def _feed(sink: Consumer, take: Callable[[], Awaitable[list[Event]]]) -> None:
    consumer: Any = sink
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
                else:
                    await thread.call(partial(_each, consumer, events))
    finally:
        thread.end()


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


def _each(consumer: Callable[[Event], object], events: list[Event]) -> None:
    for event in events:
        consumer(event)


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
