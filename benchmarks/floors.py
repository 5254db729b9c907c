"""Floors: what the standard library alone needs for the same graph, without a log, results, retries or anything else.

A graph is a mapping of each task to what it depends on, as graphlib takes it.
"""

from __future__ import annotations

import asyncio
import graphlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait

Dependencies = Mapping[int, Sequence[int]]


async def task_group(graph: Dependencies, work: Callable[[int], Awaitable[None]], concurrency: int) -> None:
    """graphlib and asyncio.TaskGroup: a task a node, at most `concurrency` at a time."""
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()
    done: asyncio.Queue[int] = asyncio.Queue()

    async def run(node: int) -> None:
        await work(node)
        done.put_nowait(node)

    async with asyncio.TaskGroup() as group:
        ready: list[int] = []
        running = 0
        while sorter.is_active():
            ready.extend(sorter.get_ready())
            while ready and running < concurrency:
                group.create_task(run(ready.pop()))
                running += 1
            sorter.done(await done.get())
            running -= 1


def futures(graph: Dependencies, work: Callable[[int], object], pool: Executor, concurrency: int) -> None:
    """graphlib and concurrent.futures: a future a node, at most `concurrency` at a time."""
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()
    running: dict[Future[object], int] = {}
    ready: list[int] = []
    while sorter.is_active():
        ready.extend(sorter.get_ready())
        while ready and len(running) < concurrency:
            node = ready.pop()
            running[pool.submit(work, node)] = node
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            future.result()
            sorter.done(running.pop(future))
