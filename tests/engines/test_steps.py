"""Runs whose graph another engine schedules: `gluepy step`, the port of graph level, `gluepy collect`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from step_engine import StepEngine
from step_flows import comparable, is_alive, logs, pids, run, statuses

from gluepy.conf.sources import load_settings
from gluepy.core import events as e
from gluepy.core.graph import slug_of
from gluepy.errors import DagError, OptionError, RunError
from gluepy.exec.graph_level import Abilities, GraphExecutor
from gluepy.exec.steps import StepFolder
from gluepy.runtime import RunResult, Runtime
from gluepy.runtime.collect import collect_run, uncollected
from gluepy.testing import events_of
from gluepy.testing.wait import until

pytestmark = [
    pytest.mark.slow,  # each step is a process
    pytest.mark.skipif(sys.platform == "win32", reason="steps have worker processes"),
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # steps cost a second each: what concerns the event loop has tests of both


def step(project: Path, run_id: str, task: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gluepy", "step", run_id, task, *words]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def started(project: Path, run_id: str, task: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gluepy", "step", run_id, task, *words]
    return subprocess.Popen(
        command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("dag", ["train", "failing", "flaky", "skipping", "meeting", "dynamic"])
async def test_run_is_recorded_as_a_local_one(project: Path, dag: str) -> None:
    here = await run(project, dag, on_failure="continue")
    there = await run(project, dag, StepEngine(tries=3 if dag == "flaky" else 1))
    assert there.status == here.status
    assert statuses(there) == statuses(here)
    told = [event for event in comparable(there) if event["event"] != "task.progress"]
    assert told == [event for event in comparable(here) if event["event"] != "task.progress"]
    assert logs(there) == logs(here)


async def test_failure_has_the_tasks_traceback_and_its_log(project: Path) -> None:
    settings = load_settings(project, {})
    async with Runtime(settings, executor=StepEngine()) as runtime:
        with pytest.raises(RunError) as failed:
            await runtime.run_dag("failing", capture=True)
    (error,) = failed.value.exceptions
    assert "it is broken" in str(error)
    result = failed.value.result
    assert isinstance(result, RunResult)
    assert 'raise ValueError("it is broken")' in (result.path / "logs/broken.1.log").read_text()
    assert "loading" in (result.path / "logs/load.1.log").read_text()


async def test_resumed_run_runs_only_what_has_not_finished(project: Path) -> None:
    result = await run(project, "failing", StepEngine())
    (project / "data/mended").touch()
    engine = StepEngine()
    async with Runtime(load_settings(project, {}), executor=engine) as runtime:
        again = await runtime.resume_run(result.run_id)
    assert again.status == "finished"
    assert statuses(again)["join"] == "finished"
    assert "load" not in engine.began
    assert engine.began["broken"] == 1


async def test_step_is_in_the_trace_of_its_run(project: Path) -> None:
    (project / "tells_its_trace.py").write_text(
        "import os\nfrom gluepy import DAG, Task\n"
        "class Tells(Task):\n    def run(self):\n        print(os.environ['TRACEPARENT'], self.traceparent)\n"
        "class TracedDAG(DAG):\n    tasks = (Tells,)\n"
    )
    with TracerProvider().get_tracer("app").start_as_current_span("request") as span:
        result = await run(project, "tells_its_trace:TracedDAG", StepEngine())
    header: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(header, set_span_in_context(span))
    assert (result.path / "logs/tells.1.log").read_text().split() == [header["traceparent"]] * 2


async def test_forced_task_runs_again(project: Path) -> None:
    result = await run(project, "train", StepEngine())
    engine = StepEngine()
    async with Runtime(load_settings(project, {}), executor=engine) as runtime:
        again = await runtime.resume_run(result.run_id, force=["load"])
    assert again.status == "finished"
    assert again.tasks["load"].attempts == 2
    assert StepFolder(again.files).attempts("load") == [1, 2]


async def test_selected_tasks_alone_are_handed_over(project: Path) -> None:
    engine = StepEngine()
    result = await run(project, "train", engine, tasks=["join"])
    assert statuses(result)["join"] == "finished"
    assert list(engine.began) == ["join"]


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_cancelled_run_leaves_no_process(project: Path) -> None:
    async with (
        Runtime(load_settings(project, {}), executor=StepEngine()) as runtime,
        runtime.stream_dag("sleeping", check=False) as stream,
    ):
        await until(lambda: len(pids(f"{project}/data/runs/{stream.id}")) == 2)
        stream.cancel()
        result = await stream.result()
    assert result.status == "cancelled"
    assert not [pid for pid in pids(result.files) if is_alive(pid)]
    events = StepFolder(result.files).events("sleeping", 1)
    assert isinstance(events[-1], e.TaskCancelled)


async def test_timed_out_step_is_killed_with_what_it_has_started(project: Path) -> None:
    result = await run(project, "late", StepEngine())
    (failed,) = (event for event in events_of(result) if isinstance(event, e.TaskFailed))
    assert failed.reason == "timeout"
    assert len(pids(result.files)) == 2
    assert not [pid for pid in pids(result.files) if is_alive(pid)]


async def test_step_that_is_killed_is_lost_and_made_again(project: Path) -> None:
    async with (
        Runtime(load_settings(project, {}), executor=StepEngine(tries=2)) as runtime,
        runtime.stream_dag("dying", capture=True) as stream,
    ):
        files = Path(f"{project}/data/runs/{stream.id}")
        await until(lambda: (files / "died").exists() and (files / "died").read_text())
        (event,) = StepFolder(str(files)).events("diesonce", 1)
        assert isinstance(event, e.TaskStarted)
        os.kill(event.pid, signal.SIGKILL)
        result = await stream.result()
    assert result.status == "finished"
    (retrying,) = (event for event in events_of(result) if isinstance(event, e.TaskRetrying))
    assert (retrying.reason, retrying.attempt) == ("lost", 1)


async def test_what_the_engine_never_began_is_lost_and_says_so(project: Path) -> None:
    result = await run(project, "train", StepEngine(forgets=("fit[region=eu]",)))
    (failed,) = (event for event in events_of(result) if isinstance(event, e.TaskFailed))
    assert (failed.reason, failed.task) == ("lost", "fit[region=eu]")
    assert "StepEngine says 'failed'" in failed.error_message


async def test_disagreement_of_step_and_engine_is_told(project: Path) -> None:
    result = await run(project, "flaky", StepEngine(tries=2, fails=("flaky",)))
    (finished,) = (event for event in events_of(result) if isinstance(event, e.TaskFinished))
    assert finished.warning is None or "StepEngine says" in finished.warning


class Poor(GraphExecutor):
    abilities = Abilities()


@pytest.mark.parametrize("dag", ["failing", "flaky", "dynamic"])
async def test_what_an_engine_cannot_do_is_an_error_before_anything_runs(project: Path, dag: str) -> None:
    with pytest.raises(DagError, match="Poor"):
        await run(project, dag, Poor())
    with pytest.raises(OptionError, match="on_failure"):
        await run(project, "train", Poor(), on_failure="cancel")
    with pytest.raises(OptionError, match="record"):
        await run(project, "train", Poor(), record=False)
    assert not (project / "data/runs").exists()


def test_steps_alone_make_a_run_that_is_collected(project: Path) -> None:
    for task in ("load", "fit[region=eu]", "fit[region=us]", "join"):
        done = step(project, "r1", task, "--dag", "train", "-P", "word=hi", "--executor", "cron")
        assert done.returncode == 0, done.stderr
    assert (project / "data/runs/r1/eu.txt").read_text() == "hi"
    settings = load_settings(project, {})
    assert list(uncollected(settings)) == ["r1"]
    assert collect_run(settings, "r1").status == "finished"
    assert list(uncollected(settings)) == []
    assert not collect_run(settings, "r1").is_new


def test_step_that_has_finished_is_not_run_again(project: Path) -> None:
    assert step(project, "r1", "load", "--dag", "train").returncode == 0
    again = step(project, "r1", "load")
    assert again.returncode == 0
    assert "finished already" in again.stderr
    assert StepFolder(str(project / "data/runs/r1")).attempts("load") == [1]


def test_two_steps_at_once_run_the_task_once(project: Path) -> None:
    assert step(project, "r1", "load", "--dag", "train").returncode == 0
    both = [started(project, "r1", "fit[region=eu]") for _ in range(2)]
    told = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("finished already" in text for text in told) == [False, True]
    folder = StepFolder(str(project / "data/runs/r1"))
    assert folder.attempts(slug_of("fit[region=eu]")) == [1]


def test_step_whose_dependencies_have_not_finished_is_blocked(project: Path) -> None:
    assert step(project, "r1", "load", "--dag", "train").returncode == 0
    blocked = step(project, "r1", "join")
    assert blocked.returncode == 1
    assert "blocked by" in blocked.stderr


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_what_is_handed_over_on_either_back_end_finishes(project: Path) -> None:
    result = await run(project, "dynamic", StepEngine())
    assert statuses(result)["fit[region=b]"] == "finished"


async def test_sigterm_stops_the_step_with_its_descendants(project: Path) -> None:
    process = started(project, "r1", "sleeping", "--dag", "sleeping")
    files = str(project / "data/runs/r1")
    await until(lambda: len(pids(files)) == 2)
    process.terminate()
    out, _ = process.communicate(timeout=60)  # nobody else holds the pipe
    assert (process.returncode, out) == (143, "")
    assert not [pid for pid in pids(files) if is_alive(pid)]
    collected = collect_run(load_settings(project, {}), "r1")
    assert collected.status == "cancelled"


def test_step_says_what_is_wrong(project: Path) -> None:
    missing = step(project, "r9", "load")
    assert missing.returncode == 2
    assert "--dag" in missing.stderr
    wrong = step(project, "r9", "laod", "--dag", "train")
    assert wrong.returncode == 2
    assert "did you mean 'load'" in wrong.stderr
    assert not (project / "data/runs/r9").exists()
