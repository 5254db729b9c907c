"""The worker's side: `gluepy worker`, a Celery worker whose prefork processes have an `Agent` each."""

from __future__ import annotations

import os
import socket
import sys
import time
import warnings
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal
from anyio.streams.memory import MemoryObjectReceiveStream
from billiard.process import current_process
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from celery.signals import worker_process_shutdown, worker_ready, worker_shutting_down
from kombu.exceptions import OperationalError

from gluepy.errors import ExecutorBroken
from gluepy.exec.executors.celery.application import TASK, check_version, make_application, queue_of
from gluepy.exec.executors.celery.channel import RETRY_S, Unreachable, Word, WorkerEnd, check_urls, open_worker_end
from gluepy.exec.executors.celery.options import CelerySettings, shown
from gluepy.exec.executors.remote import Agent, AgentThread, Lease, decode_report, stopped_report
from gluepy.loop import run_loop

_WHO = "gluepy worker"
_AT_ONCE = 100  # reports
_LOOK_S = 0.5
_KNOWN_RUNS = 1000
_ANOTHER = "another driver goes on with the run"


class _Attempt:
    """An attempt that runs in this process."""

    def __init__(self, driver: str, run: str, key: str) -> None:
        self.driver, self.run, self.key = driver, run, key
        self.lease = Lease()

    def hear(self, word: Word) -> None:
        """A driver has said it."""
        if word.cancel == self.key:
            self.lease.cancel()
        elif word.driver == self.driver:
            self.lease.renew()
        elif self.run in word.runs:  # a run has one driver
            self.lease.cancel(_ANOTHER)


class _Process(AgentThread):
    """What a prefork process has: a thread in which agent and channel live."""

    def __init__(self, settings: CelerySettings, worker: str) -> None:
        self._settings, self._worker = settings, worker
        self._attempts: set[_Attempt] = set()
        self._gone: set[str] = set()  # drivers of which nothing is heard
        self._drivers: dict[str, str] = {}  # who said last that they drive a run
        super().__init__()

    def run(self, driver: str, run: str, key: str, text: str) -> str:
        """Run the attempt, and report it. Returns how it ended, in words, when the reports have arrived, or when nobody
        waits for them any more."""
        return self.portal.call(self._run, driver, run, key, text)

    async def serve(self) -> None:
        """Keep agent and channel, until the process is to end; then report that what ran was killed."""
        self.is_over, self._posted = anyio.Event(), anyio.Event()
        self._outbox, outbox = anyio.create_memory_object_stream[tuple[str, str]](float("inf"))
        async with AsyncExitStack() as stack:
            self._channel = await self._reached(stack)
            group = await stack.enter_async_context(anyio.create_task_group())
            group.start_soon(self._post, outbox)
            group.start_soon(self._listen)
            async with BlockingPortal() as self.portal, Agent(self._worker) as self._agent:
                self.is_ready.set()
                await self.is_over.wait()
            await self._all_posted()
            group.cancel_scope.cancel()

    async def _reached(self, stack: AsyncExitStack) -> WorkerEnd:
        """The channel, once the server can be reached."""
        while True:
            try:
                return await stack.enter_async_context(open_worker_end(self._settings))
            except Unreachable:
                await anyio.sleep(RETRY_S)

    async def _run(self, driver: str, run: str, key: str, text: str) -> str:
        attempt = _Attempt(driver, run, key)
        self._attempts.add(attempt)

        def tell(report: str) -> None:
            if self._posted.is_set():
                self._posted = anyio.Event()
            self._outbox.send_nowait((driver, report))

        try:
            await self._wait_for_driver(attempt)
            return _in_words(await self._agent.run(text, tell, attempt.lease))
        except Exception as error:  # such as of a storage that cannot be reached; the driver waits for an answer
            why = f"worker {self._worker}: {type(error).__name__}: {error}"
            tell(stopped_report(key, why))
            return why
        finally:
            self._attempts.discard(attempt)
            with anyio.CancelScope(shield=True):
                await self._all_posted()

    async def _wait_for_driver(self, attempt: _Attempt) -> None:
        """Return when the driver is known to be there, or its lease is cancelled. Orders outlive their drivers."""
        patience_s = 0.0 if attempt.driver in self._gone else self._settings.heartbeat_s
        with anyio.move_on_after(patience_s) as patience:
            while not attempt.lease.why:
                match await self._channel.driver_of(attempt.run, attempt.driver):
                    case True:
                        self._gone.discard(attempt.driver)
                        return
                    case None if self._drivers.get(attempt.run, attempt.driver) == attempt.driver:
                        await anyio.sleep(_LOOK_S)
                    case _:
                        attempt.lease.cancel(_ANOTHER)
        if patience.cancelled_caught:
            self._gone.add(attempt.driver)
            attempt.lease.cancel("nothing was heard of the driver")

    async def _listen(self) -> None:
        async for word in self._channel.words():
            self._gone.discard(word.driver)
            self._drivers.update(dict.fromkeys(word.runs, word.driver))
            while len(self._drivers) > _KNOWN_RUNS:
                del self._drivers[next(iter(self._drivers))]
            for attempt in list(self._attempts):
                attempt.hear(word)

    async def _post(self, outbox: MemoryObjectReceiveStream[tuple[str, str]]) -> None:
        async for driver, report in outbox:
            waiting, count = {driver: [report]}, 1
            while count < _AT_ONCE and outbox.statistics().current_buffer_used:
                driver, report = outbox.receive_nowait()
                waiting.setdefault(driver, []).append(report)
                count += 1
            for driver, reports in waiting.items():
                await self._channel.tell(driver, reports)
            if not outbox.statistics().current_buffer_used:
                self._posted.set()

    async def _all_posted(self) -> None:
        """Return when all reports have arrived; or when the driver has given up waiting for them."""
        with anyio.move_on_after(self._settings.silence_s):
            await self._posted.wait()


