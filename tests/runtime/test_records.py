"""The record of a run: what is in its folder, under each EVENT_SYNC, and what happens when it cannot be written."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from pools import ProcessNothing
from steps import Go, LoopStep, Notes, ProcessWaits, Step, Waits, dag_of, no_file_longer_than

from gluepy import Task, each, parallel
from gluepy.core.events import RunStarted, TaskExpanded, TaskFinished, TaskStarted
from gluepy.core.state import STATUS, State
from gluepy.errors import RunStopped
from gluepy.runs.index import Index
from gluepy.runs.log import FileLog
from gluepy.testing import HELD, ScriptedExecutor, events_of, failed, skipped
from gluepy.testing import Step as Ends


async def test_record_holds_events_context_and_logs_apart_from_the_files(go: Go, folder: Path) -> None:
    class Writes(Task):
        def run(self) -> None:
            (self.path / "here.txt").write_text("x")
            (self.storage / "there.txt").write_text("y")

    result = await go(Writes, params={"model.depth": 3, "name": "größe"})
    assert result.path == folder / "runs" / result.run_id
    assert {path.name for path in result.path.iterdir()} == {"events.jsonl", "context.yaml"}
    assert yaml.safe_load((result.path / "context.yaml").read_text()) == {"model": {"depth": 3}, "name": "größe"}
    assert result.files == str(folder / "data" / "runs" / result.run_id)
    assert (Path(result.files) / "here.txt").read_text() == "x"
    assert (folder / "data" / "there.txt").read_text() == "y"


async def test_only_its_owner_can_read_a_record_and_what_is_learned_from_it(go: Go, folder: Path) -> None:
    class Prints(Task):
        def run(self) -> None:
            (self.path / "made.txt").write_text("for all")
            print("secret")
            time.sleep(0.06)  # long enough to be remembered

    before = os.umask(0)
    try:
        await go(Prints, params={"token": "secret"}, capture=True)
        with Index(folder / "runs"):
            pass
    finally:
        os.umask(before)
    files = {path for path in (folder / "runs").rglob("*") if path.is_file()}
    assert {"events.jsonl", "context.yaml", "prints.1.log", "dag.json", "index.sqlite"} <= {file.name for file in files}
    assert {file for file in files if file.stat().st_mode & 0o077} == set()
    assert {path for path in (folder / "runs").rglob("*") if path.is_dir() and path.stat().st_mode & 0o077} == set()
    (made,) = (folder / "data").rglob("made.txt")
    assert made.stat().st_mode & 0o077  # what tasks write follows the umask


async def test_every_event_has_its_header(go: Go) -> None:
    result = await go(Step(id="a"), ProcessNothing(id="b"))
    events = events_of(result)
    for event in events:
        assert (event.run_id, event.dag, event.session, event.level) == (result.run_id, "dag", 1, "info")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event.timestamp)
    times = [datetime.fromisoformat(event.timestamp) for event in events]
    assert times == sorted(times)
    assert abs(times[0].timestamp() - time.time()) < 60
    started = next(event for event in events if isinstance(event, TaskStarted))
    assert (started.executor, started.pool, started.host, started.pid) == (
        "LocalExecutor",
        "thread",
        platform.node(),
        os.getpid(),
    )
    finished = [event for event in events if isinstance(event, TaskFinished)]
    assert finished[0].cpu_s is None
    assert finished[1].pid not in (None, os.getpid())
    assert finished[1].cpu_s is not None
    assert (finished[1].peak_rss_mb or 0) > 1
    assert finished[1].worker


async def test_opening_tells_graph_code_and_options(go: Go) -> None:
    result = await go(each(LoopStep) if False else Step(id="a"), concurrency=2, on_failure="continue")
    opening = events_of(result)[0]
    assert isinstance(opening, RunStarted)
    assert (opening.schema_version, opening.gluepy_version) == (1, "2.0.0")
    assert opening.options["concurrency"] == 2
    assert opening.options["on_failure"] == "continue"
    assert opening.graph["specs"][0]["cls"] == "steps:Step"
    assert opening.code_version
    same = events_of(await go(Step(id="a")))[0]
    other = events_of(await go(Step(id="a"), params={"x": 1}))[0]
    assert isinstance(same, RunStarted)
    assert isinstance(other, RunStarted)
    assert same.params_digest == opening.params_digest != other.params_digest


async def test_result_is_the_fold_of_the_log(go: Go) -> None:
    executor = ScriptedExecutor({"a": failed(), "b": skipped("no"), "c": Ends()})
    tasks = parallel((Step(id="a"), Step(id="x")), (Step(id="b"), Step(id="y")), Step(id="c"))
    result = await go(tasks, each(Region, region=lambda: ["eu"]), executor=executor, on_failure="continue")
    state = State.from_events(events_of(result))
    folded = {state.graph.task_id(node): STATUS[state.status[node]] for node in state.graph.tasks()}
    assert folded == {id: task.status for id, task in result.tasks.items()}
    assert (state.run, state.run_duration_s, state.started_at) == (
        result.status,
        result.duration_s,
        result.started_at,
    )
    assert not any(isinstance(event, TaskExpanded) for event in events_of(result))


class Region(Task):
    region: str

    def run(self) -> None:
        pass


@pytest.mark.parametrize("sync", ["batch", "commit", "none"])
async def test_every_kind_of_sync_leaves_the_same_whole_record(go: Go, sync: str) -> None:
    go.settings = go.settings.replaced(EVENT_SYNC=sync)
    result = await go(Step(id="a"), parallel(*(LoopStep(id=str(n)) for n in range(20))), Step(id="z"))
    assert result.status == "finished"
    assert len(events_of(result)) == 2 + 2 * 22


async def test_under_commit_what_depends_on_a_task_starts_when_its_end_is_safe(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    go.settings = go.settings.replaced(EVENT_SYNC="commit")
    flushed: list[int] = []
    flush = os.fdatasync

    def noting(file: int) -> None:
        size = os.fstat(file).st_size
        flush(file)
        flushed.append(size)

    monkeypatch.setattr(os, "fdatasync", noting)
    safe: list[bool] = []

    class Watching(ScriptedExecutor):
        async def run(self, attempt: Any, emit: Any) -> Any:
            if attempt.task == "b":
                log = (go.settings.runs_root / "run" / "events.jsonl").read_bytes()
                end = log.index(b"\n", log.index(b"task.finished"))
                safe.append(bool(flushed) and flushed[-1] > end)
            return await super().run(attempt, emit)

    await go(Step(id="a"), Step(id="b"), executor=Watching(), run_id="run")
    assert safe == [True]


async def test_many_tasks_under_commit_share_their_flushes(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    go.settings = go.settings.replaced(EVENT_SYNC="commit", CONCURRENCY=64)
    flushes: list[int] = []
    flush = os.fdatasync

    def slow(file: int) -> None:
        time.sleep(0.002)
        flush(file)
        flushes.append(file)

    monkeypatch.setattr(os, "fdatasync", slow)
    await go(parallel(*(LoopStep(id=str(number)) for number in range(256))))
    assert len(flushes) < 128


# When it cannot be written


class Tells(Task):
    """Tells until the log is full."""

    async def run(self) -> None:
        for number in range(100_000):
            self.metric("number", number)
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("sync", ["batch", "commit", "none"])
async def test_log_that_cannot_be_written_stops_the_run_and_all_that_runs(go: Go, notes: Notes, sync: str) -> None:
    go.settings = go.settings.replaced(EVENT_SYNC=sync)
    with no_file_longer_than(20_000), pytest.raises(RunStopped) as caught, anyio.fail_after(120):
        await go(parallel(Tells, Waits(id="wait")), Step(id="never"), run_id="run", check=True)
    assert caught.value.run_id == "run"
    assert "events.jsonl: File too large" in caught.value.why
    assert notes.of("stopped") == ["wait"]
    assert "never" not in notes.of("begin")
    log = (go.settings.runs_root / "run" / "events.jsonl").read_bytes()
    assert len(log) <= 20_000
    whole = log[: log.rindex(b"\n") + 1]
    assert whole.count(b"\n") > 50


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


async def test_run_on_a_full_disk_says_so_and_what_to_do(go: Go, small_disk: Path) -> None:
    go.settings = go.settings.replaced(RUNS_ROOT=str(small_disk))
    with pytest.raises(RunStopped, match=r"No space left on device; free some space, then resume the run"):
        await go(Tells)


async def test_full_disk_stops_a_run_that_runs_in_processes_too(go: Go, notes: Notes) -> None:
    with no_file_longer_than(20_000), pytest.raises(RunStopped):
        await go(parallel(ProcessWaits(id="wait"), (ProcessNothing, Tells)))
    assert notes.of("end") == []


async def test_flush_that_fails_stops_the_run_and_is_not_tried_again(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def broken(file: int) -> None:
        tried.append(file)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    executor = ScriptedExecutor({"a": HELD})
    go.settings = go.settings.replaced(EVENT_SYNC="commit")
    with pytest.raises(RunStopped, match="Input/output error"), anyio.fail_after(120):
        await go(Step(id="a"), executor=executor)
    assert len(tried) == 1


async def test_folder_that_cannot_be_written_stops_the_run_before_it_begins(go: Go, folder: Path) -> None:
    (folder / "runs").write_text("a file, where a folder is wanted")
    with pytest.raises(RunStopped, match="set RUNS_ROOT to a writable folder"):
        await go(Step(id="a"))


async def test_log_that_breaks_while_a_stream_is_read_ends_the_stream(go: Go) -> None:
    seen: list[str] = []
    with no_file_longer_than(20_000):
        async with go.runtime() as runtime, runtime.stream_dag(dag_of(Tells)) as run:
            with anyio.fail_after(120):
                seen.extend([type(event).__name__ async for event in run])
            with pytest.raises(RunStopped):
                await run.result()
    assert seen[0] == "RunStarted"
    assert "RunFinished" not in seen


async def test_log_of_a_torn_line_goes_on_on_a_new_one(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"event":"run.st')
    async with FileLog(file) as log:
        log.append(b"{}\n")
    assert file.read_bytes() == b'{"event":"run.st\n{}\n'


async def test_line_that_is_written_in_pieces_is_whole_in_the_end(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:100]))
    result = await go(LoopStep(id="a"))
    assert len(events_of(result)) == 4
