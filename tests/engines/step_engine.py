"""A small engine of graph level: it runs steps as processes, as many at once as are due, and tries them again."""

from __future__ import annotations

import signal
import subprocess
from collections import defaultdict
from typing import ClassVar

import anyio
from anyio.abc import Process

from gluepy.core.policy import Trigger
from gluepy.exec.graph_level import Abilities, GraphExecutor, GraphRun, TaskWord
from gluepy.exec.steps import StepFolder, rows_in

ALL: frozenset[Trigger] = frozenset(
    ("all_success", "none_failed", "none_failed_min_one_success", "all_done", "one_failed")
)


class StepEngine(GraphExecutor):
    """`tries` is how often it runs a step that fails; `forgets` are tasks that it never begins, `fails` those that it
    says have failed whatever their steps do."""

    abilities: ClassVar = Abilities(triggers=ALL, dynamic_each=True, retries=True, limits=True, selections=True)

    def __init__(self, tries: int = 1, forgets: tuple[str, ...] = (), fails: tuple[str, ...] = ()) -> None:
        self.tries, self.forgets, self.fails = tries, forgets, fails
        self.processes: dict[str, Process] = {}
        self.began: defaultdict[str, int] = defaultdict(int)

    async def run_graph(self, run: GraphRun) -> None:
        ended = {task: anyio.Event() for task in run.tasks}
        words: dict[str, TaskWord] = {}

        async def step(task: str, before: list[str]) -> None:
            for other in before:
                await ended[other].wait()
            words[task] = await self._step(run, task)
            run.tell(task, words[task])
            if run.spec(task).expands and words[task] == "success":
                await self._added(run, task)
            ended[task].set()

        async with anyio.create_task_group() as tasks:
            for task in run.tasks:
                tasks.start_soon(step, task, run.dependencies(task))

    async def _added(self, run: GraphRun, task: str) -> None:
        folder = StepFolder(run.info.path)
        rows = rows_in(folder.events(task, folder.attempts(task)[-1]))
        assert rows is not None
        node = run.graph.index[task]
        if run.graph.expandable(node):
            names = run.graph.ids_of(node, rows)
        else:  # gluepy has read what the step says, and the graph has grown
            names = [run.graph.task_id(other) for other, origin in run.graph.origin.items() if origin == node]
        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(self._step, run, name)

    async def _step(self, run: GraphRun, task: str) -> TaskWord:
        if task in self.forgets:
            return "failed"
        for _ in range(self.tries):
            self.began[task] += 1
            run.tell(task, "running")
            if await self._process(run.command(task)) == 0 and task not in self.fails:
                return "success"
        return "failed"

    async def _process(self, command: list[str]) -> int:
        process = await anyio.open_process(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        task = command[-1]
        self.processes[task] = process
        try:
            return await process.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                process.send_signal(signal.SIGTERM)
                await process.wait()
            raise
        finally:
            del self.processes[task]
            with anyio.CancelScope(shield=True):
                await process.aclose()
