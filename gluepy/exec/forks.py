"""Processes that a task forks: copies of the one that has the attempt, which must not act in its place.

A forked copy has all that the process had, also the engine and the run's log, which it shares with the original; it has
none of the threads. So nothing of a run goes on in a copy. What its code tells of the attempt (metrics, progress, log
lines, and what it prints while the run captures) goes through a socket to the process that the copy was forked from,
which takes it in as if it had been told there; all that was told before the attempt ended is taken in before its end is
recorded. A copy whose `run()` returns or raises ends there.
"""

from __future__ import annotations

import importlib
import itertools
import os
import select
import signal
import socket
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NoReturn

import msgspec

from gluepy.errors import GluepyError
from gluepy.exec.port import Attempt, Emission, Output
from gluepy.exec.scope import LineWriter, Scope

PIECE = 16_384  # characters: encoded, less than what a message may have
_AT_MOST = 4096  # messages: as many as the socket may hold, but not what is sent for ever
_LATE = 64  # ended attempts whose processes may still print into the log file
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_OF_TASKS = (
    "structlog",
    "upath",
    "gluepy.exec.files",
    "gluepy.traces",
)  # what a copy's code imports by use of its task
_LOOPS = ("asyncio", "uvloop", "trio", "anyio")


class ForkedCopy(GluepyError):
    """A forked process did what only the process with the run can do. `what` it did, `hint` says what to do instead."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.what, self.hint = what, hint

    def __str__(self) -> str:
        text = f"{self.what} in a forked process (pid {os.getpid()})"
        return f"{text}; {self.hint}" if self.hint else text


_installed = False
_active: set[Scope] = set()  # the attempts that are under way here
_channel: _Channel | None = None
_creating = threading.RLock()
_keys = itertools.count(1)
_calls: list[Callable[[], None]] = []
_masks = threading.local()  # the signals that a thread that forks had blocked before


def install() -> None:
    """From now on, what forks of this process tell finds its way. Idempotent; there is no way back."""
    global _installed
    if not _installed and hasattr(os, "register_at_fork"):
        _installed = True
        os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


def in_copies(call: Callable[[], None]) -> None:
    """Have `call()` called in every process that is forked from now on, before its code goes on."""
    install()
    _calls.append(call)


def not_in_copies(call: Callable[[], None]) -> None:
    """Take it back."""
    if call in _calls:  # not in a copy
        _calls.remove(call)


attach = _active.add  # the attempt begins


def detach(scope: Scope) -> None:
    """The attempt has ended: take in what its forked processes have told until now."""
    global _channel
    _active.discard(scope)
    if _channel is not None:
        if scope.fork_key:
            _channel.ended(scope)
        with _creating:
            if not _active and _channel is not None:
                _channel.close()
                _channel = None


def leave(error: BaseException | None) -> NoReturn:
    """End this forked copy, in which the task has returned, or raised `error`; its traceback is shown."""
    status = 1
    try:
        if error is None:
            status = 0
        elif isinstance(error, SystemExit):
            if error.code is None or isinstance(error.code, int):
                status = (error.code or 0) & 0xFF
            else:
                sys.stderr.write(f"{error.code}\n")
        else:
            from gluepy.traces import user_stack

            sys.stderr.write(f"Process {os.getpid()}, forked by the task:\n{user_stack(error).rstrip()}\n")
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # noqa: S110 - closed, or put in place by the task
                pass
        os._exit(status)


def refuse_to_go_on() -> NoReturn:
    """End this forked copy, which came back to what drives a run."""
    os.write(
        2,
        b"a forked process came back to the event loop of a run, which goes on in the process that it was forked from:"
        b" ended; let it end by os._exit, or use multiprocessing\n",
    )
    os._exit(1)


# --- in the process with the attempts


class _Channel:
    """What forked copies tell: one socket for all of them, whose messages are whole."""

    def __init__(self) -> None:
        # a pair of datagram sockets keeps messages whole, and their order, and waits if there is no room
        self._reader, self.writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reader.setblocking(False)
        self._scopes: dict[int, Scope] = {}
        self._late: OrderedDict[int, tuple[Attempt, LineWriter | None]] = OrderedDict()
        self._lines: dict[tuple[int, int, str], str] = {}  # what has no newline yet, by attempt, process and stream
        self._closed = False
        self._lock = threading.RLock()  # a `__del__` may end an attempt
        threading.Thread(target=self._serve, name="gluepy-forks", daemon=True).start()

    def expect(self, scope: Scope) -> None:
        """A process is about to be forked that may speak for the attempt."""
        if scope.fork_key not in self._scopes:
            scope.fork_key = next(_keys)
            self._scopes[scope.fork_key] = scope

    def ended(self, scope: Scope) -> None:
        """Take in what is there, and for the attempt no more than output from then on."""
        with self._lock:
            self._take_in()
            key = scope.fork_key
            self._scopes.pop(key, None)
            for at in [at for at in self._lines if at[0] == key]:
                rest = self._lines.pop(at)
                if scope.output is not None:
                    scope.output.write(at[2], rest + "\n")
            self._late[key] = scope.attempt, scope.output
            while len(self._late) > _LATE:
                self._late.popitem(last=False)

    def close(self) -> None:
        """No attempt is under way: who still speaks hears that nobody listens."""
        self._closed = True
        try:
            self.writer.send(b"", socket.MSG_DONTWAIT)
        except OSError:
            pass  # there is more than enough to wake it up

    def close_reader(self) -> None:
        """In a copy: so that who speaks to a process that is gone hears of it."""
        self._reader.close()

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._reader, select.POLLIN)
        while not self._closed:
            poller.poll()
            with self._lock:
                self._take_in()
        self._reader.close()
        self.writer.close()

    def _take_in(self) -> None:
        for _ in range(_AT_MOST):
            try:
                data = self._reader.recv(1 << 20)
            except OSError:  # there is nothing
                return
            if not data:
                return
            try:
                key, pid, what = _decoder.decode(data)
                self._told(key, pid, what)
            except Exception as error:  # of one attempt; the others still want to be heard
                _warn("what a forked process told was lost", error=f"{type(error).__name__}: {error}")

    def _told(self, key: int, pid: int, what: Emission) -> None:
        scope = self._scopes.get(key)
        if isinstance(what, Output):
            late = self._late.get(key, (None, None))[1]
            output = late if scope is None else scope.output
            if output is not None:
                self._print(output, (key, pid, what.stream), what.line, scope is None)
        elif scope is not None:
            scope.emit(what)
        else:
            attempt = self._late[key][0] if key in self._late else None
            about = {"run_id": attempt.run.run_id, "task": attempt.task, "attempt": attempt.number} if attempt else {}
            _warn("told by a process of an attempt that has ended: not recorded", what=str(what), pid=pid, **about)

    def _print(self, output: LineWriter, at: tuple[int, int, str], text: str, late: bool) -> None:
        """Hand on whole lines: several processes print at once."""
        whole, newline, rest = (self._lines.pop(at, "") + text).rpartition("\n")
        if late or len(rest) > PIECE * 4:
            whole, newline, rest = whole + newline + rest, "\n" if late else "", ""
        if whole or newline:
            output.write(at[2], whole + newline)
        if rest:
            self._lines[at] = rest


def _before() -> None:
    """In the thread that forks."""
    global _channel
    if not _active and not _calls:
        return
    # A signal that comes to the copy waits until its handlers are its own: Python forgets those that come before.
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    if not _active:
        return
    for stream in (sys.stdout, sys.stderr):  # else the copy would print it too
        try:
            stream.flush()
        except Exception:  # noqa: S110 - closed, or put in place by the task
            pass
    # A thread that imports one of these at the fork is not in the copy, where the module would stay locked for ever.
    for module in _OF_TASKS:
        importlib.import_module(module)
    with _creating:
        if _channel is None:
            try:
                _channel = _Channel()
            except OSError:  # no descriptors: the copy will say so when it has something to tell
                return
        for scope in list(_active):
            _channel.expect(scope)


def _in_parent() -> None:
    before = _masks.__dict__.pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_decoder: msgspec.msgpack.Decoder[tuple[int, int, Emission]] = msgspec.msgpack.Decoder(tuple[int, int, Emission])


def _warn(event: str, **fields: object) -> None:
    import structlog

    structlog.get_logger("gluepy.exec").warning(event, **fields)


# --- in a forked copy


class _Link:
    """The way to the process with the attempts."""

    def __init__(self, writer: socket.socket | None) -> None:
        self._writer = writer
        self._encode = msgspec.msgpack.Encoder().encode

    def tell(self, key: int, what: Emission) -> None:
        if self._writer is None:
            raise ForkedCopy("nothing can be told", "the process that it was forked from had no descriptors left")
        try:
            self._writer.send(self._encode((key, os.getpid(), what)))
        except OSError as error:
            hint = f"the process with the task does not listen: {error.strerror or error}"
            raise ForkedCopy(f"{type(what).__name__.lower()} could not be told", hint) from error


class _Line:
    """The `emit` and the output of an attempt, in a copy."""

    def __init__(self, link: _Link, key: int) -> None:
        self._link, self._key = link, key

    def __call__(self, emission: Emission) -> None:
        self._link.tell(self._key, emission)

    def write(self, stream: str, text: str) -> None:
        """`LineWriter`'s."""
        for start in range(0, len(text), PIECE):
            self._link.tell(self._key, Output(stream, text[start : start + PIECE]))


def _in_child() -> None:
    global _channel, _creating
    _creating = threading.RLock()
    inherited, channel = list(_active), _channel
    _active.clear()
    _channel = None
    if channel is not None:
        channel.close_reader()
    try:
        if inherited:
            link = _Link(channel.writer if channel is not None else None)
            for scope in inherited:
                line = _Line(link, scope.fork_key)
                scope.forked, scope.emit = True, line
                if scope.output is not None:
                    scope.output = line
            _leave_signals_alone()
            _release_structlog()
        for call in _calls:
            call()
    finally:
        _calls.clear()
        _in_parent()


def _leave_signals_alone() -> None:
    """The event loop's handlers would do nothing here, or wake the loop of the other process."""
    signal.set_wakeup_fd(-1)
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        handler = signal.getsignal(number)
        if callable(handler) and getattr(handler, "__module__", "").partition(".")[0] in _LOOPS:
            signal.signal(number, default)


def _release_structlog() -> None:
    """Free the locks of structlog's loggers: what wrote a line at the fork holds one, and is not in the copy."""
    locks = getattr(sys.modules.get("structlog._output"), "WRITE_LOCKS", None)
    for lock in list(locks.values()) if locks is not None else ():
        lock._at_fork_reinit()  # as logging does with its own
