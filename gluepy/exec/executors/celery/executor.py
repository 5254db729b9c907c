"""The driver's side."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from math import inf
from types import TracebackType
from typing import Any, ClassVar, Self

import anyio
import anyio.to_thread
import msgspec
from kombu.exceptions import OperationalError
from sniffio import current_async_library

from gluepy.conf.schema import Settings
from gluepy.core.graph import Graph
from gluepy.errors import ExecutorBroken, OptionError
from gluepy.exec.executors.celery.application import TASK, check_version, make_application, queue_of
from gluepy.exec.executors.celery.channel import RETRY_S, Unreachable, Word, check_urls, open_driver_end
from gluepy.exec.executors.celery.options import CelerySettings, shown
from gluepy.exec.executors.remote import Call, Calls, check_importable
from gluepy.exec.port import Abandoned, Attempt, Emit, Executor, Outcome, Released

_STOP_S = 20.0  # longer than an agent takes to kill an attempt
_AGAIN_S = 0.5  # after which a cancellation is told again
_LOOK_S = 1.0  # that workers have to answer whether they are there


class _Open:
    """An attempt that is under way."""

    def __init__(self, attempt: Attempt, call: Call, queue: str) -> None:
        self.attempt, self.call, self.queue = attempt, call, queue
        self.scope = anyio.CancelScope()
        self.broken: ExecutorBroken | None = None
        self.sent_at: float | None = None

    def break_off(self, broken: ExecutorBroken) -> None:
        """The run cannot go on."""
        self.broken = broken
        self.scope.cancel()


class CeleryExecutor(Executor):
    """Has workers (`gluepy worker`) run attempts, which get them from a Celery broker: Redis, Valkey or RabbitMQ.

    The arguments are those of the settings group CELERY. For asyncio only.
    """

    settings_group: ClassVar = ("CELERY", CelerySettings)

    def __init__(self, settings: CelerySettings | None = None, **fields: Any) -> None:
        """Raises `SettingsError` for URLs that are missing or that nothing here speaks to."""
        self.settings = settings or CelerySettings(**fields)
        check_urls(self.settings)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """See `Extension`."""
        return cls(settings.group(*cls.settings_group))

    async def __aenter__(self) -> Self:
        if (library := current_async_library()) != "asyncio":
            raise OptionError("executor", f"{self.name} runs on asyncio only, and this is {library}", "use asyncio")
        check_version(self.name)
        settings = self.settings
        self._driver = os.urandom(8).hex()
        self._calls = Calls(
            self.name,
            beat_s=settings.beat_s,
            silence_s=settings.silence_s,
            confirm_s=settings.confirm_s,
            patience_s=settings.heartbeat_s,
        )
        self._open: dict[str, _Open] = {}
        self._runs: Counter[str] = Counter()  # how many attempts of each are under way
        self._announced: dict[str, float] = {}  # when it was last said who drives them
        self._announcing = anyio.Lock()
        self._one_at_a_time = anyio.CapacityLimiter(1)
        self._application = make_application(settings)
        self._away = (OperationalError, *self._application.connection_for_write().connection_errors)
        try:
            async with AsyncExitStack() as stack:
                stack.callback(self._application.close)
                await anyio.to_thread.run_sync(self._try_broker)
                self._channel = await stack.enter_async_context(open_driver_end(settings, self._driver))
                group = await stack.enter_async_context(anyio.create_task_group())
                stack.callback(group.cancel_scope.cancel)
                for each in (self._listen, self._beat, self._look_at_queues, self._send_again):
                    group.start_soon(each)
                self._stack = stack.pop_all()
        except Unreachable as error:
            raise ExecutorBroken(self.name, str(error), "start it, or set CELERY.broker_url") from None
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def check(self, graph: Graph) -> None:
        """Raises `DagError` for a task that a worker cannot import."""
        check_importable(graph)

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        """See `Executor`. A worker that is lost is a failure with reason `lost`; a broker that cannot be reached for
        `queue_timeout_s`, or a queue that no worker takes from, is `ExecutorBroken`."""
        async with self._calls.open(attempt, emit) as call, self._driving(attempt.run.run_id):
            mine = self._open[call.key] = _Open(attempt, call, attempt.spec.queue or self.settings.queue)
            with mine.scope:
                try:
                    await self._send(mine)
                    outcome = await call.outcome()
                except anyio.get_cancelled_exc_class():
                    with anyio.move_on_after(_STOP_S, shield=True) as patience:
                        await self._stop(mine)
                    if patience.cancelled_caught:  # it cannot be reached; its worker stops it when it hears of nobody
                        emit(Abandoned())
                        emit(Released())
                    raise
                finally:
                    del self._open[call.key]
                if outcome.reason == "lost":  # it may be that only the way to it is lost
                    with anyio.move_on_after(RETRY_S):
                        await self._channel.say(Word(driver=self._driver, cancel=call.key))
                return outcome
            assert mine.broken is not None
            raise mine.broken

    @asynccontextmanager
    async def _driving(self, run: str) -> AsyncIterator[None]:
        """While the block runs, workers hear that this driver drives `run`; before it begins, that is known."""
        self._runs[run] += 1
        try:
            async with self._announcing:
                if time.monotonic() - self._announced.get(run, -inf) > self.settings.beat_s:
                    with anyio.move_on_after(self.settings.queue_timeout_s) as patience:
                        await self._channel.say(Word(driver=self._driver, runs=(run,)))
                    if patience.cancelled_caught:
                        raise self._unreachable(self._channel.outages.why)
                    self._announced[run] = time.monotonic()
            yield
        finally:
            self._runs[run] -= 1
            if not self._runs[run]:
                del self._runs[run]

    async def _send(self, mine: _Open) -> None:
        """Put the order into the queue, once the broker can be reached."""
        began = time.monotonic()
        while True:
            try:
                # A thread that is left behind may still send it: who gets it finds the attempt claimed.
                await anyio.to_thread.run_sync(self._put, mine, limiter=self._one_at_a_time, abandon_on_cancel=True)
            except self._away as error:
                if time.monotonic() - began > self.settings.queue_timeout_s:
                    raise self._unreachable(str(error)) from None
                await anyio.sleep(RETRY_S)
            else:
                mine.sent_at = time.monotonic()
                return

    def _put(self, mine: _Open) -> None:
        run, call = mine.attempt.run.run_id, mine.call
        self._application.send_task(
            TASK, (self._driver, run, call.key, call.text), queue=queue_of(self.settings, mine.queue), retry=False
        )

    async def _stop(self, mine: _Open) -> None:
        """Return when the attempt does not run, and will not."""
        if await mine.call.withdraw():
            return
        while not mine.call.is_over:
            with anyio.move_on_after(_AGAIN_S), suppress(ExecutorBroken):
                await self._channel.say(Word(driver=self._driver, cancel=mine.call.key))
                await mine.call.outcome()
                return

    async def _listen(self) -> None:
        async for reports in self._channel.reports():
            for report in reports:
                with suppress(msgspec.DecodeError):  # anybody may write there
                    self._calls.take(report)

    async def _beat(self) -> None:
        while True:
            await anyio.sleep(self.settings.beat_s)
            if runs := tuple(self._runs):
                await self._channel.say(Word(driver=self._driver, runs=runs))
            self._announced = dict.fromkeys(runs, time.monotonic())

    async def _send_again(self) -> None:
        """After each outage, send the orders once more of which the server may know nothing any more."""
        ended = 0
        while True:
            await anyio.sleep(RETRY_S)
            outages = self._channel.outages
            if outages.since is not None and time.monotonic() - outages.since > self.settings.queue_timeout_s:
                for mine in list(self._open.values()):
                    mine.break_off(self._unreachable(outages.why))
            if outages.count == ended:
                continue
            ended = outages.count
            for mine in list(self._open.values()):
                if mine.sent_at is not None and not mine.call.has_begun.is_set():
                    await self._send_once_more(mine)

    async def _look_at_queues(self) -> None:
        """See to attempts that wait to begin: a queue may have no worker, or an order may have got lost with a worker
        that had just taken it."""
        settings = self.settings
        unserved: set[str] = set()  # when last looked
        while True:
            await anyio.sleep(min(settings.queue_timeout_s / 2, settings.confirm_s))
            waiting = [
                mine for mine in self._open.values() if mine.sent_at is not None and not mine.call.has_begun.is_set()
            ]
            if not waiting:
                continue
            try:
                sizes = await anyio.to_thread.run_sync(self._sizes_of, {mine.queue for mine in waiting})
                served = await anyio.to_thread.run_sync(self._served_queues)
            except self._away:
                continue
            for mine in waiting:
                if mine.call.has_begun.is_set() or mine.sent_at is None:
                    continue
                age_s = time.monotonic() - mine.sent_at
                if mine.queue in unserved and mine.queue not in served and age_s > settings.queue_timeout_s:
                    mine.break_off(self._no_worker(mine.queue))
                elif not sizes[mine.queue] and mine.queue in served and age_s > settings.confirm_s:
                    await self._send_once_more(mine)
            unserved = {mine.queue for mine in waiting} - served

    async def _send_once_more(self, mine: _Open) -> None:
        try:
            await self._send(mine)
        except ExecutorBroken as broken:
            mine.break_off(broken)

    def _sizes_of(self, queues: set[str]) -> dict[str, int]:
        """How many orders each of these has."""
        with self._application.connection_for_read() as connection, connection.channel() as channel:
            return {name: queue_of(self.settings, name)(channel).queue_declare().message_count for name in queues}

    def _served_queues(self) -> set[str]:
        """Those that workers take from."""
        answers = self._application.control.inspect(timeout=_LOOK_S).active_queues() or {}
        return {queue["name"] for queues in answers.values() for queue in queues}

    def _no_worker(self, queue: str) -> ExecutorBroken:
        why = f"no worker takes from the queue {queue!r} of {self._broker()}"
        return ExecutorBroken(self.name, why, f"start one: gluepy worker --queue {queue}")

    def _try_broker(self) -> None:
        try:
            with self._application.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=5)
        except self._away as error:
            raise Unreachable(self._broker(), str(error)) from None

    def _broker(self) -> str:
        return shown(self.settings.broker_url or "")

    def _unreachable(self, why: str) -> ExecutorBroken:
        return ExecutorBroken(self.name, f"cannot reach {self._broker()}: {why}", "start it, then resume the run")
