"""What a worker's process is like, besides the modules that it has: the same for every call.

Imported by a worker by the path of this file, before gluepy is.
"""

from __future__ import annotations

import _locale
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import time
import warnings

TYPE_CHECKING = False  # `typing` costs a worker's start some milliseconds
if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Mapping
    from types import ModuleType
    from typing import Any

    Read = Callable[[], Any]
    SeedOf = Callable[[Any], Any]
    Write = Callable[[Any], object]

# Not those of `signal`: they make enums of arguments and results, which takes ten times as long.
_signal: Any = sys.modules["_signal"]
get_handler, set_handler, set_mask = _signal.getsignal, _signal.signal, _signal.pthread_sigmask
_SIGNALS = tuple(range(1, 32))  # a look at the real-time ones would cost as much again
_ATTRIBUTES: tuple[tuple[dict[str, Any], str], ...] = (
    *((vars(sys), name) for name in ("excepthook", "unraisablehook", "displayhook", "breakpointhook")),
    *((vars(sys), name) for name in ("stdin", "dont_write_bytecode", "tracebacklimit")),
    *((vars(warnings), name) for name in ("showwarning", "_showwarnmsg_impl", "formatwarning")),
    (vars(threading), "excepthook"),
    (vars(os), "environ"),
)
_SHARED_THREADS = ("fsspecIO", "gluepy-forks")  # of a library that gluepy itself uses; our own, which ends by itself
_INSTALLED = tuple(f"{os.sep}{folder}{os.sep}" for folder in ("site-packages", "dist-packages"))
_MARK: Any = "seen"  # in a cache of the root logger, which every change of a level or of `logging.disable` empties
_NOTHING = object()


class ProcessState:
    """Puts back what a call changes in its process: `remember` before it, `restore` after it.

    What modules keep for themselves is not looked at, nor is what they do to the process while they are imported, if
    `remember` is called after that. `streams` are the standard output and error.
    """

    def __init__(self, streams: tuple[io.TextIOWrapper, io.TextIOWrapper], limits: ModuleType) -> None:
        self._home = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
        self._limits_of = _Limits(limits)
        self._logging = _Logging()
        self._aspects: list[tuple[Read, Write]] = [
            *_aspects(streams),
            (self._limits_of.read, self._limits_of.write),
            (self._logging.read, self._logging.write),
            (lambda: sys.path, self._write_path),
        ]
        self._reads = [read for read, _ in self._aspects]
        self._before: list[Any] = []
        self._filters: list[Any] = []
        self._seeds: dict[str, Any] = {}
        self._modules = -1
        self._threads: list[threading.Thread] = []

    def is_stale(self) -> bool:
        """Whether modules were imported since it was last looked, or logging was set up otherwise."""
        return len(sys.modules) != self._modules or self._logging.has_changed()

    def remember(self) -> None:
        """From now on, this is how the process is to be."""
        self._limits_of.remember()
        self._logging.remember()
        self._before = [value.copy() if type(value) in (list, dict) else value for value in self._read()]
        self._filters = list(warnings.filters)
        self._seeds = {name: seed(sys.modules[name]) for name, seed in _GENERATORS if name in sys.modules}
        self._modules = len(sys.modules)
        self._threads = threading.enumerate()

    def restore(self) -> bool:
        """Put the process back. Returns whether that was possible."""
        os.fchdir(self._home)
        signal.set_wakeup_fd(-1)
        faulthandler.enable()
        faulthandler.cancel_dump_traceback_later()
        warnings.resetwarnings()  # so that a warning that is shown once is shown once to every call
        warnings.filters[:] = self._filters  # type: ignore[index]
        now, before = self._read(), self._before
        self._seed()
        as_it_was = now == before
        if not as_it_was:
            for (_, write), new, old in zip(self._aspects, now, before, strict=True):
                if new != old:
                    try:
                        write(old)
                    except Exception:  # noqa: S110 - then it differs still
                        pass
            as_it_was = self._read() == before
        self._modules = len(sys.modules)
        return as_it_was

    def has_more_threads(self) -> bool:
        """Whether there are threads that were not there, and that are not of the kind that installed libraries keep
        for good."""
        if threading.active_count() <= len(self._threads):
            return False
        threads = threading.enumerate()
        if any(not _may_stay(thread) for thread in threads if thread not in self._threads):
            return True
        self._threads = threads
        return False

    def _read(self) -> list[Any]:
        return [read() for read in self._reads]

    def _seed(self) -> None:
        """Seed anew the generators that a call has seeded: else what the next call draws would be no chance."""
        for name, seed_of in _GENERATORS:
            module: Any = sys.modules.get(name)
            if module is not None and (seed := seed_of(module)) != self._seeds.get(name):
                if seed is not None:
                    module.seed()
                self._seeds[name] = seed_of(module)

    def _write_path(self, path: list[str]) -> None:
        if len(sys.modules) == self._modules:  # else what was imported by the other path would stay
            sys.path[:] = path


