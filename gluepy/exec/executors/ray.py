"""RayExecutor: attempts as tasks of a Ray cluster (https://ray.io). The extra `ray` brings what it needs.

An attempt is a Ray task that yields the reports of the agent in its worker's process. That it is not wanted any more it
learns from an actor, by an answer that comes when the attempt is to stop, or as an error when the driver is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import anyio
import anyio.to_thread
import ray
import sniffio
from pydantic import BaseModel, ConfigDict, Field
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gluepy.core.graph import Graph, Spec
from gluepy.errors import DagError, ExecutorBroken, OptionError, SettingsError
from gluepy.exec.executors.remote import Call, Calls, Lease, check_importable, close_here, key_in, run_here
from gluepy.exec.port import Abandoned, Attempt, Emit, Executor, Outcome, Released

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings

_CONNECT_S = 60.0
_STOP_S = 15.0  # how long stopping an attempt may take
_LATE_S = 10.0
_CLOSE_S = 5.0
_LOOK_S = 5.0  # between two looks whether the cluster is there
_ANSWER_S = 15.0  # how long it may take to answer; Ray ends a process that has not reached it for a minute
_AT_ONCE = 100_000  # attempts of which the actor may be asked
_GPU = "gpu"  # what Ray calls GPU, and gives out by number
_MB = 1 << 20
# Else a worker of Ray's that exits kills its children first, and with them the guards that kill what they have started.
_LEFT_TO_GUARDS = {"RAY_kill_child_processes_on_worker_exit": "false"}


class RaySettings(BaseModel):
    """The group RAY. `address` is that of a cluster, as `host:6379`, or `auto`; this machine has to be a node of it.
    Without, the executor starts one of its own on this machine. An attempt that no worker has begun after
    `queue_timeout_s` seconds stops the run; None waits for ever. `check_resources` refuses a run with a task for which
    no node is large enough: off, for a cluster that gets its nodes when they are asked for."""

    model_config = ConfigDict(extra="forbid")

    address: str | None = None
    queue_timeout_s: float | None = Field(default=None, gt=0)
    check_resources: bool = True


class RayExecutor(Executor):
    """Runs attempts on a Ray cluster; on asyncio only.

    The arguments are the fields of `RaySettings`; a cluster of its own has `cpus`, by default 1, and `resources`. A
    task asks Ray for its `cpus` (by default 1), its `memory_mb`, and what it `uses`: `gpu` is Ray's GPU, other names
    are resources of the nodes. Where Ray has been initialized in this process already, that cluster is used, and left.
    """

    settings_group: ClassVar = ("RAY", RaySettings)

    def __init__(
        self,
        address: str | None = None,
        *,
        queue_timeout_s: float | None = None,
        check_resources: bool = True,
        cpus: int = 1,
        resources: Mapping[str, float] = {},
    ) -> None:
        self._address, self._queue_timeout_s, self._check_resources = address, queue_timeout_s, check_resources
        self._cpus, self._resources = cpus, dict(resources)
        self._own = address is None
        self._calls = Calls(self.name, own=self._own)
        self._under_way: set[_Reports] = set()
        self._broken: ExecutorBroken | None = None
        self._stack: AsyncExitStack | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """One that is as the group RAY says."""
        group = settings.group(*cls.settings_group)
        if group.address and group.address.startswith("ray://"):
            raise SettingsError(
                "RAY.address", "", "the driver has to be a node of the cluster", "name it as host:6379, not by ray://"
            )
        return cls(
            group.address,
            queue_timeout_s=group.queue_timeout_s,
            check_resources=group.check_resources,
            cpus=settings.CONCURRENCY,
            resources=settings.LIMITS,
        )

    async def __aenter__(self) -> Self:
        if (library := sniffio.current_async_library()) != "asyncio":
            raise OptionError("executor", f"{self.name} runs on asyncio only, and this is {library}", "use asyncio")
        if self._stack is not None:
            raise OptionError(self.name, "it is in use already", "give each Runtime an executor of its own")
        async with AsyncExitStack() as stack:
            if not ray.is_initialized():
                stack.push_async_callback(_bounded, ray.shutdown)
                await self._connect()
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
            options = {"num_cpus": 0, "max_concurrency": _AT_ONCE, "max_restarts": -1, "scheduling_strategy": here}
            self._leases: Any = ray.remote(_Leases).options(**options).remote()
            stack.push_async_callback(_bounded, ray.kill, self._leases)
            self._task: Any = ray.remote(_run_on_worker)
            self._group = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(self._group.cancel_scope.cancel)
            self._group.start_soon(self._watch)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        assert stack is not None
        await stack.aclose()

    async def _connect(self) -> None:
        """Connect to the cluster, which is started if it is to be our own."""
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        what = f"cannot reach the Ray cluster at {self._address}"
        hint = "does it run, and is this machine a node of it (ray start --address)? With the same versions of both?"
        if self._own:
            what, hint = "cannot start a Ray cluster of its own", ""
            others = {name: amount for name, amount in self._resources.items() if name != _GPU}
            options |= {"num_cpus": self._cpus, "resources": others, "include_dashboard": False}
            options |= {"num_gpus": self._resources[_GPU]} if _GPU in self._resources else {}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            with anyio.fail_after(_CONNECT_S):  # in a thread, in which Ray also leaves signals alone
                await anyio.to_thread.run_sync(
                    lambda: ray.init(self._address or "local", **options), abandon_on_cancel=True
                )
        except (OSError, ValueError, RuntimeError, exceptions.RayError) as error:
            raise ExecutorBroken(self.name, f"{what}: {error}", hint) from error

    def check(self, graph: Graph) -> None:
        """Raises `DagError` for a task that a worker cannot import, or for which no node is large enough: Ray would
        wait."""
        check_importable(graph)
        if not self._check_resources or self._stack is None:  # not before there is a cluster
            return
        nodes: list[Mapping[str, float]] = [node["Resources"] for node in _nodes() if node["Alive"]]
        for spec in graph.specs:
            wanted = {} if spec.expands else _wanted(spec)
            if any(all(has.get(name, 0) >= amount for name, amount in wanted.items()) for has in nodes):
                continue
            asked = " ".join(f"{name}={amount:g}" for name, amount in wanted.items())
            have = " or ".join(sorted({_told(has) for has in nodes})) or "nothing"
            raise DagError(
                f"task {spec.label}",
                f"it needs {asked}, and no node of the Ray cluster has that; they have {have}",
                "ask for less (cpus, memory_mb, uses), or start nodes with it (ray start --resources)",
            )

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        """Have a worker run `attempt`."""
        async with self._calls.open(attempt, emit) as call:
            if self._broken is not None:
                raise self._broken
            wanted = _wanted(attempt.spec)
            stream = self._task.options(
                name=f"{attempt.spec.label}-{call.key}",
                num_returns="streaming",
                runtime_env={"env_vars": _LEFT_TO_GUARDS},
                max_retries=0,
                num_cpus=wanted.pop("CPU"),
                num_gpus=wanted.pop("GPU", None),
                memory=wanted.pop("memory", None),
                resources=wanted,
            ).remote(call.text, self._own, self._leases)
            reports = _Reports(stream)
            self._under_way.add(reports)
            self._group.start_soon(self._follow, reports)
            try:
                return await self._outcome(call, reports)
            except anyio.get_cancelled_exc_class():
                await self._stop(call, reports, emit)
                raise
            finally:
                self._under_way.discard(reports)
                if call.has_begun.is_set():
                    self._leases.end.remote(call.key)

    async def _follow(self, reports: _Reports) -> None:
        """Take what comes. Not in `run`: a wait for Ray that is cancelled may lose what it waited for."""
        try:
            async for reference in reports.stream:
                self._calls.take(await reference)
                reports.some.set()
        except Exception as error:  # whatever a Ray task ends with
            reports.error = reports.error or error
        reports.end()

    async def _outcome(self, call: Call, reports: _Reports) -> Outcome:
        """How the attempt ended. Raises `ExecutorBroken` if no worker has begun it in time, or can."""
        if self._queue_timeout_s is not None:
            with anyio.move_on_after(self._queue_timeout_s):
                await reports.some.wait()
            if not reports.some.is_set() and await call.withdraw():
                ray.cancel(reports.stream)
                why = f"no Ray worker has begun {call.key} within RAY.queue_timeout_s = {self._queue_timeout_s:g} s"
                raise ExecutorBroken(self.name, why, "start nodes, or more of them")
        await reports.over.wait()
        if call.is_over or reports.error is None:
            with anyio.move_on_after(_LATE_S):
                return await call.outcome()
            return call.lost("its worker has not told how it ended")
        return self._without_report(call, reports.error)

    def _without_report(self, call: Call, error: Exception) -> Outcome:
        """What became of an attempt whose Ray task ended with `error`, before the agent's last report."""
        match error:
            case ExecutorBroken():
                raise error
            case exceptions.OutOfMemoryError():
                message = "Ray killed its worker: the node was short of memory"
                return call.ended(
                    Outcome(status="failed", reason="memory", error_type="OutOfMemory", error_message=message)
                )
            case exceptions.NodeDiedError() | exceptions.LocalRayletDiedError():
                return call.lost("its Ray node died")
            case exceptions.WorkerCrashedError() | exceptions.RayActorError():
                return call.lost("its Ray worker died")
            case exceptions.TaskCancelledError():
                return call.lost("its Ray task was cancelled, not by gluepy")
            case exceptions.ObjectLostError():
                return call.lost("what it told was lost with its Ray node")
        why = f"a Ray worker cannot run attempts: {_first_words(error)}"
        raise ExecutorBroken(self.name, why, "install the same gluepy on all nodes") from error

    async def _stop(self, call: Call, reports: _Reports, emit: Emit) -> None:
        """Stop the attempt, wherever it is, and wait until nothing of it runs. Shielded and bounded."""
        with anyio.move_on_after(_STOP_S, shield=True):
            if await call.withdraw():
                ray.cancel(reports.stream)
                return
            self._leases.end.remote(call.key)
            await reports.over.wait()
            return
        ray.cancel(reports.stream, force=True)  # the guard of its process does the rest
        emit(Abandoned())
        emit(Released())

    async def _watch(self) -> None:
        """Look whether the cluster is there: Ray waits for one that is gone, and ends the process after a minute."""
        while self._broken is None:
            await anyio.sleep(_LOOK_S)
            with suppress(TimeoutError, exceptions.RayError):
                with anyio.fail_after(_ANSWER_S):
                    await anyio.to_thread.run_sync(_nodes, abandon_on_cancel=True)
                continue
            self._broken = ExecutorBroken(self.name, "the Ray cluster is gone", "resume the run when it is back")
            for reports in self._under_way:
                reports.error = self._broken
                reports.end()


