"""Children that die when they are told to. Run as a script, it makes one call, in a process without threads:

    python forking.py module:function '{"backend": "trio"}'

`from_pytest` starts it so: a process that has threads, as pytest's has, should not fork.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

DIED = 77  # the exit status of a child that died as it was told to
HANGS_S = 30


class Ended(NamedTuple):
    """How a child ended: its exit status, and what its work returned; None where it died before."""

    status: int
    answer: Any

    @property
    def died(self) -> bool:
        return self.status == DIED


def die() -> NoReturn:
    """End this process at once, with all its threads: nothing of it runs on, nothing is written any more."""
    os._exit(DIED)


class Child:
    """Calls `work` in a forked process; `wait` tells how it ended, once `answer` can be read. One that hangs shows
    where, and is killed."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.answer, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.answer)
            _be_child(work, write)
        os.close(write)

    def wait(self) -> Ended:
        with open(self.answer, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, DIED), f"a child ended with {code}"
        return Ended(code, json.loads(answer) if answer else None)


def fork(work: Callable[[], Any]) -> Ended:
    return Child(work).wait()


def stay(work: Callable[[], Any]) -> Ended:
    """As `fork`, in this process: for work that does not die. No thread of it is left."""
    answer = work()
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(HANGS_S)
    assert threading.active_count() == 1, threading.enumerate()
    return Ended(0, answer)


def warm_up(work: Callable[[], Any]) -> None:
    """Do once here what children will do, so that they find everything imported and compiled."""
    stay(work)
    gc.collect()
    gc.freeze()  # children share the pages, as long as nobody touches them
    gc.disable()


def room() -> tempfile.TemporaryDirectory[str]:
    """A folder, in memory where that can be: only processes die here, and what they wrote stays."""
    memory = "/dev/shm"
    return tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)


def _be_child(work: Callable[[], Any], answer: int) -> NoReturn:
    status = 1
    try:
        signal.alarm(HANGS_S)
        text = json.dumps(work()).encode()
        while text:
            text = text[os.write(answer, text) :]
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def from_pytest(call: str, within_s: float, **arguments: object) -> Any:
    """Make the call in a process of its own, which may fork; what it returns is JSON."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GLUEPY_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, call, json.dumps(arguments, default=str)],
        env=clean,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within_s,
    )
    assert done.returncode == 0, f"{call} with {arguments}:\n{done.stderr}"
    return json.loads(done.stdout)


def _serve() -> None:
    module, _, function = sys.argv[1].partition(":")
    faulthandler.register(signal.SIGALRM, chain=True)
    call = getattr(importlib.import_module(module), function)
    arguments = json.loads(sys.argv[2])
    print(json.dumps(call(**arguments)))


if __name__ == "__main__":
    sys.modules["forking"] = sys.modules["__main__"]  # it is one module, whoever imports it
    _serve()
