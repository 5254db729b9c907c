"""Consumers of a run's events, which cannot slow or change the run.

A sink is a callable that takes one event: plain (called in a thread, one event after another) or async. It may be a
context manager, plain or async; then it is entered before the first event and left after the last.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

from gluepy.core.events import Event
from gluepy.sinks.feed import Subscription

Sink = Callable[[Event], object] | Callable[[Event], Awaitable[object]]


async def consume(subscription: Subscription, sink: Sink) -> None:
    """Feed `sink` until the subscription ends. A sink that raises is told so in the log, and gets nothing more."""
    try:
        async with AsyncExitStack() as stack:
            consumer: Any = sink
            if hasattr(consumer, "__aenter__"):
                await stack.enter_async_context(consumer)
            elif hasattr(consumer, "__enter__"):
                await _in_thread(lambda: stack.enter_context(consumer))
            is_async = inspect.iscoroutinefunction(consumer) or inspect.iscoroutinefunction(
                getattr(consumer, "__call__", None)  # noqa: B004  # whether it is async, not whether it is there
            )
            while events := await subscription.take():
                if is_async:
                    for event in events:
                        await consumer(event)
                else:
                    await _in_thread(partial(_each, consumer, events))
    except Exception as error:
        import structlog

        structlog.get_logger("gluepy.sinks").warning(
            "a sink failed; it gets no more events of this run",
            sink=repr(sink),
            error=f"{type(error).__name__}: {error}",
        )


def _each(consumer: Callable[[Event], object], events: list[Event]) -> None:
    for event in events:
        consumer(event)


async def _in_thread(work: Callable[[], object]) -> None:
    await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
