"""A call, and what can become of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from gluepy.errors import GluepyError

OnLine = Callable[[str, str], None]  # the stream, a line of it without its newline
OnMessage = Callable[[bytes], None]
OnKilled = Callable[["Killed"], None]


@dataclass(slots=True)
class WorkerCall:
    """What `WorkerPool.call` describes. `then` is asked when the function has returned, before anything else happens:
    the call that it returns is made next, by the same worker. It is not asked when the worker cannot be used again.
    `on_partial` gets, a few times a second, how the line of a progress bar looks; `redact` masks what a line of which
    the middle is left out must not tell. `on_fed` is called after the lines of one read."""

    entry: str
    shared: tuple[str, bytes]
    payload: bytes
    on_line: OnLine
    on_message: OnMessage
    on_killed: OnKilled | None = None
    memory_mb: int | None = None
    main: bool = False
    then: Callable[[Reply], WorkerCall | None] | None = None
    on_partial: OnLine | None = None
    redact: Callable[[str], str] | None = None
    on_fed: Callable[[], None] | None = None


class Reply(NamedTuple):
    """What a call returned, and where and how it ran.

    `cpu_s` is user and system time of the worker during the call, all threads, and of the children that ended and were
    waited for in it. `peak_rss_mb` is the most memory that the worker had during the call, without mapped files and
    without what earlier calls had left, or that of the largest child that ended in it, if that is more; for a call with
    a memory limit also the largest sum that was seen while watching it.
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
        hint: str = "",
        peak_rss_mb: float | None = None,
        memory_mb: int | None = None,
        oom: bool = False,
        killed_for_memory: bool = False,
        cpu_s: float | None = None,
    ) -> None:
        super().__init__(
            worker, pid, exit_code, signal, description, hint, peak_rss_mb, memory_mb, oom, killed_for_memory, cpu_s
        )
        self.worker, self.pid = worker, pid
        self.exit_code, self.signal = exit_code, signal
        self.description, self.hint = description, hint
        self.peak_rss_mb, self.memory_mb = peak_rss_mb, memory_mb
        self.oom, self.killed_for_memory = oom, killed_for_memory
        self.cpu_s = cpu_s

    def __str__(self) -> str:
        text = f"worker {self.worker} (pid {self.pid}): {self.description}"
        return f"{text}; {self.hint}" if self.hint else text


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


def size(mb: float) -> str:
    """Megabytes as a person says them: `81 MB`, `7.9 GB`."""
    return f"{mb:.0f} MB" if mb < 999.5 else f"{mb / 1024:.1f} GB"
