"""Attempts in worker processes: what a `WorkerPool` is for here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from gluepy.exec.boundary import failed
from gluepy.exec.continuation import Continuation
from gluepy.exec.executors import entry
from gluepy.exec.executors.capture import AttemptOutput, tell_failure
from gluepy.exec.executors.processes import EntryFailed, Killed, Reply, WorkerCall, WorkerLost, WorkerPool
from gluepy.exec.port import Attempt, Outcome, Output, RunInfo, Stopped
from gluepy.exec.scope import redactor_of

_KNOWN_RUNS = 64
_ENTRY = "gluepy.exec.executors.entry:run_message"


class Workers:
    """Runs attempts in worker processes. `async with` is its lifetime."""

    def __init__(self) -> None:
        self._pool = WorkerPool()
        self._runs: dict[str, tuple[RunInfo, tuple[str, bytes]]] = {}
        self._sessions = 0

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(exc_type, exc, traceback)

    async def run(self, attempt: Attempt, emit: Continuation) -> Outcome:
        """How `attempt` ended, or the last of those that the engine had run after it in the same worker."""
        chain = _Chain(self._shared(attempt.run), attempt, emit)
        try:
            return chain.outcome(await self._pool.make(chain.call()))
        except WorkerLost as lost:
            return chain.ended(_lost(chain.attempt, lost))
        except EntryFailed as error:
            return chain.ended(_entry_failed(chain.attempt, error))
        finally:
            chain.close()

    def _shared(self, run: RunInfo) -> tuple[str, bytes]:
        """What a worker gets once of a run. One that was resumed may have other parameters, and is another one."""
        known = self._runs.get(run.run_id)
        if known is None or known[0] is not run:
            while len(self._runs) >= _KNOWN_RUNS:
                del self._runs[next(iter(self._runs))]
            self._sessions += 1
            known = run, (f"{run.run_id}:{self._sessions}", entry.encode_run(run))
            self._runs[run.run_id] = known
        return known[1]


class _Chain:
    """What a worker runs: an attempt, and those that follow it in the same worker.

    All of it happens in the task that made the call, so that no claim is needed: a cancellation comes before or after.
    """

    def __init__(self, shared: tuple[str, bytes], attempt: Attempt, emit: Continuation) -> None:
        self._shared = shared
        self._begin(attempt, emit)

    def _begin(self, attempt: Attempt, emit: Continuation) -> None:
        self.attempt, self._emit, self._output = attempt, emit, None
        self._outcome: Outcome | None = None
        run = attempt.run
        if run.capture:
            file = Path(run.record, attempt.log) if run.record else None
            self._output = AttemptOutput(file, emit, redactor_of(attempt))

    def call(self) -> WorkerCall:
        """The attempt, for the pool."""
        spec = self.attempt.spec
        return WorkerCall(
            _ENTRY,
            self._shared,
            entry.attempt_message(self.attempt),
            self._on_line,
            self._on_message,
            self._on_killed,
            spec.memory_mb,
            spec.cls.startswith("__main__:"),
            self._then,
            None if self._output is None else self._output.show,
            None if self._output is None else self._output.redact,
            None if self._output is None else self._output.pass_on,
        )

    def _then(self, reply: Reply) -> WorkerCall | None:
        """Asked by the pool when the attempt has returned, before its worker is given back: the next one, if any."""
        self._outcome = outcome = _outcome_of(reply)
        if outcome.status != "finished":
            return None
        self.close()
        if (step := self._emit.next(outcome)) is None:
            return None
        self._begin(*step)
        return self.call()

    def outcome(self, reply: Reply) -> Outcome:
        """How the last of the attempts ended, by the worker's account."""
        return self.ended(self._outcome or _outcome_of(reply))

    def ended(self, outcome: Outcome) -> Outcome:
        """`outcome`, which the attempt's log file tells too if it is a failure."""
        if self._output is not None:
            tell_failure(self.attempt, outcome, self._output)
        return outcome

    def close(self) -> None:
        """The attempt prints no more."""
        if self._output is not None:
            self._output.close()

    def _on_line(self, stream: str, line: str) -> None:
        if self._output is not None:
            self._output.add(stream, line)
        else:
            print(line, file=sys.stdout if stream == "stdout" else sys.stderr)

    def _on_message(self, data: bytes) -> None:
        emission = entry.decode_emission(data)
        if self._output is not None and isinstance(emission, Output):
            self._output.line(emission.stream, emission.line)
        else:
            self._emit(emission)

    def _on_killed(self, killed: Killed) -> None:
        self._emit(Stopped(worker=killed.worker, pid=killed.pid, cpu_s=killed.cpu_s, peak_rss_mb=killed.peak_rss_mb))


def _outcome_of(reply: Reply) -> Outcome:
    return msgspec.structs.replace(
        entry.outcome_of(reply.body),
        worker=reply.worker,
        pid=reply.pid,
        cpu_s=reply.cpu_s,
        peak_rss_mb=reply.peak_rss_mb,
    )


def _lost(attempt: Attempt, lost: WorkerLost) -> Outcome:
    message, redact = f"{lost.description}" + (f"; {lost.hint}" if lost.hint else ""), redactor_of(attempt)
    return Outcome(
        status="failed",
        reason="memory" if lost.killed_for_memory else "lost",
        error_type="MemoryLimit" if lost.killed_for_memory else "WorkerLost",
        error_message=message if redact is None else redact(message),
        exception=lost,
        worker=lost.worker,
        pid=lost.pid,
        cpu_s=lost.cpu_s,
        peak_rss_mb=lost.peak_rss_mb,
    )


def _entry_failed(attempt: Attempt, error: EntryFailed) -> Outcome:
    if error.phase == "prepare":
        return Outcome(status="failed", reason="exception", error_type="ImportFailed", error_message=error.summary)
    return failed(attempt, error)
