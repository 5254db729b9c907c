"""How a worker process ended."""

from __future__ import annotations

import os
import signal

from gluepy.exec.executors.worker import NOTE


class Ended(Exception):
    """The worker's process is gone, or lost to us. `kind` is the guard's, empty when the guard did not tell; `cut_off`
    means that it went on, but could not be heard any more."""

    def __init__(self, note: bytes = b"", cut_off: bool = False) -> None:
        kind, status, own_mb, tree_mb, cpu_s, files_mb = NOTE.unpack(note) if note else (b"", 0, 0.0, 0.0, 0.0, 0.0)
        super().__init__(kind, status)
        self.kind, self.note, self.cut_off = kind, note, cut_off
        self.own_mb, self.tree_mb, self.cpu_s, self.files_mb = own_mb, tree_mb, cpu_s, files_mb
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
