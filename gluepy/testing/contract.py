"""What every task-level executor has to do, as tests: `ExecutorContract`."""

# The name of each test is its sentence, and a test may look into a local folder:
# ruff: noqa: D102, ASYNC240

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, cast

import anyio
import psutil
import pytest

from gluepy.conf.schema import Settings
from gluepy.core.events import JSON, TaskExpanded, TaskFailed, TaskMetric, TaskOutput, TaskProgress, TaskRetrying
from gluepy.exec.dag import DAG, each, parallel
from gluepy.exec.port import Abandoned, Attempt, Emission, Emit, Executor, Outcome, Output, Released
from gluepy.exec.task import Task
from gluepy.runs.lock import is_free
from gluepy.runtime import RunResult, Runtime
from gluepy.testing import contract_tasks as t
from gluepy.testing.events import assert_events, events_of, outline
from gluepy.testing.wait import until

STRANGE_IDS = ("CNTRL/STORE SUP", "../up [x=1] [/bold]", "-größe 🎉\n\"'$(date)", "x" * 300)


class Watched(Executor):
    """An executor that notes what the one inside does: its `outcomes` by (task, attempt), its `emissions`."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.name = inner.name
        self.outcomes: dict[tuple[str, int], Outcome] = {}
        self.emissions: dict[tuple[str, int], list[Emission]] = {}
        self.late: list[Emission] = []

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self.inner.__aexit__(exc_type, exc, traceback)

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        """Have it run by the executor inside."""
        key, running = (attempt.task, attempt.number), True
        emissions = self.emissions.setdefault(key, [])

        def listen(emission: Emission) -> None:
            emissions.append(emission)
            if not running and not isinstance(emission, Released):
                self.late.append(emission)
            emit(emission)

        try:
            outcome = self.outcomes[key] = await self.inner.run(attempt, listen)
        finally:
            running = False
        return outcome

    def abandoned(self) -> bool:
        """Whether work that cannot be stopped was left behind."""
        return any(isinstance(each, Abandoned) for told in self.emissions.values() for each in told)

    def released(self) -> bool:
        """Whether such work has ended since."""
        return any(isinstance(each, Released) for told in self.emissions.values() for each in told)


class ExecutorContract:
    """Derive a test class from this, and give it your executor; pytest then checks all that the port asks of it.

        class TestMyExecutor(ExecutorContract):
            @pytest.fixture
            def executor(self) -> Executor:
                return MyExecutor()

    The executor is one that was not entered; each test enters it once. The tests come for plain tasks and for async
    ones (override the fixture `kind`, with other params, to leave one out), and on asyncio and trio (override
    `anyio_backend`, to return one name, where an engine knows only one). `pool` is the run's option for plain tasks.
    Tests and tasks need a folder that both can reach: override `settings` where that is not `tmp_path`. `bound_s` is
    how long stopping may take, and `many` how many quick tasks it should run in one go. `in_processes` says that an
    attempt has a process of its own, on this machine: then it is killed with what it has started, and may be killed
    by others, and this is tested, too.
    """

    pytestmark: ClassVar = [pytest.mark.anyio]

    pool: str | None = None
    bound_s = 60.0
    many = 50
    in_processes = False

    @pytest.fixture
    def executor(self) -> Executor:
        """The executor under test."""
        raise NotImplementedError("define a fixture `executor` that returns your executor")

    @pytest.fixture(params=["plain", "async"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        """Whether the tasks have a `def run` or an `async def run`."""
        return str(request.param)

    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        """The settings of all runs here."""
        return Settings(
            STORAGE_ROOT=str(tmp_path / "data"), RUNS_ROOT=str(tmp_path / "runs"), CONCURRENCY=16, LIMITS={"slot": 1}
        )

    @pytest.fixture
    def bench(self, executor: Executor, settings: Settings, kind: str) -> Iterator[Bench]:
        """Runs DAGs on the executor, and checks that it told nothing too late."""
        bench = Bench(executor, settings, kind, self.pool)
        yield bench
        assert not bench.watched.late, f"told after the attempt had ended: {bench.watched.late}"

    # How attempts end.

    async def test_task_that_ends_well_is_finished_and_its_files_are_where_they_belong(self, bench: Bench) -> None:
        result = await bench.run(bench.task(t.Writes))
        assert result.status == "finished"
        assert bench.watched.outcomes["writes", 1].status == "finished"
        assert (Path(result.files) / "written.txt").read_text() == "whole"

    async def test_failed_task_is_a_returned_outcome_that_tells_type_message_and_traceback(self, bench: Bench) -> None:
        result = await bench.run(bench.task(t.Fails))
        outcome = bench.watched.outcomes["fails", 1]
        assert (outcome.status, outcome.reason) == ("failed", "exception")
        assert outcome.error_type == "gluepy.testing.contract_tasks.Broken"
        assert outcome.error_message == "the table is broken: no größe ☃"
        assert "in raw_decode" in outcome.error_stack
        assert "JSONDecodeError: Expecting value" in outcome.error_stack
        assert outcome.error_stack.rstrip().endswith("Broken: the table is broken: no größe ☃")
        error = result.tasks["fails"].error
        assert error is not None
        assert (error.type, error.message) == (outcome.error_type, outcome.error_message)

    async def test_task_that_skips_is_skipped_and_says_why(self, bench: Bench) -> None:
        result = await bench.run(bench.task(t.Skips))
        assert bench.watched.outcomes["skips", 1].status == "skipped"
        assert bench.watched.outcomes["skips", 1].error_message == "nothing new ☃"
        assert result.tasks["skips"].status == "skipped"

    async def test_task_without_its_declared_outputs_fails_and_names_them(self, bench: Bench) -> None:
        await bench.run(bench.task(t.Forgets))
        outcome = bench.watched.outcomes["forgets", 1]
        assert (outcome.status, outcome.reason) == ("failed", "outputs")
        assert "forgotten.txt" in outcome.error_message
        assert "written.txt" not in outcome.error_message

    async def test_retries_go_on_until_an_attempt_succeeds(self, bench: Bench) -> None:
        result = await bench.run(bench.task(t.Flaky))
        assert (result.status, result.tasks["flaky"].attempts) == ("finished", 2)
        assert [event.attempt for event in events_of(result) if isinstance(event, TaskRetrying)] == [1]
        assert (Path(result.files) / "attempts").read_text() == "xx"

    async def test_error_that_the_retry_policy_does_not_name_is_not_tried_again(self, bench: Bench) -> None:
        result = await bench.run(bench.task(t.Hopeless))
        assert bench.watched.outcomes["hopeless", 1].retryable is False
        assert (result.status, result.tasks["hopeless"].attempts) == ("failed", 1)
        assert (Path(result.files) / "attempts").read_text() == "x"

    async def test_error_of_a_megabyte_is_told_cut_short(self, bench: Bench) -> None:
        result = await bench.run(bench.task(t.FailsAtLength))
        outcome = bench.watched.outcomes["failsatlength", 1]
        assert (outcome.reason, outcome.error_type) == ("exception", "ValueError")
        assert outcome.error_message.startswith("größexxx")
        assert len(outcome.error_message) <= 10_000
        assert "ValueError: größexxx" in outcome.error_stack
        assert result.status == "failed"

    # What attempts get.

    async def test_parameters_of_every_json_kind_arrive_as_they_are(self, bench: Bench) -> None:
        given: dict[str, JSON] = {
            "none": None,
            "yes": True,
            "integer": -(2**53) - 1,
            "number": 1e300,
            "text": "größe ☃ \"'\\\n\t\x7f</b>[/]$(x)",
            "items": [None, False, 0, 1.5, "", "1", [], [[1]], {}, {"a": [{"b": None}]}],
            "names": {"": 1, "a b": {"ü": []}},
        }
        result = await bench.run(bench.task(t.Takes)(**given, id="takes"))
        written = json.loads((Path(result.files) / "params.json").read_text())
        assert written == {**given, "default": "default"}
        assert [type(value) for value in written.values()] == [*(type(value) for value in given.values()), str]

    async def test_ids_of_any_characters_run_and_have_logs_of_their_own(self, bench: Bench) -> None:
        named = bench.task(t.Named)
        tasks = [named(number=number, id=id) for number, id in enumerate(STRANGE_IDS)]
        result = await bench.run(parallel(*tasks), capture=True)
        assert {id: each.status for id, each in result.tasks.items()} == dict.fromkeys(STRANGE_IDS, "finished")
        assert len(list(Path(result.files).glob("named-*"))) == len(STRANGE_IDS)

    async def test_context_and_settings_of_the_run_reach_the_task(self, bench: Bench, settings: Settings) -> None:
        result = await bench.run(bench.task(t.Looks), params={"deep.er": [1, "ü"]})
        found = json.loads((Path(result.files) / "found.json").read_text())
        assert found["context"] == found["default_context"] == {"deep": {"er": [1, "ü"]}}
        assert found["storage"] == settings.storage_root
        assert found["concurrency"] == 16
        assert found["is_current"]

    async def test_runs_at_the_same_time_do_not_see_each_other(self, bench: Bench) -> None:
        results: dict[str, RunResult] = {}

        async def run(runtime: Runtime, who: str) -> None:
            results[who] = await bench.run_in(runtime, bench.task(t.Looks), params={"who": who})

        async with bench.runtime() as runtime, anyio.create_task_group() as tasks:
            for who in ("a", "b", "c"):
                tasks.start_soon(run, runtime, who)
        for who, result in results.items():
            assert json.loads((Path(result.files) / "found.json").read_text())["context"] == {"who": who}

    async def test_each_over_a_callable_asks_in_the_run_and_runs_one_task_a_value(self, bench: Bench) -> None:
        task = bench.task(t.Named)
        result = await bench.run(each(task, number=t.numbers), params={"numbers": [3, 5]})
        assert result.status == "finished"
        assert {path.name for path in Path(result.files).glob("named-*")} == {"named-3", "named-5"}
        expanded = [event for event in events_of(result) if isinstance(event, TaskExpanded)]
        assert [(event.task, event.values) for event in expanded] == [("each-named", [[3], [5]])]

    # What attempts tell.

    async def test_metrics_and_progress_come_in_order_and_before_the_end(self, bench: Bench) -> None:
        result = await bench.run(bench.task(t.Tells))
        events = events_of(result)
        told = [event for event in events if isinstance(event, (TaskProgress, TaskMetric))]
        assert [event.done for event in told if isinstance(event, TaskProgress)] == list(range(1, 11))
        metrics = [(event.name, event.value) for event in told if isinstance(event, TaskMetric)]
        assert metrics == [(f"m{number}", number / 4) for number in range(10)]
        assert [type(event) for event in told] == [TaskProgress, TaskMetric] * 10
        assert outline(events)[-2:] == ["task.finished tells", "run.finished"]

    async def test_output_reaches_subscribers_and_the_log_file_line_by_line(self, bench: Bench) -> None:
        lines: list[TaskOutput] = []

        def sink(event: object) -> None:
            if isinstance(event, TaskOutput):
                lines.append(event)

        result = await bench.run(bench.task(t.Speaks), capture=True, sinks=[sink])
        assert [each.line for each in lines if each.stream == "stdout"] == ["to stdout ☃", "without an end"]
        assert "to stderr" in [each.line for each in lines if each.stream == "stderr"]
        logged = [each.line for each in lines]
        assert any("to the log" in line and "rows=3" in line for line in logged)
        assert any("to logging" in line for line in logged)
        assert {(each.task, each.attempt) for each in lines} == {("speaks", 1)}
        assert sorted((result.path / "logs" / "speaks.1.log").read_text().splitlines()) == sorted(logged)

    async def test_long_output_comes_whole_and_in_order(self, bench: Bench) -> None:
        result = await bench.run(bench.task(t.SaysMuch), capture=True)
        lines = (result.path / "logs" / "saysmuch.1.log").read_text().splitlines()
        assert lines == [f"line {number}" for number in range(t.SaysMuch.lines)]
        metrics = [event.value for event in events_of(result) if isinstance(event, TaskMetric)]
        assert metrics == [t.SaysMuch.lines]

    async def test_log_file_of_a_failed_attempt_ends_with_its_traceback(self, bench: Bench) -> None:
        result = await bench.run(bench.task(t.Fails), capture=True)
        event = next(event for event in events_of(result) if isinstance(event, TaskFailed))
        assert event.log is not None
        assert (result.path / event.log).read_text().rstrip().endswith((event.error_stack or "?").rstrip())

    async def test_output_is_left_alone_unless_the_run_captures(self, bench: Bench) -> None:
        result = await bench.run(bench.task(t.Speaks))
        assert not (result.path / "logs").exists()
        assert not any(isinstance(each, Output) for each in bench.watched.emissions["speaks", 1])

    # Side by side, and stopping.

    async def test_attempts_run_side_by_side(self, bench: Bench) -> None:
        result = await bench.run(parallel(*(bench.task(t.Meets)(number=number, of=3) for number in range(3))))
        assert result.status == "finished", [str(each.error) for each in result.tasks.values()]

    async def test_named_limit_bounds_how_many_run(self, bench: Bench) -> None:
        result = await bench.run(each(bench.task(t.Excludes), number=[1, 2, 3, 4]))
        assert result.status == "finished", [str(each.error) for each in result.tasks.values()]

    async def test_many_quick_tasks_all_run(self, bench: Bench) -> None:
        result = await bench.run(each(bench.task(t.Named), number=list(range(self.many))))
        assert result.status == "finished"
        assert len(list(Path(result.files).glob("named-*"))) == self.many

    async def test_cancelled_scope_stops_the_work_soon(self, bench: Bench) -> None:
        async with bench.runtime() as runtime, anyio.create_task_group() as tasks:
            tasks.start_soon(bench.run_in, runtime, bench.task(t.Stays))
            files = await bench.files_with("here")
            began = time.monotonic()
            tasks.cancel_scope.cancel()
        assert time.monotonic() - began < self.bound_s
        bench.assert_stopped(files)
        assert_events(events_of(bench.record()), "task.cancelled stays", "run.cancelled")
        await bench.let_go(files)

    async def test_cancelled_run_stops_the_work_soon(self, bench: Bench) -> None:
        async with bench.runtime() as runtime:
            async with runtime.stream_dag(bench.dag(bench.task(t.Stays)), check=False, **bench.options()) as run:
                files = await bench.files_with("here")
                run.cancel()
                with anyio.fail_after(self.bound_s):
                    result = await run.result()
            bench.assert_stopped(files)
            assert (result.status, result.tasks["stays"].status) == ("cancelled", "cancelled")
            await bench.let_go(files)

    async def test_work_beyond_its_timeout_is_stopped_and_fails_for_that(self, bench: Bench) -> None:
        async with bench.runtime() as runtime:
            with anyio.fail_after(self.bound_s + 60):
                result = await bench.run_in(runtime, bench.task(t.Overruns))
            assert result.status == "failed"
            assert_events(events_of(result), "task.started overruns", "task.failed overruns", "run.failed")
            failed = next(event for event in events_of(result) if isinstance(event, TaskFailed))
            assert (failed.reason, failed.abandoned) == ("timeout", bench.watched.abandoned())
            bench.assert_stopped(Path(result.files))
            await bench.let_go(Path(result.files))

    async def test_cancelled_attempt_is_killed_with_what_it_has_started(self, bench: Bench) -> None:
        self._needs_processes(bench)
        async with bench.runtime() as runtime, anyio.create_task_group() as tasks:
            tasks.start_soon(bench.run_in, runtime, t.Forks)
            pids = bench.pids(await bench.files_with("here"))
            assert all(map(_is_alive, pids))
            tasks.cancel_scope.cancel()
        await until(lambda: not any(map(_is_alive, pids)), self.bound_s)
        assert_events(events_of(bench.record()), "task.cancelled forks", "run.cancelled")

    async def test_attempt_beyond_its_timeout_is_killed_with_what_it_has_started(self, bench: Bench) -> None:
        self._needs_processes(bench)
        async with bench.runtime() as runtime:
            for task in (t.ForksTooLong, t.ForksFarTooLong):
                with anyio.fail_after(self.bound_s + 120):
                    result = await bench.run_in(runtime, task)
                if (Path(result.files) / "here").exists():
                    break
            failed = next(event for event in events_of(result) if isinstance(event, TaskFailed))
            assert (failed.reason, failed.abandoned) == ("timeout", False)
            pids = bench.pids(Path(result.files))
            await until(lambda: not any(map(_is_alive, pids)), self.bound_s)

    async def test_attempt_whose_process_is_killed_is_lost_and_tried_again(self, bench: Bench) -> None:
        self._needs_processes(bench)
        result = await bench.run(t.Dies)
        outcome = bench.watched.outcomes["dies", 1]
        assert (outcome.status, outcome.reason) == ("failed", "lost")
        assert (result.status, result.tasks["dies"].attempts) == ("finished", 2)
        assert (Path(result.files) / "attempts").read_text() == "xx"

    def _needs_processes(self, bench: Bench) -> None:
        if not self.in_processes or bench.is_async:
            pytest.skip("for plain tasks of executors with in_processes = True")


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Bench:
    """What the tests of `ExecutorContract` run DAGs with."""

    def __init__(self, executor: Executor, settings: Settings, kind: str, pool: str | None) -> None:
        self.watched = Watched(executor)
        self.settings = settings
        self._kind, self._pool = kind, pool

    @property
    def is_async(self) -> bool:
        """Whether the tasks are async."""
        return self._kind == "async"

    @staticmethod
    def pids(files: Path) -> list[int]:
        """The ids of processes that a task has left in its file `here`."""
        return [int(word) for word in (files / "here").read_text().split()]

    def task(self, plain: type[Task]) -> Any:
        """The task, plain or async."""
        return t.ASYNC[plain] if self._kind == "async" else plain

    def dag(self, *tasks: object) -> type[DAG]:
        """A DAG of them."""
        return cast("type[DAG]", type("Contract", (DAG,), {"tasks": tasks}))

    def options(self) -> Mapping[str, Any]:
        """Options of all runs."""
        return {"pool": self._pool} if self._pool else {}

    def runtime(self) -> Runtime:
        """A runtime on the executor."""
        return Runtime(self.settings, executor=self.watched)

    async def run_in(self, runtime: Runtime, *tasks: object, **options: Any) -> RunResult:
        """Run a DAG of `tasks`."""
        return await runtime.run_dag(self.dag(*tasks), check=False, **{**self.options(), **options})

    async def run(self, *tasks: object, **options: Any) -> RunResult:
        """Run a DAG of `tasks` in a runtime of its own."""
        async with self.runtime() as runtime:
            return await self.run_in(runtime, *tasks, **options)

    async def files_with(self, name: str) -> Path:
        """The folder of the run's files, once the task has left `name` there."""
        found: Sequence[Path] = ()

        def look() -> Sequence[Path]:
            nonlocal found
            found = list(Path(self.settings.storage_root).glob(f"runs/*/{name}"))
            return found

        await until(look, 120)
        return found[0].parent

    def record(self) -> Path:
        """The record of the only run."""
        (record,) = self.settings.runs_root.iterdir()
        return record

    def assert_stopped(self, files: Path) -> None:
        """Assert that the work has ended: nobody holds its lock any more. Of a thread that is told, not so."""
        if is_free(files / "held"):
            assert not self.watched.abandoned(), "told to be left behind, but it had ended"
        else:
            assert self.watched.abandoned(), "the work goes on, and nobody was told (Abandoned)"

    async def let_go(self, files: Path) -> None:
        """Let the work that was left behind end, and check that this is told."""
        files.mkdir(parents=True, exist_ok=True)  # an attempt may have been stopped before it has made it
        (files / "go").touch()
        if self.watched.abandoned():
            await until(self.watched.released, 120)