def _seed_of_random(random: Any) -> Any:
    return random.getstate()[1][:-1]  # all but how many numbers were drawn


def _seed_of_numpy(random: Any) -> Any:
    state = random.get_state(legacy=False)
    return state["state"]["key"].tobytes() if state["bit_generator"] == "MT19937" else None


_GENERATORS: tuple[tuple[str, SeedOf], ...] = (("random", _seed_of_random), ("numpy.random", _seed_of_numpy))


def apart(work: Callable[[], Any]) -> Any:
    """Call `work` in a context that is left after it: with a decimal context of its own."""
    decimal: Any = sys.modules.get("decimal")
    if decimal is not None:
        decimal.setcontext(decimal.getcontext().copy())
    return work()


def _may_stay(thread: threading.Thread) -> bool:
    if thread.name in _SHARED_THREADS or isinstance(thread, threading._DummyThread):
        return True
    run = type(thread).run
    code = run if run is not threading.Thread.run else getattr(thread, "_target", None)
    module = sys.modules.get(getattr(code, "__module__", None) or "")
    file = getattr(module, "__file__", None) or ""
    return thread.daemon and any(folder in file for folder in _INSTALLED)


def _aspects(streams: tuple[io.TextIOWrapper, io.TextIOWrapper]) -> list[tuple[Read, Write]]:
    """How to read what a call may change, and how to write it back."""
    environ: Any = os.environb
    aspects: list[tuple[Read, Write]] = [
        (lambda: environ._data, _write_environment),
        (lambda: sys.argv, lambda argv: setattr(sys, "argv", argv.copy())),
        (lambda: list(map(get_handler, _SIGNALS)), _write_handlers),
        (lambda: set_mask(signal.SIG_BLOCK, ()), lambda mask: set_mask(signal.SIG_SETMASK, mask)),
        (_umask, os.umask),
        (os.getpgrp, _for_good),
        (lambda: os.getpriority(os.PRIO_PROCESS, 0), lambda nice: os.setpriority(os.PRIO_PROCESS, 0, nice)),
        (lambda: _locale.setlocale(_locale.LC_ALL), lambda name: _locale.setlocale(_locale.LC_ALL, name)),
        (_blocking, _write_blocking),
        (lambda: [_encoding(stream) for stream in streams], lambda old: _write_encodings(streams, old)),
        (lambda: [names.get(name, _NOTHING) for names, name in _ATTRIBUTES], _write_attributes),
        (_start_method, lambda method: sys.modules["multiprocessing"].set_start_method(method, force=True)),
        (_loop_policy, lambda policy: setattr(sys.modules["asyncio.events"], "_event_loop_policy", policy)),
        (_socket_timeout, lambda seconds: sys.modules["_socket"].setdefaulttimeout(seconds)),
        (_traces_memory, lambda traces: sys.modules["tracemalloc"].stop() if not traces else None),
        (gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable()),
        (gc.get_threshold, lambda threshold: gc.set_threshold(*threshold)),
        (gc.get_debug, gc.set_debug),
        (lambda: gc.callbacks, lambda callbacks: gc.callbacks.__setitem__(slice(None), callbacks)),
        (sys.getrecursionlimit, sys.setrecursionlimit),
        (sys.getswitchinterval, sys.setswitchinterval),
        (sys.gettrace, sys.settrace),
        (sys.getprofile, sys.setprofile),
        (threading.gettrace, threading.settrace),
        (threading.getprofile, threading.setprofile),
        (threading.stack_size, threading.stack_size),
        (sys.getdlopenflags, sys.setdlopenflags),
        (sys.get_int_max_str_digits, sys.set_int_max_str_digits),
        (sys.get_asyncgen_hooks, lambda hooks: sys.set_asyncgen_hooks(*hooks)),
        (sys.get_coroutine_origin_tracking_depth, sys.set_coroutine_origin_tracking_depth),
    ]
    if sys.platform == "linux":
        aspects += [
            (os.getresuid, _for_good),
            (os.getresgid, _for_good),
            (lambda: os.sched_getaffinity(0), lambda cpus: os.sched_setaffinity(0, cpus)),
        ]
    return aspects


