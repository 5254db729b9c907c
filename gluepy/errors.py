"""The errors that gluepy raises.

    GluepyError
    ├── UsageError                 a mistake in what was asked; nothing has run: exit code 2
    │   ├── DagError               a DAG or task that cannot be compiled
    │   ├── UnknownDag
    │   ├── UnknownTask
    │   │   └── UnknownInstance    of an `each` that did not add it
    │   ├── UnknownRun
    │   │   └── UnrecordedRun      of which nothing was kept
    │   ├── OptionError            an option, argument or call
    │   ├── SettingsError
    │   ├── ContextError           context files and parameters
    │   ├── ImportFailed           a module of the user's
    │   ├── MissingExtra           a package that is not installed
    │   ├── NoRunContext           used outside a run
    │   ├── NestedRun              a run inside a task
    │   ├── RunLocked              driven by another process
    │   └── NotRunning             asked of a run that is not running
    ├── TaskError                  one task failed
    ├── RunStopped                 a run could not go on: exit code 3
    ├── ExecutorBroken             raised by executors; the run then stops
    └── SinkFailed                 a record could not be sent to a sink
    ExceptionGroup
    └── RunError                   a run failed, with the TaskErrors of its tasks: exit code 1
    UserWarning
    └── SettingsWarning            what looks like a misspelt setting

Every error has its facts as attributes and says what to do in `str()`. Constructors hand their fields to
`super().__init__` and text is made in `__str__`, so that errors survive pickling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of `known` that is most like `word`; None where none is, as difflib measures it, by `cutoff` or more."""
    from difflib import get_close_matches  # who makes no mistake need not wait for it

    return next(iter(get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest of `known`, or an empty string when none is near."""
    near = nearest(word, known)
    return f"; did you mean {near!r}?" if near is not None else ""


class GluepyError(Exception):
    """Base of every error that gluepy raises."""


class UsageError(GluepyError):
    """A mistake in what gluepy was asked: an option, a setting, a DAG. Nothing has run."""


class DagError(UsageError):
    """A DAG or task that cannot be compiled. `place` names it, `problem` says what is wrong, `hint` what to do."""

    def __init__(self, place: str, problem: str, hint: str = "") -> None:
        super().__init__(place, problem, hint)
        self.place, self.problem, self.hint = place, problem, hint

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}" + (f"; {self.hint}" if self.hint else "")


class UnknownDag(UsageError):
    """No DAG has the label asked for."""

    def __init__(self, label: str, known: Sequence[str], modules: Sequence[str] = ()) -> None:
        super().__init__(label, known, modules)
        self.label, self.known, self.modules = label, tuple(known), tuple(modules)

    def __str__(self) -> str:
        text = f"no DAG labelled {self.label!r}{did_you_mean(self.label, self.known)}"
        if not self.known:
            modules = ", ".join(map(repr, self.modules))
            return f"{text}; no DAG is defined in INSTALLED_MODULES = [{modules}]"
        return text if "did you mean" in text else f"{text}; known are {', '.join(sorted(self.known))}"


class UnknownTask(UsageError):
    """A selection names a task that the DAG does not have. `known` are the names that it could have meant."""

    def __init__(self, task: str, dag: str, known: Sequence[str]) -> None:
        super().__init__(task, dag, known)
        self.task, self.dag, self.known = task, dag, tuple(known)

    def __str__(self) -> str:
        label = str(self.task).partition("[")[0]
        hint = did_you_mean(str(self.task), self.known) or did_you_mean(label, self.known)
        shown = ", ".join(self.known[:10]) + (", …" if len(self.known) > 10 else "")
        return f"DAG {self.dag!r} has no task {self.task!r}{hint or '; its tasks are ' + shown}"


class UnknownInstance(UnknownTask):
    """A selection names a task that an `each` did not add when its values were known. `known` are those that it did,
    and `asked` is the task that found the values."""

    def __init__(self, task: str, dag: str, known: Sequence[str], asked: str) -> None:
        super().__init__(task, dag, known)
        self.args = (task, dag, known, asked)
        self.asked = asked

    def __str__(self) -> str:
        shown = ", ".join(self.known[:10]) + (", …" if len(self.known) > 10 else "")
        found = f"{self.asked} made {shown}" if self.known else f"{self.asked} found no values"
        return f"DAG {self.dag!r} has no task {self.task!r}; {found}"


class UnknownRun(UsageError):
    """No run has the id, or ending of an id, that was asked for, or several have. `known` are names that could have
    been meant; none where there are no runs."""

    def __init__(self, run: str, matches: Sequence[str], root: str, known: Sequence[str]) -> None:
        super().__init__(run, matches, root, known)
        self.run, self.matches, self.root, self.known = run, tuple(matches), root, tuple(known)

    def __str__(self) -> str:
        if self.matches:
            return f"{self.run!r} could be any of {len(self.matches)} runs, among them {', '.join(self.matches[:3])}"
        if not self.known:
            return f"no run {self.run!r}: there are no runs in {self.root}"
        hint = did_you_mean(self.run, self.known) or "; `gluepy runs` lists them"
        return f"no run {self.run!r} in {self.root}{hint}"


class UnrecordedRun(UnknownRun):
    """The run had no record (`record=False`): there is nothing to look at or to resume."""

    def __init__(self, run: str, root: str) -> None:
        super().__init__(run, (), root, ())
        self.args = (run, root)

    def __str__(self) -> str:
        return f"run {self.run} was not recorded (record=False): there is nothing to look at or to resume"


class OptionError(UsageError):
    """An option, argument or call that cannot be meant. `option` names it."""

    def __init__(self, option: str, problem: str, hint: str = "") -> None:
        super().__init__(option, problem, hint)
        self.option, self.problem, self.hint = option, problem, hint

    def __str__(self) -> str:
        return f"{self.option}: {self.problem}" + (f"; {self.hint}" if self.hint else "")


class SettingsError(UsageError):
    """A setting that is unknown or has a wrong value. `source` says where it was found."""

    def __init__(self, setting: str, source: str, problem: str, hint: str = "") -> None:
        super().__init__(setting, source, problem, hint)
        self.setting, self.source, self.problem, self.hint = setting, source, problem, hint

    def __str__(self) -> str:
        where = f" ({self.source})" if self.source else ""
        return f"{self.setting}{where}: {self.problem}" + (f"; {self.hint}" if self.hint else "")


class SettingsWarning(UserWarning):
    """The settings module defines what looks like a misspelt setting."""


class ContextError(UsageError):
    """Context files or parameters that cannot be read or do not fit CONTEXT_MODEL. `source` says which."""

    def __init__(self, source: str, problem: str, hint: str = "") -> None:
        super().__init__(source, problem, hint)
        self.source, self.problem, self.hint = source, problem, hint

    def __str__(self) -> str:
        return f"{self.source}: {self.problem}" + (f"; {self.hint}" if self.hint else "")


class ImportFailed(UsageError):
    """A user's module did not import. `stack` is the traceback of the user's own frames."""

    def __init__(self, module: str, why: str, stack: str = "", hint: str = "") -> None:
        super().__init__(module, why, stack, hint)
        self.module, self.why, self.stack, self.hint = module, why, stack, hint

    def __str__(self) -> str:
        text = f"cannot import {self.module!r}: {self.why}" + (f"; {self.hint}" if self.hint else "")
        return f"{text}\n{self.stack.rstrip()}" if self.stack else text


class MissingExtra(UsageError):
    """A feature needs packages that are not installed. `extra` of `distribution` is the extra that brings them."""

    def __init__(self, feature: str, extra: str, distribution: str = "gluepy") -> None:
        super().__init__(feature, extra, distribution)
        self.feature, self.extra, self.distribution = feature, extra, distribution

    def __str__(self) -> str:
        return f"{self.feature} needs the extra {self.extra!r}: pip install '{self.distribution}[{self.extra}]'"


class NoRunContext(UsageError):
    """Something that belongs to a run was asked for outside one. `process`: in one that multiprocessing or a library
    of its kind has started, by its name; else empty."""

    def __init__(self, what: str, process: str = "") -> None:
        super().__init__(what, process)
        self.what, self.process = what, process

    def __str__(self) -> str:
        text = f"{self.what} is known only while a task runs"
        if self.process:
            return (
                f"{text}, and in processes that its code forks; {self.process} knows of none: let it return the value, "
                "and tell it in the task, or use multiprocessing.get_context('fork')"
            )
        return f"{text}; in a test use `with gluepy.testing.task_run(tmp_path): …`"


class NestedRun(UsageError):
    """A run was started inside a task. `task` is the task that tried."""

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self.task = task

    def __str__(self) -> str:
        return f"task {self.task!r} tried to start a run inside its run; name the tasks in one DAG, or run it outside"


class RunLocked(UsageError):
    """Another driver holds the run. `holder` says which process, where known."""

    def __init__(self, run_id: str, holder: str = "") -> None:
        super().__init__(run_id, holder)
        self.run_id, self.holder = run_id, holder

    def __str__(self) -> str:
        who = f" ({self.holder})" if self.holder else ""
        return (
            f"run {self.run_id} is being driven by another process{who}; wait for it, or `gluepy cancel {self.run_id}`"
        )


class NotRunning(UsageError):
    """Something was asked of a run that only one that is running can do. `status` is how it ended."""

    def __init__(self, run_id: str, status: str) -> None:
        super().__init__(run_id, status)
        self.run_id, self.status = run_id, status

    def __str__(self) -> str:
        how = {"interrupted": "its driver is gone", "cancelled": "it was cancelled"}.get(
            self.status, f"it {self.status}"
        )
        return f"run {self.run_id} is not running: {how}; `gluepy runs --status running` lists those that are"


NOT_RAISED = ("lost", "memory", "outputs")  # reasons of failures of which the message says it all: no code raised it


class TaskError(GluepyError):
    """One task of a run failed. `cause` is the user's exception as `__cause__` where it could be carried over.

    Fields: `task` (id), `attempt` (of `max_attempts`), `reason` (`exception`, `timeout`, `memory`, `lost`, `outputs`,
    `interrupted`), `type` and `message` of the error, `stack` (the traceback's text, without gluepy's frames), `log`
    (the attempt's log file, or an empty string).
    """

    def __init__(
        self,
        task: str,
        attempt: int,
        reason: str,
        type: str,
        message: str,
        stack: str = "",
        log: str = "",
        max_attempts: int = 1,
    ) -> None:
        super().__init__(task, attempt, reason, type, message, stack, log, max_attempts)
        self.task, self.attempt, self.reason = task, attempt, reason
        self.type, self.message, self.stack, self.log = type, message, stack, log
        self.max_attempts = max_attempts

    def __str__(self) -> str:
        raised = self.type and self.reason not in NOT_RAISED
        what = f"{self.type}: {self.message}" if raised else self.message
        of = f" of {self.max_attempts}" if self.max_attempts > 1 else ""
        return f"task {self.task!r}, attempt {self.attempt}{of}: {what}"


class RunError(ExceptionGroup[Exception]):
    """A run failed: the group of its tasks' `TaskError`s. `result` is its `RunResult`; `run_id` its id."""

    run_id: str
    result: object

    @classmethod
    def from_result(cls, message: str, errors: Sequence[Exception], run_id: str, result: object) -> RunError:
        """The group of `errors` for the run `run_id`."""
        error = cls(message, errors)
        error.run_id, error.result = run_id, result
        return error

    def derive(self, excs: Sequence[Exception]) -> RunError:  # type: ignore[override]
        """A group of some of its errors, of the same run."""
        return RunError.from_result(self.message, excs, self.run_id, self.result)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.message, self.exceptions, self.run_id)


def _rebuild(message: str, errors: Sequence[Exception], run_id: str) -> RunError:
    return RunError.from_result(message, errors, run_id, None)


class RunStopped(GluepyError):
    """The run could not go on: the disk is full, the engine unreachable. What was recorded stays; resume it later."""

    def __init__(self, run_id: str, why: str, hint: str = "") -> None:
        super().__init__(run_id, why, hint)
        self.run_id, self.why, self.hint = run_id, why, hint

    def __str__(self) -> str:
        return f"run {self.run_id} stopped: {self.why}" + (f"; {self.hint}" if self.hint else "")


class ExecutorBroken(GluepyError):
    """The infrastructure of an executor failed (not a task): workers cannot be started, the engine is unreachable."""

    def __init__(self, executor: str, why: str, hint: str = "") -> None:
        super().__init__(executor, why, hint)
        self.executor, self.why, self.hint = executor, why, hint

    def __str__(self) -> str:
        return f"{self.executor}: {self.why}" + (f"; {self.hint}" if self.hint else "")


class SinkFailed(GluepyError):
    """A sink raised while the record of a run was sent to it. `seq` is the last event that it had taken."""

    def __init__(self, sink: str, seq: int, why: str) -> None:
        super().__init__(sink, seq, why)
        self.sink, self.seq, self.why = sink, seq, why

    def __str__(self) -> str:
        after = f"after event {self.seq}" if self.seq else "before it took an event"
        return f"the sink {self.sink} failed {after}: {self.why}; export the run again, which doubles nothing"
