"""The attempt boundary: where a task's code is called, and the only place where its exceptions are caught.

Every executor ends here, in this process, a worker process or on another machine; so an attempt behaves the same and
tells the same everywhere.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec

from gluepy.errors import ImportFailed, TaskError
from gluepy.exec import forks
from gluepy.exec.dag import Expander
from gluepy.exec.parameters import parameters_of
from gluepy.exec.port import FINISHED, Attempt, Outcome, RunInfo, local_path
from gluepy.exec.scope import RunScope, Scope, enter_scope, leave_scope, redactor_of
from gluepy.exec.task import Skip, Task, retry_of
from gluepy.traces import clear_frames, type_name, user_stack
from gluepy.tracing import enter_span

_MESSAGE_LENGTH = 10_000
T = TypeVar("T")


class Missing(Exception):
    """What a task declares as its `inputs` or `outputs` is not there. `missing` has the names."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__(missing)
        self.missing = missing


class MissingInputs(Missing):
    """A task was to start without what it declares as `inputs`."""

    def __str__(self) -> str:
        return f"its declared inputs are missing: {', '.join(self.missing)}"


class MissingOutputs(Missing):
    """A task ended well without what it declares as `outputs`."""

    def __str__(self) -> str:
        return f"run() ended well, but its declared outputs are missing: {', '.join(self.missing)}"


def execute(attempt: Attempt, scope: Scope) -> Outcome:
    """Run one attempt of a plain `def run` (or ask an `each`'s callables) here and now, and tell how it ended."""
    forks.attach(scope)
    token = enter_scope(scope)
    if attempt.run.trace is not None:
        _enter_span(attempt)
    target: Any = None
    made: dict[str, Any] | None = None
    try:
        target = resolve(attempt, scope)
        if isinstance(target, Expander):
            return Outcome(status="finished", value=target.rows())
        made = target.__dict__.copy()
        if target.inputs:
            check_inputs(target)
        value = target.run()
        if scope.forked:
            forks.leave(None)
        return checked(target) if value is None else returned(value, checked(target), scope)
    except Skip as skip:
        return _skipped(attempt, skip)
    except BaseException as error:  # in a thread or a worker nobody else would hear of an exit or a stray cancellation
        if scope.forked:
            forks.leave(error)
        target = None  # the error's traceback holds this frame
        return failed(attempt, error, scope)
    finally:
        if scope.forked:
            forks.leave(None)
        _release(scope, made)
        if scope.rooms:
            scope.close()
        leave_scope(token)
        forks.detach(scope)


async def execute_async(attempt: Attempt, scope: Scope) -> Outcome:
    """`execute` for an `async def run`, in a context of its own: it enters `scope` and its span, and does not leave
    them."""
    forks.attach(scope)
    enter_scope(scope)
    if attempt.run.trace is not None:
        _enter_span(attempt)
    target: Any = None
    made: dict[str, Any] | None = None
    try:
        target = resolve(attempt, scope)
        if isinstance(target, Expander):
            return Outcome(status="finished", value=await target.rows_async())
        made = target.__dict__.copy()
        if target.inputs:
            await _off_the_loop(check_inputs, target)
        value = await target.run()
        if scope.forked:
            forks.leave(None)
        outcome = await _off_the_loop(checked, target) if target.outputs else FINISHED
        return outcome if value is None else returned(value, outcome, scope)
    except Skip as skip:
        return _skipped(attempt, skip)
    except (KeyboardInterrupt, GeneratorExit) as error:
        if scope.forked:
            forks.leave(error)
        raise
    except BaseException as error:
        if scope.forked:
            forks.leave(error)
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        if cancelled and anyio.current_effective_deadline() == -math.inf:
            raise
        target = None
        return failed(attempt, error, scope)  # also a cancellation that nobody asked for: of a future that it awaited
    finally:
        if scope.forked:
            forks.leave(None)
        _release(scope, made)
        if scope.rooms:
            scope.close()
        forks.detach(scope)


def _enter_span(attempt: Attempt) -> None:
    """Have the spans that the task begins be below the attempt's. Nobody leaves it: what follows in this context is the
    next attempt of the run, which enters its own."""
    assert attempt.run.trace is not None and attempt.traceparent is not None
    enter_span(attempt.traceparent, attempt.run.trace.state)


def _release(scope: Scope, made: dict[str, Any] | None) -> None:
    """Break the cycles through the task, or what it holds would wait for the garbage collector: the one with its scope,
    and those through what `run()` has set on it (`self.model.callback = self.report`). What it was `made` with
    stays."""
    task, scope.task = scope.task, None
    if made is not None and task is not None:
        held = task.__dict__
        held.clear()
        held.update(made)


def _skipped(attempt: Attempt, skip: Skip) -> Outcome:
    redact = redactor_of(attempt)
    return Outcome(status="skipped", error_message=skip.why if redact is None else redact(skip.why))


