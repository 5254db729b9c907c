"""The worker's side: an `Agent` runs the attempts that an engine brings to its process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread
import msgspec

from gluepy.errors import ExecutorBroken, UsageError
from gluepy.exec.continuation import continuation
from gluepy.exec.executors.remote.admission import HOST, Admission, NotHere, Refused
from gluepy.exec.executors.remote.fence import Fence, StorageFence
from gluepy.exec.executors.remote.messages import Order, Report, decode_order, encode_report
from gluepy.exec.executors.workers import Workers
from gluepy.exec.port import Attempt, Emission, Metric, Outcome, Output, Stopped, local_path
from gluepy.loop import Doorbell

Tell = Callable[[str], None]

_GATHER_S = 0.05  # what is emitted within it goes into one report
_LARGEST = 64 * 1024  # characters of a report that is not kept waiting, roughly
_EACH = 64  # characters of an emission besides its text


class Lease:
    """What a driver has to say of its attempt while that runs. From any thread."""

    def __init__(self) -> None:
        self.heard = time.monotonic()
        self.why = ""  # it was cancelled
        self._on_cancel: Callable[[], None] = lambda: None

    def renew(self) -> None:
        """The driver was heard of."""
        self.heard = time.monotonic()

    def cancel(self, why: str = "it was cancelled") -> None:
        """Stop the attempt, also if it has not begun. Idempotent."""
        self.why = self.why or why
        self._on_cancel()

    def on_cancel(self, call: Callable[[], None]) -> None:
        """Have `call` called when it is cancelled, or at once if it is already. Each of the two sets its own before it
        looks at the other's, so that one of them at least sees both; `call` may be called twice."""
        self._on_cancel = call
        if self.why:
            call()


class Agent:
    """Runs attempts in processes of this machine. `async with` is its lifetime: leaving it kills what runs.

    `worker` is what events call it. `own` says that the driver has started it on its own machine, with its own project
    and code: then it runs whatever the driver says. `fence` is where attempts are claimed.
    """

    def __init__(self, worker: str = "", *, own: bool = False, fence: Fence | None = None) -> None:
        self.worker = worker
        self._fence: Fence = fence or StorageFence()
        self._claims_on_disks = fence is None
        self._admission = Admission(worker, own)
        self._reporters: set[_Reporter] = set()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._workers = await stack.enter_async_context(Workers())
            group = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(group.cancel_scope.cancel)
            self._doorbell, self._busy = Doorbell(), anyio.Event()
            group.start_soon(self._keep_time)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def run(self, text: str, tell: Tell, lease: Lease | None = None) -> str:
        """Run the attempt that the driver's `text` describes, and return its last report, which `tell` has got too.

        `tell` gets each report, in this event loop: it must not wait. That of the beginning comes within a twentieth of
        a second, and not at all if the attempt has ended by then. An attempt that does not run here is reported as
        such. Cancelling the call, or `lease`, kills the attempt with all its descendants. Raises `msgspec.DecodeError`
        for what is no order.
        """
        order, attempt = decode_order(text)
        lease = lease or Lease()
        lease.renew()
        reporter = _Reporter(order, self.worker, tell, lease)
        try:
            attempt, warning = await self._admitted(order, attempt, reporter.delivery)
        except NotHere as not_here:
            return reporter.end(outcome=not_here.outcome)
        except Refused as refused:
            return reporter.end(refused=(refused.why, refused.hint))
        except UsageError as error:
            return reporter.end(refused=(f"worker {self.worker} on {HOST}: {error}", "mend it there"))
        except _Taken as taken:
            return reporter.answer(taken.holder)
        if lease.why:
            return reporter.end(stopped=lease.why)
        if warning and attempt.run.capture:
            reporter.emit(Output("log", f"warning: {warning}"))
        self._reporters.add(reporter)
        self._busy.set()
        try:
            return await self._run(attempt, warning, reporter, lease)
        finally:
            self._reporters.discard(reporter)

    async def _admitted(self, order: Order, attempt: Attempt, delivery: str) -> tuple[Attempt, str]:
        is_quick = self._admission.knows(attempt.run) and self._claims_on_disks and local_path(attempt.run.storage)
        if is_quick:  # a file is created: a third of what a thread costs
            return self._admit(order, attempt, delivery)
        return await anyio.to_thread.run_sync(self._admit, order, attempt, delivery)

    def _admit(self, order: Order, attempt: Attempt, delivery: str) -> tuple[Attempt, str]:
        attempt, warning = self._admission.admit(order, attempt)
        who = f"worker {self.worker} on {HOST} at {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}, delivery {delivery}"
        holder = self._fence.claim(attempt, who)
        if holder is not None:
            raise _Taken(holder)
        return attempt, warning

    async def _run(self, attempt: Attempt, warning: str, reporter: _Reporter, lease: Lease) -> str:
        with anyio.CancelScope() as scope:
            lease.on_cancel(lambda: self._doorbell.ring(scope.cancel))
            try:
                outcome = await self._workers.run(attempt, continuation(reporter.emit))
            except ExecutorBroken as broken:
                return reporter.end(refused=(f"worker {self.worker} on {HOST}: {broken.why}", broken.hint))
            except anyio.get_cancelled_exc_class():
                if not scope.cancel_called:
                    reporter.end(stopped=f"worker {self.worker} on {HOST} was stopped")
                raise
            if warning and outcome.status == "finished" and not outcome.warning:
                outcome = msgspec.structs.replace(outcome, warning=warning)
            return reporter.end(outcome=msgspec.structs.replace(outcome, worker=self.worker or None, host=HOST))
        return reporter.end(stopped=lease.why)

    async def _keep_time(self) -> None:
        """Send what waits to be sent, tell that attempts go on, and stop those whose driver was not heard of."""
        while True:
            if not self._reporters:
                self._busy = anyio.Event()
                await self._busy.wait()
            await anyio.sleep(_GATHER_S)
            now = time.monotonic()
            for reporter in list(self._reporters):
                reporter.keep_time(now)


