"""The settings of driver and workers, and what follows from them."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, Field

REDIS = ("redis", "rediss", "unix")
AMQP = ("amqp", "amqps", "pyamqp")


class CelerySettings(BaseModel):
    """The group CELERY, the same for driver and workers.

    `broker_url` is the broker's, as Celery has it: `redis://…` (Redis, Valkey) or `amqp://…` (RabbitMQ). `channel_url`
    is where workers report to drivers, if not there. `queue` is where orders go whose task names no queue. Driver and
    workers that hear nothing of each other for `heartbeat_s` give an attempt up. `queue_timeout_s` is how long an
    attempt waits while no worker takes from its queue, or a server cannot be reached.
    """

    broker_url: str | None = None
    channel_url: str | None = None
    queue: Annotated[str, Field(min_length=1)] = "gluepy"
    heartbeat_s: Annotated[float, Field(gt=0)] = 60.0
    queue_timeout_s: Annotated[float, Field(gt=0)] = 60.0

    @property
    def beat_s(self) -> float:
        """How often driver and workers tell that they are there: often enough that a few may be lost."""
        return self.heartbeat_s / 12

    @property
    def confirm_s(self) -> float:
        """How soon a worker has to be heard of when its order was delivered once more."""
        return self.heartbeat_s / 4

    @property
    def silence_s(self) -> float:
        """After how long a worker that is not heard of is lost: later than it gives up itself."""
        return self.heartbeat_s * 1.5


def scheme(url: str) -> str:
    """What the URL begins with."""
    return urlsplit(url).scheme


def shown(url: str) -> str:
    """`url` without a password."""
    parts = urlsplit(url)
    login, at, place = parts.netloc.rpartition("@")
    user, colon, _ = login.partition(":")
    return urlunsplit((parts.scheme, f"{user}{':***' if colon else ''}{at}{place}", parts.path, "", ""))
