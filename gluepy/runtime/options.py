"""What can be asked of a run, checked before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import FunctionType
from typing import Any, Literal, TypedDict

from gluepy.conf.contextfiles import without_secrecy
from gluepy.conf.plugins import EXECUTORS, SINKS, Kind, resolve
from gluepy.conf.schema import Settings
from gluepy.core.events import JSON
from gluepy.core.policy import OnFailure
from gluepy.errors import OptionError, did_you_mean
from gluepy.exec.port import Executor
from gluepy.exec.values import WrongValue, as_json
from gluepy.sinks.consume import Delivery
from gluepy.sinks.port import Consumer, Sink

SinkOption = str | type[Any] | Consumer

_EXECUTOR = Kind("an", "executor", EXECUTORS, Executor)
_SINK = Kind("a", "sink", SINKS, Sink, plain=callable)


class RunOptions(TypedDict, total=False):
    """The options of a run, the same everywhere.

    `params` override the context, pydantic's `SecretStr` for what is secret; `concurrency` bounds the tasks that run
    at once; `executor` is an executor, its class, the class's dotted path or a short name; `pool` ("thread" or
    "process") is where a `def run` without a pool of its own goes; `tasks`, `from_task`, `to_task` select tasks by id
    or label (what is not selected counts as satisfied); `skip_evaluation` leaves out the DAG's `evaluation`;
    `on_failure` is "drain", "continue" or "cancel"; `timeout_s` bounds the run; `run_id` names it; `sinks` consume
    its events besides those of SINKS: callables, classes, dotted paths or short names; `capture` sends what tasks
    print to their log files; `debug` runs inline, uncaptured, one task at a time; `record=False` writes nothing down:
    the events are for subscribers and sinks only, who keep in memory what they have not read yet, and the run can be
    neither resumed nor looked at.
    """

    params: Mapping[str, JSON] | None
    concurrency: int | None
    executor: str | type[Executor] | Executor | None
    pool: Literal["thread", "process"] | None
    tasks: Sequence[str] | str | None
    from_task: str | None
    to_task: str | None
    skip_evaluation: bool
    on_failure: OnFailure
    timeout_s: float | None
    run_id: str | None
    sinks: Sequence[SinkOption]
    capture: bool
    debug: bool
    record: bool


class ResumeOptions(TypedDict, total=False):
    """The options of a resumed run; what is not given is as the run had it.

    `from_task` and `force` (ids or labels) run again what has finished, and what follows it; `params` override the
    recorded context, and are recorded in turn; `evaluate` runs the DAG's `evaluation` again, of a run that has finished
    but for that, and nothing else; `dag` says where the DAG is now, when its label is not enough.
    """

    from_task: str | None
    force: Sequence[str] | str | None
    evaluate: bool
    dag: Any
    params: Mapping[str, JSON] | None
    concurrency: int | None
    executor: str | type[Executor] | Executor | None
    pool: Literal["thread", "process"] | None
    skip_evaluation: bool
    on_failure: OnFailure
    timeout_s: float | None
    sinks: Sequence[SinkOption]
    capture: bool
    debug: bool


def recorded_name(executor: object) -> str:
    """By what a run's record names the executor that an option chose, so that it is chosen again when the run goes on;
    empty for one that was handed in ready made, which has to be handed in again."""
    if isinstance(executor, str):
        return executor
    return f"{executor.__module__}:{executor.__qualname__}" if isinstance(executor, type) else ""


def make_executor(option: Any, settings: Settings) -> Executor:
    """The executor that `option` means: one, its class, the class's dotted path or entry point. Raises `UsageError`."""
    named_by = "the option executor"
    if option is settings.EXECUTOR_BACKEND or option == settings.EXECUTOR_BACKEND:
        source = settings.source("EXECUTOR_BACKEND")
        named_by = f"the {source}" if source.kind == "option" else "EXECUTOR_BACKEND"
    executor: Executor = resolve(_EXECUTOR, option, settings, named_by)
    return executor


def make_sinks(options: Sequence[SinkOption], settings: Settings) -> list[Delivery]:
    """The sinks that SINKS and then `options` mean. Raises `UsageError`."""
    named = [*((sink, "SINKS") for sink in settings.SINKS), *((option, "the option sinks") for option in options)]
    return [Delivery(resolve(_SINK, option, settings, named_by), _path_of(option)) for option, named_by in named]


def _path_of(sink: object) -> str:
    """By what the command line can name a sink again; empty for one that only its program has."""
    if isinstance(sink, str):
        return sink
    if not isinstance(sink, (type, FunctionType)) or "<" in sink.__qualname__ or sink.__module__ == "__main__":
        return ""
    return f"{sink.__module__}:{sink.__qualname__}"


def check_options(options: Mapping[str, Any], kind: type[RunOptions | ResumeOptions]) -> None:
    """Raises `OptionError` for options that `kind` does not have, and for values that cannot be meant."""
    known = kind.__annotations__
    for name in options:
        if name not in known:
            raise OptionError(
                name, f"there is no such option{did_you_mean(name, known) or '; known: ' + ', '.join(known)}"
            )
    check_concurrency(options.get("concurrency"))
    timeout_s: Any = options.get("timeout_s")
    is_number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool)
    if timeout_s is not None and not (is_number and timeout_s > 0):
        raise OptionError("timeout_s", f"{timeout_s!r} must be a positive number", "give seconds")
    if not isinstance(options.get("record", True), bool):
        raise OptionError("record", f"{options['record']!r} is not True or False")
    _check_kinds(options)
    for name, allowed in (("pool", ("thread", "process")), ("on_failure", ("drain", "continue", "cancel"))):
        value: Any = options.get(name)
        if value is not None and value not in allowed:
            raise OptionError(name, f"{value!r} is not one of {', '.join(allowed)}{did_you_mean(str(value), allowed)}")
    params: Any = options.get("params")
    if params is not None:
        try:
            if not isinstance(params, Mapping):
                raise WrongValue(f"params is {type(params).__name__}, not a mapping", "")
            as_json(without_secrecy(params), "params")
        except WrongValue as error:
            raise OptionError("params", error.problem, "give a mapping of names to JSON values") from None


def _check_kinds(options: Mapping[str, Any]) -> None:
    for name in ("run_id", "from_task", "to_task"):
        text = options.get(name)
        if text is not None and not isinstance(text, str):
            raise OptionError(
                name,
                f"{text!r} is not text",
                "give the id of a run" if name == "run_id" else "give a task's id or label",
            )
    for name in ("tasks", "force"):
        names = options.get(name)
        if names is None or isinstance(names, str):
            continue
        if not isinstance(names, Collection) or not all(isinstance(each, str) for each in names):
            raise OptionError(name, f"{names!r} does not name tasks", "give ids or labels of tasks, a list of text")
    sinks = options.get("sinks")
    if sinks is not None and (isinstance(sinks, (str, bytes, Mapping)) or not isinstance(sinks, Collection)):
        raise OptionError("sinks", f"{sinks!r} is not a list", f"give a list of sinks, as in sinks=[{_named(sinks)}]")


def _named(value: object) -> str:
    return getattr(value, "__name__", None) or repr(value)


def check_concurrency(concurrency: Any) -> None:
    """Raises `OptionError` unless `concurrency` is None or a whole number above 0."""
    if concurrency is not None and (
        not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1
    ):
        raise OptionError(
            "concurrency",
            f"{concurrency!r} must be a positive whole number",
            "give the number of tasks that may run at once",
        )
