"""What gluepy's promises cost: the same chain without and with each of them. The floor is gluepy itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import anyio

from benchmarks.turns import Effort, Row, in_turn, seconds
from benchmarks.workloads import InThread, OnLoop, Workload, chain
from gluepy import Runtime, Task


class OnLoopInTime(OnLoop):
    """With a deadline, which is watched."""

    timeout_s = 60


class InThreadInTime(InThread):
    """The same in a thread."""

    timeout_s = 60


async def costs(effort: Effort) -> AsyncIterator[Row]:
    """A time-out, a log file an attempt, somebody who watches, other ways to flush, trio."""
    async with (
        Runtime() as runtime,
        Runtime({"EVENT_SYNC": "none"}) as unsynced,
        Runtime({"EVENT_SYNC": "commit"}) as safe,
    ):
        kinds: tuple[tuple[str, type[Task], type[Task]], ...] = (
            ("async", OnLoop, OnLoopInTime),
            ("sync", InThread, InThreadInTime),
        )
        for name, kind, in_time in kinds:
            plain, timed = chain(kind, effort.tasks), chain(in_time, effort.tasks)

            def run(where: Runtime, workload: Workload, **options: Any) -> Awaitable[float]:
                return seconds(where.run_dag(workload.dag, **options))

            variants: tuple[tuple[str, Callable[[], Awaitable[float]]], ...] = (
                ("timeout_s", partial(run, runtime, timed)),
                ("a log file an attempt (capture)", partial(run, runtime, plain, capture=True)),
                ("a subscriber", partial(_watched, runtime, plain)),
                ('EVENT_SYNC = "none"', partial(run, unsynced, plain)),
                ('EVENT_SYNC = "commit"', partial(run, safe, plain)),
                ("on trio", partial(asyncio.to_thread, _on_trio, plain)),
            )
            for told, varied in variants:
                times = await in_turn(partial(run, runtime, plain), varied, effort.turns)
                yield Row(
                    workload=f"chain of {effort.tasks:,} {name} no-ops: {told}",
                    floor="gluepy without it",
                    floor_s=times[0],
                    gluepy_s=times[1],
                    tasks=effort.tasks,
                    detail=True,
                )


async def _watched(runtime: Runtime, workload: Workload) -> float:
    async def watch() -> None:
        async with runtime.stream_dag(workload.dag) as run:
            async for _ in run:
                pass

    return await seconds(watch())


def _on_trio(workload: Workload) -> float:
    return anyio.run(_second_run, workload, backend="trio")


async def _second_run(workload: Workload) -> float:
    async with Runtime() as runtime:
        await runtime.run_dag(workload.dag)
        return await seconds(runtime.run_dag(workload.dag))