def _in_words(last: str) -> str:
    report = decode_report(last)
    if report.outcome is not None:
        return report.outcome.status
    if report.refused is not None:
        return f"refused: {report.refused[0]}"
    return report.stopped or f"not run: {report.taken} has it"


_process: _Process | None = None


def run_worker(settings: CelerySettings, queue: str | None, concurrency: int, project: str) -> int:
    """Take attempts from `queue` (None: the settings' own) and run them, `concurrency` at a time, until SIGTERM or
    SIGINT; then finish those that run. Returns an exit code. Only in the main thread: Celery takes its signals.

    A second signal kills what runs. SIGHUP starts it anew, with new code and settings. Raises `ExecutorBroken` and
    `SettingsError`.
    """
    if sys.platform == "win32":
        raise ExecutorBroken(_WHO, "it needs processes that can be forked", "run it on Linux or macOS")
    check_urls(settings)
    check_version(_WHO)
    queue = queue or settings.queue
    application = make_application(settings)
    application.conf.task_queues = [queue_of(settings, queue)]
    name = f"gluepy-{os.getpid()}@{socket.gethostname()}"
    main = os.getpid()

    @application.task(name=TASK)  # type: ignore[untyped-decorator]
    def attempt(driver: str, run: str, key: str, text: str) -> None:
        global _process
        index = getattr(current_process(), "index", None)
        if index is None:
            raise RuntimeError("attempts run in prefork processes only")
        _say(f"begin {key}")
        try:
            if _process is None or _process.pid != os.getpid():
                _process = _Process(settings, f"{name}/{index + 1}")
            how = _process.run(driver, run, key, text)
        except Exception as error:  # of ours, not the attempt's: another process is to take it, unless it has begun
            time.sleep(1)
            application.send_task(TASK, (driver, run, key, text), queue=queue_of(settings, queue))
            _say(f"end   {key}: {type(error).__name__}: {error}; given back")
            os._exit(1)
        _say(f"end   {key}: {how}")

    def on_ready(**_: object) -> None:
        warnings.simplefilter("ignore", CPendingDeprecationWarning)  # of a setting that is as it is on purpose
        places = f"{concurrency} at a time, from the queue {queue!r} of {shown(settings.broker_url or '')}"
        _say(f"worker {name} runs attempts of {project}: {places}")

    def on_shutdown(how: str = "", **_: object) -> None:
        if os.getpid() == main and how == "Warm":
            _say("finishing what runs, and taking nothing more; another signal kills it")

    def on_process_end(**_: object) -> None:
        if _process is not None and _process.pid == os.getpid():
            _process.close()

    worker_ready.connect(on_ready)
    worker_shutting_down.connect(on_shutdown)
    worker_process_shutdown.connect(on_process_end)
    if Path(sys.argv[0]).name == "__main__.py":
        sys.argv = ["-m", "gluepy", *sys.argv[1:]]  # with which Celery starts it anew
    _try_servers(application, settings)
    warnings.simplefilter("ignore", SecurityWarning)  # of running as root; what comes is JSON
    worker = application.Worker(
        hostname=name,
        pool="prefork",
        concurrency=concurrency,
        loglevel="WARNING",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _try_servers(application: Any, settings: CelerySettings) -> None:
    async def try_channel() -> None:
        async with open_worker_end(settings):
            pass

    try:
        with application.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
        run_loop(try_channel)
    except Unreachable as error:
        raise ExecutorBroken(_WHO, str(error), "start it, or set CELERY.channel_url") from None
    except (OperationalError, *application.connection_for_read().connection_errors) as error:
        why = f"cannot reach {shown(settings.broker_url or '')}: {error}"
        raise ExecutorBroken(_WHO, why, "start it, or set CELERY.broker_url") from None


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
