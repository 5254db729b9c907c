"""A process that outlives this one, however it ends, and then kills what tasks have started and left.

    gluepy run ── guard
          └────── whatever threads and loop tasks start

Worker processes have guards of their own, which are their parents. What threads and loop tasks start has this process
as its parent, and belongs to nobody once that is gone. So the guard knows it by what it has inherited: a mark in the
environment, or, if it was forked and executes nothing else, a copy of the socket to the guard. Who sheds both is known
as long as the guard has once seen it below this process.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from gluepy.exec.executors.leftovers import Process

MARK = "_GLUEPY_STARTED_BY"
_LOOK_S = 0.25  # between two looks at what is below the process that it guards
_CLEAN_S = 1.0  # how long the command waits for the guard at its end
_PATIENCE_S = 5.0  # how long the guard leaves worker processes to their own guards, and goes on looking


@contextmanager
def guarded(kills: bool, tell: Callable[[str], object]) -> Iterator[None]:
    """While the block runs, and after it, nothing that this process starts outlives it. What is left at the end of the
    block is told. Nothing of all that unless `kills`, or where there is no /proc."""
    if not kills or sys.platform != "linux":
        yield
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mark = f"{os.getpid()}-{os.urandom(8).hex()}"
    before = os.environ.get(MARK)
    driver = os.getpid()
    os.environ[MARK] = mark
    guard = os.fork()
    if not guard:
        _be_the_guard(driver, theirs, f"{MARK}={mark}".encode(), f"socket:[{os.fstat(ours.fileno()).st_ino}]")
    theirs.close()
    try:
        yield
    finally:
        if os.getpid() == driver:
            if before is None:
                os.environ.pop(MARK, None)
            else:
                os.environ[MARK] = before
            _dismiss(guard, ours, tell)


def _dismiss(guard: int, line: socket.socket, tell: Callable[[str], object]) -> None:
    """Have the guard clean up, and end."""
    try:
        if _has_started_something(guard):
            from gluepy.exec.executors import leftovers

            leftovers.end_pools()
            line.settimeout(_CLEAN_S)
            with suppress(OSError):
                line.send(b"end")
                killed = line.recv(1 << 16).decode("utf-8", "replace")
                if killed:
                    tell(f"killed what tasks had left running: {killed}")
                os.waitpid(guard, 0)
                return
        else:
            os.kill(guard, signal.SIGKILL)
            if not os.waitpid(guard, os.WNOHANG)[0]:
                atexit.register(_bury, guard)  # it takes its time, and there is more to do
    except OSError:
        pass  # somebody has killed it, or has waited for all children
    finally:
        line.close()  # if it is still at work, it ends when it is done


def _bury(guard: int) -> None:
    with suppress(OSError):
        os.waitpid(guard, 0)


def _has_started_something(guard: int) -> bool:
    """Whether this process has had other children. Asked without looking through all processes."""
    try:
        with open("/proc/self/stat", "rb") as file:
            if file.read().rpartition(b")")[2].split()[8] != b"0":  # page faults of children that it has waited for
                return True
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", "rb") as file:
                if file.read().split() not in ([], [b"%d" % guard]):
                    return True
    except OSError:  # a thread has ended, or the kernel does not tell
        return True
    return False


# --- the guard


def _be_the_guard(driver: int, line: socket.socket, mark: bytes, descriptor: str) -> NoReturn:
    try:
        _hide(line)
        _Guard(driver, line, mark, descriptor).watch()
    finally:
        os._exit(0)


def _hide(line: socket.socket) -> None:
    """Be out of the way of signals to the command's group or terminal, of its pipes, and of its folder."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.closerange(3, line.fileno())
    os.closerange(line.fileno() + 1, 1 << 20)


class _Guard:
    def __init__(self, driver: int, line: socket.socket, mark: bytes, descriptor: str) -> None:
        self._driver, self._line, self._mark, self._descriptor = driver, line, mark, descriptor
        self._seen: dict[int, Process] = {}

    def watch(self) -> None:
        """Wait for the end of the driver, by its own word or without one."""
        poller = select.poll()
        poller.register(self._line, select.POLLIN)
        handle = -1
        with suppress(OSError):  # an old kernel: it looks again and again
            handle = os.pidfd_open(self._driver)
            poller.register(handle, select.POLLIN)
        while os.getppid() == self._driver:
            events = [descriptor for descriptor, _ in poller.poll(_LOOK_S * 1000)]
            if handle in events:
                break
            if events:
                poller.unregister(self._line)
                if self._line.recv(16):
                    with suppress(OSError):
                        self._line.send(
                            ", ".join(map(str, self._clean(_CLEAN_S / 2, driver_lives=True)))[: 1 << 15].encode()
                        )
                    return
            self._look()
        self._clean(_PATIENCE_S)

    @staticmethod
    def _find() -> Any:
        from gluepy.exec.executors import leftovers  # a short run is over before its guard needs it

        return leftovers

    def _look(self) -> None:
        """Get to know what is below the driver."""
        find = self._find()
        own = os.getpid()
        self._seen = {pid: process for pid, process in self._seen.items() if find.process_of(pid) == process}
        for pid in find.below([self._driver]):
            if pid != own and pid not in self._seen and (process := find.process_of(pid)) is not None:
                self._seen[pid] = process

    def _clean(self, within_s: float, driver_lives: bool = False) -> list[Process]:
        """Kill what the driver has left, until there is nothing. Returns what of it tasks have started."""
        find, killed = self._find(), dict[int, "Process"]()
        end = time.monotonic() + within_s
        while True:
            self._look()
            left = self._left()
            workers = {pid for pid in left if find.is_worker(pid)}
            servers = {pid for pid in left if find.is_server(pid)}  # they clean up when whom they serve is gone
            if driver_lives:
                own = servers.intersection(find.children(self._driver))
                servers -= own
                left = {pid: process for pid, process in left.items() if pid not in own}
            if (workers or servers) and time.monotonic() < end - within_s / 2:
                spared = {*workers, *find.below(workers), *servers}
                left = {pid: process for pid, process in left.items() if pid not in spared}
            elif not left:
                break
            find.kill(left.values())
            ours = {
                *workers,
                *servers,
            }  # on a busy machine they take longer to end by themselves: no task has left them
            killed.update({pid: process for pid, process in left.items() if pid not in ours})
            if time.monotonic() > end:
                break
            time.sleep(0.002)
        return list(killed.values())

    def _left(self) -> dict[int, Process]:
        """What was started by the driver and is alive, by process id."""
        find = self._find()
        left = {pid: process for pid, process in self._seen.items() if find.process_of(pid) == process}
        for pid in find.marked(self._mark, self._descriptor):
            if (process := find.process_of(pid)) is not None:
                left[pid] = process
        for pid in find.below(list(left)):
            if (process := find.process_of(pid)) is not None:
                left[pid] = process
        for pid in (self._driver, os.getpid()):
            left.pop(pid, None)
        return left
