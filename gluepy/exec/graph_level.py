"""The port of graph level: an engine that schedules the whole graph itself, as Airflow and Luigi do.

A graph-level executor is one method, `run_graph`, and a lifetime, `async with`:

    async with executor:
        await executor.run_graph(run)

`run_graph` hands `run.tasks` over to the engine, each to be run as the command `run.command(task)` once those of
`run.dependencies(task)` have ended, tells of each task how it stands there (`run.tell`), and returns when the engine's
run is over. What a task did, it learns from nobody: its step (`gluepy step`) writes that to the storage, and gluepy
reads it there, also for who has not followed the run. Cancelling the call stops the engine's run, shielded and bounded,
before the cancellation is let through. Broken infrastructure is raised (`ExecutorBroken`), and stops the run.

A resumed run is handed over again, with the tasks that are to run again: in the same run of the engine where it has a
way to, else in another. That is safe whatever the engine does with the rest: the step of a task that has finished
returns at once.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import msgspec

from gluepy.core.events import JSON
from gluepy.core.graph import Graph, Spec
from gluepy.core.policy import Trigger
from gluepy.errors import DagError, OptionError
from gluepy.exec.port import Executor, RunInfo

__all__ = ["Abilities", "GraphExecutor", "GraphRun", "TaskWord", "ability_table"]

TaskWord = Literal["waiting", "running", "success", "failed", "skipped", "blocked", "cancelled"]
FINAL_WORDS = frozenset(("success", "failed", "skipped", "blocked", "cancelled"))


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine of graph level can do. Whatever a DAG asks for besides is an error before anything runs.

    `triggers` besides `all_success`; `dynamic_each`: tasks that an `each` over a callable adds; `limits`: it keeps
    LIMITS for what tasks use; `retries`: it tries a failed task again; `queues`: `Task.queue`; `concurrency`,
    `selections` (--task, --from-task, --to-task): the options of a run.
    """

    triggers: frozenset[Trigger] = frozenset(("all_success",))
    dynamic_each: bool = False
    limits: bool = False
    retries: bool = False
    queues: bool = False
    concurrency: bool = False
    selections: bool = False


class GraphRun:
    """A run as `run_graph` gets it.

    `info` is about the run, `graph` what it was compiled to, which grows by what an `each` adds; `tasks` are the ids of
    those to be run, in topological order; `session` counts from 1, one more with each resume. `concurrency` is how many
    tasks are wanted at once, None for what the engine thinks. `options` are those of the run, `limits` LIMITS.
    """

    def __init__(
        self,
        info: RunInfo,
        graph: Graph,
        tasks: Sequence[str],
        session: int,
        *,
        tell: Callable[[str, TaskWord, str], None],
        concurrency: int | None = None,
        limits: Mapping[str, int] | None = None,
        options: Mapping[str, JSON] | None = None,
        settings_module: str = "",
    ) -> None:
        self.info, self.graph, self.tasks, self.session = info, graph, tuple(tasks), session
        self.concurrency, self.limits, self.options = concurrency, dict(limits or {}), dict(options or {})
        self._tell, self._module = tell, settings_module
        self._wanted = frozenset(tasks)

    def spec(self, task: str) -> Spec:
        """What the task's class says."""
        return self.graph.spec(self.graph.index[task])

    def dependencies(self, task: str) -> list[str]:
        """The tasks of this run that have to end before `task` starts; others count as satisfied."""
        graph = self.graph
        found = (graph.task_id(node) for node in graph.task_dependencies(graph.index[task]))
        return [other for other in found if other in self._wanted]

    def command(self, task: str, *, python: str = "") -> list[str]:
        """The words of the command that runs an attempt of `task`: exit code 0 for one that finished or was skipped."""
        words = [python or sys.executable, "-m", "gluepy"]
        words += ["--project", self.info.project] if self.info.project else []
        words += ["--settings", self._module] if self._module else []
        return [*words, "step", self.info.run_id, task]

    def command_text(self, task: str) -> str:
        """`command`, quoted for a shell."""
        return shlex.join(self.command(task))

    def tell(self, task: str, word: TaskWord, why: str = "") -> None:
        """How `task` stands in the engine; in the event loop. Of the final ones the last holds, and only what the steps
        cannot tell comes from it: that a step was lost, or never began. Telling the same again is nothing."""
        self._tell(task, word, why)


