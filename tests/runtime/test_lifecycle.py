"""The life of runs, with real records: run, fail, retry, cancel, lose the driver, edit the pipeline, resume, force.

A state machine does all that in any order. After each session it compares what the tasks themselves told, what is on
disk and what gluepy says with a model (`lifecycle.py`) that knows the contract alone: what has not finished runs again,
and what comes after it; what is recorded as finished does not, unless it was forced or its outputs are gone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import anyio
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lifecycle import KINDS, Attempt, Choice, Expected, Pipe, Recorded, told
from log_rules import check_log

from gluepy.conf.schema import Settings
from gluepy.core.events import TaskStarted
from gluepy.core.state import STATUS
from gluepy.errors import OptionError, UnknownTask
from gluepy.runs.index import Index
from gluepy.runs.log import LogReader
from gluepy.runs.reading import read_record
from gluepy.runs.record import Record
from gluepy.runtime import ResumePlan, Run, RunResult, RunStream, Runtime

NAMES = [*(f"t{number}" for number in range(6)), "e0", "e1"]  # of tasks, and of those that an `each` asks for
NAME = st.sampled_from(NAMES)
VALUES = st.lists(st.integers(0, 3), unique=True, max_size=3)
EDIT = st.sampled_from(["add", "add", "add", "move", "rename", "remove"])
KIND = st.sampled_from(sorted(KINDS))
WILL = st.sampled_from(["finishes", "fails", "skips", "fails every other time"])
STEPS = int(os.environ.get("GLUEPY_LIFE_STEPS", "200"))
EXHAUSTIVE = int(os.environ.get("GLUEPY_LIFE_STEPS_EXHAUSTIVE", "10000"))


class Drive(NamedTuple):
    """How a session goes: `cancel_at` is the event after which it is cancelled; `wills` are how tasks end from now on,
    `values` what `each`es find."""

    policy: str
    cancel_at: int | None
    backend: str
    wills: dict[str, str]
    values: dict[str, list[int]]


Open = Callable[[Runtime], RunStream]
DRIVE = st.builds(
    Drive,
    st.sampled_from(["continue", "continue", "drain", "cancel"]),
    st.none() | st.none() | st.integers(1, 20),
    st.sampled_from(["asyncio", "trio"]),
    st.dictionaries(NAME, WILL),
    st.dictionaries(NAME, VALUES),
)


class Life:
    """One run. `pipes` is what the pipeline was in each session, `choice` what it was said to be about."""

    def __init__(self, run_id: str, root: Path, pipe: Pipe, choice: Choice) -> None:
        self.run_id, self.root, self.choice = run_id, root, choice
        self.log = root / run_id / "events.jsonl"
        self.pipes = [pipe]

    def recorded(self, ended: bool = False) -> Recorded:
        return Recorded.of(self.log, ended)

    def keeps(self) -> list[str]:
        """The tasks with outputs."""
        return sorted(name for name, kind in self.pipes[-1].kinds.items() if kind == "keeps")


class Lives(RuleBasedStateMachine):
    """Any number of runs of one pipeline, which changes between their sessions."""

    met: ClassVar[Counter[str]] = Counter()  # what happened, and how often

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gluepy-lives-"))
        self.settings = Settings(
            RUNS_ROOT=str(self.folder / "runs"),
            STORAGE_ROOT=str(self.folder / "data"),
            EVENT_SYNC="none",
            CONCURRENCY=3,
        )
        told.forget()
        self.pipe = Pipe()
        self.lives: list[Life] = []

    def teardown(self) -> None:
        for thread in threading.enumerate():
            if thread.name.startswith("gluepy-"):  # an abandoned one may still be writing to the folder
                thread.join(240)
        shutil.rmtree(self.folder)

    # Editing.

    @rule(data=st.data(), edits=st.lists(EDIT, min_size=1, max_size=3))
    def edit(self, data: st.DataObject, edits: list[str]) -> None:
        self.pipe = self.pipe.copy()
        for edit in edits:
            free = [name for name in NAMES if name not in self.pipe.kinds]
            if edit == "add" and free:
                name = data.draw(st.sampled_from(free))
                self.pipe.kinds[name] = "asks" if name in ("e0", "e1") else data.draw(KIND)
                self.place(data, name)
            elif edit == "rename" and free:
                old, new = data.draw(st.sampled_from(sorted(self.pipe.kinds))), data.draw(st.sampled_from(free))
                if old[0] == "e" == new[0] or "e" not in (old[0], new[0]):
                    self.rename(old, new)
            elif edit == "move" and len(self.pipe.kinds) > 1:
                self.place(data, self.take_out(data, sorted(self.pipe.kinds)))
            elif edit == "remove" and len(self.plain()) > 1:
                del self.pipe.kinds[self.take_out(data, sorted(self.pipe.kinds))]
            else:
                continue
            self.count(edit)

    def rename(self, old: str, new: str) -> None:
        self.pipe.kinds[new] = self.pipe.kinds.pop(old)
        for stage in self.pipe.stages:
            for chain in stage:
                chain[:] = [new if name == old else name for name in chain]

    def take_out(self, data: st.DataObject, names: list[str]) -> str:
        name: str = data.draw(st.sampled_from(names))
        stages = [[[other for other in chain if other != name] for chain in stage] for stage in self.pipe.stages]
        stages = [[chain for chain in stage if chain] for stage in stages]
        self.pipe.stages = [stage for stage in stages if stage]
        return name

    def place(self, data: st.DataObject, name: str) -> None:
        stages, where = self.pipe.stages, data.draw(st.sampled_from(["stage", "chain", "side"]))
        if where == "stage":
            stages.insert(data.draw(st.integers(0, len(stages))), [[name]])
            return
        stage = data.draw(st.sampled_from(stages))
        if where == "side":
            stage.append([name])
        else:
            chain = data.draw(st.sampled_from(stage))
            chain.insert(data.draw(st.integers(0, len(chain))), name)

    # Sessions.

    @rule(data=st.data(), which=st.integers(0, 5), drive=DRIVE)
    def drive(self, data: st.DataObject, which: int, drive: Drive) -> None:
        """A session: of a new run, or, mostly, of one that has had some."""
        told.wills.update(drive.wills)
        told.values.update(drive.values)
        if self.lives and (which < len(self.lives) or len(self.lives) > 3):
            self.resume(data, self.lives[min(which, len(self.lives) - 1)], drive)
        else:
            self.run(data, drive)

    def run(self, data: st.DataObject, drive: Drive) -> None:
        option = data.draw(st.sampled_from([None, None, "tasks", "from_task", "to_task"]))
        names = st.sampled_from(sorted(self.pipe.kinds))
        choice: Choice = None
        options: dict[str, Any] = {"on_failure": drive.policy}
        if option is not None:
            choice = option, data.draw(st.lists(names, min_size=1, max_size=3 if option == "tasks" else 1, unique=True))
            options[option] = choice[1] if option == "tasks" else choice[1][0]
            self.count(f"run {option}")
        life = Life(f"run{len(self.lives)}", self.settings.runs_root, self.pipe, choice)
        self.lives.append(life)
        options["run_id"] = life.run_id
        expected = Expected.of(self.pipe, Recorded(), (), choice)
        dag = self.pipe.dag()
        self.session(life, Recorded(), expected, drive, lambda r: r.stream_dag(dag, check=False, **options))
        self.count("run")

    def resume(self, data: st.DataObject, life: Life, drive: Drive) -> None:
        known = life.recorded(ended=True).within(self.pipe)
        again = self.lost(life)
        options: dict[str, Any] = {"on_failure": drive.policy}
        forces = data.draw(st.sampled_from([None, None, "force", "from_task"]))
        if forces is not None:
            options[forces] = data.draw(st.sampled_from(self.plain()))
            again.add(options[forces])
            self.count(forces)
        self.pipe.dag()
        open_: Open = lambda runtime: runtime.stream_resume(life.run_id, check=False, **options)  # noqa: E731
        if life.choice is not None and not set(life.choice[1]) <= set(self.pipe.kinds):
            self.refused(open_, UnknownTask)
        elif forces is not None and options[forces] not in self.pipe.selected(life.choice, known.rows):
            self.refused(open_, OptionError)
        else:
            expected = Expected.of(self.pipe, known, again, life.choice)
            life.pipes.append(self.pipe)
            self.session(life, known, expected, drive, open_)
            self.count("resume")

    def refused(self, open_: Callable[[Runtime], RunStream], error: type[Exception]) -> None:
        async def tries() -> None:
            async with Runtime(self.settings) as runtime:
                with pytest.raises(error):
                    async with open_(runtime):
                        pass

        anyio.run(tries)
        self.count(error.__name__)

    def session(self, life: Life, known: Recorded, expected: Expected, drive: Drive, open_: Open) -> None:
        began, asked = len(told.began), len(told.asked)

        async def session() -> tuple[Run, RunResult]:
            async with Runtime(self.settings) as runtime, open_(runtime) as run:
                count = 0
                async for _ in run:
                    count += 1
                    if count == drive.cancel_at:
                        run.cancel()
                return run, await run.result()

        run, result = anyio.run(session, backend=drive.backend)
        try:
            self.check_end(life, expected, drive, result)
            # A thread that was abandoned goes on: it may say now that it has begun what an earlier session, or that of
            # another run, had started.
            started = {
                (life.run_id, event.task, event.attempt)
                for event in LogReader(life.log).events()
                if isinstance(event, TaskStarted) and event.session == len(life.pipes)
            }
            now = [attempt for attempt in told.began[began:] if attempt in started]
            self.check_what_ran(known, expected, drive, result, now, told.asked[asked:])
            if run.plan is not None:
                self.check_plan(run.plan, known, expected)
        except AssertionError as error:
            for what in (life.choice, self.pipe, known, expected, result):
                error.add_note(str(what))
            raise

    def check_end(self, life: Life, expected: Expected, drive: Drive, result: RunResult) -> None:
        after = life.recorded().within(life.pipes[-1])
        assert (after.end, after.sessions) == (result.status, len(life.pipes))
        statuses = {task: each.status for task, each in result.tasks.items()}
        state = read_record(Record(life.log.parent.parent, life.log.parent.name)).state
        assert statuses == after.statuses == {task: STATUS[state.status[n]] for task, n in state.graph.index.items()}
        # what was not begun before a failure is left; under "cancel" nothing is tried again
        others = {"drain": {"blocked"}, "cancel": {"blocked", "cancelled", "failed"}}.get(drive.policy, set())
        if result.status == "cancelled":
            assert drive.cancel_at is not None
            others = {*others, "cancelled"}
        else:
            is_bad = bool({"failed", "blocked"} & set(expected.statuses.values()))
            assert result.status == ("failed" if is_bad else "finished")
        for task, status in statuses.items():
            assert status in {expected.statuses.get(task), *others}, f"{task} is {status}: {expected}"
        assert others or statuses == expected.statuses
        check_log(list(LogReader(life.log).events()))
        ended = {attempt[1:] for attempt in told.ended if attempt[0] == life.run_id}
        assert {finish for finish in after.finishes if not finish[0].startswith("each-")} <= ended

    def check_what_ran(
        self,
        known: Recorded,
        expected: Expected,
        drive: Drive,
        result: RunResult,
        began: list[Attempt],
        asked: list[str],
    ) -> None:
        tasks = {task for _, task, _ in began}
        assert tasks <= expected.begins, "what had finished ran again, or what should not start did"
        if result.status != "cancelled" and drive.policy == "continue":
            assert tasks == {task for task in expected.begins if not task.startswith("each-")}
        assert {f"each-{name}" for name in asked} <= expected.begins
        assert not set(asked) & set(known.rows), "what an `each` had found was asked for again"

    def check_plan(self, plan: ResumePlan, known: Recorded, expected: Expected) -> None:
        begun = {task for task, status in known.statuses.items() if status not in ("pending", "retrying")}
        assert set(plan.again) == expected.again & begun
        finished = {task for task, status in known.statuses.items() if status == "finished"}
        stay = {task for task, status in expected.statuses.items() if status == "finished"}
        assert set(plan.kept) == finished & stay - expected.again

    # What happens to records.

    @precondition(lambda self: self.lives)
    @rule(data=st.data(), back=st.integers(1, 300))
    def lose_the_end(self, data: st.DataObject, back: int) -> None:
        """As if the driver had died, after a line or in it, before it wrote the last bytes."""
        life: Life = data.draw(st.sampled_from(self.lives))
        log = life.log.read_bytes()
        end = max(log.index(b"\n") + 1, len(log) - back)
        life.log.write_bytes(log[:end])
        sessions = life.recorded(ended=True).sessions
        del life.pipes[sessions:]
        self.count("lose the end")

    @precondition(lambda self: any("keeps" in life.pipes[-1].kinds.values() for life in self.lives))
    @rule(data=st.data())
    def lose_a_file(self, data: st.DataObject) -> None:
        """An output of a task, if the task has finished."""
        life: Life = data.draw(st.sampled_from([life for life in self.lives if life.keeps()]))
        file = Path(self.settings.run_files(life.run_id), f"{data.draw(st.sampled_from(life.keeps()))}.txt")
        self.count("lose a file" if file.exists() else "look for a file")
        file.unlink(missing_ok=True)

    def lost(self, life: Life) -> set[str]:
        """The finished tasks of which an output is gone."""
        files = Path(self.settings.run_files(life.run_id))
        keeps = [name for name, kind in self.pipe.kinds.items() if kind == "keeps"]
        return {name for name in keeps if not (files / f"{name}.txt").exists()}

    @invariant()
    def runs_tells_what_the_records_say(self) -> None:
        with Index(self.settings.runs_root) as index:
            listed = {run.run_id: run for run in index.runs()}
        assert set(listed) == {life.run_id for life in self.lives}
        for life in self.lives:
            known, run = life.recorded().within(life.pipes[-1]), listed[life.run_id]
            assert (run.status, run.sessions) == (known.end, known.sessions)
            if known.end != "interrupted":
                assert run.counts == Counter(known.statuses.values())

    def plain(self) -> list[str]:
        """The tasks that can be named before the run: there is always one."""
        return sorted(name for name, kind in self.pipe.kinds.items() if kind != "asks")

    def count(self, what: str) -> None:
        self.met[what] += 1

    @invariant()
    def one_more_step(self) -> None:
        self.met["steps"] += 1


def live(steps: int, at_once: int, **options: Any) -> None:
    Lives.met.clear()
    few = settings(
        max_examples=steps // at_once * 6 // 5,  # some end early
        stateful_step_count=at_once,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )
    while Lives.met["steps"] < steps:
        run_state_machine_as_test(Lives, settings=few)
    print(dict(Lives.met))


def test_runs_live_as_the_contract_says(folder: Path) -> None:
    live(STEPS, 25, derandomize=True, phases=[Phase.generate])
    everything = {
        "add",
        "move",
        "rename",
        "remove",
        "run",
        "resume",
        "force",
        "from_task",
        "lose the end",
        "lose a file",
    }
    assert everything <= set(Lives.met)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_many_runs_live_as_the_contract_says(folder: Path) -> None:
    live(EXHAUSTIVE, 50, print_blob=True)
