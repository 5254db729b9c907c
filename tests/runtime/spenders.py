"""Process tasks that take memory and CPU time, and then end in every way there is."""

from __future__ import annotations

import os
import signal
import time

from steps import note

from gluepy import Retry, Task

SPENT_S, SPENT_MB = 0.05, 60


class Spends(Task):
    """Ends well."""

    pool = "process"

    def run(self) -> None:
        self.block = bytearray(b"x") * (SPENT_MB << 20)
        end = time.process_time() + SPENT_S
        while time.process_time() < end:
            pass
        note(self.storage, "begin")
        self.end()

    def end(self) -> None: ...


class Fails(Spends):
    def end(self) -> None:
        raise ValueError("spent")


class Dies(Spends):
    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Grows(Spends):
    memory_mb = 150

    def end(self) -> None:
        self.more = bytearray(b"x") * (150 << 20)
        time.sleep(60)


class Stays(Spends):
    def end(self) -> None:
        time.sleep(60)


class StaysTooLong(Stays):
    retries = Retry(attempts=2, wait_s=0)
    timeout_s = 1