class GraphExecutor(Executor):
    """Base of graph-level executors. A subclass writes `run_graph`, and says in `abilities` what the engine can do."""

    abilities: ClassVar[Abilities] = Abilities()

    async def run_graph(self, run: GraphRun) -> None:
        """Hand `run` over, follow it to its end, and return; see this module's text."""
        raise TypeError(f"{type(self).__name__} does not define run_graph(run), to hand over {run.info.run_id}")

    def check(self, graph: Graph) -> None:
        """Raises `DagError` for what the engine cannot do."""
        can = self.abilities
        for spec in graph.specs:
            place = f"task {spec.label}"
            if spec.trigger not in can.triggers:
                known = ", ".join(sorted(can.triggers))
                raise DagError(place, f"{self.name} has no trigger {spec.trigger!r}", f"it has {known}")
            if spec.expands and not can.dynamic_each:
                hint = "give the each a list of values, or use another executor"
                raise DagError(place, f"{self.name} cannot add tasks to a run that goes on", hint)
            if spec.uses and not can.limits:
                raise DagError(place, f"{self.name} does not keep the limits that it uses", "leave out `uses`")
            if spec.retry.attempts > 1 and not can.retries:
                raise DagError(place, f"{self.name} does not try a task again", "leave out `retries`")
            if spec.queue is not None and not can.queues:
                raise DagError(place, f"{self.name} has no queues", "leave out `queue`")

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raises `OptionError` for an option of the run that the engine cannot keep."""
        if options.get("on_failure") not in (None, "continue"):
            raise OptionError(
                "on_failure", f"{self.name} goes on with what does not depend on a failure", "leave it out"
            )
        if options.get("record") is False:
            raise OptionError("record", f"what {self.name} runs is collected into a record", "leave it out")
        if options.get("concurrency") is not None and not self.abilities.concurrency:
            raise OptionError("concurrency", f"{self.name} decides how many tasks run at once", "leave it out")
        if not self.abilities.selections:
            for name in ("tasks", "from_task", "to_task"):
                if options.get(name):
                    raise OptionError(name, f"{self.name} runs whole DAGs", "leave it out")


_TABLE: tuple[tuple[str, Callable[[Abilities], bool]], ...] = (
    ('`trigger = "none_failed"`', lambda can: "none_failed" in can.triggers),
    ('`trigger = "none_failed_min_one_success"`', lambda can: "none_failed_min_one_success" in can.triggers),
    ('`trigger = "all_done"`', lambda can: "all_done" in can.triggers),
    ('`trigger = "one_failed"`', lambda can: "one_failed" in can.triggers),
    ("`each` over a list", lambda can: True),
    ("`each` over a callable", lambda can: can.dynamic_each),
    ("`retries`", lambda can: can.retries),
    ("`uses` and LIMITS", lambda can: can.limits),
    ("`queue`", lambda can: can.queues),
    ("`timeout_s`, `memory_mb`", lambda can: True),
    ("`--concurrency`", lambda can: can.concurrency),
    ("`--task`, `--from-task`, `--to-task`", lambda can: can.selections),
    ("`--keep-going`", lambda can: True),
    ("`--fail-fast`", lambda can: False),
)


def ability_table(executors: Mapping[str, type[GraphExecutor]]) -> str:
    """What each engine can do, as a table in Markdown."""
    rows = [f"| | {' | '.join(executors)} |", f"| --- |{' --- |' * len(executors)}"]
    for what, has in _TABLE:
        cells = ("yes" if has(executor.abilities) else "no" for executor in executors.values())
        rows.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