class _Taken(Exception):
    """Another delivery has the attempt."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


class _Reporter:
    """Makes reports of what one attempt emits. Only in the event loop."""

    def __init__(self, order: Order, worker: str, tell: Tell, lease: Lease) -> None:
        self.delivery = os.urandom(8).hex()
        self._order, self._worker, self._tell, self._lease = order, worker, tell, lease
        self._number = 0
        self._waiting: list[Emission] = []
        self._size = 0  # of what is waiting, roughly
        self._told = time.monotonic()  # when something was last told, or might have been
        self._metrics: list[tuple[int, Metric]] = []

    def emit(self, emission: Emission) -> None:
        """The attempt emits it."""
        match emission:
            case Output():
                self._size += len(emission.line)
            case Metric():
                self._metrics.append((self._number, emission))
            case Stopped():
                emission = msgspec.structs.replace(emission, worker=self._worker or None, host=HOST)
        self._size += _EACH
        self._waiting.append(emission)
        if self._size > _LARGEST or time.monotonic() - self._told >= _GATHER_S:
            self._send()

    def keep_time(self, now: float) -> None:
        """Send what waits, that the attempt has begun, or else that it goes on; stop it if the driver was not heard
        of."""
        beat_s, patience_s = self._order.beat_s, self._order.patience_s
        if self._waiting or not self._number:
            self._send()
        elif beat_s is not None and now - self._told >= beat_s:
            self._told = now
            self._tell(encode_report(Report(key=self._order.key, delivery=self.delivery)))
        if patience_s is not None and now - self._lease.heard > patience_s:
            self._lease.cancel(f"nothing was heard of the driver for {patience_s:g} s")

    def answer(self, holder: str) -> str:
        """This delivery runs nothing: `holder` has the attempt."""
        text = encode_report(Report(key=self._order.key, delivery=self.delivery, taken=holder))
        self._tell(text)
        return text

    def end(self, *, outcome: Outcome | None = None, stopped: str = "", refused: tuple[str, str] | None = None) -> str:
        """Send the last report, and return it."""
        return self._send(outcome, stopped, refused, tuple(self._metrics))

    def _send(
        self,
        outcome: Outcome | None = None,
        stopped: str = "",
        refused: tuple[str, str] | None = None,
        metrics: tuple[tuple[int, Metric], ...] = (),
    ) -> str:
        emissions, self._waiting, self._size = tuple(self._waiting), [], 0
        number, self._number = self._number, self._number + 1
        text = encode_report(
            Report(
                key=self._order.key,
                delivery=self.delivery,
                number=number,
                emissions=emissions,
                outcome=outcome,
                stopped=stopped,
                refused=refused,
                metrics=metrics,
            )
        )
        self._told = time.monotonic()
        self._tell(text)
        return text
