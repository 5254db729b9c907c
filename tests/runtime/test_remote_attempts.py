"""What is true of attempts on other machines, whatever brings them there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import psutil
import pytest
from remote_tasks import Counts, Reads, Says, Talks
from steps import dag_of

from gluepy.conf.schema import Settings
from gluepy.conf.sources import load_settings
from gluepy.core.events import TaskFinished, TaskMetric, TaskRetrying
from gluepy.core.graph import Spec
from gluepy.errors import DagError, RunStopped
from gluepy.exec.dag import DAG, compile_dag
from gluepy.exec.executors.remote import (
    Agent,
    Calls,
    Lease,
    StorageFence,
    cancel_here,
    check_importable,
    close_here,
    run_here,
)
from gluepy.exec.executors.remote.messages import Report, decode_report, encode_report
from gluepy.exec.port import Attempt, Emission, Emit, Executor, Metric, Outcome, Output, RunInfo
from gluepy.exec.task import Task
from gluepy.runtime import RunResult, Runtime
from gluepy.testing import events_of
from gluepy.testing.wait import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="agents have worker processes")

HERE = Path(__file__).parent
PATIENCE_S = 3.0  # many times what passes between two renewals, on a busy machine too


class Delivering(Executor):
    """Has an agent of this process run each attempt; `change` is done to what is sent."""

    def __init__(
        self, *, own: bool = True, times: int = 1, change: Callable[[Attempt], Attempt] = lambda it: it
    ) -> None:
        self._own, self._times, self._change = own, times, change
        self.texts: list[str] = []
        self.reports: list[str] = []

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        calls = Calls(self.name)

        def take(report: str) -> None:
            self.reports.append(report)
            calls.take(report)

        async with calls.open(self._change(attempt), emit) as call, Agent("agent", own=self._own) as agent:
            self.texts.append(call.text)
            for _ in range(self._times):
                await agent.run(call.text, take)
            return await call.outcome()


async def run(settings: Settings, executor: Executor, task: type[Task], **options: Any) -> RunResult:
    dag = type("Remote", (DAG,), {"tasks": (task,)})
    async with Runtime(settings, executor=executor) as runtime:
        return await runtime.run_dag(dag, check=False, **options)


# An attempt begins at most once.


async def test_second_delivery_of_an_attempt_runs_nothing_and_says_who_has_it(settings: Settings) -> None:
    executor = Delivering(times=3)
    result = await run(settings, executor, Counts)
    assert result.status == "finished"
    assert (Path(result.files) / "count").read_text() == "x"
    answers = [report for report in map(decode_report, executor.reports) if report.taken]
    assert len(answers) == 2
    assert all(answer.taken.startswith("worker agent on ") for answer in answers)


async def test_delivery_that_finds_an_attempt_begun_by_a_worker_that_is_gone_answers_lost(settings: Settings) -> None:
    def claimed(attempt: Attempt) -> Attempt:
        if attempt.number == 1:
            assert StorageFence().claim(attempt, "worker 7 on elsewhere") is None
        return attempt

    result = await run(settings, Delivering(change=claimed), Counts)
    assert result.status == "finished"  # the engine tries again what was lost
    assert result.tasks["counts"].attempts == 2
    assert (Path(result.files) / "count").read_text() == "x"
    log = next(event for event in events_of(result) if isinstance(event, TaskRetrying))
    assert log.reason == "lost"
    assert "worker 7 on elsewhere" in log.error_message


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_exactly_one_of_many_claims_at_once_succeeds(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage = str(tmp_path) if place == "folder" else request.getfixturevalue("bucket")
    attempt = Attempt(
        RunInfo(run_id="r", dag="d", path="", storage=storage), Spec(cls="m:C", label="t"), "t", 1, 1, {}, "thread"
    )
    fence, gate, found = StorageFence(), threading.Barrier(8), dict[str, str | None]()

    def claim(who: str) -> None:
        gate.wait()
        found[who] = fence.claim(attempt, who)

    threads = [threading.Thread(target=claim, args=(f"claimant {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [who for who, holder in found.items() if holder is None]
    assert len(winners) == 1
    assert fence.claim(attempt, winners[0]) is None, "who has it may ask again: an answer can be lost"
    assert fence.claim(attempt, "late") == winners[0]


# What a worker looks at before it runs something.


async def test_task_that_is_not_of_the_workers_own_modules_fails_and_says_which_those_are(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLUEPY_INSTALLED_MODULES", '["remote_tas", "other"]')
    result = await run(settings, Delivering(own=False), Counts)
    error = result.tasks["counts"].error
    assert error is not None
    assert error.type == "UnknownTask"
    assert "no module 'remote_tasks' in its INSTALLED_MODULES = ['remote_tas', 'other']" in error.message
    assert not (Path(result.files) / "count").exists()


async def test_worker_that_does_not_see_the_drivers_storage_refuses_the_first_attempt(
    settings: Settings,
) -> None:
    class OtherDisk(Delivering):
        async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
            calls = Calls(self.name)
            async with calls.open(attempt, emit) as call, Agent("agent", own=True) as agent:
                storage = attempt.run.storage
                os.rename(storage, f"{storage}.of the driver")
                await agent.run(call.text, calls.take)
                return await call.outcome()

    with pytest.raises(RunStopped, match=r"agent on .* does not see the driver's storage .*; set STORAGE_ROOT to"):
        await run(settings, OtherDisk(), Counts)


@pytest.mark.parametrize("check", ["warn", "refuse", "ignore"])
async def test_worker_with_other_code_does_what_code_check_says(
    settings: Settings, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLUEPY_INSTALLED_MODULES", '["remote_tasks"]')

    def other(attempt: Attempt) -> Attempt:
        return msgspec.structs.replace(
            attempt, run=msgspec.structs.replace(attempt.run, code_version="c0ffee+0123456789ab")
        )

    result = await run(settings.replaced(CODE_CHECK=check), Delivering(own=False, change=other), Counts, capture=True)
    told = "has other code of remote_tasks, test_remote_attempts: "
    match check:
        case "refuse":
            error = result.tasks["counts"].error
            assert error is not None
            assert error.type == "OtherCode"
            assert told in error.message
            assert "c0ffee+0123456789ab" in error.message
        case "warn":
            (event,) = (each for each in events_of(result) if isinstance(each, TaskFinished))
            assert event.warning is not None
            assert told in event.warning
            assert told in (result.path / "logs/counts.1.log").read_text()
        case _:
            assert result.status == "finished"
            assert not any(getattr(each, "warning", None) for each in events_of(result))


async def test_worker_with_the_same_code_has_nothing_to_say(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLUEPY_INSTALLED_MODULES", '["remote_tasks"]')
    result = await run(settings.replaced(CODE_CHECK="refuse"), Delivering(own=False), Counts)
    assert result.status == "finished"


# Secrets.


@pytest.fixture
def project(folder: Path) -> Iterator[Path]:
    (folder / "settings.py").write_text("INSTALLED_MODULES = ['remote_tasks']\nTOKEN = 'token-of-the-driver'\n")
    (folder / "context.yaml").write_text("db: {password: of-the-worker, host: h}\n")
    yield folder
    sys.modules.pop("settings", None)


async def test_secrets_do_not_travel_and_the_worker_has_its_own(project: Path) -> None:
    executor = Delivering(own=False)
    settings = load_settings(project)
    result = await run(settings, executor, Reads, params={"db.password": "of-the-driver"}, capture=True)
    assert result.status == "finished"
    assert json.loads((Path(result.files) / "read.json").read_text()) == ["of-the-worker", "h"]
    assert "of-the-driver" not in executor.texts[0]
    assert "token-of-the-driver" not in executor.texts[0]
    log = (result.path / "logs/reads.1.log").read_text()
    assert "of-the-worker" not in log, "it masks its own"
    assert "***" in log


async def test_attempt_that_needs_a_secret_that_the_worker_lacks_says_which(project: Path) -> None:
    settings = load_settings(project)
    result = await run(settings, Delivering(own=False), Reads, params={"api_key": "of-the-driver"})
    error = result.tasks["reads"].error
    assert error is not None
    assert error.type == "MissingSecret"
    assert "does not have the secret api_key; secrets do not travel" in error.message


# Reports may come late, twice, in any order, or not at all.


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Attempt, list[str]]:
    """An attempt, and what an agent has reported of it."""
    folder = tmp_path_factory.mktemp("reported")
    spec = Spec(cls="remote_tasks:Talks", label="talks")
    where = RunInfo(run_id="r", dag="d", path=str(folder / "files"), storage=str(folder), capture=True)
    attempt = Attempt(where, spec, "talks", 1, 1, {}, "thread")
    told: list[str] = []

    async def report() -> None:
        calls = Calls("test")
        async with calls.open(attempt, lambda emission: None) as call, Agent("agent", own=True) as agent:
            await agent.run(call.text, told.append)

    anyio.run(report)
    assert len(told) > 4
    return attempt, told


def _metrics(emissions: list[Emission]) -> list[str]:
    return [each.name for each in emissions if isinstance(each, Metric)]


def _lines(emissions: list[Emission]) -> list[str]:
    return [each.line for each in emissions if isinstance(each, Output)]


@pytest.mark.parametrize("seed", range(5))
async def test_reports_are_taken_in_order_whatever_the_order_in_which_they_come(
    reports: tuple[Attempt, list[str]], seed: int
) -> None:
    attempt, told = reports
    shuffled = told * 2
    random.Random(seed).shuffle(shuffled)
    emissions: list[Emission] = []
    calls = Calls("test")
    async with calls.open(attempt, emissions.append) as call:
        for each in shuffled:
            calls.take(each)
        assert (await call.outcome()).status == "finished"
    assert _metrics(emissions) == [f"m{number}" for number in range(Talks.steps)]
    assert _lines(emissions) == [f"line {number}" for number in range(Talks.steps)]


async def test_no_metric_is_lost_with_a_report_and_lost_output_is_told(
    reports: tuple[Attempt, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gluepy.exec.executors.remote.calls._LATE_S", 0.05)
    attempt, told = reports
    emissions: list[Emission] = []
    calls = Calls("test")
    async with calls.open(attempt, emissions.append) as call:
        for each in (told[0], *told[2:]):
            calls.take(each)
        assert (await call.outcome()).status == "finished"
    assert _metrics(emissions) == [f"m{number}" for number in range(Talks.steps)]
    assert "1 reports of this attempt were lost, with what it printed" in _lines(emissions)


@pytest.mark.parametrize("is_well", [True, False])
async def test_answer_of_a_second_delivery_means_lost_only_if_the_first_is_not_heard_of(
    reports: tuple[Attempt, list[str]], is_well: bool
) -> None:
    attempt, told = reports
    calls = Calls("test", beat_s=0.01, silence_s=1000, confirm_s=0.02)
    async with calls.open(attempt, lambda emission: None) as call:
        calls.take(told[0])
        calls.take(encode_report(Report(key=call.key, delivery="second", taken="worker 7 on elsewhere")))
        if is_well:
            calls.take(told[1])
            with anyio.move_on_after(0.1) as waited:
                await call.outcome()
            assert waited.cancelled_caught, "it goes on"
        else:
            outcome = await call.outcome()
            assert outcome.reason == "lost"
            assert "worker 7 on elsewhere" in outcome.error_message


# What runs is stopped, with all that it has started.


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Started:
    """`python -m gluepy.exec.executors.remote`, at an attempt that has started processes."""

    def __init__(self, folder: Path, **order: Any) -> None:
        spec = Spec(cls="remote_tasks:Forks", label="forks")
        where = RunInfo(run_id="r", dag="d", path=str(folder / "files"), storage=str(folder / "data"))
        attempt = Attempt(where, spec, "forks", 1, 1, {}, "thread")
        text = anyio.run(self._text, attempt, order)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gluepy.exec.executors.remote", "--own"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(HERE)},
            start_new_session=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()
        self._pids = folder / "files/pids"

    @staticmethod
    async def _text(attempt: Attempt, order: dict[str, Any]) -> str:
        async with Calls("test", **order).open(attempt, lambda emission: None) as call:
            return call.text

    def renew(self) -> None:
        """Let it hear of the driver."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def pids(self) -> list[int]:
        def are_there() -> bool:
            self.renew()  # starting them may take longer than its patience
            return self._pids.exists()

        anyio.run(until, are_there, 60)
        return [int(word) for word in self._pids.read_text().split()]

    def last(self) -> str:
        assert self.process.stdout is not None
        return decode_report(self.process.stdout.read().decode().splitlines()[-1]).stopped


