"""`SlurmExecutor`: each attempt is a job of a Slurm cluster (https://slurm.schedmd.com), submitted with `sbatch`.

The folder of the jobs, orders and reports must be shared by this machine and the nodes, and so must the Python
environment. Slurm is asked for a job's state, yet what the job's own reports say goes first: a controller that was
killed may have forgotten a job that runs.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self, TypeVar

import anyio
import anyio.to_thread
from pydantic import BaseModel, Field

from gluepy.core.events import Reason
from gluepy.core.graph import Graph
from gluepy.errors import ExecutorBroken, SettingsError
from gluepy.exec.executors.remote import Call, Calls, check_importable
from gluepy.exec.executors.shared_folder import ALIVE, AttemptFolder, touch
from gluepy.exec.port import Attempt, Emit, Executor, Outcome, local_path

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings

T = TypeVar("T")

_ANSWER_S = 60.0  # how long a command of Slurm's may take: a dead controller never answers
_LOOK_S = 0.2  # between two looks for new reports
_LAST_REPORT_S = 5.0  # how long the reports of an ended job may take to be seen here
_STOP_S = 3.0  # how long an attempt may take to stop in order, before Slurm kills its job
_KILLED_S = 60.0  # how long a job may take to be gone after that
_GONE = "GONE"  # no state of Slurm's: it does not know the job
_ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
)


class SlurmSettings(BaseModel):
    """The group SLURM.

    `partition` and `account` are for `sbatch`, and so are the arguments `sbatch`. Names in `gres` are generic resources
    of the cluster: what a task `uses` of them is asked for. `folder` is shared with the nodes; by default it is in
    STORAGE_ROOT. Slurm is asked for the states of all jobs every `poll_s` seconds. A job whose driver is silent for
    `patience_s` stops, and so does the wait for a job that is.
    """

    partition: str | None = None
    account: str | None = None
    sbatch: list[str] = []
    gres: list[str] = ["gpu"]
    folder: str | None = None
    poll_s: float = Field(1.0, gt=0)
    patience_s: float = Field(120.0, ge=1)


class JobState(NamedTuple):
    """A job's state as `scontrol` has it: its name (`RUNNING`), Slurm's reason, the exit code of its script, the signal
    that ended it (0 for none), and its node."""

    name: str
    reason: str = ""
    exit_code: int = 0
    signal: int = 0
    node: str = ""


class SlurmExecutor(Executor):
    """Runs each attempt as a job. `settings` are those of the group SLURM, `folder` is shared with the nodes."""

    settings_group: ClassVar = ("SLURM", SlurmSettings)

    def __init__(self, settings: SlurmSettings, folder: Path) -> None:
        self._settings, self._root = settings, folder
        self._folder = folder / f"{os.uname().nodename}-{os.getpid()}-{os.urandom(4).hex()}"
        patience_s = settings.patience_s
        self._calls = Calls(self.name, beat_s=patience_s / 6, silence_s=patience_s, patience_s=patience_s)
        self._states: dict[str, str] = {}  # of the jobs under way, as they were last seen
        self._jobs: set[str] = set()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Made from SLURM and STORAGE_ROOT. Raises `SettingsError` if the storage is no folder and none is named."""
        group = settings.group(*cls.settings_group)
        place = group.folder or local_path(settings.storage_root)
        if place is None:
            raise SettingsError(
                "SLURM.folder",
                settings.source("STORAGE_ROOT"),
                f"STORAGE_ROOT is {settings.STORAGE_ROOT}; jobs need a folder that this machine and the nodes share",
                'set SLURM = {"folder": "/shared/…"}',
            )
        folder = Path(group.folder) if group.folder else Path(place) / ".gluepy-slurm"
        return cls(group, settings.folder / folder)

    async def __aenter__(self) -> Self:
        if shutil.which("sbatch") is None:
            raise ExecutorBroken(self.name, "there is no sbatch on PATH", "start it on a login node of the cluster")
        code, _, err = await _command(["squeue", "--noheader", "--me"])
        if code != 0:
            why = f"cannot reach the cluster: {_last(err) or 'squeue gave no answer'}"
            raise ExecutorBroken(self.name, why, "see whether its controller runs (scontrol ping), and SLURM_CONF")
        await self._touch()
        async with AsyncExitStack() as stack:
            group = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(group.cancel_scope.cancel)
            group.start_soon(self._keep_alive)
            group.start_soon(self._watch_states)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        shutil.rmtree(self._folder, ignore_errors=True)

    def check(self, graph: Graph) -> None:
        """Raises `DagError` for a task that a job cannot import."""
        check_importable(graph)

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        """Submit it, and follow its job to the end."""
        async with self._calls.open(attempt, emit) as call:
            folder = AttemptFolder(self._folder / call.key.replace("/", "."))
            await self._io(folder.place, call.text)
            with anyio.CancelScope(shield=True):  # else a job could be submitted that nobody knows of
                job = await self._submit(attempt, folder)
            self._jobs.add(job)
            try:
                return await self._follow(call, job, folder, attempt)
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await self._stop(call, job, folder, attempt)
                raise
            finally:
                self._jobs.discard(job)
                self._states.pop(job, None)
                folder.remove()

    def arguments(self, attempt: Attempt) -> list[str]:
        """What `sbatch` is asked for."""
        spec, settings = attempt.spec, self._settings
        wanted = [f"--job-name={_job_name(attempt)}", "--no-requeue"]
        wanted += [f"--partition={settings.partition}"] if settings.partition else []
        wanted += [f"--account={settings.account}"] if settings.account else []
        wanted += [f"--cpus-per-task={spec.cpus}"] if spec.cpus is not None else []
        wanted += [f"--mem={spec.memory_mb}M"] if spec.memory_mb is not None else []
        if spec.timeout_s is not None:  # gluepy ends it before; this is for a driver that is gone
            wanted.append(f"--time={math.ceil(spec.timeout_s / 60) + 1}")
        resources = [f"{name}:{amount}" for name, amount in spec.uses.items() if name in settings.gres]
        wanted += [f"--gres={','.join(resources)}"] if resources else []
        return [*wanted, *settings.sbatch]

    async def _submit(self, attempt: Attempt, folder: AttemptFolder) -> str:
        command = [sys.executable, "-m", "gluepy.exec.executors.shared_folder", str(folder.path)]
        script = f'#!/bin/sh\nexec {shlex.join(command)} "slurm-$SLURM_JOB_ID"\n'
        where = attempt.run.project or os.getcwd()
        arguments = [*self.arguments(attempt), f"--chdir={where}", f"--output={folder.path}/output"]
        code, out, err = await _command(["sbatch", "--parsable", *arguments], script)
        if code is None:
            why = f"sbatch gave no answer in {_ANSWER_S:g} s, for {attempt.task}"
            raise ExecutorBroken(self.name, why, "see whether the controller runs (scontrol ping); then resume the run")
        if code:
            told = _last(err).removeprefix("sbatch: ") or f"exit code {code}"
            why = f"sbatch refused {attempt.task} ({' '.join(self.arguments(attempt))}): {told}"
            raise ExecutorBroken(
                self.name, why, "ask for what the cluster has: cpus, memory_mb and uses of the task, SLURM"
            )
        return out.strip().partition(";")[0]

    async def _follow(self, call: Call, job: str, folder: AttemptFolder, attempt: Attempt) -> Outcome:
        gone_since = math.inf
        while not (call.is_over or call.is_silent):
            await self._take(folder)
            state, now = self._states.get(job, ""), anyio.current_time()
            if state in _ENDED:
                break
            # A controller that was killed may not know a job that runs: it is believed of one that has not begun.
            gone_since = min(gone_since, now) if state == _GONE else math.inf
            if not call.has_begun.is_set() and now - gone_since > self._settings.patience_s:
                break
            await anyio.sleep(_LOOK_S if call.has_begun.is_set() or state == "RUNNING" else self._settings.poll_s)
        if call.is_silent:
            await self._stop(call, job, folder, attempt)
            return await call.outcome()
        with anyio.move_on_after(_LAST_REPORT_S):
            while not call.is_over:
                await anyio.sleep(_LOOK_S)
                await self._take(folder)
        if call.is_over and not call.was_lost:
            return await call.outcome()
        end = await self._end_of(job)
        if call.is_over and end.name == "COMPLETED":  # only the attempt's process was lost
            return await call.outcome()
        return self._outcome_of(call, job, end, folder, attempt)

    async def _take(self, folder: AttemptFolder) -> None:
        for report in await self._io(folder.new_reports):
            self._calls.take(report)

    def _outcome_of(self, call: Call, job: str, state: JobState, folder: AttemptFolder, attempt: Attempt) -> Outcome:
        """What became of an attempt whose job ended without telling."""
        if state.name == "FAILED" and not state.signal and not call.has_begun.is_set():
            told = _last_line(folder.path / "output")
            why = f"job {job} on {state.node or 'a node'} could not start gluepy (exit code {state.exit_code}): {told}"
            raise ExecutorBroken(self.name, why, f"make {sys.executable} and its packages the same on the nodes")
        match state.name:
            case "TIMEOUT" | "DEADLINE":
                told = f"Slurm ended job {job} at its time limit"
                return call.ended(_failed("timeout", "TimeoutError", told, state))
            case "OUT_OF_MEMORY":
                told = f"Slurm killed job {job}: out of memory (memory_mb = {attempt.spec.memory_mb})"
                return call.ended(_failed("memory", "OutOfMemory", told, state))
            case "NODE_FAIL" | "BOOT_FAIL":
                return call.lost(f"node {state.node or '?'} of job {job} failed")
            case "PREEMPTED":
                return call.lost(f"job {job} was preempted")
            case "CANCELLED":
                return call.lost(f"job {job} was cancelled, not by gluepy (scancel, or an administrator)")
            case name if name in ("", _GONE):
                return call.lost(f"Slurm does not know job {job} any more, and nothing was heard of it")
        how = f"signal {state.signal}" if state.signal else f"exit code {state.exit_code}"
        reason = f", {state.reason}" if state.reason not in ("", "None") else ""
        return call.lost(f"job {job} on {state.node or '?'} ended with {how} ({state.name}{reason})")

    async def _stop(self, call: Call, job: str, folder: AttemptFolder, attempt: Attempt) -> None:
        """Stop the attempt: in order if its job runs, so that it tells what it cost; by Slurm otherwise."""
        scancel = ["scancel", f"--name={_job_name(attempt)}"]  # a controller that was killed may give a number twice
        await self._io(folder.cancel)
        if not call.has_begun.is_set():
            await _command([*scancel, "--state=PENDING", job])
        with anyio.move_on_after(_STOP_S):
            while not call.is_over and (await self._state_of(job)).name not in (*_ENDED, _GONE):
                await self._take(folder)
                await anyio.sleep(_LOOK_S)
        await _command([*scancel, "--signal=KILL", "--full", job])
        await _command([*scancel, job])
        await self._end_of(job)

    async def _end_of(self, job: str) -> JobState:
        """The job's state once it has ended, or what it is after `_KILLED_S`."""
        deadline = anyio.current_time() + _KILLED_S
        while True:
            state = await self._state_of(job)
            if state.name in (*_ENDED, _GONE) or anyio.current_time() > deadline:
                return state
            await anyio.sleep(_LOOK_S)

    async def _watch_states(self) -> None:
        """Ask for the states of all jobs at once: a controller has better things to do than to answer for each."""
        while True:
            await anyio.sleep(self._settings.poll_s)
            if not self._jobs:
                continue
            asked = sorted(self._jobs)
            listing = ["squeue", "--noheader", "--states=all", "--format=%i %T", f"--jobs={','.join(asked)}"]
            code, out, err = await _command(listing)
            if code is None or (code and "Invalid job id" not in err):
                continue  # no controller: what the jobs report counts
            found = dict(line.split(maxsplit=1) for line in out.splitlines() if line.strip())
            for job in asked:
                if job in self._jobs:
                    self._states[job] = found.get(job, _GONE).strip()

    async def _state_of(self, job: str) -> JobState:
        code, out, err = await _command(["scontrol", "--oneliner", "show", "job", job])
        if code:
            return JobState(_GONE if "Invalid job id" in err else "")
        facts = dict(fact.split("=", 1) for fact in out.split() if "=" in fact)
        exit_code, _, number = facts.get("ExitCode", "0:0").partition(":")
        node = facts.get("BatchHost", facts.get("NodeList", "")).replace("(null)", "")
        return JobState(facts.get("JobState", ""), facts.get("Reason", ""), int(exit_code), int(number or 0), node)

    async def _keep_alive(self) -> None:
        while True:
            await anyio.sleep(self._settings.patience_s / 6)
            with suppress(ExecutorBroken):  # the folder may be back in time; until then the jobs have patience
                await self._touch()

    async def _touch(self) -> None:
        await self._io(touch, self._folder / ALIVE)

    async def _io(self, call: Callable[..., T], *args: object) -> T:
        try:
            return await anyio.to_thread.run_sync(call, *args)
        except OSError as error:
            why = f"cannot use the shared folder {self._root}: {error.strerror or error}"
            raise ExecutorBroken(self.name, why, "set SLURM = {'folder': …}") from error


async def _command(command: Sequence[str], stdin: str = "") -> tuple[int | None, str, str]:
    """The exit code (None: it gave no answer in time), what was printed, and errors."""
    with anyio.move_on_after(_ANSWER_S), suppress(OSError):  # as when there is no memory to start it
        done = await anyio.run_process(command, input=stdin.encode(), check=False)
        return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    return None, "", ""


def _failed(reason: Reason, error_type: str, message: str, state: JobState) -> Outcome:
    return Outcome(
        status="failed", reason=reason, error_type=error_type, error_message=message, host=state.node or None
    )


def _job_name(attempt: Attempt) -> str:
    return f"gluepy-{attempt.slug}"


def _last(text: str) -> str:
    """The last line of it that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _last_line(file: Path) -> str:
    try:
        return _last(file.read_text(errors="replace")) or "it printed nothing"
    except OSError:
        return "it printed nothing"
