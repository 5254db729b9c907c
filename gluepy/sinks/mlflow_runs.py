"""What a run is in MLflow: what each event adds to it, as pure functions of the stream."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from gluepy.core import events as e
from gluepy.core.graph import Tree, leaves

RUN_ID_TAG = "gluepy.run_id"  # by which the run is found again
MAX_METRICS = 900  # in a request, where MLflow takes no more than 1000 values
MAX_PARAMS = 100  # and as many tags
_MAX_KEY, _MAX_PARAM, _MAX_TAG = 250, 6000, 5000
_NOT_IN_KEYS = re.compile(r"[^\w.\-/ :]")

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
EndOfRun = e.RunFinished | e.RunFailed | e.RunCancelled


@dataclass
class Addition:
    """What is added to an MLflow run. `outputs` are names of files that were made, below the run's folder."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    status: Status | None = None
    at_ms: int = 0
    outputs: tuple[str, ...] = ()


class RunLog:
    """Turns the events of one run, in order, into what they add to the MLflow run."""

    def __init__(self) -> None:
        self._outputs: dict[str, tuple[str, ...]] = {}
        self._steps: Counter[tuple[str, str]] = Counter()
        self._has_error = False

    def of(self, event: e.Event) -> Addition | None:
        """What `event` adds, None if that is nothing."""
        match event:
            case e.RunStarted() | e.RunResumed():
                return self._begin(event)
            case e.RunFinished() | e.RunFailed() | e.RunCancelled():
                return self._end(event)
            case e.TaskStarted():
                for key in [key for key in self._steps if key[0] == event.task]:
                    del self._steps[key]  # an attempt counts its own
            case e.TaskMetric():
                return Addition([self._metric(event)])
            case e.TaskFailed() if not self._has_error:
                self._has_error = True
                text = f"{event.task}: {event.error_type}: {event.error_message}"
                return Addition(tags={"gluepy.error": text[:_MAX_TAG]})
            case e.TaskFinished():
                label = event.task.partition("[")[0]
                return Addition(outputs=self._outputs.get(event.task, self._outputs.get(label, ())))
            case _:
                pass
        return None

    def _begin(self, event: e.RunStarted | e.RunResumed) -> Addition:
        tree = Tree.from_record(event.graph)
        self._outputs = {spec.label: spec.outputs for spec in tree.specs}
        self._outputs |= {leaf.id: tree.specs[leaf.spec].outputs for leaf in leaves(tree.root) if leaf.id is not None}
        self._has_error = False
        commit, plus, _ = event.code_version.partition("+")
        tags = {
            "mlflow.runName": f"{event.dag}-{event.run_id[-6:]}",
            "mlflow.source.name": event.dag,
            "mlflow.source.type": "LOCAL",
            RUN_ID_TAG: event.run_id,
            "gluepy.dag": event.dag,
            "gluepy.session": str(event.session),
            "gluepy.version": event.gluepy_version,
            "gluepy.code_version": event.code_version,
            "gluepy.host": event.host,
        }
        if plus:
            tags["mlflow.source.git.commit"] = commit
        if isinstance(event, e.RunResumed) and event.params_changed:  # a parameter of MLflow's never changes
            for name, (_, after) in event.params_changed.items():
                tags[key_of(f"gluepy.changed.{name}")] = text_of(after, _MAX_TAG)
        return Addition(tags=tags, status="RUNNING", at_ms=milliseconds(event.timestamp))

    @staticmethod
    def _end(event: EndOfRun) -> Addition:
        tags = {f"gluepy.tasks.{status}": str(number) for status, number in event.counts.items()}
        status: Status = "FINISHED"
        if isinstance(event, e.RunFailed):
            status = "FAILED"
            tags["gluepy.failed"] = ", ".join(event.failed)[:_MAX_TAG]
        elif isinstance(event, e.RunCancelled):
            status = "KILLED"
        return Addition(tags=tags, status=status, at_ms=milliseconds(event.timestamp))

    def _metric(self, event: e.TaskMetric) -> dict[str, Any]:
        step = self._steps[event.task, event.name]
        self._steps[event.task, event.name] += 1
        return {
            "key": key_of(f"{key_of(_words(event.task))}/{event.name}"),
            "value": "NaN" if event.value is None else event.value,
            "timestamp": milliseconds(event.timestamp),
            "step": step,
        }


def _words(task: str) -> str:
    """A task's id as MLflow can have it, below which its metrics are grouped: `fit[region=eu]` is `fit/region:eu`."""
    label, bracket, values = task.partition("[")
    return f"{label}/{values.removesuffix(']').replace('=', ':')}" if bracket else label


def key_of(name: str) -> str:
    """`name` as the key of a metric, parameter or tag; changed, with a digest, if MLflow does not take it."""
    plain = "/".join(
        "_" if part.strip() in ("", ".", "..") else part for part in _NOT_IN_KEYS.sub("_", name).split("/")
    )
    if plain == name and len(name) <= _MAX_KEY:
        return name
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=3).hexdigest()
    return f"{plain[: _MAX_KEY - 7]}-{digest}"


def parameters(context: Any, under: str = "") -> Iterator[tuple[str, str]]:
    """The values in a run's context, by their dotted names."""
    if isinstance(context, Mapping) and context:
        for name, value in context.items():
            yield from parameters(value, f"{under}.{name}" if under else str(name))
    elif under:
        yield key_of(under), text_of(context, _MAX_PARAM)


def text_of(value: Any, limit: int) -> str:
    """A JSON value as text: strings as they are."""
    text = value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()
    return text[:limit]


def milliseconds(timestamp: str) -> int:
    """A timestamp of an event as MLflow has it."""
    return int(datetime.fromisoformat(timestamp).timestamp() * 1000)