def failed(attempt: Attempt, error: BaseException, scope: Scope | None = None) -> Outcome:
    """The outcome of an attempt that raised `error`, which from now on holds no local variables."""
    message, is_missing = _message(error), isinstance(error, Missing)
    if isinstance(error, SystemExit):
        message = f"run() called sys.exit({error.code!r})"
    stack = "" if is_missing else user_stack(error)  # none of the user's frames is in it
    if (redact := redactor_of(attempt)) is not None:
        message, stack = redact(message), redact(stack)
    clear_frames(error)
    return Outcome(
        status="failed",
        reason="outputs" if isinstance(error, MissingOutputs) else "exception",
        error_type=type(error).__name__ if is_missing else type_name(error),
        error_message=message[:_MESSAGE_LENGTH],
        error_stack=stack,
        retryable=is_worth_retrying(attempt, type(error), scope),
        exception=error,
        missing=tuple(error.missing) if isinstance(error, MissingInputs) else (),
    )


def returned(value: object, outcome: Outcome, scope: Scope) -> Outcome:
    """The outcome of a task whose `run()` has returned something; the attempt's log tells of it. Raises `TypeError` for
    work that only `await` or a loop would do."""
    kind = type(value).__name__
    if inspect.isawaitable(value) or isinstance(value, (Generator, AsyncGenerator)):
        if isinstance(value, (Coroutine, Generator)):
            value.close()
        raise TypeError(f"run() returned a {kind} object, whose work is not done; write async def run, or a plain loop")
    warning = f"run() returned a value ({kind}), which is not used; write it to a file"
    scope.log.warning(warning)
    return msgspec.structs.replace(outcome, warning=warning)


def is_worth_retrying(attempt: Attempt, error: type[BaseException], scope: Scope | None = None) -> bool:
    """Whether the task's `Retry.on` names an error of this class."""
    worth: tuple[Any, ...] = ()
    if isinstance(attempt.target, Expander):
        worth = attempt.target.retry_on
    elif scope is not None and scope.task is not None:  # in another process the target is not known, but the task is
        worth = retry_of(type(scope.task)).on
    elif attempt.target is not None:
        worth = retry_of(attempt.target).on
    return not worth or issubclass(error, worth)


def run_scope(run: RunInfo) -> RunScope:
    """The scope that the attempts of `run` share; context and settings are read when a task asks for them."""
    forks.install()

    def context() -> Any:
        from gluepy.conf.context import Context

        return Context(run.context, "", run.secrets)

    def settings() -> Any:
        from gluepy.conf.sources import load_settings

        return load_settings(Path(run.project) if run.project else None, run.settings, warn=False)

    return RunScope(run, context, settings)


def task_error(attempt: Attempt, outcome: Outcome, log: str) -> TaskError:
    """The `TaskError` of a failed outcome, with the user's exception as its cause where there is one."""
    error = TaskError(
        attempt.task,
        attempt.number,
        outcome.reason or "exception",
        outcome.error_type,
        outcome.error_message,
        outcome.error_stack,
        log,
        attempt.max_attempts,
    )
    error.__cause__ = outcome.exception
    return error


def resolve(attempt: Attempt, scope: Scope) -> Any:
    """What the attempt is to run: the task, made with its parameters and bound to `scope`, or an `Expander`."""
    if attempt.number > 1:
        from gluepy.exec.drafts import sweep

        sweep(attempt.run, before=attempt)
    target = attempt.target
    if target is None:
        target = load(attempt.spec.cls)
    if isinstance(target, type):
        task = parameters_of(target).make(attempt.params)
        task.__dict__["_scope"] = scope  # a frozen dataclass lets nobody assign
        scope.task = task
        return task
    scope.task = Task()  # what an `each` asks is a plain function: `current_task()` is how it reaches the run
    scope.task._scope = scope
    return target


def load(reference: str) -> Callable[..., Any]:
    """The class that `reference` (`Spec.cls`) names. Raises `ImportFailed`, or what its module raises."""
    module, _, name = reference.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ImportFailed(reference, str(error)) from error
    return found  # type: ignore[no-any-return]


def check_inputs(task: Task) -> None:
    """Raises `MissingInputs` when something that the task declares as an input is not there."""
    missing = _missing(task, "inputs")
    if missing:
        raise MissingInputs(missing)


def checked(task: Task) -> Outcome:
    """The outcome of a task that ended well. Raises `MissingOutputs` when it left something out."""
    missing = _missing(task, "outputs")
    if missing:
        raise MissingOutputs(missing)
    return FINISHED


def _missing(task: Task, attribute: str) -> list[str]:
    names = getattr(task, attribute)
    if not names:
        return []
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f'{type(task).__qualname__}.{attribute} is {names!r}; give a tuple of names, as in ("x.csv",)')
    from gluepy.exec.files import exists

    return [str(name) for name in names if not exists(task.path, name)]


async def _off_the_loop(check: Callable[[Task], T], task: Task) -> T:
    """`check(task)`; in a thread, if it has to ask an object store."""
    is_remote = task._scope is not None and local_path(task._scope.run.run.path) is None
    return await anyio.to_thread.run_sync(check, task) if is_remote else check(task)


def _message(error: BaseException) -> str:
    try:
        return "\n".join((str(error), *getattr(error, "__notes__", ()))).encode("utf-8", "replace").decode()
    except Exception:
        return "(its message could not be formatted)"
