"""What a pipeline's author writes: `Task` classes with a `run()` without arguments, and `raise Skip("why")`."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, overload

from gluepy.core.events import JSON, recordable
from gluepy.core.graph import Spec
from gluepy.core.policy import NO_RETRY, Goal, Retry, Trigger
from gluepy.errors import DagError, NoRunContext
from gluepy.exec.parameters import Parametrized, parameters_of
from gluepy.exec.port import Metric, Progress
from gluepy.exec.scope import Scope, current_scope

if TYPE_CHECKING:
    from dataclasses import field
    from pathlib import Path

    from upath import UPath

T = TypeVar("T")

_TRIGGERS = ("all_success", "none_failed", "none_failed_min_one_success", "all_done", "one_failed")


class Skip(Exception):
    """Raised in `run()`: the task ends as skipped, and `why` is recorded."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why)
        self.why = recordable(why)


class Task(Parametrized):
    """One unit of work. A subclass defines `run(self)`, plain or async, and what it wants of the class attributes.

    Annotated attributes are the task's parameters (JSON values, given by keyword): `TrainRegion(region="eu")`.
    `label` defaults to the lower-cased class name. An instance may have an `id` of its own in a DAG.

    Inside `run()`, `path`, `storage`, `atomic`, `local`, `context`, `log`, `progress` and `metric` belong to the run;
    outside one they raise `NoRunContext` (in a test: `with gluepy.testing.task_run(tmp_path): …`).
    """

    label: ClassVar[str]
    pool: ClassVar[str | None] = None
    retries: ClassVar[Retry | int] = 0
    timeout_s: ClassVar[float | None] = None
    uses: ClassVar[Mapping[str, int]] = {}
    memory_mb: ClassVar[int | None] = None
    cpus: ClassVar[int | None] = None
    queue: ClassVar[str | None] = None
    trigger: ClassVar[Trigger] = "all_success"
    goals: ClassVar[Mapping[str, Goal | Literal["lower", "higher"]]] = {}
    if TYPE_CHECKING:
        id: str | None = field(default=None, kw_only=True)  # every task can be given one

        def __init__(self, *, id: str | None = None, **parameters: Any) -> None: ...
    else:
        inputs = outputs = ()

        @property
        def id(self) -> str | None:
            """The task's id in its DAG; outside of a run the one that it was given, if any."""
            scope = self._scope
            return scope.attempt.task if self._id is None and scope is not None else self._id

    _configurable: ClassVar[frozenset[str]] = frozenset(
        ("label", "pool", "retries", "timeout_s", "uses", "memory_mb", "cpus", "queue", "trigger", "goals")
    ) | {"inputs", "outputs"}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "label" not in cls.__dict__:
            cls.label = cls.__name__.lower()

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process, by pickle: all but the run."""
        return {name: value for name, value in self.__dict__.items() if name != "_scope"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Be that task again. In a process that the task has forked it knows the run."""
        self.__dict__.update(state, _scope=current_scope())

    def run(self) -> Any:
        """The work. No arguments: tasks share data through files. What it returns is not used."""
        raise TypeError(f"{type(self).__qualname__} does not define run(self)")

    @property
    def path(self) -> UPath:
        """The folder of this run's files, local or in an object store."""
        return self._here("self.path").run.path

    @property
    def storage(self) -> UPath:
        """The folder of what outlives a run (STORAGE_ROOT)."""
        return self._here("self.storage").run.storage

    @property
    def context(self) -> Any:
        """The run's parameters, by attribute or key."""
        return self._here("self.context").context

    @property
    def log(self) -> Any:
        """A structlog logger bound to run, task and attempt."""
        return self._here("self.log").log

    @property
    def traceparent(self) -> str | None:
        """The attempt's span as W3C trace context has it, for what the task starts; None if the run is not traced.

        OpenTelemetry's current span is the attempt's in any case; processes have it in the variable TRACEPARENT too.
        """
        return self._here("self.traceparent").attempt.traceparent

    def atomic(self, name: str | Path | UPath) -> AbstractContextManager[Path]:
        """A local path to write to, published as `name` when the block ends well, whole or not at all.

        A relative `name` is one of the run's files (`self.path / name`) and cannot lead out of them; `self.storage /
        name`, another absolute path and a URL are taken as they are. Nobody who lists the run's files or the storage
        sees the draft. If it cannot be published it is kept, and the error says where.
        """
        from gluepy.exec.files import atomic

        scope = self._here("self.atomic")
        return atomic(scope.run.path, scope.run.storage, name, scope.attempt)

    def local(self, path: str | Path | UPath) -> Path:
        """A local path with the contents of `path` (relative ones: of `self.path`). What is local is not copied; a copy
        is removed when the attempt ends."""
        from gluepy.exec.files import local, located

        scope = self._here("self.local")
        copy, room = local(located(scope.run.path, path), scope.attempt)
        if room is not None:
            scope.rooms = [*(scope.rooms or ()), room]
        return copy

    def write(self, name: str | Path | UPath, value: Any, *, trust: bool = False, **options: Any) -> None:
        """Write `value` as the dataset `name`, which is published whole as by `atomic`.

        The suffix says the format, the value's type the library (see `gluepy.data`), which gets the `options`; `trust`
        allows pickle and joblib. What was written is recorded (`dataset.written`), unless DATASET_EVENTS is off. Raises
        `DataError` for what the format cannot hold, or what a missing package would write.
        """
        from gluepy.exec.datasets import write

        write(self._here("self.write"), name, value, trust, options)

    @overload
    def read(self, name: str | Path | UPath, kind: type[T], *, trust: bool = False, **options: Any) -> T: ...
    @overload
    def read(self, name: str | Path | UPath, kind: None = None, *, trust: bool = False, **options: Any) -> Any: ...
    def read(self, name: str | Path | UPath, kind: Any = None, *, trust: bool = False, **options: Any) -> Any:
        """The dataset `name` as a `kind`, such as `pl.LazyFrame`, `pd.DataFrame`, `dict`, `list[Model]`; without one as
        its format has it, tables by the first of polars, pandas and pyarrow that is installed.

        `trust` and `options` are as in `write`. Recorded as `dataset.read`. Raises `DataError`, and `FileNotFoundError`
        if there is none.
        """
        from gluepy.exec.datasets import read

        return read(self._here("self.read"), name, kind, trust, options)

    def progress(self, done: float, total: float = 0) -> None:
        """Record that `done` of `total` units of the work are done; 0 is an unknown total.

        Raises `ValueError` unless both are finite numbers, `TypeError` for what is no number at all.
        """
        numbers = _number(done, "progress"), _number(total, "the total of progress")
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"progress {done} of {total}: only finite numbers can be recorded")
        self._here("self.progress").emit(Progress(*numbers))

    def metric(self, name: str, value: float) -> None:
        """Record a measured `value`. A NaN or an infinity is recorded as null, and told in the attempt's log.

        Raises `TypeError` for what is no number.
        """
        number = _number(value, f"metric {name!r}")
        scope = self._here("self.metric")
        told = scope.masked(recordable(name))
        is_finite = math.isfinite(number)
        if not is_finite:
            scope.log.warning("a metric that is not finite is recorded as null", metric=told, value=str(number))
        scope.emit(Metric(told, number if is_finite else None))

    def _here(self, what: str) -> Scope:
        scope = self._scope or current_scope()
        if scope is None:
            raise _no_run(what)
        return scope