def _gone(pids: list[int]) -> None:
    async def gone() -> None:
        await until(lambda: not any(map(is_alive, pids)), 60)

    anyio.run(gone)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cancel", "end", "silence"])
def test_attempt_is_killed_with_its_descendants_when_the_driver_says_so_or_is_gone(tmp_path: Path, how: str) -> None:
    started = Started(tmp_path, patience_s=PATIENCE_S if how == "silence" else None)
    with started.process as process:
        assert process.stdin is not None
        pids = started.pids()
        assert len(pids) == 3
        if how == "cancel":
            process.stdin.write(b"cancel\n")
            process.stdin.flush()
        elif how == "end":
            process.stdin.close()
        assert started.last() == ("nothing was heard of the driver for 3 s" if how == "silence" else "it was cancelled")
        assert not any(map(is_alive, pids)), "they were there when the end was told"


@pytest.mark.parametrize("whom", ["agent", "group"])
def test_attempt_is_killed_with_its_descendants_when_the_agent_is_killed(tmp_path: Path, whom: str) -> None:
    started = Started(tmp_path)
    with started.process as process:
        pids = started.pids()
        (os.killpg if whom == "group" else os.kill)(process.pid, signal.SIGKILL)
        _gone(pids)


@pytest.mark.slow
def test_attempt_goes_on_while_the_driver_is_heard_of(tmp_path: Path) -> None:
    started = Started(tmp_path, patience_s=PATIENCE_S)
    with started.process as process:
        assert process.stdin is not None
        pids = started.pids()
        end = time.monotonic() + 1.5 * PATIENCE_S

        def look() -> bool:
            started.renew()
            return time.monotonic() > end

        anyio.run(until, look, 60)
        assert all(map(is_alive, pids))
        process.stdin.write(b"cancel\n")
        process.stdin.flush()
        assert started.last() == "it was cancelled"


