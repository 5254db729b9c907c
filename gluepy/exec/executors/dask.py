"""DaskExecutor: attempts on the workers of a Dask cluster. The extra `dask` brings what it needs.

An attempt is a Dask task that holds a thread of a Dask worker and only waits: the agent of that worker's process runs
it. Reports come back as events of a topic.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self
from uuid import uuid4

import anyio
import dask
import sniffio
import structlog
from distributed import Client, KilledWorker, LocalCluster, get_worker
from distributed import wait as wait_for
from distributed.client import FutureCancelledError, FuturesCancelledError
from distributed.core import Status
from pydantic import BaseModel, ConfigDict, Field

from gluepy.core.graph import Graph
from gluepy.errors import ExecutorBroken, OptionError, SettingsError
from gluepy.exec.executors.remote import Call, Calls, cancel_here, check_importable, key_in, run_here
from gluepy.exec.port import Abandoned, Attempt, Emit, Executor, Outcome, Released

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings

_CONNECT_S = 10.0
_STOP_S = 15.0  # how long stopping an attempt may take
_LATE_S = 10.0
_CLOSE_S = 10.0
_ALLOWED_FAILURES = "distributed.scheduler.allowed-failures"


class DaskSettings(BaseModel):
    """The group DASK. `address` or `scheduler_file` name a cluster; without, the executor starts one of its own on this
    machine, with `workers` processes (by default CONCURRENCY). An attempt that no worker has begun after
    `queue_timeout_s` seconds stops the run; None waits for ever."""

    model_config = ConfigDict(extra="forbid")

    address: str | None = None
    scheduler_file: str | None = None
    workers: int | None = Field(default=None, ge=1)
    queue_timeout_s: float | None = Field(default=None, gt=0)


class DaskExecutor(Executor):
    """Runs attempts on a Dask cluster; on asyncio only.

    The arguments are the fields of `DaskSettings`; `resources` are those of each worker of a cluster of its own, by
    default 1 worker and none. What a task `uses` are Dask's resources.
    """

    settings_group: ClassVar = ("DASK", DaskSettings)

    def __init__(
        self,
        address: str | None = None,
        *,
        scheduler_file: str | None = None,
        workers: int = 1,
        queue_timeout_s: float | None = None,
        resources: Mapping[str, float] = {},
    ) -> None:
        self._address, self._scheduler_file = address, scheduler_file
        self._workers, self._resources = workers, dict(resources)
        self._queue_timeout_s = queue_timeout_s
        self._own = address is None and scheduler_file is None
        self._calls = Calls(self.name, own=self._own)
        self._topic = f"gluepy-{uuid4().hex}"
        self._ran_on: dict[str, str] = {}  # the addresses of workers, by the keys of calls
        self._queued: dict[str, anyio.CancelScope] = {}  # in which attempts wait to begin, by the keys of calls
        self._satisfied: set[tuple[tuple[str, int], ...]] = set()
        self._stack: AsyncExitStack | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """One that is as the group DASK says."""
        group = settings.group(*cls.settings_group)
        if group.address and group.scheduler_file:
            raise SettingsError("DASK.address", "", "DASK.scheduler_file is set, too", "set one of them")
        return cls(
            group.address,
            scheduler_file=group.scheduler_file,
            workers=group.workers or settings.CONCURRENCY,
            queue_timeout_s=group.queue_timeout_s,
            resources=settings.LIMITS,
        )

    async def __aenter__(self) -> Self:
        if (library := sniffio.current_async_library()) != "asyncio":
            raise OptionError("executor", f"{self.name} runs on asyncio only, and this is {library}", "use asyncio")
        if self._stack is not None:
            raise OptionError(self.name, "it is in use already", "give each Runtime an executor of its own")
        async with AsyncExitStack() as stack:
            self._client = await self._connected(stack)
            self._client.subscribe_topic(self._topic, self._on_event)
            stack.push_async_callback(self._forget_events)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        assert stack is not None
        with anyio.move_on_after(_CLOSE_S, shield=True):
            await stack.aclose()

    async def _connected(self, stack: AsyncExitStack) -> Any:
        """A client of the cluster, which is started if it is to be our own."""
        target: dict[str, Any] = {"address": self._address}
        what = f"cannot reach the Dask scheduler at {self._address}"
        if self._own:
            what = "cannot start a Dask cluster of its own"
        elif self._scheduler_file is not None:
            what = f"cannot reach the Dask scheduler that {self._scheduler_file} names"
            if not await anyio.Path(self._scheduler_file).is_file():
                raise ExecutorBroken(self.name, f"there is no file {self._scheduler_file}", "start the scheduler first")
            target = {"scheduler_file": self._scheduler_file}
        try:
            if self._own:
                with dask.config.set({_ALLOWED_FAILURES: 0}):
                    cluster = LocalCluster(
                        n_workers=self._workers,
                        threads_per_worker=1,
                        host="127.0.0.1",
                        dashboard_address="127.0.0.1:0",  # None means port 8787 of all interfaces
                        memory_limit=0,  # it would count this process alone, not those that run attempts
                        resources=self._resources,
                        asynchronous=True,
                    )
                    target = {"address": await stack.enter_async_context(cluster)}
            client: Any = Client(**target, asynchronous=True, timeout=_CONNECT_S, set_as_default=False)
            with anyio.fail_after(_CONNECT_S + 1):
                client = await stack.enter_async_context(client)
        except (OSError, ValueError, RuntimeError) as error:
            hint = "" if self._own else "is it running, and the same version of Dask?"
            raise ExecutorBroken(self.name, f"{what}: {error}", hint) from error
        if not self._own and await client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.allowed_failures):
            structlog.get_logger("gluepy.exec").warning(
                "Dask tries elsewhere what a worker has lost, before it tells of it",
                hint=f"set {_ALLOWED_FAILURES}: 0 for the scheduler",
            )
        return client

    async def _forget_events(self) -> None:
        """Have the scheduler keep nothing of what came back."""
        if self._client.status == "running":
            topic = self._topic
            with suppress(Exception):
                self._client.unsubscribe_topic(topic)
                await self._client.run_on_scheduler(lambda dask_scheduler: dask_scheduler._broker.truncate(topic))

    def check(self, graph: Graph) -> None:
        """Raises `DagError` for a task that a worker cannot import."""
        check_importable(graph)

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        """Have a worker run `attempt`."""
        async with self._calls.open(attempt, emit) as call:
            await self._check_resources(attempt)
            if self._client.status != "running":
                raise ExecutorBroken(self.name, "the connection to the Dask scheduler was lost")
            future = self._client.submit(
                _run_on_worker,
                call.text,
                self._topic,
                self._own,
                key=f"{attempt.spec.label}-{call.key}",
                pure=False,
                retries=0,
                resources=attempt.spec.uses or None,
            )
            try:
                return await self._outcome(call, future)
            except KilledWorker:
                return call.lost(f"the Dask worker {self._ran_on.get(call.key, '')} died".replace("  ", " "))
            except (FutureCancelledError, FuturesCancelledError) as error:
                why = "the connection to the Dask scheduler was lost"
                raise ExecutorBroken(self.name, why, "resume the run when it is back") from error
            except ImportError as error:
                raise ExecutorBroken(
                    self.name, f"a Dask worker cannot run attempts: {error}", "install the same gluepy on all workers"
                ) from error
            except BaseException:  # a cancellation, or no worker in time
                await self._stop(call, future, emit)
                raise
            finally:
                self._ran_on.pop(call.key, None)
                self._queued.pop(call.key, None)
                future.release()

    async def _outcome(self, call: Call, future: Any) -> Outcome:
        """How the attempt ended. Raises what the future does, and `ExecutorBroken` if no worker has begun in time."""
        within_s = math.inf if self._queue_timeout_s is None else self._queue_timeout_s
        with anyio.move_on_after(within_s) as scope:
            self._queued[call.key] = scope
            with self._client.as_current():
                waiting = wait_for(future)
            await waiting
            scope.deadline = math.inf
            if future.status != "finished":
                await future  # which is the costly way to wait: it fetches a result
            with anyio.move_on_after(_LATE_S):  # the last report was sent before
                return await call.outcome()
            return call.lost("its worker has not told how it ended")
        workers = await self._resources_of_workers()
        who = f"none of the {len(workers)} Dask workers" if workers else "there is no Dask worker, so none"
        why = f"{who} has begun {call.key} within DASK.queue_timeout_s = {within_s:g} s"
        raise ExecutorBroken(self.name, why, "start workers, or more of them")

    async def _stop(self, call: Call, future: Any, emit: Emit) -> None:
        """Stop the attempt, wherever it is, and wait until nothing of it runs. Shielded and bounded."""
        with anyio.move_on_after(_STOP_S, shield=True):
            if self._client.status == "running":
                await future.cancel(reason="stopped by gluepy")
                if await call.withdraw():
                    return
                await call.has_begun.wait()
                if not call.is_over:
                    address = self._ran_on[call.key]
                    await self._client.run(_stop_on_worker, call.key, workers=[address], on_error="ignore")
                    await call.outcome()
                return
        emit(Abandoned())  # it cannot be reached; its worker stops it when it finds that nobody wants it
        emit(Released())

    async def _check_resources(self, attempt: Attempt) -> None:
        """Raises `ExecutorBroken` where there are workers, and none that has what the task uses: Dask would wait."""
        wanted = tuple(sorted(attempt.spec.uses.items()))
        if not wanted or wanted in self._satisfied:
            return
        workers = await self._resources_of_workers()
        if any(all(has.get(name, 0) >= amount for name, amount in wanted) for has in workers):
            self._satisfied.add(wanted)
        elif workers:
            uses = " ".join(f"{name}={amount}" for name, amount in wanted)
            known = sorted({f"{name}={amount:g}" for has in workers for name, amount in has.items()})
            have = f"no Dask worker has that; they have {', '.join(known) or 'no resources'}"
            raise ExecutorBroken(
                self.name, f"task {attempt.task!r} uses {uses}, and {have}", f'start workers with --resources "{uses}"'
            )

    async def _resources_of_workers(self) -> list[Mapping[str, float]]:
        known = await self._client.scheduler.identity(n_workers=-1)  # not `scheduler_info`, which is behind
        return [worker["resources"] for worker in known["workers"].values()]

    def _on_event(self, event: tuple[float, tuple[str, str, str]]) -> None:
        key, address, report = event[1]
        self._ran_on[key] = address
        if (queued := self._queued.pop(key, None)) is not None:
            queued.deadline = math.inf
        self._calls.take(report)


def _run_on_worker(text: str, topic: str, own: bool) -> None:
    """In a thread of a Dask worker: have the process's agent run the attempt."""
    worker = get_worker()
    dask_key, key = worker.get_current_task(), key_in(text)

    def tell(report: str) -> None:
        worker.log_event(topic, (key, worker.address, report))

    def is_wanted() -> bool:
        task = worker.state.tasks.get(dask_key)
        is_there = task is not None and task.state == "executing"  # else "cancelled": also when the client is gone
        return is_there and worker.status in (Status.running, Status.paused, Status.closing_gracefully)

    run_here(text, tell, is_wanted, worker=str(worker.name), own=own)


async def _stop_on_worker(key: str) -> None:
    """In the event loop of a Dask worker: kill the attempt."""
    await asyncio.to_thread(cancel_here, key)