Task.label = "task"
_RESERVED = frozenset(name for name in vars(Task) if not name.startswith("_")) - Task._configurable


def _number(value: Any, what: str) -> float:
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{what} is {value!r}, which is text; give a number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{what} must be a number: {error}") from None


def current_task() -> Any:
    """The task that is running here. Raises `NoRunContext` outside a run."""
    scope = current_scope()
    if scope is None or scope.task is None:
        raise _no_run("current_task()")
    return scope.task


def _no_run(what: str) -> NoRunContext:
    module = sys.modules.get("multiprocessing.process")
    name = module.current_process().name if module is not None else "MainProcess"
    return NoRunContext(what, "" if name == "MainProcess" else f"the process {name}")


def spec_of(task: type[Task]) -> Spec:
    """The spec of a task class. Raises `DagError`, naming the class and the hint, for everything wrong with it."""
    place = f"task {task.__qualname__} ({task.__module__})"

    def fail(problem: str, hint: str) -> DagError:
        return DagError(place, problem, hint)

    if not isinstance(task.label, str) or not task.label:
        raise fail(f"label is {task.label!r}", "give it a name, a string")
    takes = parameters_of(task)
    for name in takes.names:
        if name in _RESERVED:
            raise fail(f"the parameter {name!r} has the name of an attribute of Task", "rename it")
    if takes.problem is not None:
        raise fail(*takes.problem)
    if has_others(task, Task, {*Task._configurable, *takes.declared}):
        from gluepy.exec.near_misses import near_miss_of_task

        miss = near_miss_of_task(task, Task)
        if miss is not None:
            raise fail(*miss)
    _check_run(task, fail)
    pool = task.pool
    if pool not in (None, "thread", "process"):
        raise fail(f"pool is {pool!r}", "use 'thread' or 'process' (an async run needs none)")
    if is_async(task):
        if pool == "process":
            raise fail("async def run with pool = 'process'", "use def run, or remove pool: it runs on the event loop")
        pool = "loop"
    if task.trigger not in _TRIGGERS:
        raise fail(f"trigger is {task.trigger!r}", f"use one of {', '.join(_TRIGGERS)}")
    timeout_s = task.timeout_s
    if timeout_s is not None and not (_is_number(timeout_s) and timeout_s > 0):
        raise fail(f"timeout_s is {timeout_s!r}", "it must be a positive number, of seconds, or None")
    memory_mb = task.memory_mb
    if memory_mb is not None and not (_is_int(memory_mb) and memory_mb > 0):
        raise fail(f"memory_mb is {memory_mb!r}", "it must be a positive whole number, of MiB, or None")
    if memory_mb is not None and pool != "process":
        raise fail(
            "memory_mb without pool = 'process'", "only a worker process can be held to a limit: set pool = 'process'"
        )
    if task.cpus is not None and not (_is_int(task.cpus) and task.cpus > 0):
        raise fail(f"cpus is {task.cpus!r}", "it must be a positive whole number, of processor cores, or None")
    if task.queue is not None and not (isinstance(task.queue, str) and task.queue):
        raise fail(f"queue is {task.queue!r}", "it must be the name of a queue that workers take from, or None")
    if not isinstance(task.uses, Mapping) or not all(
        isinstance(name, str) and _is_int(amount) and amount > 0 for name, amount in task.uses.items()
    ):
        raise fail(f"uses is {task.uses!r}", "it must give names of LIMITS positive whole numbers, as in {'gpu': 1}")
    return Spec(
        cls=f"{task.__module__}:{task.__qualname__}",
        label=task.label,
        pool=pool,
        params=takes.names,
        trigger=task.trigger,
        retry=_retry(task.retries, fail),
        timeout_s=None if timeout_s is None else float(timeout_s),
        uses=dict(task.uses),
        memory_mb=memory_mb,
        cpus=task.cpus,
        queue=task.queue,
        inputs=_datasets(task, "inputs", fail),
        outputs=_datasets(task, "outputs", fail),
        goals=_goals(task, fail),
    )


