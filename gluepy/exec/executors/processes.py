"""Worker processes: a pool that runs functions in processes which may be killed at any time without harm to others.

The pool knows nothing of tasks. A call names a function (`"module:function"`) and carries bytes; the function gets
them in a worker process, may send messages while it runs, and returns bytes. What the worker and everything below it
print is passed on line by line. A worker that dies takes only its own call with it (`WorkerLost`); cancelling a call
kills its worker with every descendant.

A worker is used again only when its call left it as it was. A call that leaves children behind (dead or alive, also
such as left its process group or session), or threads that are not daemons, or that replaced or closed the standard
streams, costs the worker: it is killed with all of them before the call returns. Working directory, SIGINT handler
and timer are put back. Daemon threads live on; what they print between calls is dropped, during a later call it counts
as that call's.

Linux is what this is made for. On macOS descendants that left the worker's process group survive it; Windows is
refused.
"""

from __future__ import annotations

import errno
import marshal
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel
import anyio.to_thread

from gluepy.errors import ExecutorBroken, GluepyError, OptionError
from gluepy.exec.executors import worker as far_end
from gluepy.exec.executors.cgroup import OomKills
from gluepy.exec.executors.worker import FRAME, GREETING, NOTE, REPLY
from gluepy.loop import readable

if sys.platform != "win32":
    import fcntl
    import termios

OnLine = Callable[[str, str], None]
OnMessage = Callable[[bytes], None]
OnKilled = Callable[["Killed"], None]