def _for_good(_: Any) -> None:
    """It cannot be written back: another process is wanted."""


def _umask() -> int:
    umask = os.umask(0o77)
    os.umask(umask)
    return umask


def _write_environment(before: Mapping[bytes, bytes]) -> None:
    environ = os.environb
    zone = environ.get(b"TZ")
    for name in [name for name in environ if name not in before]:
        del environ[name]
    for name, value in before.items():
        if environ.get(name) != value:
            environ[name] = value
    if environ.get(b"TZ") != zone:
        time.tzset()


def _write_handlers(before: list[Any]) -> None:
    for timer in (signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    for number, handler in zip(_SIGNALS, before, strict=True):
        if handler is not None and get_handler(number) != handler:  # None: it was not made by Python
            set_handler(number, handler)


def _blocking() -> tuple[bool, bool] | None:
    try:
        return os.get_blocking(1), os.get_blocking(2)
    except OSError:
        return None


def _write_blocking(before: tuple[bool, bool]) -> None:
    for stream, blocks in enumerate(before, 1):
        os.set_blocking(stream, blocks)


def _encoding(stream: io.TextIOWrapper) -> tuple[Any, ...]:
    return stream.encoding, stream.errors, stream.line_buffering, stream.write_through


def _write_encodings(streams: tuple[io.TextIOWrapper, ...], before: list[tuple[Any, ...]]) -> None:
    for stream, (encoding, errors, line_buffering, write_through) in zip(streams, before, strict=True):
        stream.reconfigure(encoding=encoding, errors=errors, line_buffering=line_buffering, write_through=write_through)


def _write_attributes(before: list[Any]) -> None:
    for (names, name), value in zip(_ATTRIBUTES, before, strict=True):
        _write_attribute(names, name, value)


def _write_attribute(names: dict[str, Any], name: str, value: Any) -> None:
    if value is not _NOTHING:
        names[name] = value
    else:
        names.pop(name, None)


def _start_method() -> str | None:
    multiprocessing: Any = sys.modules.get("multiprocessing")
    get: Callable[..., str | None] | None = getattr(multiprocessing, "get_start_method", None)
    return None if get is None else get(allow_none=True)


def _loop_policy() -> Any:  # with a policy that was made meanwhile goes its event loop, which may be closed
    return getattr(sys.modules.get("asyncio.events"), "_event_loop_policy", None)


def _socket_timeout() -> float | None:
    socket: Any = sys.modules.get("_socket")
    return None if socket is None else socket.getdefaulttimeout()


def _traces_memory() -> bool:
    tracemalloc: Any = sys.modules.get("tracemalloc")
    return tracemalloc is not None and tracemalloc.is_tracing()


class _Limits:
    """What the process may have. Who changes it has imported `resource`, once more, or psutil."""

    def __init__(self, resource: Any) -> None:
        self._get, self._set = resource.getrlimit, resource.setrlimit
        self._kinds = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})
        self._before: list[tuple[int, int]] = []
        sys.modules.pop(resource.__name__, None)

    def remember(self) -> None:
        self._before = list(map(self._get, self._kinds))

    def read(self) -> list[tuple[int, int]]:
        if "resource" in sys.modules or "psutil" in sys.modules:
            return list(map(self._get, self._kinds))
        return self._before

    def write(self, before: list[tuple[int, int]]) -> None:
        for kind, limit in zip(self._kinds, before, strict=True):
            if self._get(kind) != limit:
                self._set(kind, limit)