def test_thread_that_runs_an_attempt_here_is_told_when_it_is_cancelled_from_another(tmp_path: Path) -> None:
    spec = Spec(cls="remote_tasks:Forks", label="forks")
    where = RunInfo(run_id="r", dag="d", path=str(tmp_path / "files"), storage=str(tmp_path / "data"))
    text = anyio.run(Started._text, Attempt(where, spec, "forks", 1, 1, {}, "thread"), {})
    ended: list[str] = []
    thread = threading.Thread(target=lambda: ended.append(run_here(text, lambda report: None, own=True)))
    thread.start()
    anyio.run(until, (tmp_path / "files/pids").exists, 60)
    pids = [int(word) for word in (tmp_path / "files/pids").read_text().split()]
    assert cancel_here("r/forks/1")
    assert not any(map(is_alive, pids))
    thread.join()
    assert decode_report(ended[0]).stopped == "it was cancelled"
    assert cancel_here("r/forks/1"), "there is no such attempt any more"
    close_here()


async def test_cancelled_lease_keeps_an_attempt_from_beginning(tmp_path: Path) -> None:
    spec = Spec(cls="remote_tasks:Counts", label="counts")
    where = RunInfo(run_id="r", dag="d", path=str(tmp_path / "files"), storage=str(tmp_path / "data"))
    async with Calls("test").open(Attempt(where, spec, "counts", 1, 1, {}, "thread"), lambda emission: None) as call:
        lease = Lease()
        lease.cancel()
        async with Agent("agent", own=True) as agent:
            report = decode_report(await agent.run(call.text, lambda report: None, lease))
    assert report.stopped == "it was cancelled"
    assert not (tmp_path / "files/count").exists()


