"""The driver's side: `Calls` makes texts of attempts, and outcomes of the reports that come back."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from gluepy.core.graph import Graph
from gluepy.errors import DagError, ExecutorBroken
from gluepy.exec.executors.capture import AttemptOutput, tell_failure
from gluepy.exec.executors.remote.fence import Fence, StorageFence, write_token
from gluepy.exec.executors.remote.messages import Report, decode_report, encode_order, key_of, travelling
from gluepy.exec.port import Attempt, Begun, Emit, Metric, Outcome, Output, Queued, RunInfo, local_path
from gluepy.exec.scope import redactor_of

_KNOWN_RUNS = 64
_LATE_S = 5.0  # how long an outcome waits for reports from before it


def check_importable(graph: Graph) -> None:
    """Raises `DagError` for a task whose class no other process can import: for `Executor.check`."""
    for spec in graph.specs:
        if not spec.expands and (spec.cls.startswith("__main__:") or "<locals>" in spec.cls):
            raise DagError(f"task {spec.cls}", "a worker cannot import it", "move the class to a module")


class Calls:
    """The attempts that an executor has under way elsewhere. `executor` is what errors call it.

    `beat_s` has workers tell every so many seconds that an attempt goes on, for engines that do not notice when a
    worker dies; one that is silent for `silence_s` is lost, and after a second delivery of its attempt one that is
    silent for `confirm_s`. `patience_s` has a worker stop an attempt whose driver is
    silent for so long, for engines that do not tell a worker when a driver dies; the executor then sees to it that
    `Lease.renew` is called more often than that. `own` and `fence` are as `Agent` has them.
    """

    def __init__(
        self,
        executor: str,
        *,
        beat_s: float | None = None,
        silence_s: float | None = None,
        confirm_s: float | None = None,
        patience_s: float | None = None,
        own: bool = False,
        fence: Fence | None = None,
    ) -> None:
        self.executor, self.own, self.fence = executor, own, fence or StorageFence()
        self.beat_s, self.silence_s, self.patience_s = beat_s, silence_s, patience_s
        self.confirm_s = confirm_s or silence_s or 0.0
        self._preparing = anyio.Lock()
        self._open: dict[str, Call] = {}
        self._runs: dict[str, tuple[RunInfo, RunInfo, str | None]] = {}  # as they are, as they travel, their tokens

    @asynccontextmanager
    async def open(self, attempt: Attempt, emit: Emit) -> AsyncIterator[Call]:
        """The call of `attempt`. What is reported until the block ends goes to `emit` and the attempt's log file.
        Raises `ExecutorBroken` if the storage cannot be written to."""
        run, token = await self._travelling(attempt.run)
        path = tuple(sys.path) if self.own else ()
        text = encode_order(attempt, run, token=token, beat_s=self.beat_s, patience_s=self.patience_s, path=path)
        emit(Queued())
        call = Call(self, attempt, text, emit)
        self._open[call.key] = call
        try:
            yield call
        finally:
            del self._open[call.key]
            call.close()

    def take(self, report: str) -> None:
        """A report has come: the executor calls this for each, in the event loop, in whatever order, also twice. One of
        no attempt that is under way is dropped. Raises `msgspec.DecodeError` for what is none."""
        decoded = decode_report(report)
        call = self._open.get(decoded.key)
        if call is not None:
            call.take(decoded)

    async def _travelling(self, run: RunInfo) -> tuple[RunInfo, str | None]:
        """`run` as it travels, and the token that is in its storage. It is left there once: another would be refused
        by who looks for the first."""
        async with self._preparing:
            known = self._runs.get(run.run_id)
            if known is None or known[0] is not run:
                while len(self._runs) >= _KNOWN_RUNS:
                    del self._runs[next(iter(self._runs))]
                known = self._runs[run.run_id] = (run, travelling(run), await self._token(run))
        return known[1], known[2]

    async def _token(self, run: RunInfo) -> str | None:
        if local_path(run.storage) is None:
            return None
        token = os.urandom(16).hex()
        try:
            await anyio.to_thread.run_sync(write_token, run, token)
        except OSError as error:
            why = f"cannot write to STORAGE_ROOT {run.storage}: {error.strerror}"
            raise ExecutorBroken(self.executor, why) from error
        return token


class Call:
    """An attempt that runs elsewhere. `text` is to be brought to an `Agent`; `key` names the attempt among all.

    `has_begun` is set when a worker has told that it runs it.
    """

    def __init__(self, calls: Calls, attempt: Attempt, text: str, emit: Emit) -> None:
        self.key, self.text = key_of(attempt), text
        self.has_begun = anyio.Event()
        self._calls, self._attempt, self._emit = calls, attempt, emit
        self._redact = redactor_of(attempt)
        self._output: AttemptOutput | None = None
        if attempt.run.capture:
            record = attempt.run.record
            self._output = AttemptOutput(Path(record, attempt.log) if record else None, emit, self._redact)
        self._delivery = ""  # the one that runs it
        self._reports: dict[int, Report] = {}  # that have come before one that is still missing
        self._next = 0  # the number of the report that is to be taken next
        self._last: Report | None = None
        self._answer: Report | None = None  # of a delivery that runs nothing, and the one that runs it is silent since
        self._answered = 0.0
        self._heard = time.monotonic()
        self._news = anyio.Event()

    @property
    def is_over(self) -> bool:
        """Whether the last report has come."""
        return self._last is not None

    @property
    def was_lost(self) -> bool:
        """Whether the last report has come, and says that the attempt was stopped, or its process lost, before it
        ended: an engine may know more about it."""
        last = self._last
        return last is not None and (bool(last.stopped) or (last.outcome is not None and last.outcome.reason == "lost"))

    @property
    def is_silent(self) -> bool:
        """Whether the worker that runs it was not heard of for `silence_s`."""
        return bool(self._delivery) and self._is_silent()

    def take(self, report: Report) -> None:
        """`Calls.take`, of one that is this attempt's."""
        if report.number < 0 and report.delivery != self._delivery:  # of one that runs nothing, or a beat that is ahead
            if report.taken and self._answer is None:
                self._answer, self._answered = report, time.monotonic()
                self._news.set()
            return
        self._delivery = self._delivery or report.delivery
        if report.delivery != self._delivery:
            return
        self._heard, self._answer = time.monotonic(), None
        if report.number < self._next:
            return
        self._reports[report.number] = report
        if report.is_last:
            self._last = report
        if not report.refused and not self.has_begun.is_set():
            self._emit(Begun())
            self.has_begun.set()
        self._take_what_is_due()
        if self._last is not None:
            self._news.set()

    async def withdraw(self) -> bool:
        """Keep the attempt from beginning, which is to be stopped and of which no worker has told that it begins.
        Returns whether that was in time: then no delivery of it will ever run, wherever it is. Otherwise one has it,
        and will tell."""
        if self.has_begun.is_set():
            return False
        claim = self._calls.fence.claim
        who = f"the driver, which stopped it before it began ({os.urandom(8).hex()})"
        return await anyio.to_thread.run_sync(claim, self._attempt, who) is None

    async def outcome(self) -> Outcome:
        """Wait for the end. Raises `ExecutorBroken` if the worker says that the run cannot go on."""
        silence_s = self._calls.silence_s
        while self._last is None:
            # A second delivery comes to nothing while the first is well. Where workers do not beat, the engine delivers
            # again only if it has lost the first.
            if self._answer is not None and time.monotonic() - self._answered >= self._calls.confirm_s:
                return self.lost(f"it was begun before, and not ended, by {self._answer.taken}")
            if self._delivery and self._is_silent():
                return self.lost(f"nothing was heard of its worker for {silence_s:g} s")
            with anyio.move_on_after(self._calls.beat_s):
                await self._news.wait()
            if self._last is None:
                self._news = anyio.Event()
        with anyio.move_on_after(_LATE_S):
            while self._next <= self._last.number:
                self._news = anyio.Event()
                await self._news.wait()
        self._take_the_rest(self._last)
        if self._last.refused is not None:
            why, hint = self._last.refused
            raise ExecutorBroken(self._calls.executor, why, hint)
        if self._last.outcome is None:
            return self.lost(self._last.stopped)
        return self._masked(self._last.outcome)

    def lost(self, why: str) -> Outcome:
        """The outcome of an attempt of which nobody will tell the end. The attempt's log tells it, too."""
        message = f"the attempt was lost: {why}"
        return self.ended(Outcome(status="failed", reason="lost", error_type="AttemptLost", error_message=message))

    def ended(self, outcome: Outcome) -> Outcome:
        """`outcome`, which no worker has told; the attempt's log does."""
        if self._output is not None:
            tell_failure(self._attempt, outcome, self._output)
        return outcome

    def close(self) -> None:
        """Nothing more is to be told."""
        if self._output is not None:
            self._output.close()

    def _is_silent(self) -> bool:
        silence_s = self._calls.silence_s
        return silence_s is not None and time.monotonic() - self._heard > silence_s

    def _take_what_is_due(self) -> None:
        while (report := self._reports.pop(self._next, None)) is not None:
            self._next += 1
            self._pass_on(report)

    def _take_the_rest(self, last: Report) -> None:
        """Go on without the reports that have not come. Their metrics are in the last one; lines of output are gone."""
        if self._next > last.number:
            return
        missing = [number for number in range(self._next, last.number) if number not in self._reports]
        metrics: dict[int, list[Metric]] = {}
        for number, metric in last.metrics:
            metrics.setdefault(number, []).append(metric)
        if self._output is not None:
            self._output.write("log", f"{len(missing)} reports of this attempt were lost, with what it printed\n")
        for number in range(self._next, last.number + 1):
            if number in missing:
                for metric in metrics.get(number, ()):
                    self._emit(metric)
            else:
                self._pass_on(self._reports[number])
        self._next = last.number + 1

    def _pass_on(self, report: Report) -> None:
        for emission in report.emissions:
            if isinstance(emission, Output):
                if self._output is not None:
                    self._output.line(emission.stream, emission.line)
            else:
                self._emit(emission)

    def _masked(self, outcome: Outcome) -> Outcome:
        """`outcome` without the driver's secrets, of which the worker knew nothing."""
        if self._redact is None or outcome.status == "finished":
            return outcome
        return msgspec.structs.replace(
            outcome,
            error_message=self._redact(outcome.error_message),
            error_stack=self._redact(outcome.error_stack),
        )
