"""The agent of a process whose engine calls plain functions in threads, and of `python -m`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotYet

import anyio
from anyio.from_thread import BlockingPortal

from gluepy.exec.executors.remote.agent import Agent, Lease, Tell
from gluepy.exec.executors.remote.fence import Fence
from gluepy.exec.executors.remote.messages import key_in
from gluepy.loop import run_loop

_LOOK_S = 0.25  # between two looks whether an attempt is still wanted
_STOPPED_S = 15.0  # longer than an agent takes to kill an attempt


class AgentThread:
    """A thread with an event loop, in which an agent lives. A daemon: the process ends when the engine has it end, and
    the guards then kill what runs.

    A subclass's `serve` opens what the loop is to have, sets `is_ready`, and returns when `is_over` is set, which it
    makes. Whatever it raises before it is ready, the constructor raises. `portal` is how other threads call into the
    loop.
    """

    portal: BlockingPortal
    is_over: anyio.Event

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.is_ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="gluepy-agent", daemon=True)
        self._thread.start()
        self.is_ready.wait()
        if self._error is not None:
            raise self._error

    async def serve(self) -> None:
        """See the class."""
        raise NotImplementedError

    def close(self) -> None:
        """Have `serve` end, and wait for it: what runs is killed."""
        self.portal.call(self.is_over.set)
        self._thread.join()

    def _main(self) -> None:
        try:
            run_loop(self.serve)
        except BaseException as error:
            self._error = error
            self.is_ready.set()


class _Thread(AgentThread):
    def __init__(self, worker: str, own: bool, fence: Fence | None) -> None:
        self.leases: dict[str, tuple[Lease, threading.Event]] = {}
        self._agent = Agent(worker, own=own, fence=fence)
        super().__init__()

    def run(self, text: str, tell: Tell, is_wanted: Callable[[], bool] | None, lease: Lease) -> str:
        future = self.portal.start_task_soon(self._agent.run, text, tell, lease)
        while True:
            try:
                return future.result(None if is_wanted is None else _LOOK_S)
            except NotYet:
                if is_wanted is not None and not is_wanted():
                    lease.cancel()
                    is_wanted = None

    async def serve(self) -> None:
        self.is_over = anyio.Event()
        async with BlockingPortal() as self.portal, self._agent:
            self.is_ready.set()
            await self.is_over.wait()


_lock = threading.Lock()
_thread: _Thread | None = None


def run_here(
    text: str,
    tell: Tell,
    is_wanted: Callable[[], bool] | None = None,
    *,
    worker: str = "",
    own: bool = False,
    fence: Fence | None = None,
    lease: Lease | None = None,
) -> str:
    """Run the attempt that the driver's `text` describes, and return its last report: `Agent.run`, for a thread that
    may wait. `tell` is called in another thread.

    The process's agent is made on the first call, with `worker`, `own` and `fence` as `Agent` has them. `is_wanted` is
    asked four times a second; when it says no, the attempt is killed.
    """
    key, lease = key_in(text), lease or Lease()
    thread = _thread_of_process(worker, own, fence)
    ended = threading.Event()
    thread.leases[key] = lease, ended
    try:
        return thread.run(text, tell, is_wanted, lease)
    finally:
        ended.set()
        if thread.leases.get(key) == (lease, ended):
            del thread.leases[key]


def cancel_here(key: str) -> bool:
    """Kill the attempt that `run_here` runs in this process, with all its descendants, and wait until that is done.
    Returns whether it is; True also if there is no such attempt."""
    thread = _thread
    found = thread.leases.get(key) if thread is not None and thread.pid == os.getpid() else None
    if found is None:
        return True
    lease, ended = found
    lease.cancel()
    return ended.wait(_STOPPED_S)


def close_here() -> None:
    """End the agent of this process, if there is one, and kill what it runs. For engines that tell a process when it
    has served; no attempt comes meanwhile."""
    global _thread
    with _lock:
        thread, _thread = _thread, None
    if thread is not None and thread.pid == os.getpid():
        thread.close()


def _thread_of_process(worker: str, own: bool, fence: Fence | None) -> _Thread:
    global _thread
    with _lock:
        if _thread is None or _thread.pid != os.getpid():  # an engine may fork its workers from one that has run some
            _thread = _Thread(worker, own, fence)
        return _thread
