"""The end of the process of a command that has run tasks: what they have left at work in it does not hold it up."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import ExitStack, suppress
from typing import NoReturn

_IDLE_S = 0.1  # how long threads that have nothing to do may take to end
_BOUND_S = 1.0  # how long exit handlers, and threads that are not daemons, may take then

process_ends = False  # whether this process is here for one command only
tasks_ran = False
until_the_end = ExitStack()  # what is to hold as long as tasks may be at work


def others_at_work() -> bool:
    """Whether there are threads or children that the interpreter's exit would wait for, or that would run into it."""
    if not tasks_ran:
        return False
    end = time.monotonic() + _IDLE_S
    for thread in threading.enumerate():
        if thread is threading.current_thread() or (thread.daemon and not thread.name.startswith("gluepy-thread")):
            continue
        thread.join(max(0.0, end - time.monotonic()))
        if thread.is_alive():
            return True
    multiprocessing = sys.modules.get("multiprocessing")
    return multiprocessing is not None and bool(multiprocessing.active_children())


def leave(code: int) -> NoReturn:
    """Exit with `code`. While others are at work, their output goes nowhere, exit handlers run, and the process ends
    within `_BOUND_S` seconds whatever they do."""
    if not others_at_work():
        until_the_end.close()
        raise SystemExit(code)
    leave_all_behind(code)


def leave_all_behind(code: int) -> NoReturn:
    """Exit with `code` as `leave` does while others are at work, from wherever this is called."""
    threading.Thread(target=_end, args=(_BOUND_S, code), daemon=True).start()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    try:
        import atexit

        atexit._run_exitfuncs()
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does, but it has no bound
    finally:
        os._exit(code)


def _end(after_s: float, code: int) -> None:
    time.sleep(after_s)
    os._exit(code)
