"""The Celery application of driver and workers: the same queues, and as little of Celery as brings an order there."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from celery import Celery
from kombu.entity import Queue

from gluepy.errors import ExecutorBroken
from gluepy.exec.executors.celery.options import AMQP, CelerySettings, scheme

TASK = "gluepy.attempt"
_OLDEST = (5, 6)  # has worker_disable_prefetch
_LONGEST_MS = 30 * 24 * 3600 * 1000  # an attempt may take; the broker's own default is half an hour


def check_version(who: str) -> None:
    """Raises `ExecutorBroken` if Celery is too old."""
    found = version("celery")
    if tuple(int(part) for part in found.split(".")[:2] if part.isdigit()) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise ExecutorBroken(
            who, f"Celery {found} is too old", f"install gluepy[celery], which needs {oldest} or later"
        )


def make_application(settings: CelerySettings) -> Any:
    """The application, of which nothing is global."""
    assert settings.broker_url is not None
    is_amqp = scheme(settings.broker_url) in AMQP
    application = Celery("gluepy", broker=settings.broker_url, set_as_current=False)
    application.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        # RabbitMQ gives what a process has not acknowledged to no other while that lives, and then again; the fence
        # tells it. On Redis there is no such thing, only a time after which every message is delivered once more.
        task_acks_late=is_amqp,
        task_reject_on_worker_lost=is_amqp,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=not is_amqp,
        broker_transport_options={"confirm_publish": True} if is_amqp else {"socket_keepalive": True},
        broker_connection_timeout=5,
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        # An attempt outlives a connection: its order is delivered again, which comes to nothing, and its reports wait.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_proc_alive_timeout=60,
    )
    return application


def queue_of(settings: CelerySettings, name: str) -> Queue:
    """The queue called `name`; driver and workers declare it alike."""
    assert settings.broker_url is not None
    if scheme(settings.broker_url) not in AMQP:
        return Queue(name)
    return Queue(name, queue_arguments={"x-queue-type": "quorum", "x-consumer-timeout": _LONGEST_MS})
