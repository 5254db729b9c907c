"""Floors: what the standard library alone needs for the same graph, without a log, results, retries or anything else.

`task_group` and `futures` are the patterns of the standard library's own documentation, with a bound on what runs at
once. The `bare_` ones are the fewest steps that we know of: no bound, no queue between the tasks and the sorter.
"""

from __future__ import annotations

import asyncio
import graphlib
import queue
from collections.abc import Awaitable, Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait

from benchmarks.graphs import Graph


async def task_group(graph: Graph, work: Callable[[int], Awaitable[None]], concurrency: int) -> None:
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


async def bare_task_group(graph: Graph, work: Callable[[int], Awaitable[None]]) -> None:
    """graphlib and asyncio.TaskGroup: whatever is ready is started at once."""
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()
    async with asyncio.TaskGroup() as group:

        async def run(node: int) -> None:
            await work(node)
            sorter.done(node)
            start()

        def start() -> None:
            for node in sorter.get_ready():
                group.create_task(run(node))

        start()


def futures(graph: Graph, work: Callable[[int], object], pool: Executor, concurrency: int) -> None:
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


def bare_futures(graph: Graph, work: Callable[[int], object], pool: Executor) -> None:
    """graphlib and concurrent.futures: whatever is ready is handed in at once, and calls back when it is done."""
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()
    done: queue.SimpleQueue[Future[object]] = queue.SimpleQueue()
    running: dict[Future[object], int] = {}
    while sorter.is_active():
        for node in sorter.get_ready():
            future = pool.submit(work, node)
            running[future] = node
            future.add_done_callback(done.put)
        future = done.get()
        future.result()
        sorter.done(running.pop(future))
