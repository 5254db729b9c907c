"""Worker threads: long-lived, cancelled work is taken back or told, and the loop stays everybody's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from steps import Go

from gluepy import Task, parallel
from gluepy.exec.executors.threads import Threads
from gluepy.testing import settle, until

ambient: ContextVar[str] = ContextVar("ambient", default="unset")


class HeldBack(Threads):
    """Its threads begin when they may."""

    def __init__(self) -> None:
        super().__init__()
        self.begin = threading.Event()

    def _serve(self) -> None:
        self.begin.wait(240)
        super()._serve()


async def test_work_that_is_cancelled_before_a_thread_took_it_never_begins() -> None:
    told: list[str] = []

    async def call(threads: Threads) -> None:
        await threads.run(
            lambda: told.append("work"), lambda: told.append("abandoned"), lambda: told.append("released")
        )

    async with HeldBack() as threads:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, threads)
            await settle()
            tasks.cancel_scope.cancel()
        threads.begin.set()
        assert await threads.run(lambda: "next", lambda: None, lambda: None) == "next"
    assert told == []


async def test_work_that_is_cancelled_later_is_told_as_abandoned_and_when_it_ends_as_released() -> None:
    told: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(240)

    async def call(threads: Threads) -> None:
        await threads.run(work, lambda: told.append("abandoned"), lambda: told.append("released"))

    async with Threads() as threads:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, threads)
            await until(begun.is_set)
            tasks.cancel_scope.cancel()
        assert told == ["abandoned"]
        go_on.set()
        await until(lambda: told == ["abandoned", "released"])


class Heard(Threads):
    """Says when a thread has rung."""

    def __init__(self) -> None:
        super().__init__()
        self.rung = threading.Event()

    def ring(self, call: Callable[..., object], *args: object) -> None:
        super().ring(call, *args)
        self.rung.set()


async def test_work_that_ends_just_before_it_is_cancelled_is_not_abandoned_for_ever() -> None:
    told: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(240)

    async def call(threads: Threads) -> None:
        await threads.run(work, lambda: told.append("abandoned"), lambda: told.append("released"))

    async with Heard() as threads:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, threads)
            await until(begun.is_set)
            go_on.set()
            assert threads.rung.wait(240)  # the loop, held up here, has not heard of it yet
            tasks.cancel_scope.cancel()
        await settle()
    assert told in ([], ["abandoned", "released"])


async def test_threads_are_used_again() -> None:
    async with Threads() as threads:
        seen = {await threads.run(threading.get_ident, lambda: None, lambda: None) for _ in range(20)}
    assert len(seen) == 1


async def test_what_work_raises_comes_out_of_its_call() -> None:
    def work() -> None:
        raise ZeroDivisionError

    async with Threads() as threads:
        with pytest.raises(ZeroDivisionError):
            await threads.run(work, lambda: None, lambda: None)


@pytest.mark.parametrize("pool", ["thread", "loop"])
async def test_context_variables_of_the_caller_are_seen_by_its_tasks(go: Go, pool: str) -> None:
    seen: list[str] = []

    class Plain(Task):
        def run(self) -> Any:
            seen.append(ambient.get())
            ambient.set("changed")

    class Async(Plain):
        async def run(self) -> None:
            Plain.run(self)

    kind = Plain if pool == "thread" else Async
    token = ambient.set("caller's")
    try:
        await go(kind(id="a"), kind(id="b"))
        assert ambient.get() == "caller's"
    finally:
        ambient.reset(token)
    assert seen == ["caller's", "caller's"]


async def test_tasks_that_never_wait_leave_the_loop_to_others_now_and_then(go: Go) -> None:
    seen: set[int] = set()
    ticks = 0

    class Quick(Task):
        number: int

        async def run(self) -> None:
            seen.add(ticks)

    async def tick() -> None:
        nonlocal ticks
        while True:
            await anyio.lowlevel.checkpoint()
            ticks += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        await go(parallel(*(Quick(number=number) for number in range(5000))), concurrency=1)
        tasks.cancel_scope.cancel()
    assert len(seen) > 3  # the tasks took far longer than three times what they may keep the loop for