class _Reports:
    """What comes of one attempt's Ray task."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.some = anyio.Event()
        self.over = anyio.Event()
        self.error: Exception | None = None

    def end(self) -> None:
        """Nothing more comes."""
        self.some.set()
        self.over.set()


class _Leases:
    """The actor: attempts wait with it until they are not wanted any more. It ends with its driver."""

    def __init__(self) -> None:
        self._ended: dict[str, asyncio.Event] = {}

    async def until_ended(self, key: str) -> None:
        """Return when the attempt `key` is over, or not wanted."""
        await self._ended.setdefault(key, asyncio.Event()).wait()
        self._ended.pop(key, None)

    async def end(self, key: str) -> None:
        """The attempt `key` is over, or not wanted: also if it has not asked yet."""
        self._ended.setdefault(key, asyncio.Event()).set()


_devices: str | None = None  # CUDA_VISIBLE_DEVICES of the processes that the agent keeps


def _run_on_worker(text: str, own: bool, leases: Any) -> Iterator[str]:
    """In a Ray worker, which runs nothing else meanwhile: have the process's agent run the attempt."""
    global _devices
    if (devices := os.environ.get("CUDA_VISIBLE_DEVICES")) != _devices:  # Ray says anew for each task
        close_here()
        _devices = devices
    lease, told = Lease(), queue.SimpleQueue[str | BaseException | None]()
    leases.until_ended.remote(key_in(text)).future().add_done_callback(lambda _: lease.cancel())

    def run() -> None:
        try:
            run_here(text, told.put, worker=f"ray-{os.getpid()}", own=own, lease=lease)
        except BaseException as error:
            told.put(error)
        else:
            told.put(None)

    threading.Thread(target=run, name="gluepy-attempt", daemon=True).start()
    while (report := told.get()) is not None:
        if isinstance(report, BaseException):
            raise report
        yield report


def _wanted(spec: Spec) -> dict[str, float]:
    """What a task asks of a node, as Ray calls it."""
    wanted: dict[str, float] = {"CPU": spec.cpus or 1}
    if spec.memory_mb is not None:
        wanted["memory"] = spec.memory_mb * _MB
    return wanted | {"GPU" if name == _GPU else name: amount for name, amount in spec.uses.items()}


def _told(has: Mapping[str, float]) -> str:
    named = {name: amount for name, amount in has.items() if not name.startswith(("node:", "object_store", "accel"))}
    return " ".join(f"{name}={amount:g}" for name, amount in sorted(named.items()))


async def _bounded(call: Callable[..., object], *args: object) -> None:
    """Call it in a thread: without a cluster it may wait for ever."""
    with anyio.move_on_after(_CLOSE_S, shield=True):
        await anyio.to_thread.run_sync(call, *args, abandon_on_cancel=True)


def _nodes() -> list[Mapping[str, Any]]:
    return ray.nodes()  # type: ignore[no-untyped-call, no-any-return]


def _first_words(error: Exception) -> str:
    cause = error.cause if isinstance(error, exceptions.RayTaskError) and error.cause else error
    return next(iter(str(cause).strip().splitlines()), type(error).__name__)