LINE_CAP = 64 * 1024  # bytes of a line that are passed on
TAIL_CAP = 1024 * 1024  # bytes of output that are looked for behind a dead worker
CHUNK = 64 * 1024
_WHO = "worker processes"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call returned, and where and how it ran.

    `cpu_s` is user and system time of the worker during the call, all threads, and of the children that ended and were
    waited for in it. `peak_rss_mb` is the worker's own peak during the call (the kernel's high-water mark, set back at
    its start; so what earlier calls left allocated counts), or that of the largest child that ended in it, if that is
    more than any earlier child's; for a call with a memory limit also the largest sum that was seen while watching it.
    """

    body: bytes
    pid: int
    worker: str
    cpu_s: float
    peak_rss_mb: float


@dataclass(frozen=True, slots=True)
class Killed:
    """Where a call ran, and what it used until its worker was killed or died by itself.

    `cpu_s` counts from the end of the worker's previous call. `peak_rss_mb` is None where it cannot be told: when an
    earlier call of the worker had a child that was larger than anything in this one.
    """

    worker: str
    pid: int
    cpu_s: float | None
    peak_rss_mb: float | None


class WorkerLost(GluepyError):
    """The worker process died, or was killed for its memory, before its call was done. The pool is not affected.

    `exit_code` or `signal` says how (the other is None; both are None when nobody can tell), `description` the same in
    words, with the peak of its memory. `oom` is True only with evidence: the kernel counted an out-of-memory kill in
    this control group during the call. `killed_for_memory` is True when the pool killed it because its processes used
    more than `memory_mb`. `cpu_s` and `peak_rss_mb` are those of `Killed`.
    """

    def __init__(
        self,
        worker: str,
        pid: int,
        exit_code: int | None,
        signal: int | None,
        description: str,
        mend: str = "",
        peak_rss_mb: float | None = None,
        memory_mb: int | None = None,
        oom: bool = False,
        killed_for_memory: bool = False,
        cpu_s: float | None = None,
    ) -> None:
        super().__init__(
            worker, pid, exit_code, signal, description, mend, peak_rss_mb, memory_mb, oom, killed_for_memory, cpu_s
        )
        self.worker, self.pid = worker, pid
        self.exit_code, self.signal = exit_code, signal
        self.description, self.mend = description, mend
        self.peak_rss_mb, self.memory_mb = peak_rss_mb, memory_mb
        self.oom, self.killed_for_memory = oom, killed_for_memory
        self.cpu_s = cpu_s

    def __str__(self) -> str:
        text = f"worker {self.worker} (pid {self.pid}): {self.description}"
        return f"{text}; {self.mend}" if self.mend else text


class EntryFailed(GluepyError):
    """The function that a call names raised, or could not be run at all.

    `phase` says where: `prepare` (the main script could not be imported by the worker), `import` (the function's
    module), `call`, `result` (it returned something else than bytes). `type` and `message` are the error's, `stack` is
    its traceback in the worker, as text.
    """

    def __init__(self, entry: str, phase: str, type: str, message: str, stack: str) -> None:
        super().__init__(entry, phase, type, message, stack)
        self.entry, self.phase, self.type, self.message, self.stack = entry, phase, type, message, stack

    @property
    def summary(self) -> str:
        """What happened and what to do, without the traceback."""
        error = f"{self.type}: {self.message}" if self.message else self.type
        match self.phase:
            case "prepare":
                return (
                    f"a worker process could not import the main script: {error}; put what the script runs under"
                    ' `if __name__ == "__main__":`, or move the classes and functions that it shares to a module'
                )
            case "import":
                return f"a worker process could not import {self.entry!r}: {error}"
            case "result":
                return f"the result of {self.entry!r} cannot be sent: {error}"
            case _:
                return f"{self.entry!r} failed in a worker process: {error}"

    def __str__(self) -> str:
        return f"{self.summary}\n\n{self.stack.rstrip()}"


def importing_main() -> bool:
    """Whether this process is a worker (ours or multiprocessing's) that is just importing the driver's main script.

    Nothing must be started then: the script has no main guard, and each start would start the next.
    """
    process = sys.modules.get("multiprocessing.process")
    return process is not None and bool(getattr(process.current_process(), "_inheriting", False))


class WorkerPool:
    """Worker processes, started as calls need them and used again, the last one first.

        async with WorkerPool() as pool:
            reply = await pool.call("module:function", ("key", shared), payload, on_line=…, on_message=…)

    How many calls run at once is the callers' business; each has a worker of its own. Workers that nobody used for
    `idle_s` are stopped. Leaving the pool kills all workers with all their descendants and returns when they are gone.
    Whatever kills a worker waits at most `grace_s` for it to disappear: only a process that the kernel does not let
    die takes longer, and that one is left to its guard. `oom_kills` is where evidence of the out-of-memory killer is
    looked for.

    Raises `ExecutorBroken` where worker processes cannot be had, and `OptionError` in a worker that is just importing
    a main script without a main guard.
    """

    def __init__(self, *, idle_s: float = 60.0, grace_s: float = 5.0, oom_kills: OomKills | None = None) -> None:
        self.idle_s, self.grace_s = idle_s, grace_s
        self._oom = oom_kills or OomKills()
        self._open = False
        self._idle: deque[_Worker] = deque()
        self._workers: set[_Worker] = set()
        self._free_numbers: list[int] = []
        self._numbered = 0

    async def __aenter__(self) -> Self:
        if sys.platform == "win32":
            raise ExecutorBroken(_WHO, "they need Linux or macOS", "use pool 'thread' on Windows, or run it in WSL")
        if importing_main():
            raise OptionError(
                _WHO,
                "this process is a worker that is importing the main script, so it must not start any",
                'put what the script runs under `if __name__ == "__main__":`',
            )
        self._limiter, self._readable = anyio.CapacityLimiter(4), readable()
        async with AsyncExitStack() as stack:
            await anyio.to_thread.run_sync(self._oom.open, limiter=self._limiter)
            stack.callback(self._oom.close)
            stack.push_async_callback(self._kill_all)
            group = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(group.cancel_scope.cancel)
            group.start_soon(self._retire)
            self._stack = stack.pop_all()
        self._open = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        await self._stack.aclose()  # without the error: a task group would wrap it

    async def call(
        self,
        entry: str,
        shared: tuple[str, bytes],
        payload: bytes,
        *,
        on_line: OnLine,
        on_message: OnMessage,
        on_killed: OnKilled | None = None,
        memory_mb: int | None = None,
        main: bool = False,
    ) -> Reply:
        """Run `entry` ("module:function") in a worker process, as `function(shared, payload, send)`, to its end.

        `shared` is a key and bytes; a worker gets the bytes once and keeps those of the last few keys, so equal keys
        must mean equal bytes. `send` takes bytes, from any thread of the worker, while the function runs; later, and
        in processes that it forked, it does nothing. `on_message` gets them in order, `on_line` gets `stdout` or
        `stderr` and a line, without its newline; a line of more than `LINE_CAP` bytes is cut, and says so. Both are
        called in the event loop, and for the last time before `call` returns or raises, with all that was printed
        until then. An exception that one of them raises ends the call and its worker.

        The worker has the driver's `sys.path`, `sys.argv`, working directory and environment; `main` also imports the
        driver's main script there as multiprocessing does, for functions and classes that live in it. With
        `memory_mb`, the worker and all its descendants are watched, and killed when their resident memory exceeds it.

        Raises `EntryFailed` when the function raises (`SystemExit` and `KeyboardInterrupt` too), `WorkerLost` when the
        worker dies, `ExecutorBroken` when none can be started. Cancellation kills the worker and all its descendants
        before it goes through; `on_killed` is then told what the call has cost, if its worker had begun.
        """
        if not self._open:
            raise ExecutorBroken(_WHO, "the pool is not open", "make calls inside `async with WorkerPool()`")
        await anyio.lowlevel.checkpoint_if_cancelled()
        worker = await self._take() or self._new()
        worker.lines = {"stdout": _Lines("stdout", on_line), "stderr": _Lines("stderr", on_line)}
        oom_kills = self._oom.count()
        as_it_was = False
        try:
            if worker.process is None:
                await worker.start(self._limiter)
            kind, body = await worker.converse(entry, shared, payload, on_message, memory_mb, main)
            cpu_s, peak, left, worker.cpu_s, worker.child_mb = REPLY.unpack_from(body)
            if memory_mb is not None:
                peak = max(peak, await worker.relax())
            worker.end_lines()
            as_it_was = not left
        except _Ended as ended:
            await self._remove(worker)
            raise self._lost(worker, ended, memory_mb, self._oom.count() - oom_kills) from None
        except anyio.get_cancelled_exc_class():
            await self._remove(worker)
            if on_killed is not None and worker.pid:
                on_killed(worker.used(worker.end))
            raise
        finally:
            if as_it_was and self._open:
                worker.lines, worker.idle_since = {}, time.monotonic()
                self._idle.append(worker)
            else:
                await self._remove(worker)
        body = body[REPLY.size :]
        if kind == far_end.FAILED:
            raise EntryFailed(entry, *marshal.loads(body))  # noqa: S302 - written by our own worker
        return Reply(body, worker.pid, worker.name, round(cpu_s, 6), peak)

    async def _take(self) -> _Worker | None:
        while self._idle:
            worker = self._idle.pop()
            if worker.is_ready():
                return worker
            await self._remove(worker)
        return None

    def _new(self) -> _Worker:
        if self._free_numbers:
            number = heappop(self._free_numbers)
        else:
            self._numbered += 1
            number = self._numbered
        worker = _Worker(number, self.grace_s, self._readable)
        self._workers.add(worker)
        return worker

    async def _remove(self, worker: _Worker) -> None:
        """Kill `worker` with its descendants, hand over what they printed to the end, and forget it."""
        if worker in self._workers:
            try:
                await worker.kill()
            finally:
                worker.forsaken = not worker.gone.is_set()
            self._workers.discard(worker)
            heappush(self._free_numbers, worker.number)
            worker.end_lines()

    async def _retire(self) -> None:
        """Remove workers that nobody used for `idle_s`, and such as were not seen to their end."""
        while True:
            for worker in [worker for worker in self._workers if worker.forsaken]:
                worker.lines = {}
                await self._remove(worker)
            now = time.monotonic()
            while self._idle and self._idle[0].idle_since + self.idle_s <= now:
                await self._remove(self._idle.popleft())
            next_s = self._idle[0].idle_since + self.idle_s - now if self._idle else self.idle_s
            await anyio.sleep(min(max(next_s, 0.01), 3600.0))

    async def _kill_all(self) -> None:
        idle, self._idle = set(self._idle), deque()
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for worker in list(self._workers):
                    if worker in idle or worker.forsaken:
                        group.start_soon(self._remove, worker)
                    else:  # its call is still there, gets to know, and removes it
                        worker.order(far_end.KILL)
                        group.start_soon(worker.gone.wait)

    def _lost(self, worker: _Worker, ended: _Ended, memory_mb: int | None, oom_kills: int) -> GluepyError:
        if not self._open:
            return ExecutorBroken(_WHO, "the pool was closed while a call was running")
        if not worker.pid:
            why = f"a worker process did not start ({ended.words()[0]})"
            last = worker.last_words.strip()
            return ExecutorBroken(
                _WHO,
                f"{why}: {last}" if last else why,
                f"try `{sys.executable} -P {far_end.__file__}` by hand; it should fail only for want of arguments",
            )
        description, mend = ended.words()
        used = worker.used(ended)
        over = ended.kind == far_end.OVER
        oom = oom_kills > 0 and not over and (ended.signal == signal.SIGKILL or not ended.kind)
        if over:
            description = f"killed at {size(ended.tree_mb)}, more than its memory_mb = {memory_mb}"
            mend = "raise memory_mb, or let the task hold less at a time"
        elif used.peak_rss_mb is not None:
            description += f", peak RSS {size(used.peak_rss_mb)}"
        if oom:
            description += " (cgroup reports an OOM kill)"
            mend = "run fewer of them at once, or let the task hold less at a time"
        return WorkerLost(
            worker.name,
            worker.pid,
            ended.exit_code,
            ended.signal,
            description,
            mend,
            peak_rss_mb=used.peak_rss_mb,
            memory_mb=memory_mb,
            oom=oom,
            killed_for_memory=over,
            cpu_s=used.cpu_s,
        )


class _Ended(Exception):
    """The worker's process is gone, or lost to us. `kind` is the guard's, empty when the guard did not tell."""

    def __init__(self, note: bytes = b"", cut_off: bool = False) -> None:
        kind, status, own_mb, tree_mb, cpu_s = NOTE.unpack(note) if note else (b"", 0, 0.0, 0.0, 0.0)
        super().__init__(kind, status)
        self.kind, self.cut_off = kind, cut_off
        self.own_mb, self.tree_mb, self.cpu_s = own_mb, tree_mb, cpu_s
        code = os.waitstatus_to_exitcode(status) if kind and not cut_off else None
        self.exit_code = code if code is not None and code >= 0 else None
        self.signal = -code if code is not None and code < 0 else None

    def words(self) -> tuple[str, str]:
        """What happened, and what to do about it."""
        if self.cut_off:
            return "closed its connection to the driver", "let the task close only descriptors that it opened"
        if self.signal is not None:
            try:
                name = signal.Signals(self.signal).name
            except ValueError:
                name = f"signal {self.signal}"
            if self.signal in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT):
                return f"killed by {name}", "a native library crashed; the task's log says where"
            return f"killed by {name}", "look for who sent it: a user, a supervisor, or the kernel's log"
        if self.exit_code is not None:
            return f"exited with code {self.exit_code} (os._exit)", "let the task return or raise instead"
        return "disappeared with its guard process", "something killed both; look into the kernel's log"


class _Lines:
    """Cuts one stream's bytes into lines."""

    def __init__(self, stream: str, on_line: OnLine) -> None:
        self.stream, self.on_line = stream, on_line
        self.kept, self.cut = bytearray(), 0

    def feed(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._add(part)
            self._pass_on()
        self._add(rest)

    def end(self) -> None:
        if self.kept:
            self._pass_on()

    def _add(self, part: bytes) -> None:
        room = LINE_CAP - len(self.kept)
        self.kept += part[:room]
        self.cut += max(0, len(part) - room)

    def _pass_on(self) -> None:
        line = self.kept.decode("utf-8", "replace")
        if self.cut:
            line += f" … (cut: {self.cut:,} more bytes)"
        self.kept, self.cut = bytearray(), 0
        self.on_line(self.stream, line)


class _Worker:
    """The driver's end of one worker process and its guard."""

    def __init__(self, number: int, grace_s: float, readable: Callable[[int], Awaitable[None]]) -> None:
        self.number, self.name, self.grace_s, self._readable = number, f"process-{number}", grace_s, readable
        self.process: subprocess.Popen[bytes] | None = None
        self.pid = 0  # the worker's, not the guard's; known from its first words
        self.cpu_s = self.child_mb = 0.0  # of its whole life, at the end of its latest call
        self.end: _Ended | None = None
        self.idle_since = 0.0
        self.gone = anyio.Event()
        self.forsaken = False  # asyncio's own cancellation, unlike anyio's, breaks off even what is shielded
        self.lines: dict[str, _Lines] = {}
        self.last_words = ""
        self._keys: OrderedDict[str, None] = OrderedDict()
        self._path: list[str] | None = None
        self._script_known = False
        self._received = bytearray()
        self._fds: dict[int, str] = {}
        self._selector: selectors.DefaultSelector | None = None
        self._glance = select.poll()

    # --- from start to end

    async def start(self, limiter: anyio.CapacityLimiter) -> None:
        """Start the process; what is sent before it is up waits in the socket. Raises `ExecutorBroken`."""
        theirs: list[int] = []
        try:
            self._control, control = _socketpair(theirs)
            self._life, life = _socketpair(theirs)
            pipes = [_pipe(theirs, self._fds, stream) for stream in ("stdout", "stderr")]
            self._selector = selectors.DefaultSelector()
            self._selector.register(self._control, selectors.EVENT_READ, "control")
            self._selector.register(self._life, selectors.EVENT_READ, "life")
            for fd, stream in self._fds.items():
                self._selector.register(fd, selectors.EVENT_READ, stream)
            for each in (self._control.fileno(), self._life.fileno(), *self._fds):
                self._glance.register(each, select.POLLIN)
            command = [
                *(sys.executable, *_interpreter_flags(), "-P", far_end.__file__),
                *(str(control), str(life), str(os.getpid())),
            ]
        except OSError as error:
            _close(theirs)
            raise _cannot_start(error) from error

        owner = [theirs]  # whoever takes them out closes them: a thread that began cannot be called back

        def popen() -> subprocess.Popen[bytes]:
            descriptors = owner.pop()
            try:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=pipes[0],
                    stderr=pipes[1],
                    pass_fds=(control, life),
                    start_new_session=True,
                )
            finally:
                _close(descriptors)

        try:
            self.process = await anyio.to_thread.run_sync(popen, limiter=limiter)
        except OSError as error:
            raise _cannot_start(error) from error
        finally:
            with suppress(IndexError):
                _close(owner.pop())

    def is_ready(self) -> bool:
        """Whether the idle worker is alive and has nothing to say. Drops what it printed in the meantime."""
        for descriptor, _ in self._glance.poll(0):
            if descriptor not in self._fds:
                return False
            _drain(descriptor)
        return True

    def order(self, kind: bytes, memory_mb: float = 0.0) -> None:
        """Tell the guard."""
        with suppress(OSError):
            self._life.send(NOTE.pack(kind, 0, memory_mb, 0.0, 0.0))

    async def kill(self) -> None:
        """Kill the worker and all its descendants and return when they are gone. Shielded and bounded by `grace_s`."""
        if self.gone.is_set():
            return
        with anyio.CancelScope(shield=True):
            if self.process is not None:
                self.order(far_end.KILL)
                with anyio.move_on_after(self.grace_s):
                    await self._until_guard_ended()
                if self.process.poll() is None:
                    self.process.kill()
                    with anyio.move_on_after(self.grace_s):
                        await self._until_reaped()
                if self.pid and self.process.returncode != 0:  # the guard was killed, perhaps not by us
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(self.pid, signal.SIGKILL)
        self.gone.set()
        self._take_last_words()
        self._close()

    async def _until_guard_ended(self) -> None:
        told = b""
        with suppress(OSError):
            while True:
                try:
                    data = self._life.recv(CHUNK)
                    if not data:
                        break
                    told += data
                except BlockingIOError:
                    await anyio.wait_readable(self._life)
        note = told[-NOTE.size :]
        if note[:1] in (far_end.ENDED, far_end.OVER):
            self.end = _Ended(note)
        await self._until_reaped()

    async def _until_reaped(self) -> None:
        assert self.process is not None
        pause = 0.0
        while self.process.poll() is None:
            await anyio.sleep(pause)
            pause = min(pause + 0.0002, 0.02)

    def _take_last_words(self) -> None:
        for fd, stream in self._fds.items():
            tail = bytearray()
            with suppress(BlockingIOError):
                while len(tail) < TAIL_CAP and (data := os.read(fd, CHUNK)):
                    tail += data
            if not self.pid:
                self.last_words += tail.decode("utf-8", "replace")
            elif stream in self.lines:
                self.lines[stream].feed(bytes(tail))

    def _close(self) -> None:
        if self._selector is not None:
            self._selector.close()
        for end in (getattr(self, "_control", None), getattr(self, "_life", None)):
            if end is not None:
                end.close()
        _close(list(self._fds))
        self._fds = {}

    # --- one call

    async def converse(
        self,
        entry: str,
        shared: tuple[str, bytes],
        payload: bytes,
        on_message: OnMessage,
        memory_mb: int | None,
        main: bool,
    ) -> tuple[bytes, bytes]:
        """Send a call, hand on what is printed, return kind and body of the reply. Raises `_Ended`."""
        if memory_mb is not None:
            self.order(far_end.LIMIT, memory_mb)
        unsent = self._send(memoryview(self._request(entry, shared, payload, main)))
        selector, control = self._selector, self._control
        assert selector is not None
        if unsent:
            selector.modify(control, selectors.EVENT_READ | selectors.EVENT_WRITE, "control")
        while True:
            await self._readable(selector.fileno())
            if not unsent and (data := self._read()):  # most often it is the reply
                reply = self._heard(data, on_message)
                if reply is not None:
                    self._take_lines()
                    return reply
            for key, mask in selector.select(0):
                if key.data == "control":
                    if mask & selectors.EVENT_WRITE:
                        unsent = self._send(unsent)
                        if not unsent:
                            selector.modify(control, selectors.EVENT_READ, "control")
                    if mask & selectors.EVENT_READ:
                        data = self._read()
                        reply = self._heard(data, on_message)
                        if reply is not None:
                            self._take_lines()
                            return reply
                        if data == b"":
                            raise await self._ended()
                elif key.data == "life":  # the worker is dead: what it could send is there
                    while data := self._read():
                        reply = self._heard(data, on_message)
                        if reply is not None:
                            return reply
                    raise await self._ended()
                else:
                    data = os.read(key.fd, CHUNK)
                    if not self.pid:
                        self.last_words += data.decode("utf-8", "replace")
                    self.lines[key.data].feed(data)

    def _take_lines(self) -> None:
        for fd, stream in self._fds.items():
            if data := _drain(fd):
                self.lines[stream].feed(data)

    def _request(self, entry: str, shared: tuple[str, bytes], payload: bytes, main: bool) -> bytes:
        key, data = shared
        known = key in self._keys
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > far_end.REMEMBERED:
            self._keys.popitem(last=False)
        path = None
        if self._path != sys.path:
            self._path = path = [str(folder) for folder in sys.path]
        script = None
        if main and not self._script_known:
            self._script_known, script = True, _main_script()
        body = marshal.dumps((entry, key, None if known else data, payload, path, sys.argv if path else [], script))
        return FRAME.pack(far_end.CALL, len(body)) + body

    def _send(self, unsent: memoryview) -> memoryview:
        try:
            return unsent[self._control.send(unsent) :]
        except BlockingIOError:
            return unsent
        except OSError:
            return unsent[:0]  # the worker is gone; that shows when reading

    def _read(self) -> bytes | None:
        """What is in the socket: None for nothing yet, nothing for its end."""
        try:
            return self._control.recv(CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _heard(self, data: bytes | None, on_message: OnMessage) -> tuple[bytes, bytes] | None:
        """Pass on messages, and return the reply when it is complete."""
        received = self._received
        received += data or b""
        while len(received) >= FRAME.size:
            kind, length = FRAME.unpack_from(received)
            end = FRAME.size + length
            if len(received) < end:
                break
            body = bytes(received[FRAME.size : end])
            del received[:end]
            match kind:
                case far_end.MESSAGE:
                    on_message(body)
                case far_end.HELLO:
                    self.pid, self.cpu_s = GREETING.unpack(body)
                case _:
                    return kind, body
        return None

    async def relax(self) -> float:
        """End the memory limit. Returns the most MB that were seen."""
        self.order(far_end.LIMIT, 0.0)
        note = await self._note()
        return float(NOTE.unpack(note)[3]) if note else 0.0

    async def _ended(self) -> _Ended:
        """How the worker ended; the guard tells as soon as it knows."""
        with anyio.move_on_after(self.grace_s):
            return _Ended(await self._note())
        self.order(far_end.KILL)
        with anyio.move_on_after(self.grace_s):
            return _Ended(await self._note(), cut_off=True)
        return _Ended(cut_off=True)

    async def _note(self) -> bytes:
        while True:
            try:
                note = self._life.recv(NOTE.size)
                return note if len(note) == NOTE.size else b""
            except BlockingIOError:
                await anyio.wait_readable(self._life)
            except OSError:
                return b""

    def used(self, end: _Ended | None) -> Killed:
        """What its last call has used until `end`."""
        if end is None or not end.kind:
            return Killed(self.name, self.pid, None, None)
        own_mb = end.own_mb if end.own_mb > self.child_mb else 0.0  # else it is that of an earlier call's child
        cpu_s = round(max(0.0, end.cpu_s - self.cpu_s), 6)
        return Killed(self.name, self.pid, cpu_s, max(own_mb, end.tree_mb) or None)

    def end_lines(self) -> None:
        """Hand on lines that lack their newline."""
        for lines in self.lines.values():
            lines.end()


def size(mb: float) -> str:
    """Megabytes as a person says them: `81 MB`, `7.9 GB`."""
    return f"{mb:.0f} MB" if mb < 999.5 else f"{mb / 1024:.1f} GB"


def _main_script() -> dict[str, str] | None:
    """How a worker imports this process's main script, in `multiprocessing.spawn.prepare`'s terms.

    Not `get_preparation_data`: that settles the start method of this process behind its owner's back. None for a
    notebook, standard input and `-c`, which have no script.
    """
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return {"init_main_from_name": name}
    path = getattr(main, "__file__", None)
    if path is not None and Path(path).is_file():
        return {"init_main_from_path": str(Path(path).absolute())}
    return None


def _interpreter_flags() -> list[str]:
    flags: Callable[[], list[str]] = subprocess._args_from_interpreter_flags  # type: ignore[attr-defined]
    return flags()


def _cannot_start(error: OSError) -> ExecutorBroken:
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        mend = "see `ulimit -a` for what this user may have, or lower concurrency"
    else:
        mend = f"sys.executable = {sys.executable!r} must be a Python interpreter"
    return ExecutorBroken(_WHO, f"cannot start one: {error}", mend)


def _socketpair(theirs: list[int]) -> tuple[socket.socket, int]:
    ours, other = socket.socketpair()
    ours.setblocking(False)
    theirs.append(other.detach())
    return ours, theirs[-1]


def _pipe(theirs: list[int], ours: dict[int, str], stream: str) -> int:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    ours[reading] = stream
    theirs.append(writing)
    return writing


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _drain(fd: int) -> bytes:
    """What is in the pipe now. Asked for by size, so that a process that prints without end cannot hold us."""
    waiting = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"), sys.byteorder)
    return os.read(fd, waiting) if waiting else b""
