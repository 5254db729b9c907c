"""Tasks that fork, and what their children tell."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from gluepy import Task, current_task

FORK = multiprocessing.get_context("fork")


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tell(number: int) -> int:
    """What a child does."""
    task = current_task()
    task.metric(f"loss-{number}", number)
    task.progress(number, 4)
    sys.stdout.write(f"printed {number}\n")
    task.log.info("logged", number=number)
    return number


def by_executor() -> list[int]:
    with ProcessPoolExecutor(2, mp_context=FORK) as pool:
        return list(pool.map(tell, range(4)))


def by_pool() -> list[int]:
    with FORK.Pool(2) as pool:
        return pool.map(tell, range(4))


def by_processes() -> list[int]:
    children = [FORK.Process(target=tell, args=(number,)) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return [number for number, child in enumerate(children) if child.exitcode == 0]


def by_fork() -> list[int]:
    ended = []
    for number in range(4):
        child = os.fork()
        if not child:
            tell(number)
            os._exit(0)
        os.waitpid(child, 0)
        ended.append(number)
    return ended


def by_grandchildren() -> list[int]:
    child = FORK.Process(target=by_fork)
    child.start()
    child.join()
    return list(range(4))


WAYS: dict[str, Callable[[], list[int]]] = {
    way.__name__: way for way in (by_executor, by_pool, by_processes, by_fork, by_grandchildren)
}


class Fork(Task):
    way: str

    def run(self) -> None:
        assert WAYS[self.way]() == [0, 1, 2, 3]


class ProcessFork(Fork):
    pool = "process"


class LoopFork(Task):
    way: str

    async def run(self) -> None:
        assert WAYS[self.way]() == [0, 1, 2, 3]


class Methods(Task):
    """Its own methods are what the pool is to call: the task travels there by pickle."""

    def fit(self, number: int) -> int:
        self.metric(f"loss-{number}", number)
        return number

    def run(self) -> None:
        with ProcessPoolExecutor(2, mp_context=FORK) as pool:
            assert list(pool.map(self.fit, range(4))) == [0, 1, 2, 3]


class ProcessMethods(Methods):
    pool = "process"


class FromAThread(Methods):
    """Forks in a thread of its own, which has no context."""

    def run(self) -> None:
        child = FORK.Process(target=self.fit, args=(1,))
        thread = threading.Thread(target=child.start)
        thread.start()
        thread.join()
        child.join()
        assert child.exitcode == 0


class Anew(Task):
    """Uses processes that are started anew, and know nothing."""

    def run(self) -> None:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(tell, range(1)))


class ProcessAnew(Anew):
    pool = "process"


class Returns(Task):
    """Its child comes back from `run()`, by `way`; the exit status of that is a metric."""

    way: str

    def run(self) -> Any:
        return self.both()

    def both(self) -> None:
        child = os.fork()
        if not child:
            self.metric("in the child", 1)
            print("child of", self.way)
            if self.way == "raise":
                raise ValueError("the child's own")
            if self.way == "exit":
                sys.exit(3)
            return
        self.metric("status", status_of(child))


class ProcessReturns(Returns):
    pool = "process"


class LoopReturns(Returns):
    async def run(self) -> None:
        self.both()


class Awaits(Task):
    """Its child goes on to an `await`."""

    async def run(self) -> None:
        import anyio

        child = os.fork()
        await anyio.sleep(0.001)
        assert child, "a child must not come here"
        self.metric("status", status_of(child))


class AwaitsInATaskOfItsOwn(Task):
    async def run(self) -> None:
        import anyio

        async with anyio.create_task_group() as group:
            group.start_soon(self.fork)

    async def fork(self) -> None:
        import anyio

        child = os.fork()
        for _ in range(20):
            await anyio.sleep(0.05)
            if child:
                break
        assert child, "a child must not come here"
        self.metric("status", status_of(child))


class Handlers(Task):
    """Tells what its child does at SIGINT: what Python does."""

    def run(self) -> None:
        child = os.fork()
        if not child:
            os._exit(0 if signal.getsignal(signal.SIGINT) is signal.default_int_handler else 1)
        self.metric("status", status_of(child))


class ProcessHandlers(Handlers):
    pool = "process"


class Late(Task):
    """Its child tells when the attempt has ended."""

    def run(self) -> None:
        if os.fork():
            return
        os.read(LATE[0], 1)
        try:
            self.metric("late", 1)
        except BaseException as error:
            os.write(SAID[1], str(error).encode())
        os._exit(0)


LATE, SAID = os.pipe(), os.pipe()


class Floods(Task):
    """Its child tells more than a socket holds, in lines of all lengths, and is not waited for before."""

    def run(self) -> None:
        child = os.fork()
        if not child:
            for number in range(2_000):
                self.metric("number", number)
            print("ä" * 60_000)
            print("no newline", end="")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
