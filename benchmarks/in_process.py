"""Rows measured inside one process: a shared `Runtime`, warm, against floors on the same event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

from benchmarks import floors
from benchmarks.turns import Effort, Row, in_turn, seconds
from benchmarks.work import burn, calls, nothing, nothing_async
from benchmarks.workloads import (
    SLEEP_S,
    Burn,
    InProcess,
    InThread,
    OnLoop,
    Sleep,
    Workload,
    chain,
    fan_out,
    layered,
    side_by_side,
)
from gluepy import Runtime

AT_ONCE = 100  # sleeps
THREADS = 4
PROCESSES = 2

Floor = Callable[[], Awaitable[object]]


async def on_the_loop(effort: Effort) -> AsyncIterator[Row]:
    """Async no-ops: what a task costs."""
    count = effort.tasks
    line, layers = chain(OnLoop, count), layered(OnLoop, max(count // 50, 2), 100)
    async with Runtime() as runtime:
        for workload, name, aim in (
            (line, f"chain of {count:,} async no-ops", (1.5, 1.0)),
            (layers, f"layered {max(count // 50, 2)} × 100, 3 dependencies each, async no-ops", (1.25, 0.8)),
        ):
            for floor, told, detail in _loop_floors(workload):
                times = await _compare(runtime, workload, floor, effort)
                yield _row(name, told, workload, times, None if detail else aim, detail)
        async for row in _sleeps(runtime, effort):
            yield row


async def in_threads(effort: Effort) -> AsyncIterator[Row]:
    """Plain no-ops, in threads."""
    count = effort.tasks
    line, fan = chain(InThread, count), fan_out(InThread, count)
    async with Runtime() as runtime:
        for floor, told, detail in _loop_floors(line):
            times = await _compare(runtime, line, floor, effort)
            aim = None if detail else (3.0, 2.0)
            yield _row(f"chain of {count:,} sync no-ops in threads", f"{told}, async", line, times, aim, detail)
        with ThreadPoolExecutor(THREADS) as pool:
            for floor, told, detail in _pool_floors(fan, pool, THREADS):
                times = await _compare(runtime, fan, floor, effort, THREADS)
                aim = None if detail else (1.0, 0.7)
                yield _row(f"1 → {count:,} → 1 on {THREADS} threads", told, fan, times, aim, detail)


async def in_processes(effort: Effort) -> AsyncIterator[Row]:
    """Worker processes: what starting them costs, and what a call costs once they run."""
    count = 8 if effort.turns > 1 else 2
    burning = side_by_side(Burn, count)

    async def cold_floor() -> None:
        with ProcessPoolExecutor(PROCESSES) as pool:
            list(pool.map(burn, range(count)))

    async def cold() -> None:
        async with Runtime() as runtime:
            await runtime.run_dag(burning.dag, concurrency=PROCESSES)

    times = await in_turn(lambda: seconds(cold_floor()), lambda: seconds(cold()), effort.turns, warm=effort.turns > 1)
    name = f"{count} × 0.5 s of CPU on {PROCESSES} processes, cold"
    yield Row(
        workload=name,
        floor="ProcessPoolExecutor",
        floor_s=times[0],
        gluepy_s=times[1],
        aim=(1.1, 1.0),
    )
    fan = fan_out(InProcess, effort.tasks)
    async with Runtime() as runtime:
        with ProcessPoolExecutor(PROCESSES) as pool:
            for floor, told, detail in _pool_floors(fan, pool, PROCESSES):
                times = await _compare(runtime, fan, floor, effort, PROCESSES, counted=False)
                aim = None if detail else (1.0, 0.5)
                yield _row(
                    f"{effort.tasks:,} no-op calls on {PROCESSES} processes, warm", told, fan, times, aim, detail
                )


async def _sleeps(runtime: Runtime, effort: Effort) -> AsyncIterator[Row]:
    sleeping = side_by_side(Sleep, effort.tasks)
    ideal_s = effort.tasks / AT_ONCE * SLEEP_S

    async def ideal() -> float:
        return ideal_s

    async def ours() -> float:
        return await seconds(runtime.run_dag(sleeping.dag, concurrency=AT_ONCE))

    floor_s, gluepy_s = await in_turn(ideal, ours, effort.turns)
    yield Row(
        workload=f"{effort.tasks:,} × 10 ms sleeps on the loop, {AT_ONCE} at a time",
        floor="what the sleeps alone take",
        floor_s=floor_s,
        gluepy_s=gluepy_s,
        aim=(1.25, 1.15),
    )


def _loop_floors(workload: Workload) -> list[tuple[Floor, str, bool]]:
    async def documented() -> None:
        await floors.task_group(workload.graph, nothing_async, AT_ONCE)

    async def bare() -> None:
        await floors.bare_task_group(workload.graph, nothing_async)

    return [(documented, "TaskGroup", False), (bare, "TaskGroup, bare", True)]


def _pool_floors(workload: Workload, pool: Executor, concurrency: int) -> list[tuple[Floor, str, bool]]:
    async def documented() -> None:
        floors.futures(workload.graph, nothing, pool, concurrency)

    async def bare() -> None:
        floors.bare_futures(workload.graph, nothing, pool)

    name = type(pool).__name__
    return [(documented, name, False), (bare, f"{name}, bare", True)]


async def _compare(
    runtime: Runtime,
    workload: Workload,
    floor: Floor,
    effort: Effort,
    concurrency: int | None = None,
    *,
    counted: bool = True,
) -> tuple[list[float], list[float]]:
    """Run both in turn, and see that each ran every task."""
    tasks = len(workload.graph)

    async def theirs() -> float:
        taken_s = await seconds(floor())
        assert not counted or calls() == tasks
        return taken_s

    async def ours() -> float:
        taken_s = await seconds(runtime.run_dag(workload.dag, concurrency=concurrency))
        assert not counted or calls() == tasks
        return taken_s

    calls()
    return await in_turn(theirs, ours, effort.turns)


def _row(
    name: str,
    floor: str,
    workload: Workload,
    times: tuple[list[float], list[float]],
    aim: tuple[float, float] | None,
    detail: bool,
) -> Row:
    return Row(
        workload=name,
        floor=floor,
        floor_s=times[0],
        gluepy_s=times[1],
        tasks=len(workload.graph),
        aim=aim,
        detail=detail,
    )
