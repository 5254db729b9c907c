"""The worker process: runs one call after another for a `WorkerPool`, under a guard that outlives whatever it does.

    driver ── guard ── worker ── whatever a call starts

The pool starts this file, not the module, so that gluepy is not imported before it is needed: the interpreter becomes
the guard, and forks the worker while it is still small. The guard adopts every orphan below it (Linux: it is a
subreaper), so "kill the worker with all its descendants, also those that left its group and session" and "report the
worker's true exit status" need neither the driver's help nor a signal handler in the driver, and work while a call
holds the GIL, and when the driver is gone.

Three channels, none of them a standard stream: a pipe carries calls from the driver to the worker, another one messages
and replies back (`FRAME`); `life` is the guard's own line to the driver (`NOTE`), whose end is an order to kill
everything. The worker's stdout and stderr are pipes that the driver reads.
"""

# What marshal reads was written by the driver; a `return` inside `try` reads better than one in `else`:
# ruff: noqa: S302, TRY300

from __future__ import annotations

import ctypes
import gc
import io
import marshal
import os
import select
import signal
import struct
import sys
import time
from collections import deque

TYPE_CHECKING = False  # `typing` costs a worker's start some milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, ModuleType
    from typing import Any, NoReturn

    from gluepy.exec.executors.process_state import ProcessState

    Work = Callable[[], bytes]
    Entry = Callable[[bytes, bytes, Callable[[bytes], None]], bytes | Work]

FRAME = struct.Struct("!cQ")  # kind, length of the body that follows
HELLO, CALL, MESSAGE, RETURNED, FAILED = b"H", b"C", b"M", b"R", b"F"
LEAVE = b"L"  # to a worker that is idle: exit as any program does
REFUSED = b"X"  # whatever call comes next, or has come meanwhile: the latest changed the process for good
# The body of HELLO: process id, CPU seconds so far, MB of mapped files.
GREETING = struct.Struct("!idd")
# Heads the body of RETURNED and FAILED. Of the call: cpu_s, peak_rss_mb, left something behind, printed something that
# was not read yet. Of the worker until now, for what can be told of the next call: CPU seconds, MB of its largest
# child, of what calls have left in its memory, and of mapped files.
REPLY = struct.Struct("!dd??dddd")

# Kind, wait status, MB of the worker or of its largest child, MB of the worker's tree, CPU seconds of the worker, MB of
# files that the worker had mapped.
NOTE = struct.Struct("!cidddd")
# To the guard: look at the memory, which may be as many MB (0: no limit) besides what was there before; look no more.
KILL, WATCH, RELAX = b"k", b"w", b"r"
RELAXED, ENDED, OVER = b"r", b"x", b"m"  # from the guard: what it saw, the worker ended, it was killed for memory

REMEMBERED = 4  # shared payloads that a worker keeps; the driver counts along
WATCH_S = 0.02  # between two looks at the memory of a limited call
LONGEST_WATCH_S = 0.2  # of one without a limit, at most
SMALL_MB = 16  # of memory: not worth a search for garbage

# Clean up what dead processes have left in /dev/shm, and end when the last of those is dead.
TRACKER = b"resource_tracker import main"
TRACKERS_S = 2.0

PIECE = 65536
NOTHING = bytes(4)  # as an int of the kernel's
MB = 1024 * 1024
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LINUX = sys.platform == "linux"