def _goals(task: type[Task], fail: Callable[[str, str], DagError]) -> dict[str, Goal]:
    goals = task.goals
    try:
        if not isinstance(goals, Mapping) or not all(isinstance(name, str) and name for name in goals):
            raise ValueError(f"it is {goals!r}")
        return {name: goal if isinstance(goal, Goal) else Goal(goal) for name, goal in goals.items()}
    except ValueError as error:
        hint = "give names of metrics 'lower', 'higher' or a Goal, as in goals = {'auc': Goal('higher', 0.01)}"
        raise fail(f"goals: {error}", hint) from None


def has_others(cls: type, root: type, known: Collection[str]) -> bool:
    """Whether the class has values, below `root`, that are not `known`: most have none."""
    return any(
        name not in known and not name.startswith("_") and not hasattr(value, "__get__")
        for base in cls.__mro__
        if base is not root and issubclass(base, root)
        for name, value in vars(base).items()
    )


def is_async(task: type[Task]) -> bool:
    """Whether the task runs on the event loop."""
    return inspect.iscoroutinefunction(task.run)


def retry_of(task: type[Task]) -> Retry:
    """The task's retry policy; a number of retries stands for that many and the default back-off."""
    retries = task.retries
    if isinstance(retries, Retry):
        return retries
    return Retry(attempts=retries + 1) if retries else NO_RETRY


