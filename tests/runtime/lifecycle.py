"""What a run's life is made of, in a model that knows nothing of the engine: pipelines that are edited, tasks that do
as they are told, what a log says (read as plain JSON), and what a session must do with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import anyio.lowlevel

from gluepy import DAG, Retry, Skip, Task, each, parallel
from gluepy.exec.scope import current_scope

Attempt = tuple[str, str, int]  # run id, task, number
Choice = tuple[str, list[str]] | None  # the option of a run that selects tasks, and which it names


class Told:
    """What the tasks are told to do, and what they tell: the attempts that `began` and that `ended` well."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.wills: dict[str, str] = {}
        self.values: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self.began: list[Attempt] = []
        self.ended: list[Attempt] = []

    def will(self, task: str) -> str:
        return self.wills.get(task.partition("[")[0], "finishes")


told = Told()


class Loop(Task):
    async def run(self) -> None:
        begin()
        await anyio.lowlevel.checkpoint()
        end()


class Thread(Task):
    def run(self) -> None:
        begin()
        end()


class Patient(Loop):
    retries = Retry(attempts=2, wait_s=0, jitter=0)


class Late(Loop):
    trigger = "all_done"


class Keeps(Task):
    name: str

    @property
    def outputs(self) -> tuple[str, ...]:
        return (f"{self.name}.txt",)

    def run(self) -> None:
        begin()
        (self.path / f"{self.name}.txt").write_text("kept")
        end()


class Asked(Loop):
    n: int


KINDS: dict[str, type[Task]] = {"loop": Loop, "thread": Thread, "patient": Patient, "late": Late, "keeps": Keeps}


def begin() -> None:
    scope = current_scope()
    assert scope is not None
    told.began.append((scope.attempt.run.run_id, scope.attempt.task, scope.attempt.number))
    match told.will(scope.attempt.task):
        case "skips":
            raise Skip("told to")
        case "fails":
            raise RuntimeError("told to")
        case "fails every other time" if scope.attempt.number % 2:
            raise RuntimeError("told to, this time")


def end() -> None:
    scope = current_scope()
    assert scope is not None
    told.ended.append((scope.attempt.run.run_id, scope.attempt.task, scope.attempt.number))


@dataclass
class Pipe:
    """A pipeline: stages, one after another, of chains, side by side, of names; and of which kind each is."""

    made: ClassVar[dict[str, type[Task]]] = {}

    stages: list[list[list[str]]] = field(default_factory=lambda: [[["a"], ["b"]], [["e0"]]])
    kinds: dict[str, str] = field(default_factory=lambda: {"a": "loop", "b": "keeps", "e0": "asks"})

    def copy(self) -> Pipe:
        return deepcopy(self)

    def dag(self) -> type[DAG]:
        tasks = []
        for stage in self.stages:
            chains = [tuple(self._task(name) for name in chain) for chain in stage]
            tasks.append(parallel(*chains) if len(chains) > 1 else chains[0])
        dag = cast("type[DAG]", type("PipeDAG", (DAG,), {"tasks": tuple(tasks), "__module__": __name__}))
        globals()["PipeDAG"] = dag  # a resumed run looks for it here
        return dag

    def _task(self, name: str) -> Any:
        kind = self.kinds[name]
        if kind == "keeps":
            return Keeps(name=name, id=name)
        if kind != "asks":
            return KINDS[kind](id=name)

        async def asks() -> list[int]:
            told.asked.append(name)
            return told.values.get(name, [1, 2])

        asked = self.made.setdefault(name, type(name, (Asked,), {"label": name}))
        return each(asked, n=asks)

    def depends(self, rows: dict[str, list[int]]) -> dict[str, list[str]]:
        """Each task and what it directly depends on, in an order that works, when the `each`es found `rows`."""
        depends: dict[str, list[str]] = {}
        tails: list[str] = []
        for stage in self.stages:
            ends: list[str] = []
            for chain in stage:
                before = tails
                for name in chain:
                    if self.kinds[name] == "asks":
                        asks = f"each-{name}"
                        found = [f"{name}[n={value}]" for value in rows.get(name, ())]
                        depends.update({asks: before, **{task: [asks] for task in found}})
                        before = [asks, *found]
                    else:
                        depends[name] = before
                        before = [name]
                ends += before
            tails = ends
        return depends

    def selected(self, choice: Choice, rows: dict[str, list[int]]) -> set[str]:
        """The tasks that a run with these options is about."""
        depends = self.depends(rows)
        if choice is None:
            return set(depends)
        option, names = choice
        tasks = {f"each-{name}" if self.kinds[name] == "asks" else name for name in names}
        found = set(tasks)
        if option == "tasks":
            return found | {task for task in depends if task.partition("[")[0] in names}
        if option == "from_task":
            for task, befores in depends.items():
                if found & set(befores):
                    found.add(task)
            return found
        for task in reversed(depends):
            if task in found:
                found.update(depends[task])
        return found | {task for task in depends if task.partition("[")[0] in names}