def main() -> None:
    """Become the guard of a worker; in the worker, return when it is to exit. Arguments: the descriptors of calls,
    answers and life, the driver's process id."""
    calls, answers, life, driver = (int(word) for word in sys.argv[1:5])
    for descriptor in (calls, answers, life):
        os.set_inheritable(descriptor, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the thread that started us may have blocked some
    libc = ctypes.CDLL(None)
    if LINUX:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guard = os.getpid()
    worker = os.fork()
    _own_group(worker)
    if worker:
        os.close(calls)
        os.close(answers)
        _guard(worker, life, driver)
    os.close(life)
    if LINUX:  # only for the case that somebody kills the guard: the driver then kills the group
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != guard:
        os._exit(1)
    _Server(_Control(calls, answers), guard, libc).serve()
    gc.disable()
    gc.freeze()  # spares the interpreter a search for garbage, most of the time that an exit takes


def _own_group(worker: int) -> None:
    # By both, as in every shell: neither may go on before it is done.
    try:
        os.setpgid(worker, worker)
    except OSError:
        pass


# --- the guard


def _guard(worker: int, life: int, driver: int) -> NoReturn:
    """Wait for the end of the worker, of the driver or of the driver's patience; then leave nothing behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    woken, waker = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    poller = select.poll()
    poller.register(life, select.POLLIN)
    poller.register(woken, select.POLLIN)
    orphaned = -1
    if LINUX:  # life alone does not tell of the driver's end where a process that the driver forked holds a copy of it
        try:
            orphaned = os.pidfd_open(driver)
            poller.register(orphaned, select.POLLIN)
        except OSError:
            pass
    limit = earlier = peak = files = pause_s = 0.0
    watching = False
    kind, doomed = ENDED, os.getppid() != driver
    while not doomed:
        status = _reap(worker)
        if status is not None:
            break
        if watching:
            own, mapped = _memory_mb(worker)
            files = max(files, mapped)
            peak = max(peak, (_tree_mb(limit + earlier) if limit else own) - earlier)
            if limit and peak > limit:
                kind, doomed = OVER, True
                continue
            pause_s = WATCH_S if limit else min(pause_s * 1.25, LONGEST_WATCH_S)
        for descriptor, _ in poller.poll(pause_s * 1000 if watching else None):
            if descriptor == woken:
                os.read(woken, PIECE)
            elif descriptor == orphaned:
                doomed = True
            else:
                order = _order(life)
                watching = order[:1] == WATCH
                if watching:
                    limit, earlier = NOTE.unpack(order)[2:4]
                    pause_s = 0.005
                elif order[:1] == RELAX:
                    _tell(life, NOTE.pack(RELAXED, 0, 0.0, peak, 0.0, files))
                else:
                    doomed = True
                    continue
                peak = files = 0.0
    else:
        status = None
    until = time.monotonic() + TRACKERS_S
    tree = _tree()
    if any(map(_is_tracker, tree)):  # it is in the worker's group
        for pid in tree:
            if not _is_tracker(pid):
                _kill(os.kill, pid)
    else:
        _kill(os.killpg, worker)
    if status is None:
        _kill(os.kill, worker)  # it may have changed its group
        status = os.wait4(worker, 0)[1:]
    used = status[1]
    _tell(life, NOTE.pack(kind, status[0], _megabytes(used.ru_maxrss), peak, _seconds(used), files))
    while True:
        # Only direct children are killed: their ids cannot be somebody else's. The death of each hands us its own.
        for child in _children(os.getpid()):
            if not _is_tracker(child) or time.monotonic() > until:
                _kill(os.kill, child)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            os._exit(0)
        time.sleep(0.001)


def _reap(worker: int) -> tuple[int, Any] | None:
    """Collect every child that ended. Returns the worker's wait status and resource usage, if it was among them."""
    while True:
        child, status, usage = os.wait4(-1, os.WNOHANG)
        if child == worker:
            return status, usage
        if not child:
            return None


def _order(life: int) -> bytes:
    try:
        return os.read(life, NOTE.size)
    except OSError:
        return b""


def _tell(life: int, note: bytes) -> None:
    try:
        os.write(life, note)
    except OSError:
        pass  # the driver is gone: nobody wants to know


def _kill(kill: Callable[[int, int], None], target: int) -> None:
    try:
        kill(target, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _children(pid: int) -> list[int]:
    """The processes whose parent is `pid`; empty where there is no /proc."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found.extend(map(int, file.read().split()))
        return found
    except OSError:
        if os.path.exists("/proc/self/task") and not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
            # a kernel without CONFIG_PROC_CHILDREN
            running = (int(name) for name in os.listdir("/proc") if name.isdigit())
            return [process for process in running if _stat(process)[1:2] == [b"%d" % pid]]
        return found


def _tree() -> list[int]:
    """The processes below this one."""
    tree = _children(os.getpid())
    for pid in tree:
        tree.extend(_children(pid))
    return tree


def _is_tracker(pid: int) -> bool:
    """Whether it is a resource tracker, multiprocessing's or joblib's."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return TRACKER in file.read(4096)
    except OSError:
        return False


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def _tree_mb(limit: float) -> float:
    """Memory of all that runs below the guard, in MB, but for mapped files.

    Beyond `limit`, pages that several of them share (after a fork) are counted once, which takes a closer look.
    """
    if not LINUX:
        import psutil

        return sum(process.memory_info().rss for process in psutil.Process().children(recursive=True)) / MB
    tree = _tree()
    total = sum(_memory_mb(pid)[0] for pid in tree)
    return total if total <= limit or len(tree) < 2 else sum(map(_share_mb, tree))


def _memory_mb(pid: int) -> tuple[float, float]:
    """Memory of the process that is its own or shared, and files that it has mapped, in MB."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            found = _kilobytes(file.read(), b"RssAnon:", b"RssShmem:", b"RssFile:")
        return (found[0] + found[1]) / 1024, found[2] / 1024
    except OSError:
        return 0.0, 0.0


def _share_mb(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            found = _kilobytes(file.read(), b"Pss_Anon:", b"Pss_Shmem:")
    except OSError:  # it has ended, or is another user's, or the kernel is old
        found = [0]
    return sum(found) / 1024 or _memory_mb(pid)[0]


def _kilobytes(text: bytes, *names: bytes) -> list[int]:
    found = []
    for name in names:
        _, is_there, rest = text.partition(b"\n" + name)
        found.append(int(rest[:32].split()[0]) if is_there else 0)
    return found


def _megabytes(maxrss: int) -> float:
    return maxrss / 1024 if LINUX else maxrss / MB


def _seconds(used: Any) -> float:
    seconds: float = used.ru_utime + used.ru_stime
    return seconds


# --- the worker


class _Control:
    """The worker's ends of the pipes to and from the driver. Frames are whole, whatever interrupts their sender."""

    def __init__(self, calls: int, answers: int) -> None:
        import threading

        self.lock, self.sending = threading.RLock(), False
        self.unsent: deque[tuple[bytes, bytes, Callable[[], bool]]] = deque()
        self.reader = os.fdopen(calls, "rb", closefd=False)
        self.writer = os.fdopen(answers, "wb", buffering=PIECE, closefd=False)
        self.pid = os.getpid()

    def receive(self) -> bytes | None:
        """The body of the next call; None when the worker is to leave. Ends the process when the driver has gone."""
        head = self.reader.read(FRAME.size)
        if len(head) < FRAME.size:
            os._exit(0)
        kind, length = FRAME.unpack(head)
        return self.reader.read(length) if kind == CALL else None

    def send(self, kind: bytes, body: bytes, only_if: Callable[[], bool] = lambda: True) -> None:
        if os.getpid() != self.pid:
            return  # a forked child does not speak for the worker; nor may it wait for the lock, if that was held
        # If a thread is sending, it sends this frame too, and nobody waits: a signal handler or a finalizer may
        # interrupt `send` and call it again, or run while its thread holds a lock that the sending thread waits for.
        self.unsent.append((kind, body, only_if))
        while self.unsent and self.lock.acquire(blocking=False):
            try:
                if self.sending:
                    return
                self.sending = True
                try:
                    while self.unsent:
                        self._send(*self.unsent.popleft())
                finally:
                    self.sending = False
            finally:
                self.lock.release()

    def _send(self, kind: bytes, body: bytes, only_if: Callable[[], bool]) -> None:
        if not only_if():
            return
        frame = FRAME.pack(kind, len(body)) + body
        whole = False
        try:
            # A signal handler of the call may raise in here. What the buffer holds then goes out with the next
            # frame; a frame larger than the buffer is torn, and must not be followed by anything.
            for start in range(0, len(frame), PIECE):
                whole = start + PIECE >= len(frame)
                self.writer.write(frame[start : start + PIECE] if len(frame) > PIECE else frame)
                self.writer.flush()
        finally:
            if not whole and len(frame) > PIECE:
                os.write(2, b"a signal handler broke off a large message to the driver: cannot go on\n")
                os._exit(1)


class _Server:
    """Runs calls. Whatever a call may leave behind in the process is put right, or reported so that it is replaced."""

    def __init__(self, control: _Control, guard: int, libc: ctypes.CDLL) -> None:
        self.armed = False
        signal.signal(signal.SIGINT, self._interrupted)
        os.register_at_fork(after_in_child=lambda: self.set_handler(signal.SIGINT, signal.default_int_handler))
        import contextvars
        import faulthandler
        import fcntl
        import resource
        import termios

        process_state = _beside(__file__, "process_state")
        self.set_handler, self.apart = process_state.set_handler, process_state.apart
        self.copy_context = contextvars.copy_context
        self.getrusage = resource.getrusage
        self.ioctl, self.FIONREAD = fcntl.ioctl, termios.FIONREAD
        self.SELF, self.CHILDREN = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
        faulthandler.enable()
        for stream in (sys.stdout, sys.stderr):
            assert isinstance(stream, io.TextIOWrapper)
            # line by line, or what a call and the processes that it forks print at the same time would mix within lines
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=False)
        self.streams = (sys.stdout, sys.stderr)
        os.register_at_fork(before=self._flush_streams)  # a part of a line is printed once, by this process
        self.targets = self._where_streams_go()
        self.state: ProcessState = process_state.ProcessState(self.streams, resource)
        self.fflush, self.stdio = libc.fflush, _stdout_of(libc)
        self.guard, self.pid = guard, os.getpid()
        self.siblings, self.high_water = -1, -1
        try:
            self.siblings = os.open(f"/proc/{guard}/task/{guard}/children", os.O_RDONLY)
        except OSError:
            pass
        try:
            self.high_water = os.open("/proc/self/clear_refs", os.O_WRONLY)
        except OSError:
            pass  # the high-water mark is then that of the worker's whole life
        self.pages, self.page_mb = -1, os.sysconf("SC_PAGE_SIZE") / MB
        try:
            self.pages = os.open("/proc/self/statm", os.O_RDONLY)
        except OSError:
            pass
        self.trim = getattr(libc, "malloc_trim", None)
        self.clean_mb, self.files_mb = self._resident()
        self.rest_mb = self.clean_mb
        self.shared: dict[str, bytes] = {}
        self.entries: dict[str, Entry] = {}
        self.control = control

    def serve(self) -> None:
        """Answer calls until the worker is to leave."""
        self.control.send(HELLO, GREETING.pack(self.pid, time.process_time(), self.files_mb))
        as_it_was = True
        while (call := self.control.receive()) is not None:
            if as_it_was:
                self._answer(*marshal.loads(call))
                as_it_was = self._restore()  # while the driver takes in the answer
                if not as_it_was:
                    self.control.send(REFUSED, b"")

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        # SIGINT is a KeyboardInterrupt inside a call, at most one, and nothing at all between calls.
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt

    def _answer(
        self,
        entry: str,
        key: str,
        shared: bytes | None,
        payload: bytes,
        path: list[str] | None,
        argv: list[str],
        script: dict[str, str] | None,
    ) -> None:
        if shared is not None:
            self.shared[key] = shared
        self.shared[key] = shared = self.shared.pop(key)
        while len(self.shared) > REMEMBERED:
            del self.shared[next(iter(self.shared))]
        if self.high_water >= 0:
            os.write(self.high_water, b"5")
        own, below = self.getrusage(self.SELF), self.getrusage(self.CHILDREN)
        phase, kind, body, running = "prepare", FAILED, b"", True

        def send(message: bytes) -> None:
            self.control.send(MESSAGE, message, lambda: running)

        try:
            try:
                self.armed = True
                if path is not None:
                    sys.path[:], sys.argv[:] = path, argv
                if script is not None:
                    _import_script(script)
                phase = "import"
                function = self.entries.get(entry) or self._import_entry(entry)
                phase = "call"
                if path is not None or self.state.is_stale():
                    self.state.remember()
                result: Any = function(shared, payload, send)
                if callable(result):
                    if self.state.is_stale():
                        self.state.remember()
                    result = self.copy_context().run(self.apart, result)
                phase = "result"
                if not isinstance(result, bytes):
                    raise TypeError(f"{entry} returned {type(result).__name__}, not bytes")
                kind, body = RETURNED, result
            finally:
                self.armed = False
                self._undo_changes()
        except BaseException as error:  # every way out of a call is a reply: the driver must never have to guess
            self._undo_changes()  # again: this error may be that of a signal handler which broke off the first time
            kind, body = FAILED, _described(phase, error)
        own_after, below_after = self.getrusage(self.SELF), self.getrusage(self.CHILDREN)
        largest_child_mb = _megabytes(below_after.ru_maxrss)
        peak_mb = self._tidy_up(_megabytes(own_after.ru_maxrss), largest_child_mb, _megabytes(below.ru_maxrss))
        self._flush()
        if os.getpid() != self.pid:  # a child that the call forked, and that came back from it
            os._exit(0 if kind == RETURNED else 1)
        with self.control.lock:
            running = False
        cpu_s = _seconds(own_after) + _seconds(below_after)
        left = phase == "prepare" or self._left_something()
        before = _seconds(own) + _seconds(below)
        facts = REPLY.pack(
            *(cpu_s - before, peak_mb, left, self._is_unread(), cpu_s, largest_child_mb),
            *(self.rest_mb - self.clean_mb, self.files_mb),
        )
        self.control.send(kind, facts + body)

    def _import_entry(self, entry: str) -> Entry:
        module, _, name = entry.partition(":")
        if module not in sys.modules:
            # So that a module is found that was written a moment after somebody looked for it. Not
            # importlib.invalidate_caches, which imports importlib.metadata from Python 3.13 on.
            sys.path_importer_cache.clear()
        __import__(module)  # leaves the import system's own frames out of tracebacks, as import_module does not
        function: Entry = getattr(sys.modules[module], name)
        self.entries[entry] = function
        return function

    def _undo_changes(self) -> None:
        """Undo what a call may do to its process, and what would meet the next call or our own code."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.set_handler(signal.SIGINT, self._interrupted)

    def _restore(self) -> bool:
        try:
            return self.state.restore()
        except BaseException:  # also of a signal handler of the call
            return False

    def _resident(self) -> tuple[float, float]:
        """Memory that is the worker's own, and files that it has mapped, in MB."""
        if self.pages < 0:
            return 0.0, 0.0
        _, resident, shared, *_ = os.pread(self.pages, 128, 0).split()
        return (int(resident) - int(shared)) * self.page_mb, int(shared) * self.page_mb

    def _tidy_up(self, most_mb: float, child_mb: float, earlier_child_mb: float) -> float:
        """The most memory that the call had, in MB, without what others had left: of `most_mb` that the worker had,
        mapped files among it, and of its largest child. Then free what can be freed."""
        earlier_mb, files_mb = self.rest_mb - self.clean_mb, self.files_mb
        self.rest_mb, self.files_mb = self._resident()
        peak_mb = most_mb
        if self.pages >= 0:
            peak_mb = max(self.rest_mb, most_mb - max(files_mb, self.files_mb))
        if child_mb > max(earlier_child_mb, most_mb):  # a child begins with what the worker had
            peak_mb = max(peak_mb, child_mb)
        if self.rest_mb > earlier_mb + self.clean_mb + SMALL_MB:
            gc.collect()
            if self.trim is not None:
                self.trim(0)
            self.rest_mb, self.files_mb = self._resident()
        self.rest_mb = max(self.rest_mb, self.clean_mb)
        return max(0.0, peak_mb - earlier_mb)

    def _flush(self) -> None:
        """Bring into the pipes what was printed, so that the driver finds it there when it has read the reply."""
        self._flush_streams()
        if self.stdio is not None:
            self.fflush(self.stdio)  # what C libraries printed

    def _flush_streams(self) -> None:
        for stream in (*self.streams, sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # noqa: S110 - a closed stream, or anything that the call put in its place
                pass

    def _is_unread(self) -> bool:
        """Whether there is output that the driver has not read; asking here spares it two system calls."""
        if not LINUX:
            return True  # elsewhere only the reading end of a pipe can tell
        try:
            return any(self.ioctl(stream, self.FIONREAD, NOTHING) != NOTHING for stream in (1, 2))
        except OSError:
            return True

    def _left_something(self) -> bool:
        """Whether the call left children, threads that the interpreter would wait for, or other standard streams."""
        if LINUX:
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                return True
            except ChildProcessError:
                pass
            alone = self.siblings >= 0 and os.pread(self.siblings, 64, 0).split() == [b"%d" % self.pid]
            if not alone and _children(self.guard) != [self.pid]:
                return True
        if self.state.has_more_threads():
            return True
        if (sys.stdout, sys.stderr) != self.streams or any(stream.closed for stream in self.streams):
            return True
        return self._where_streams_go() != self.targets

    def _where_streams_go(self) -> list[tuple[int, int]]:
        try:
            return [(status.st_dev, status.st_ino) for status in (os.fstat(1), os.fstat(2))]
        except OSError:
            return []


def _beside(file: str, name: str) -> ModuleType:
    """The module in the folder of `file`, not as part of a package."""
    sys.path.insert(0, os.path.dirname(file))
    try:
        __import__(name)
        return sys.modules.pop(name)
    finally:
        del sys.path[0]


def _stdout_of(libc: ctypes.CDLL) -> ctypes.c_void_p | None:
    # Not fflush(NULL): that waits for a thread that reads from any FILE.
    for name in ("stdout", "__stdoutp"):
        try:
            return ctypes.c_void_p.in_dll(libc, name)
        except ValueError:
            continue
    return None


def _import_script(script: dict[str, str]) -> None:
    """Import the driver's main script as multiprocessing does, marked so that it cannot start workers of its own."""
    from multiprocessing import process, spawn

    current: Any = process.current_process()
    current._inheriting = True
    try:
        spawn.prepare(script)
    finally:
        del current._inheriting


def _described(phase: str, error: BaseException) -> bytes:
    import traceback

    cls = type(error)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    try:
        message = str(error)
    except Exception:
        message = "<its text cannot be made>"
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    text = "".join(traceback.format_exception(cls, error, trace))
    return marshal.dumps((phase, name, _encodable(message), _encodable(text)))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


if __name__ == "__main__":
    main()