class _Logging:
    """Levels, handlers and filters of all loggers. A change is noticed by what it does to `logging` itself, since to
    look at hundreds of loggers takes too long."""

    def __init__(self) -> None:
        self._before: dict[logging.Logger, tuple[Any, ...]] = {}
        self._read: tuple[Any, ...] = ()
        self._handlers: list[Any] = []  # weak references, as `logging` has them
        self._modules: set[str] = set()

    def remember(self) -> None:
        self._before = {logger: _set_up_as(logger) for logger in _loggers()}
        self._handlers = logging._handlerList.copy()  # type: ignore[attr-defined]
        self._modules = set(sys.modules)
        logging.root._cache[_MARK] = True  # type: ignore[attr-defined]
        self._read = self.read()

    def has_changed(self) -> bool:
        return self.read() != self._read

    def read(self) -> tuple[Any, ...]:
        root = logging.root
        return (
            _MARK in root._cache,  # type: ignore[attr-defined]
            len(logging._handlerList) == len(self._handlers),  # type: ignore[attr-defined]
            root.manager.disable,
            root.level,
            root.disabled,
            root.filters.copy(),
            vars(root).get("addHandler", _NOTHING),
            [(handler, handler.level, handler.formatter) for handler in root.handlers],
            logging.getLogRecordFactory(),
            logging.getLoggerClass(),
            logging.raiseExceptions,
            logging.lastResort,
        )

    def write(self, before: tuple[Any, ...]) -> None:
        add, handlers, factory, kind, logging.raiseExceptions, logging.lastResort = before[-6:]
        logging.setLogRecordFactory(factory)
        logging.setLoggerClass(kind)
        logging.disable(before[2])
        _write_attribute(vars(logging.root), "addHandler", add)
        for handler, level, formatter in handlers:
            handler.setLevel(level)
            handler.setFormatter(formatter)
        imported = set(sys.modules) - self._modules
        for logger in _loggers():
            if logger in self._before:
                self._set_up(logger, *self._before[logger])
            elif not _is_below(logger.name, imported):  # else it is part of what a module does when it is imported
                self._set_up(logger, logging.NOTSET, True, False, (), ())
        self.remember()

    def _set_up(
        self,
        logger: logging.Logger,
        level: int,
        propagate: bool,
        disabled: bool,
        handlers: tuple[logging.Handler, ...],
        filters: tuple[Any, ...],
    ) -> None:
        if logger.level is not level:  # it may be a number that is also something else
            logger.setLevel(level)
        logger.propagate, logger.disabled, logger.filters[:] = propagate, disabled, filters
        gone = [handler for handler in logger.handlers if handler not in handlers]
        logger.handlers[:] = handlers
        for handler in gone:
            if not any(known() is handler for known in self._handlers):
                try:
                    handler.close()
                except Exception:  # noqa: S110 - as logging.shutdown does
                    pass


def _loggers() -> list[logging.Logger]:
    known = list(logging.root.manager.loggerDict.values())
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]


def _set_up_as(logger: logging.Logger) -> tuple[Any, ...]:
    return logger.level, logger.propagate, logger.disabled, tuple(logger.handlers), tuple(logger.filters)


def _is_below(name: str, modules: set[str]) -> bool:
    """Whether the logger's name is that of one of the modules, or begins with it."""
    while name not in modules:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return False
    return True
