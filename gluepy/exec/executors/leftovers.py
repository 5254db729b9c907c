"""Processes that tasks have started and left: found by who started them, by an inherited mark, told and killed.

Linux only: elsewhere nothing is found here.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

_LINUX = sys.platform == "linux"
_TICKS_S = 1 / os.sysconf("SC_CLK_TCK") if _LINUX else 0.01
_WORKER = os.fsencode(os.path.join(os.path.dirname(__file__), "worker.py"))
_SERVERS = (b"resource_tracker import main", b"multiprocessing.forkserver import main")
_POOLS = ("joblib.externals.loky.reusable_executor", "loky.reusable_executor")
_POOL_ENDS_S = 1.0


class Process(NamedTuple):
    """One of them. `began` is when, in ticks of the kernel's: with it, `pid` cannot mean another process."""

    pid: int
    began: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def process_of(pid: int) -> Process | None:
    """The living process `pid`."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, tail = file.read().rpartition(b")")
    except OSError:
        return None
    fields = tail.split()
    if len(fields) < 21 or fields[0] in (b"Z", b"X") or fields[20] == b"0":  # without memory: it is ending, too
        return None
    return Process(pid, int(fields[19]), head.partition(b"(")[2].decode("utf-8", "replace"))


def children_of(thread: int, since_s: float = 0.0) -> list[Process]:
    """The living processes that a thread of this one has started (or inherited from a thread that has ended), since
    `time.monotonic()` was `since_s`."""
    try:
        with open(f"/proc/self/task/{thread}/children", "rb") as file:
            pids = list(map(int, file.read().split()))
    except OSError:
        return []
    found = [
        process
        for pid in pids
        if (process := process_of(pid)) is not None and not is_worker(pid) and not is_server(pid)
    ]
    if since_s and found:
        began_s = since_s + time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        found = [process for process in found if process.began * _TICKS_S > began_s - _TICKS_S]
    return found


def threads() -> list[int]:
    """The ids of this process's threads, as the kernel has them."""
    try:
        return list(map(int, os.listdir("/proc/self/task")))
    except OSError:
        return []


def is_worker(pid: int) -> bool:
    """Whether it is a worker process of ours, or the guard of one: they see to their own ends."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return _WORKER in file.read().split(b"\0")
    except OSError:
        return False


def is_server(pid: int) -> bool:
    """Whether it is a resource tracker or a fork server, multiprocessing's or joblib's. Whichever task was the first to
    need it has started it, but it serves all; it ends, and cleans up, as soon as the process that it serves is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read(4096)
    except OSError:
        return False
    return any(server in line for server in _SERVERS)


def end_pools() -> None:
    """End the pool that joblib keeps for its next call, and wait for its processes. One that is at work is not waited
    for longer than `_POOL_ENDS_S`."""
    for name in _POOLS:
        executor = getattr(sys.modules.get(name), "_executor", None)
        if executor is None:
            continue
        pids = list(executor._processes or ())
        executor.shutdown(wait=False)
        end = time.monotonic() + _POOL_ENDS_S
        while any(process_of(pid) is not None for pid in pids) and time.monotonic() < end:
            time.sleep(0.005)


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`."""
    from gluepy.exec.executors.worker import _children

    return _children(pid)


def below(pids: Iterable[int]) -> Iterator[int]:
    """The descendants of `pids`."""
    tree = list(pids)
    for pid in tree:
        found = children(pid)
        tree.extend(found)
        yield from found


def marked(mark: bytes, descriptor: str) -> Iterator[int]:
    """The processes of this user that have `mark` in their environment, or a copy of the descriptor of that name: those
    that were started by who had them, however far they went from there."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    yield int(name)
                    continue
            for number in os.listdir(f"/proc/{name}/fd"):
                if os.readlink(f"/proc/{name}/fd/{number}") == descriptor:
                    yield int(name)
                    break
        except OSError:
            continue  # another user's, or gone


def kill(processes: Iterable[Process]) -> None:
    """Kill them, but nobody who has got the id of one in the meantime."""
    for process in processes:
        try:
            handle = os.pidfd_open(process.pid)
        except OSError:
            continue
        try:
            now = process_of(process.pid)
            if now is not None and now.began == process.began:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except OSError:
            pass
        finally:
            os.close(handle)


def kill_with_descendants(processes: Collection[Process]) -> list[Process]:
    """Kill them and all below them. Returns whom."""
    family = {process.pid: process for process in processes}
    for pid in below(list(family)):
        if not is_server(pid) and (process := process_of(pid)) is not None:
            family[pid] = process
    kill(family.values())
    return list(family.values())
