"""The machine's clock may be set at any time, by a day, forwards or backwards: within a session only monotonic time
counts, over a restart nothing waits for longer than it was told to, and nothing shown is less than no time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from random_dags import LIMITS, RandomDag
from steps import Go, Step, dag_of

from gluepy import Retry, parallel
from gluepy.cli import main
from gluepy.cli.story import run_text
from gluepy.clock import parse_rfc3339
from gluepy.core import events as e
from gluepy.report import RunReport, read_run
from gluepy.runs.index import Index
from gluepy.runs.prune import prunable
from gluepy.runtime import RunResult, Runtime
from gluepy.testing import HELD, ScriptedExecutor, VirtualClock, events_of, failed, outline, settle
from gluepy.testing import Step as Ends

DAY_S = 86_400.0
JUMPS = pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S], ids=["forwards", "backwards"])


class Restless(VirtualClock):
    """Somebody sets it whenever anybody looks at it: by a day forwards, by two backwards, by one forwards, …"""

    def __init__(self) -> None:
        super().__init__()
        self.days = itertools.cycle((0, 1, -1, 0, -1, 1, 1))

    def wall(self) -> float:
        return super().wall() + DAY_S * next(self.days)


class Again(Step):
    retries = Retry(attempts=3, wait_s=60, factor=1, jitter=0)


class Slow(Step):
    timeout_s = 60


class Piped(Step):
    uses = {"gpu": 1}  # noqa: RUF012


def set_by(clock: VirtualClock, jump_s: float) -> None:
    clock.set_wall(clock.wall() + jump_s)


# Within a session


@pytest.mark.parametrize("seed", range(6))
async def test_what_a_run_does_and_how_long_it_takes_does_not_depend_on_the_time_of_day(go: Go, seed: int) -> None:
    random_dag = RandomDag(seed)

    async def run(clock: VirtualClock) -> RunResult:
        executor = ScriptedExecutor(random_dag.script, clock=clock)
        own = type(clock).__name__  # the order of starting is learned from runs beside
        settings = go.settings.replaced(LIMITS=LIMITS, RUNS_ROOT=own)
        async with clock.autojump(), Runtime(settings, executor=executor, clock=clock) as runtime:
            return await runtime.run_dag(random_dag.dag, check=False, **{**random_dag.options, "concurrency": 1})

    steady, restless = await run(VirtualClock()), await run(Restless())
    assert outline(events_of(restless)) == outline(events_of(steady))
    assert spans(events_of(restless)) == spans(events_of(steady))
    assert restless.duration_s == steady.duration_s


def spans(events: list[e.Event]) -> list[tuple[object, ...]]:
    """The seconds that events tell of."""
    names = ("duration_s", "queued_s", "delay_s")
    told = [tuple(getattr(event, name, None) for name in names) for event in events]
    assert all(seconds is None or seconds >= 0 for each in told for seconds in each)
    return told


@JUMPS
async def test_retry_waits_for_its_delay(go: Go, jump_s: float) -> None:
    clock = VirtualClock()
    executor = ScriptedExecutor({"again": [failed(), Ends()]}, clock=clock)
    async with go.runtime(executor=executor, clock=clock) as runtime, runtime.stream_dag(dag_of(Again)) as run:
        await clock.advance(30)
        set_by(clock, jump_s)
        await clock.advance(29.9)
        assert executor.started == [("again", 1)]
        await clock.advance(0.2)
        assert executor.started == [("again", 1), ("again", 2)]
        assert (await run.result()).duration_s == pytest.approx(60)


@JUMPS
async def test_task_is_out_of_time_when_its_time_is_over(go: Go, jump_s: float) -> None:
    clock = VirtualClock()
    executor = ScriptedExecutor({"slow": HELD}, clock=clock)
    dag = dag_of(Slow)
    async with go.runtime(executor=executor, clock=clock) as runtime, runtime.stream_dag(dag, check=False) as run:
        await clock.advance(30)
        set_by(clock, jump_s)
        await clock.advance(29.9)
        assert executor.running == [("slow", 1)]
        await clock.advance(0.2)
        assert executor.stopped == [("slow", 1)]
        assert (await run.result()).tasks["slow"].duration_s == pytest.approx(60)


@JUMPS
async def test_run_is_out_of_time_when_its_time_is_over(go: Go, jump_s: float) -> None:
    clock = VirtualClock()
    executor = ScriptedExecutor({"a": HELD}, clock=clock)
    runtime = go.runtime(executor=executor, clock=clock)
    async with runtime, runtime.stream_dag(dag_of(Step(id="a")), timeout_s=60, check=False) as run:
        await clock.advance(30)
        set_by(clock, jump_s)
        await clock.advance(29.9)
        assert executor.running == [("a", 1)]
        await clock.advance(0.2)
        assert (await run.result()).duration_s == pytest.approx(60)


@JUMPS
async def test_task_that_waited_for_a_limit_tells_how_long(go: Go, jump_s: float) -> None:
    go.settings = go.settings.replaced(LIMITS={"gpu": 1})
    clock = VirtualClock()
    executor = ScriptedExecutor({"first": HELD}, clock=clock)
    dag = dag_of(parallel(Piped(id="first"), Piped(id="second")))
    async with go.runtime(executor=executor, clock=clock) as runtime, runtime.stream_dag(dag) as run:
        await clock.advance(10)
        set_by(clock, jump_s)
        await clock.advance(15)
        executor.release()
        result = await run.result()
    started = [event for event in events_of(result) if isinstance(event, e.TaskStarted)]
    assert [(event.task, event.queued_s) for event in started] == [("first", 0), ("second", pytest.approx(25))]


# Over a restart


@pytest.mark.parametrize(
    ("away_s", "waits_s"),
    [(0.0, 60.0), (20.0, 40.0), (60.0, 0.0), (DAY_S, 0.0), (-20.0, 60.0), (-DAY_S, 60.0)],
)
async def test_pending_retry_waits_for_what_is_left_of_its_delay_and_never_longer(
    go: Go, away_s: float, waits_s: float
) -> None:
    clock = VirtualClock()
    executor = ScriptedExecutor({"again": [failed(), Ends()]}, clock=clock)
    dag = dag_of(Again)
    runtime = go.runtime(executor=executor, clock=clock)
    async with runtime, runtime.stream_dag(dag, run_id="run", check=False) as run:
        await settle()
    keep(run.path / "events.jsonl", 3)  # its driver died while it waited

    clock = VirtualClock(wall=clock.wall() + away_s)
    executor = ScriptedExecutor(clock=clock)
    async with clock.autojump(), go.runtime(executor=executor, clock=clock) as runtime:
        result = await runtime.resume_run("run", dag=dag)
    assert executor.started == [("again", 2)]
    assert result.duration_s == pytest.approx(waits_s)


def keep(log: Path, lines: int) -> None:
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:lines]))


# Looking at records


@pytest.fixture
def records(go: Go) -> Callable[[float], Any]:
    """Makes runs of one DAG, each in two sessions, of which the second is away by so many seconds, and within which the
    clock is set by as much: `ended`, `interrupted`, and `later`, which only began after that."""

    async def make(jump_s: float) -> None:
        dag = dag_of(parallel(Again(id="a"), Step(id="b")), Step(id="c"), label="pipe")
        script = {"a": [Ends(lasts_s=5)], "b": [Ends(failed(), lasts_s=3), Ends(lasts_s=2)], "c": [Ends(lasts_s=4)]}
        clock = VirtualClock()

        async def session(run_id: str, again: bool) -> None:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(clock.autojump())
                executor = Jumping(script, clock, jump_s)
                runtime = await stack.enter_async_context(go.runtime(executor=executor, clock=clock))
                if again:
                    await runtime.resume_run(run_id, dag=dag, check=False)
                else:
                    await runtime.run_dag(dag, run_id=run_id, check=False)

        for run_id in ("ended", "interrupted"):
            await session(run_id, again=False)
            set_by(clock, jump_s)
            await session(run_id, again=True)
        await session("later", again=False)
        log = go.settings.runs_root / "interrupted" / "events.jsonl"
        keep(log, len(log.read_bytes().splitlines()) - 1)

    return make


class Jumping(ScriptedExecutor):
    """The clock is set while `c` runs."""

    def __init__(self, script: Any, clock: VirtualClock, jump_s: float) -> None:
        super().__init__(script, clock=clock)
        self.clock, self.jump_s = clock, jump_s

    async def run(self, attempt: Any, emit: Any) -> Any:
        outcome = await super().run(attempt, emit)
        if attempt.task == "c":
            set_by(self.clock, self.jump_s)
        return outcome


@JUMPS
async def test_nothing_that_is_told_of_a_run_is_less_than_no_time(
    go: Go, records: Callable[[float], Any], jump_s: float
) -> None:
    await records(jump_s)
    root = go.settings.runs_root
    with Index(root) as index:
        listed = {run.run_id: run for run in index.runs()}
    assert {run_id: run.status for run_id, run in listed.items()} == {
        "ended": "finished",
        "interrupted": "interrupted",
        "later": "failed",
    }
    assert all(run.duration_s >= 0 for run in listed.values())
    assert listed["ended"].duration_s == pytest.approx(5 + 6)  # a in its first session; b, then c, in its second
    for run_id in listed:
        run = read_run(root / run_id)
        assert run.duration_s >= 0
        told = run.timeline
        assert all(0 <= bar.started_s <= bar.ended_s <= told.length_s for bar in told.bars)
        assert "-" not in " ".join(facts(run, "took"))
    ended = read_run(root / "ended").timeline
    assert ended.length_s == pytest.approx(5 + 6)
    assert [(bar.task, round(bar.ended_s - bar.started_s, 3)) for bar in ended.bars] == [
        ("a", 5), ("b", 3), ("b", 2), ("c", 4)
    ]  # fmt: skip


def facts(run: RunReport, name: str) -> list[str]:
    return [line for line in run_text(run, colour=False) if line.startswith(name)]


@JUMPS
async def test_prune_counts_and_dates_runs_by_when_they_say_that_they_started(
    go: Go, records: Callable[[float], Any], jump_s: float
) -> None:
    await records(jump_s)
    with Index(go.settings.runs_root) as index:
        runs = index.runs()
    starts = [run.started_at for run in runs]
    assert starts == sorted(starts, reverse=True)
    assert [run.run_id for run in prunable(runs, 1, None)] == [run.run_id for run in runs[1:]]
    earliest = min(map(parse_rfc3339, starts))
    just_after = f"{datetime.fromtimestamp(earliest + 1, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    assert [run.run_id for run in prunable(runs, None, just_after)] == [runs[-1].run_id]


@JUMPS
async def test_every_command_can_tell_of_such_runs(
    go: Go, records: Callable[[float], Any], folder: Path, capsys: pytest.CaptureFixture[str], jump_s: float
) -> None:
    await records(jump_s)
    (folder / "pyproject.toml").write_text('[tool.gluepy]\nRUNS_ROOT = "runs"\nSTORAGE_ROOT = "data"\n')
    for words in (
        "runs", "show ended", "show interrupted", "show later", "diff ended later", "events ended", "watch later",
        "prune --older-than 1d --dry-run",
    ):  # fmt: skip
        with pytest.raises(SystemExit) as exit_:
            main(words.split())
        told = capsys.readouterr()
        assert exit_.value.code in (0, 1), f"{words}: {told.err}"
        assert "Traceback" not in told.err
        assert not [word for word in told.out.split() if word[:1] == "-" and word[1:2].isdigit()], told.out
    with pytest.raises(SystemExit):
        main(["show", "ended", "--json"])
    told_json = json.loads(capsys.readouterr().out)
    assert told_json["duration_s"] == pytest.approx(11)
    assert told_json["timeline"]["length_s"] == pytest.approx(11)


@JUMPS
async def test_durations_that_were_learned_are_those_that_tasks_took(
    go: Go, records: Callable[[float], Any], jump_s: float
) -> None:
    await records(jump_s)
    known = json.loads((go.settings.runs_root / "durations" / "pipe.json").read_text())
    assert all(0 < seconds < 60 for durations in known["tasks"].values() for seconds in durations)
    assert known["tasks"]["c"][-1] == pytest.approx(4)