@dataclass
class Recorded:
    """What a log says of a run. `why` is of skips, `rows` what the `each`es found, `end` how the run ended, if it did;
    `finishes` the attempts that were recorded as finished, ever."""

    statuses: dict[str, str] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    finishes: list[tuple[str, int]] = field(default_factory=list)
    sessions: int = 0
    end: str = "interrupted"

    @classmethod
    def of(cls, log: Path, ended: bool) -> Recorded:
        """Read `log`. Of a line that lacks but its newline nobody knows that it is whole before the log has `ended`."""
        known = cls()
        for line in log.read_text().splitlines(keepends=True):
            if not ended and not line.endswith("\n"):
                break
            try:
                known.take(json.loads(line))
            except json.JSONDecodeError:
                continue  # torn
        return known

    def take(self, event: dict[str, Any]) -> None:
        kind, _, word = event["event"].partition(".")
        task = event.get("task", "")
        if kind == "run":
            self.end = "interrupted" if word in ("started", "resumed") else word
            self.sessions += word in ("started", "resumed")
        elif word == "expanded":
            self.rows[task.removeprefix("each-")] = [value for (value,) in event["values"]]
        elif word in ("started", "retrying", "reset"):
            self.statuses[task] = {"started": "running", "reset": "pending"}.get(word, word)
            self.attempts[task] = event["attempt"]
        elif word in ("finished", "failed", "skipped", "blocked", "cancelled"):
            self.statuses[task] = word
            self.why[task] = event.get("reason", "")
            if word == "finished":
                self.finishes.append((task, event["attempt"]))

    def within(self, pipe: Pipe) -> Recorded:
        """The part of it that is about tasks of `pipe`: what it lacks is not forgotten, and may come back."""
        depends = pipe.depends(self.rows)
        statuses = {task: status for task, status in self.statuses.items() if task in depends}
        return replace(self, statuses=statuses)

    def is_left_out(self, task: str) -> bool:
        return self.statuses.get(task) == "skipped" and self.why[task] == "unselected"


@dataclass
class Expected:
    """What a session does: which tasks run `again` or for the first time, how each ends, and which of them begin."""

    again: set[str]
    statuses: dict[str, str]
    begins: set[str]

    @classmethod
    def of(cls, pipe: Pipe, known: Recorded, again: Iterable[str], choice: Choice) -> Expected:
        """Of a session of `pipe` after `known`, where the tasks `again` are to run again anyhow. No failure stops what
        does not depend on it."""
        rows = dict(known.rows)
        while True:
            expected = cls._of(pipe, known, rows, set(again), choice)
            asks = [task.removeprefix("each-") for task in expected.statuses if task.startswith("each-")]
            found = [name for name in asks if f"each-{name}" in expected.begins and name not in rows]
            if not found:
                return expected
            rows[found[0]] = told.values.get(found[0], [1, 2])  # only then it is known what becomes of the next

    @classmethod
    def _of(cls, pipe: Pipe, known: Recorded, rows: dict[str, list[int]], forced: set[str], choice: Choice) -> Expected:
        depends = pipe.depends(rows)
        selected = pipe.selected(choice, rows)
        expected = cls(set(), {}, set())
        runs_again: set[str] = set()
        hands: dict[str, set[str]] = {}
        for task, befores in depends.items():
            behind = bool(runs_again & set(befores))
            got = set().union(*(hands[before] for before in befores))
            if known.is_left_out(task):
                expected.statuses[task] = "skipped"
                hands[task] = got & {"bad"}
                if behind:
                    runs_again.add(task)  # for those after it
                continue
            if task not in selected:  # it is new in the pipeline, or was moved
                stays = known.statuses.get(task) == "finished" and not behind
                expected.statuses[task] = "finished" if stays else "skipped"
                hands[task] = set() if stays else got & {"bad"}
                if behind:
                    runs_again.add(task)
                continue
            if known.statuses.get(task) == "finished" and not behind and task not in forced:
                expected.statuses[task] = "finished"
                hands[task] = set()
                continue
            runs_again.add(task)
            expected.again.add(task)
            number = known.attempts.get(task, 0) + 1
            status = cls._end(pipe, task, number, got)
            if status not in ("blocked", "skipped upstream"):
                expected.begins.add(task)
            hands[task] = {"failed": {"bad"}, "blocked": {"bad"}, "finished": set()}.get(status, {"left out"})
            expected.statuses[task] = status.split()[0]
        return expected

    @staticmethod
    def _end(pipe: Pipe, task: str, number: int, got: set[str]) -> str:
        kind = "asks" if task.startswith("each-") else pipe.kinds.get(task, "loop")
        if kind != "late" and got:
            return "blocked" if "bad" in got else "skipped upstream"
        match "finishes" if kind == "asks" else told.will(task):
            case "fails":
                return "failed"
            case "fails every other time" if number % 2 and kind != "patient":
                return "failed"
            case "skips":
                return "skipped"
            case _:
                return "finished"
