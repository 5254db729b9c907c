"""The way back from workers to drivers, and the driver's words to all workers.

Both ends are for asyncio. They go on through an outage: what cannot be sent waits until the server is back.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec
from typing import Protocol

import msgspec

from gluepy.errors import GluepyError, MissingExtra, SettingsError
from gluepy.exec.executors.celery.options import AMQP, REDIS, CelerySettings, scheme, shown

RETRY_S = 0.25  # between two attempts to reach a server


class Unreachable(GluepyError):
    """A server cannot be reached. `url` has no password."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(url, why)
        self.url, self.why = url, why

    def __str__(self) -> str:
        return f"cannot reach {self.url}: {self.why}"


class Word(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a driver says: it is there, and drives `runs`; and attempt `cancel` is to be stopped."""

    driver: str
    runs: tuple[str, ...] = ()
    cancel: str | None = None


class Outages:
    """When a server cannot be reached, and how often that has been so."""

    def __init__(self) -> None:
        self.since: float | None = None
        self.why = ""
        self.count = 0  # of outages that have ended

    def begin(self, error: BaseException) -> None:
        """It cannot be reached."""
        self.why = str(error) or type(error).__name__
        if self.since is None:
            self.since = time.monotonic()

    def end(self) -> None:
        """It can be reached."""
        if self.since is not None:
            self.since, self.count = None, self.count + 1


class DriverEnd(Protocol):
    """The channel as a driver has it."""

    outages: Outages

    def reports(self) -> AsyncIterator[Sequence[str]]:
        """What workers report, as much at a time as has come. Does not end."""
        ...

    async def say(self, word: Word) -> None:
        """Have all workers hear `word`; also note that the driver drives its runs."""
        ...


class WorkerEnd(Protocol):
    """The channel as a worker has it."""

    async def tell(self, driver: str, reports: Sequence[str]) -> None:
        """Report to `driver`, in this order. Returns when the server has it; one may arrive twice."""
        ...

    async def driver_of(self, run: str, driver: str) -> bool | None:
        """Whether `driver` drives `run`. None: nobody does, or the server has forgotten."""
        ...

    def words(self) -> AsyncIterator[Word]:
        """What drivers say from now on. Does not end."""
        ...


def open_driver_end(settings: CelerySettings, driver: str) -> AbstractAsyncContextManager[DriverEnd]:
    """The channel, for the driver called `driver`. Entering raises `Unreachable`."""
    url = _url(settings)
    if scheme(url) in REDIS:
        from gluepy.exec.executors.celery.redis_channel import RedisDriverEnd

        return RedisDriverEnd(url, driver, settings.heartbeat_s)
    from gluepy.exec.executors.celery.amqp_channel import AmqpDriverEnd

    return AmqpDriverEnd(url, driver, settings.heartbeat_s)


def open_worker_end(settings: CelerySettings) -> AbstractAsyncContextManager[WorkerEnd]:
    """The channel, for a worker. Entering raises `Unreachable`."""
    url = _url(settings)
    if scheme(url) in REDIS:
        from gluepy.exec.executors.celery.redis_channel import RedisWorkerEnd

        return RedisWorkerEnd(url, settings.heartbeat_s)
    from gluepy.exec.executors.celery.amqp_channel import AmqpWorkerEnd

    return AmqpWorkerEnd(url)


def check_urls(settings: CelerySettings) -> None:
    """Raises `SettingsError` for URLs of servers that are not known, `MissingExtra` where what speaks to them is not
    installed."""
    if settings.broker_url is None:
        raise SettingsError(
            "CELERY.broker_url", "", "it is not set", "give the broker's URL, as in redis://host:6379/0"
        )
    for name, url in (("broker_url", settings.broker_url), ("channel_url", settings.channel_url)):
        if url is not None and scheme(url) not in (*REDIS, *AMQP):
            known = "redis://, rediss://, unix://, amqp:// or amqps://"
            raise SettingsError(
                f"CELERY.{name}", "", f"{shown(url)} is no URL of Redis, Valkey or RabbitMQ", f"use {known}"
            )
        if url is not None and find_spec("redis" if scheme(url) in REDIS else "aio_pika") is None:
            raise MissingExtra(f"CELERY.{name} = {shown(url)}", "celery")


def _url(settings: CelerySettings) -> str:
    url = settings.channel_url or settings.broker_url
    assert url is not None
    return url