async def test_long_output_comes_whole_and_in_order(settings: Settings) -> None:
    result = await run(settings, Delivering(), Says, capture=True)
    assert result.status == "finished"
    lines = (result.path / "logs/says.1.log").read_text().splitlines()
    assert lines == [f"line {number}" for number in range(Says.lines)]
    assert [event.value for event in events_of(result) if isinstance(event, TaskMetric)] == [Says.lines]


async def test_attempt_that_is_withdrawn_never_begins_and_one_that_has_begun_is_not_withdrawn(tmp_path: Path) -> None:
    spec = Spec(cls="remote_tasks:Counts", label="counts")
    where = RunInfo(run_id="r", dag="d", path=str(tmp_path / "files"), storage=str(tmp_path / "data"))
    calls = Calls("test")
    async with Agent("agent", own=True) as agent:
        async with calls.open(Attempt(where, spec, "counts", 1, 1, {}, "thread"), lambda emission: None) as call:
            assert await call.withdraw()
            report = decode_report(await agent.run(call.text, calls.take))
            assert report.taken.startswith("the driver, which stopped it before it began")
            assert not (tmp_path / "files/count").exists()
        async with calls.open(Attempt(where, spec, "counts", 2, 2, {}, "thread"), lambda emission: None) as call:
            await agent.run(call.text, lambda report: None)  # which are on their way
            assert not await call.withdraw()


def test_a_task_that_no_other_process_can_import_is_refused_before_anything_runs() -> None:
    class Local(Task):
        def run(self) -> None: ...

    with pytest.raises(DagError, match=r"Local.*a worker cannot import it.*move the class to a module"):
        check_importable(compile_dag(dag_of(Local)).graph)
    check_importable(compile_dag(dag_of(Counts)).graph)
