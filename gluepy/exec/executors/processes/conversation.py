"""The calls to one worker process, one at a time: what goes there, and what comes back."""

from __future__ import annotations

import codecs
import math
import os
import selectors
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import NamedTuple

import anyio

from gluepy.exec.executors import worker as worker_main
from gluepy.exec.executors.cgroup import OomKills
from gluepy.exec.executors.lines import Lines
from gluepy.exec.executors.processes.ending import Ended
from gluepy.exec.executors.processes.process import CHUNK, WorkerProcess
from gluepy.exec.executors.processes.requests import Requests
from gluepy.exec.executors.processes.results import Killed, Reply, WorkerCall
from gluepy.exec.executors.worker import FRAME, GREETING, NOTE, REPLY
from gluepy.loop import Signal, Watch

if sys.platform != "win32":
    import fcntl
    import termios


_decoder = codecs.getincrementaldecoder("utf-8")


class Answer(NamedTuple):
    """What the worker says at the end of a call."""

    kind: bytes  # RETURNED or FAILED, which is what the body tells about
    reply: Reply
    left: bool  # something behind: the worker cannot be used again


class Conversation:
    """A worker process, and what the driver says to it and hears from it.

    `on_readable` is called when there may be something to read. What is printed and sent during a call is passed on,
    between calls it is dropped. Nothing else reads what the worker writes, until it is killed.
    """

    call: WorkerCall  # the one that it is at, or the latest

    def __init__(
        self, number: int, grace_s: float, signal: Callable[[], Signal], oom: OomKills, on_begin: Callable[[], None]
    ) -> None:
        self.number, self._oom, self._on_begin = number, oom, on_begin
        self.process = WorkerProcess(f"process-{number}", grace_s)
        self.lines = {stream: _Text() for stream in ("stdout", "stderr")}
        self.last_words = ""  # what it printed before it was up
        self.gone = anyio.Event()
        self.unreaped = False  # asyncio's own cancellation, unlike anyio's, breaks off even what is shielded
        self.is_up = self.is_leaving = False
        self.oom_kills = 0  # before its latest call
        self.was_gone = False  # or of no use, before it could be told of its latest call
        self.idle_since = 0.0
        self._cpu_s = self._child_mb = 0.0  # of its whole life, at the end of its latest call
        self._earlier_mb = self._files_mb = 0.0  # of what calls have left in its memory, and of mapped files
        self._began = math.inf  # when its call did, while nobody looks at the memory
        self._watched = False
        self._answer: Answer | None = None
        self._error: Exception | None = None  # of `on_line` or `on_message`
        self._relaxed: tuple[float, float] | None = None  # the most memory that was seen, and of mapped files
        self._hung_up = self._refused = False
        self._signal = signal
        self._news: tuple[Signal, Callable[[], bool]] | None = None  # what is waited for
        self._watch: Watch | None = None
        self._context = Context()
        self._requests = Requests()
        self._unsent: bytes | memoryview = b""
        self._received = bytearray()

    # --- from start to end

    async def start(self, limiter: anyio.CapacityLimiter) -> None:
        """Start the process. Raises `ExecutorBroken`."""
        await self.process.start(limiter)
        self._watch = Watch(self.process.selector.fileno(), lambda: self._context.run(self.on_readable))
        self.is_up = True

    def is_ready(self) -> bool:
        """Whether the idle worker can be taken for a call. Drops what it printed in the meantime."""
        self._look_around()
        return not self._is_over()

    def is_spoilt(self) -> bool:
        """Whether it lives, but takes no call any more."""
        return self._refused and not self._hung_up and self.process.end is None

    async def leave(self, within_s: float, after: WorkerCall | None = None) -> None:
        """Let the worker exit as any program does, then kill what is left of it; after `within_s` at the latest. What
        is printed meanwhile is that of the call `after` which it leaves."""
        if self.is_up and self.process.end is None and not self._unsent and not self.gone.is_set():
            for stream, lines in self.lines.items():
                if after is not None:
                    lines.begin(stream, after)
            with anyio.CancelScope(shield=True), suppress(OSError):
                os.write(self.process.calls, FRAME.pack(worker_main.LEAVE, 0))
                with anyio.move_on_after(within_s) as scope:
                    await self._until(lambda: self.process.end is not None)
                if scope.cancelled_caught and after is not None:
                    why = f"it did not end by itself within {within_s:g} s"
                    after.on_line("stderr", f"what the task has left running was killed: {why}")
        await self.kill()

    async def kill(self) -> None:
        """Kill the worker and all its descendants, and pass on what they printed to their end."""
        if self.gone.is_set():
            return
        if self._watch is not None:
            self._watch.close()
        await self.process.kill()
        self.gone.set()
        for pipe in self.process.pipes:
            self._printed(pipe, self.process.tail(pipe))
        self.process.close()
        self._end_lines()

    def mute(self) -> None:
        """Drop what it prints from now on."""
        for lines in self.lines.values():
            lines.on_line = None

    def _end_lines(self) -> None:
        for lines in self.lines.values():
            lines.end()

    # --- one call

    async def exchange(self, call: WorkerCall) -> Answer:
        """Make `call` and what `then` has it followed by; pass on what is printed and sent meanwhile, and return how
        the last ended. Raises `Ended` when the worker has, or is not what it was any more, and what `on_line` and
        `on_message` raise."""
        self._context = copy_context()
        following: WorkerCall | None = call
        while following is not None:
            self._begin(following)
            await self._until(lambda: self._answer is not None or self._is_over())
            if self._error is not None:
                raise self._error
            if self._answer is None:
                if self._refused:
                    self.was_gone = True
                    raise Ended
                raise await self._how_it_ended()
            answer, self._answer = self._answer, None
            self._began = math.inf
            if self._watched:
                answer = await self._relaxed_after(answer)
            following = None
            if self.call.then is not None and answer.kind == worker_main.RETURNED and not answer.left:
                following = self.call.then(answer.reply)
        self._context, self.idle_since = Context(), time.monotonic()
        return answer

    def _begin(self, call: WorkerCall) -> None:
        self.call, self.oom_kills = call, self._oom.lately()
        for stream, lines in self.lines.items():
            lines.begin(stream, call)
        self._watched, self._began = False, time.monotonic()
        if call.memory_mb is not None:
            self._order_to_watch(call.memory_mb)
        self._on_begin()
        self._unsent = self._requests.request(call)
        self.was_gone = not self._send() and self.process.pid > 0
        if self._unsent:
            self.process.selector.register(self.process.calls, selectors.EVENT_WRITE)

    async def _until(self, come: Callable[[], bool]) -> None:
        assert self._watch is not None
        if not come():
            signal = self._signal()
            self._news = signal, come
            await self._watch.until(signal)

    def _is_over(self) -> bool:
        return self._refused or self._hung_up or self.process.end is not None or self._error is not None

    async def _how_it_ended(self) -> Ended:
        # the guard tells as soon as it knows
        with anyio.move_on_after(self.process.grace_s):
            await self._until(lambda: self.process.end is not None)
        if self.process.end is not None:
            return self.process.end
        self.process.order(worker_main.KILL)
        with anyio.move_on_after(self.process.grace_s):
            await self._until(lambda: self.process.end is not None)
        return Ended(self.process.end.note if self.process.end else b"", cut_off=True)

    def watch(self, since: float) -> bool:
        """Have its memory watched from now on if its call has begun before `since`. Returns whether it is at a call
        that is not watched."""
        if self._began < since:
            self._order_to_watch(0)
        return self._began < math.inf

    def _order_to_watch(self, memory_mb: float) -> None:
        self._watched, self._began = True, math.inf
        self.process.order(worker_main.WATCH, memory_mb, self._earlier_mb)

    async def _relaxed_after(self, answer: Answer) -> Answer:
        """Watch its memory no more, and take account of the most that was seen."""
        self._relaxed = None
        before_mb = self._files_mb
        self.process.order(worker_main.RELAX)
        await self._until(lambda: self._relaxed is not None or self.process.end is not None)
        seen_mb, files_mb = self._relaxed or (0.0, 0.0)
        if self.process.end is not None and self._relaxed is None:
            seen_mb, files_mb = self.process.end.tree_mb, self.process.end.files_mb
        reply = answer.reply
        # The kernel's high-water mark has mapped files in it, but knows of the shortest peak.
        has_mapped = files_mb > before_mb + worker_main.SMALL_MB
        peak_mb = seen_mb if has_mapped else max(reply.peak_rss_mb, seen_mb)
        return answer._replace(reply=reply._replace(peak_rss_mb=peak_mb))

    def used(self) -> Killed:
        """What its last call has used until the process ended."""
        process, end = self.process, self.process.end
        if end is None or not end.kind:
            return Killed(process.name, process.pid, None, None)
        own_mb = 0.0
        if end.own_mb > self._child_mb and end.files_mb <= self._files_mb + worker_main.SMALL_MB:
            # else it is that of an earlier call's child, or has mapped files in it
            own_mb = max(0.0, end.own_mb - self._files_mb - self._earlier_mb)
        cpu_s = round(max(0.0, end.cpu_s - self._cpu_s), 6)
        return Killed(process.name, process.pid, cpu_s, max(own_mb, end.tree_mb) or None)

    # --- what goes there

    def _send(self) -> bool:
        """Send as much as there is room for; returns whether somebody listens."""
        try:
            sent = os.write(self.process.calls, self._unsent)
        except BlockingIOError:
            return True
        except OSError:
            self._unsent = b""
            return False
        self._unsent = memoryview(self._unsent)[sent:] if sent < len(self._unsent) else b""
        return True

    # --- what comes back

    def on_readable(self) -> None:
        """Take in what the worker and its guard say, and what is printed."""
        try:
            self._receive()
            if self._answer is None:  # most often that was its answer, and there is nothing else
                self._look_around()
        except Exception as error:
            self._error = error
        if self._news is not None and self._news[1]():
            self._news[0].set()

    def _look_around(self) -> None:
        process, selector = self.process, self.process.selector
        for key, _ in selector.select(0):
            if key.fd == process.answers:
                self._receive()
            elif key.fd == process.calls:
                self._send()
                if not self._unsent:
                    selector.unregister(process.calls)
            elif key.fd in process.pipes:
                self._read_pipe(key.fd)
            else:
                self._take_note()
                while self._receive():  # if that was the end: what the worker could send is there
                    pass

    def _receive(self) -> bool:
        """Take in what the worker has sent; returns whether there was anything."""
        try:
            data = os.read(self.process.answers, CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._take_frames(data)
        elif not self._hung_up:
            self._hung_up = True
            self.process.selector.unregister(self.process.answers)
        return bool(data)

    def _take_frames(self, data: bytes) -> None:
        received = self._received
        received += data
        while len(received) >= FRAME.size:
            kind, length = FRAME.unpack_from(received)
            end = FRAME.size + length
            if len(received) < end:
                break
            body = bytes(received[FRAME.size : end])
            del received[:end]
            match kind:
                case worker_main.MESSAGE:
                    self.call.on_message(body)
                case worker_main.HELLO:
                    self.process.pid, self._cpu_s, self._files_mb = GREETING.unpack(body)
                case worker_main.REFUSED:
                    self._refused = True
                case _:
                    self._take_answer(kind, body)

    def _take_answer(self, kind: bytes, body: bytes) -> None:
        cpu_s, peak_mb, left, printed, self._cpu_s, self._child_mb, self._earlier_mb, files_mb = REPLY.unpack_from(body)
        self._files_mb = max(files_mb, self._files_mb) if self._watched else files_mb
        process = self.process
        if printed:
            for pipe in process.pipes:
                self._printed(pipe, _drain(pipe))
        reply = Reply(body[REPLY.size :], process.pid, process.name, round(cpu_s, 6), peak_mb)
        self._end_lines()
        self._answer = Answer(kind, reply, left)

    def _take_note(self) -> None:
        """Take in what the guard says."""
        try:
            note = self.process.life.recv(NOTE.size)
        except BlockingIOError:
            return
        except OSError:
            note = b""
        if note[:1] == worker_main.RELAXED:
            _, _, _, seen_mb, _, files_mb = NOTE.unpack(note)
            self._relaxed = seen_mb, files_mb
        elif note:
            self.process.end = Ended(note)
        else:  # the guard is gone
            self.process.end = self.process.end or Ended()
            self.process.selector.unregister(self.process.life)

    def _read_pipe(self, pipe: int) -> None:
        try:
            data = _drain(pipe) or os.read(pipe, CHUNK)
        except BlockingIOError:
            return
        if data:
            self._printed(pipe, data)
        else:  # nobody can print any more
            self.process.selector.unregister(pipe)

    def _printed(self, pipe: int, data: bytes) -> None:
        if not data:
            return
        if not self.process.pid:
            self.last_words += data.decode("utf-8", "replace")
        stream = self.process.pipes[pipe]
        for name, lines in self.lines.items():
            if name != stream:
                lines.release()
        self.lines[stream].take_in(data)


class _Text(Lines):
    """The lines of a stream of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._decoder = _decoder("replace")

    def begin(self, stream: str, call: WorkerCall) -> None:
        """What comes from now on is what `call` prints."""
        self._decoder.reset()
        self.on_line = partial(call.on_line, stream)
        self.on_partial = None if call.on_partial is None else partial(call.on_partial, stream)
        self.redact, self.on_fed = call.redact, call.on_fed

    def take_in(self, data: bytes) -> None:
        """Take what was read next."""
        if self.on_line is not None:
            self.feed(self._decoder.decode(data))

    def end(self) -> None:
        """Nothing more comes."""
        if self.on_line is not None and (rest := self._decoder.decode(b"", True)):
            self.feed(rest)
        super().end()


def _drain(pipe: int) -> bytes:
    """What is in the pipe now. Asked for by size, so that a process that prints without end cannot hold us."""
    waiting = int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"), sys.byteorder)
    return os.read(pipe, waiting) if waiting else b""