def outputs_of(task: type[Task], spec: Spec, params: Mapping[str, JSON]) -> tuple[str, ...]:
    """What the task declares as its outputs with these parameters; nothing where only a run can tell."""
    if not isinstance(inspect.getattr_static(task, "outputs"), property):
        return spec.outputs
    try:
        return tuple(map(str, parameters_of(task).make(params).outputs))
    except Exception:
        return ()


def _check_run(task: type[Task], fail: Any) -> None:
    if task.run is Task.run:
        raise fail("it does not define run(self)", "write one")
    if not inspect.isroutine(task.run):
        raise fail(f"run is {task.run!r}", "write def run(self)")
    if inspect.isgeneratorfunction(task.run) or inspect.isasyncgenfunction(task.run):
        raise fail("run is a generator, so calling it does nothing", "write what it makes to files instead of yielding")
    kind = inspect.getattr_static(task, "run")
    arguments = list(inspect.signature(task.run).parameters)
    if not isinstance(kind, (staticmethod, classmethod)):
        if not arguments:
            raise fail("run takes no self", "write def run(self)")
        del arguments[0]
    if arguments:
        raise fail(
            f"run takes arguments ({', '.join(arguments)})",
            "tasks share data through files; make it a parameter with an annotation in the class, or read the context",
        )


def _retry(retries: Any, fail: Any) -> Retry:
    if isinstance(retries, Retry):
        wrong = [kind for kind in retries.on if not (isinstance(kind, type) and issubclass(kind, BaseException))]
        if wrong:
            raise fail(f"Retry.on has {wrong[0]!r}", "give exception classes, as in on=(ConnectionError,)")
        return Retry(
            attempts=retries.attempts,
            wait_s=retries.wait_s,
            factor=retries.factor,
            max_wait_s=retries.max_wait_s,
            jitter=retries.jitter,
        )
    if not _is_int(retries) or retries < 0:
        raise fail(
            f"retries is {retries!r}", "it must be a Retry(…), or the number of retries: 0 or a positive whole number"
        )
    return Retry(attempts=retries + 1) if retries else NO_RETRY


def _datasets(task: type[Task], name: str, fail: Any) -> tuple[str, ...]:
    value = inspect.getattr_static(task, name)
    if isinstance(value, property):  # depends on parameters: known once there is an instance
        return ()
    if (
        isinstance(value, str)
        or not isinstance(value, (tuple, list))
        or not all(isinstance(item, str) or hasattr(item, "joinpath") for item in value)
    ):
        raise fail(f"{name} is {value!r}", f'give a tuple of names, as in {name} = ("products.parquet",)')
    return tuple(map(str, value))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and math.isfinite(value)
