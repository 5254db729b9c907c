"""One worker process and its guard, as the driver has them: how they are started, and how they are killed."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import anyio
import anyio.to_thread

from gluepy.errors import ExecutorBroken
from gluepy.exec.executors import worker as worker_main
from gluepy.exec.executors.processes.ending import Ended
from gluepy.exec.executors.worker import NOTE

WHO = "worker processes"
CHUNK = 64 * 1024
_TAIL_CAP = 1024 * 1024  # bytes of output that are looked for behind a dead worker


class WorkerProcess:
    """The driver's ends of its pipes: `calls` leads to the worker, `answers` comes from it, `pipes` have what is
    printed to `stdout` and `stderr`. `life` is the guard's socket. `selector` knows which of them can be read."""

    def __init__(self, name: str, grace_s: float) -> None:
        self.name, self.grace_s = name, grace_s
        self.pid = 0  # the worker's, not the guard's; known from its first words
        self.end: Ended | None = None  # as soon as the guard has told
        self.calls = self.answers = -1
        self.pipes: dict[int, str] = {}
        self.selector: selectors.DefaultSelector
        self._popen: subprocess.Popen[bytes] | None = None

    async def start(self, limiter: anyio.CapacityLimiter) -> None:
        """Start it; what is sent before it is up waits in the socket. Raises `ExecutorBroken`."""
        theirs: list[int] = []
        try:
            self.life, life = _socketpair(theirs)
            # pipes: who reads from a socket wakes up who waits for the next call at its other end
            calls, self.calls = _pipe(theirs, ours=1)
            self.answers, answers = _pipe(theirs, ours=0)
            printing = {}
            for stream in ("stdout", "stderr"):
                pipe, printing[stream] = _pipe(theirs, ours=0)
                self.pipes[pipe] = stream
            self.selector = selectors.DefaultSelector()
            for end in (self.answers, self.life.fileno(), *self.pipes):
                self.selector.register(end, selectors.EVENT_READ)
        except OSError as error:
            _close(theirs)
            raise _cannot_start(error) from error
        command = [
            *(sys.executable, *_interpreter_flags(), "-P", worker_main.__file__),
            *(str(calls), str(answers), str(life), str(os.getpid())),
        ]
        owner = [theirs]  # whoever takes them out closes them: a thread that began cannot be called back

        def popen() -> subprocess.Popen[bytes]:
            descriptors = owner.pop()
            try:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=printing["stdout"],
                    stderr=printing["stderr"],
                    pass_fds=(calls, answers, life),
                    start_new_session=True,
                )
            finally:
                _close(descriptors)

        try:
            self._popen = await anyio.to_thread.run_sync(popen, limiter=limiter)
        except OSError as error:
            raise _cannot_start(error) from error
        finally:
            with suppress(IndexError):
                _close(owner.pop())

    def order(self, kind: bytes, memory_mb: float = 0.0, earlier_mb: float = 0.0) -> None:
        """Tell the guard."""
        with suppress(OSError):
            self.life.send(NOTE.pack(kind, 0, memory_mb, earlier_mb, 0.0, 0.0))

    async def kill(self) -> None:
        """Kill the worker and all its descendants and return when they are gone. Shielded and bounded by `grace_s`."""
        if self._popen is None:
            return
        with anyio.CancelScope(shield=True):
            self.order(worker_main.KILL)
            with anyio.move_on_after(self.grace_s):
                await self._until_guard_ended()
                await self._until_reaped(self._popen)
            if self._popen.poll() is None:
                self._popen.kill()
                with anyio.move_on_after(self.grace_s):
                    await self._until_reaped(self._popen)
            if self.pid and self._popen.returncode != 0:  # the guard was killed, perhaps not by us
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)

    async def _until_guard_ended(self) -> None:
        told = b""
        with suppress(OSError):
            while True:
                try:
                    data = self.life.recv(CHUNK)
                    if not data:
                        break
                    told += data
                except BlockingIOError:
                    await anyio.wait_readable(self.life)
        note = told[-NOTE.size :]
        if note[:1] in (worker_main.ENDED, worker_main.OVER):
            self.end = Ended(note)

    async def _until_reaped(self, popen: subprocess.Popen[bytes]) -> None:
        pause = 0.0
        while popen.poll() is None:
            await anyio.sleep(pause)
            pause = min(pause + 0.0002, 0.02)

    def tail(self, pipe: int) -> bytes:
        """What the dead left in the pipe."""
        tail = bytearray()
        with suppress(BlockingIOError):
            while len(tail) < _TAIL_CAP and (data := os.read(pipe, CHUNK)):
                tail += data
        return bytes(tail)

    def close(self) -> None:
        """Close the driver's ends."""
        for name in ("selector", "life"):
            if hasattr(self, name):  # else it could not be had
                getattr(self, name).close()
        _close([end for end in (self.calls, self.answers, *self.pipes) if end >= 0])
        self.calls = self.answers = -1
        self.pipes = {}


def _interpreter_flags() -> list[str]:
    # as multiprocessing has them, which is why it stays; typeshed leaves out what begins with an underscore
    flags: Callable[[], list[str]] = subprocess._args_from_interpreter_flags  # type: ignore[attr-defined]
    return flags()


def _cannot_start(error: OSError) -> ExecutorBroken:
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        hint = "see `ulimit -a` for what this user may have, or lower concurrency"
    else:
        hint = f"sys.executable = {sys.executable!r} must be a Python interpreter"
    return ExecutorBroken(WHO, f"cannot start one: {error}", hint)


def _socketpair(theirs: list[int]) -> tuple[socket.socket, int]:
    ours, other = socket.socketpair()
    ours.setblocking(False)
    theirs.append(other.detach())
    return ours, theirs[-1]


def _pipe(theirs: list[int], ours: int) -> tuple[int, int]:
    """Its reading and its writing end; that of the number `ours` does not block, the other is `theirs`."""
    ends = os.pipe()
    os.set_blocking(ends[ours], False)
    theirs.append(ends[1 - ours])
    return ends


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
