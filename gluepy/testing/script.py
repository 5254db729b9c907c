"""An executor that does as it is told: `ScriptedExecutor`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel

from gluepy.clock import Clock, SystemClock
from gluepy.core.events import JSON, Reason
from gluepy.core.graph import Graph, Spec
from gluepy.errors import OptionError, nearest
from gluepy.exec.boundary import failed as failed_with
from gluepy.exec.dag import Expander
from gluepy.exec.port import FINISHED, Abandoned, Attempt, Emission, Emit, Executor, Outcome, Released


@dataclass(frozen=True, slots=True)
class Step:
    """One attempt of a script: what it emits, how long it lasts, and how it ends.

    It emits `emits`, lasts `lasts_s` seconds of the executor's clock, then, if `held`, waits for
    `ScriptedExecutor.release`, and then ends as `outcome`, or raises `breaks`, as an executor does whose infrastructure
    is broken. One that `runs` has the task run before it ends; where that ends badly, so does the attempt. A `stubborn`
    one goes on when it is stopped, as a thread does, until it is released. `values` are what the functions of an `each`
    find, by the names of its parameters.
    """

    outcome: Outcome = FINISHED
    emits: Sequence[Emission] = ()
    lasts_s: float = 0.0
    held: bool = False
    breaks: Exception | None = None
    runs: bool = False
    stubborn: bool = False
    values: Mapping[str, Sequence[Any]] | None = None


def failed(
    message: str = "as told",
    *,
    type: str = "RuntimeError",
    reason: Reason = "exception",
    retryable: bool = True,
) -> Outcome:
    """The outcome of an attempt that failed."""
    return Outcome(status="failed", reason=reason, error_type=type, error_message=message, retryable=retryable)


def skipped(why: str = "") -> Outcome:
    """The outcome of an attempt that raised `Skip(why)`."""
    return Outcome(status="skipped", error_message=why)


def values(**found: Sequence[Any]) -> Step:
    """An attempt in which the functions of an `each` find these values: `values(region=["eu", "us"])`."""
    return Step(values=found)


HELD = Step(held=True)
RUNS = Step(runs=True)


class ScriptedExecutor(Executor):
    """An executor that runs nothing: a script says how each attempt goes.

        executor = ScriptedExecutor({"load": [failed(), failed(), Step(lasts_s=3)], "train": HELD})

    `script` names tasks by id or by label. Each has an `Outcome` or `Step` for all its attempts, or a list with one for
    each, of which the last goes on holding. Tasks that it does not name finish at once. `clock` is what `lasts_s`
    is measured by; hand in the run's own. A name that no task of a DAG has, but nearly one has, is refused before the
    run begins; if `strict`, so is every name that none has.

    What an `each` asks for its values is asked, unless the script names the task that does: `values` gives them, and
    `failed` fails it.

        ScriptedExecutor({"each-train": [failed(), values(region=["eu", "us"])]})

    Given a `real` executor, it makes attempts fail among others that do their work: what the script does not name, and
    what it says `RUNS` of, runs there.

        lost = Step(failed(reason="lost"), runs=True)
        ScriptedExecutor({"load": [failed(), RUNS], "train": [lost, RUNS]}, real=LocalExecutor())

    `started` has (task id, attempt) of every attempt in the order in which they came, `running` those that run now,
    `stopped` those that were stopped while they ran; `most` is how many ran at once. `wait_for` waits until an attempt
    runs, `release` lets held ones go on.
    """

    def __init__(
        self,
        script: Mapping[str, Outcome | Step | Sequence[Outcome | Step]] | None = None,
        *,
        clock: Clock | None = None,
        real: Executor | None = None,
        strict: bool = False,
    ) -> None:
        self.script = dict(script or {})
        self.real, self.strict = real, strict
        self.started: list[tuple[str, int]] = []
        self.running: list[tuple[str, int]] = []
        self.stopped: list[tuple[str, int]] = []
        self.params: dict[str, Mapping[str, JSON]] = {}
        self.most = 0
        self._clock = clock or SystemClock()
        self._open: set[str] = set()
        self._gates: list[tuple[str, anyio.Event]] = []
        self._ends: list[tuple[str, Callable[[], None]]] = []
        self._news = anyio.Event()

    async def __aenter__(self) -> Self:
        if self.real is not None:
            await self.real.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return None if self.real is None else await self.real.__aexit__(exc_type, exc, traceback)

    def check(self, graph: Graph) -> None:
        """Refuse names that the script has by mistake."""
        labels = {spec.label for spec in graph.specs}
        coming = {label for spec in graph.specs if spec.expands for label in graph.labels_of(graph.index[spec.label])}
        for name in self.script:
            label = name.partition("[")[0]
            if name in labels or name in graph.index or (label != name and label in coming):
                continue
            cutoff = 0.6 if self.strict else 0.75
            near = nearest(name, [*labels, *graph.index], cutoff) or nearest(label, labels, cutoff)
            if near is not None or self.strict:
                known = f"its tasks are {', '.join(sorted(labels))}"
                raise OptionError(
                    "script", f"the DAG has no task {name!r}", f"did you mean {near!r}?" if near else known
                )

    def asks(self, spec: Spec) -> bool:
        """Whether the script names what asks for an `each`."""
        return spec.label in self.script

    def release(self, task: str | None = None) -> None:
        """Let all held attempts of `task` (its id; None: of every task) go on, those that are still to come too."""
        for held, gate in self._gates:
            if task in (None, held):
                gate.set()
        ends, self._ends = self._ends, []
        for held, end in ends:
            if task in (None, held):
                end()
            else:
                self._ends.append((held, end))
        self._open.add(task or "")

    async def wait_for(self, task: str, attempt: int = 1) -> None:
        """Return once attempt `attempt` of `task` has been started."""
        while (task, attempt) not in self.started:
            await self._news.wait()

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        """Do as the script says."""
        step, key = self._step(attempt), (attempt.task, attempt.number)
        ended: Outcome | None = None
        gate = (attempt.task, anyio.Event())
        self.started.append(key)
        self.running.append(key)
        self.params[attempt.task] = attempt.params
        self.most = max(self.most, len(self.running))
        news, self._news = self._news, anyio.Event()
        news.set()
        try:
            for emission in step.emits:
                emit(emission)
            if step.lasts_s:
                await self._clock.sleep_until(self._clock.now() + step.lasts_s)
            if step.held and not self._open & {attempt.task, ""}:
                self._gates.append(gate)
                await gate[1].wait()
            await anyio.lowlevel.checkpoint()
            if step.runs:
                assert self.real is not None, f"{attempt.task} is to run, and there is no real executor"
                ended = await self.real.run(attempt, emit)
        except anyio.get_cancelled_exc_class():
            self.stopped.append(key)
            if step.stubborn:
                emit(Abandoned())
                self._ends.append((attempt.task, lambda: emit(Released())))
            raise
        finally:
            if gate in self._gates:
                self._gates.remove(gate)
            self.running.remove(key)
        if step.breaks is not None:
            raise step.breaks
        if step.values is not None:
            return _found(attempt, step.values)
        if ended is None or (ended.status == "finished" and step.outcome is not FINISHED):
            return step.outcome
        return ended

    def _step(self, attempt: Attempt) -> Step:
        unnamed = FINISHED if self.real is None else RUNS
        told = self.script.get(attempt.task, self.script.get(attempt.spec.label, unnamed))
        if not isinstance(told, (Outcome, Step)):
            told = told[min(attempt.number, len(told)) - 1]
        return told if isinstance(told, Step) else Step(told)


def _found(attempt: Attempt, values: Mapping[str, Sequence[Any]]) -> Outcome:
    """The outcome of an attempt whose functions found `values`."""
    expander = attempt.target
    if not isinstance(expander, Expander):
        raise OptionError("script", f"{attempt.task!r} asks for no values", "values(…) is for the each-… of an each")
    asked = [name for name, value in expander.values.items() if callable(value)]
    if set(asked) != set(values):
        raise OptionError(
            "script", f"values of {attempt.task!r} are of {', '.join(values)}", f"give {', '.join(asked)}"
        )
    try:
        rows = expander.product([values.get(name, value) for name, value in expander.values.items()])
    except ValueError as error:
        return failed_with(attempt, error)
    return Outcome(status="finished", value=rows)
