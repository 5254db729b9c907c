"""What travels between driver and workers: one `Order` an attempt, and `Report`s back. Both are JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from gluepy.conf.places import placed
from gluepy.core.events import JSON
from gluepy.exec.port import Attempt, Emission, Metric, Outcome, RunInfo
from gluepy.redact import masked

# What a worker has of its own, and what only a driver needs.
_STAYS = (
    "INSTALLED_MODULES",
    "SETTINGS_MODULE",
    "RUNS_ROOT",
    "CONTEXT_FILES",
    "EXECUTOR_BACKEND",
    "SINKS",
    "SINK_TIMEOUT_S",
)


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An attempt to be run. `key` names it among all. `token` is in the storage if that is the driver's own machine's.
    `beat_s` is how often the worker tells that it is there, None for never; `patience_s` how long the driver may be
    silent before the attempt is stopped, None for ever. `path` is the driver's `sys.path`, for its own workers."""

    key: str
    attempt: msgspec.Raw
    token: str | None = None
    beat_s: float | None = None
    patience_s: float | None = None
    path: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker tells of an attempt.

    `delivery` names one of the times that the attempt was brought to a worker. The reports of the one that runs it are
    numbered from 0; a beat has no number (-1), nor has an answer of a delivery that runs nothing. The last has one of
    `outcome`, `stopped` (why it was stopped) and `refused` (why the run cannot go on, and what to do); an answer has
    `taken` (who has the attempt), or `refused`. The last also has all metrics, each with the number of its report.
    """

    key: str
    delivery: str
    number: int = -1
    emissions: tuple[Emission, ...] = ()
    outcome: Outcome | None = None
    stopped: str = ""
    taken: str = ""
    refused: tuple[str, str] | None = None
    metrics: tuple[tuple[int, Metric], ...] = ()

    @property
    def is_last(self) -> bool:
        """Whether nothing comes after it."""
        return bool(self.outcome or self.stopped or self.refused)


_encoder = msgspec.json.Encoder()
_orders = msgspec.json.Decoder(Order)
_attempts = msgspec.json.Decoder(Attempt)
_reports = msgspec.json.Decoder(Report)


def key_of(attempt: Attempt) -> str:
    """What names the attempt among all attempts of all runs."""
    return f"{attempt.run.run_id}/{attempt.slug}/{attempt.number}"


def travelling(run: RunInfo) -> RunInfo:
    """`run` as it may leave this machine: without secrets, and without what belongs to the driver alone."""
    context: Any = run.context
    for place in run.secrets:
        context = placed(context, place, None)
    settings: dict[str, JSON] = {}
    for name, value in run.settings.items():
        if isinstance(value, Mapping):
            value = {key: each for key, each in value.items() if masked(key, each, run.redact) == each}
        if name not in _STAYS and masked(name, value, run.redact) == value:
            settings[name] = value
    settings["STORAGE_ROOT"] = run.storage
    return msgspec.structs.replace(run, context=context, settings=settings, record=None, masked=())


def encode_order(attempt: Attempt, run: RunInfo, **fields: Any) -> str:
    """The text of an order to run `attempt`, of `run` as it travels; `fields` are the others of `Order`."""
    message = msgspec.structs.replace(attempt, run=run).message()
    order = Order(key=key_of(attempt), attempt=msgspec.Raw(_encoder.encode(message)), **fields)
    return _encoder.encode(order).decode()


def decode_order(text: str) -> tuple[Order, Attempt]:
    """The order in `text`, and its attempt. Raises `msgspec.DecodeError` for anything else."""
    order = _orders.decode(text)
    return order, _attempts.decode(order.attempt)


def key_in(text: str) -> str:
    """The key of the order in `text`. Raises `msgspec.DecodeError` for anything else."""
    return _orders.decode(text).key


def encode_report(report: Report) -> str:
    """The text of `report`."""
    if report.outcome is not None and report.outcome.exception is not None:
        report = msgspec.structs.replace(report, outcome=msgspec.structs.replace(report.outcome, exception=None))
    return _encoder.encode(report).decode()


def decode_report(text: str) -> Report:
    """The report in `text`. Raises `msgspec.DecodeError` for anything else."""
    return _reports.decode(text)


def stopped_report(key: str, why: str) -> str:
    """The only report of a delivery that could not come to an agent, or that the agent failed at."""
    return encode_report(Report(key=key, delivery=os.urandom(8).hex(), number=0, stopped=why))
