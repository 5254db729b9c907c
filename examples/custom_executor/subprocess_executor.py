"""An executor of your own: each attempt is a Python process, told about it by lines of JSON.

Run as a module it is the worker: it reads an attempt, and writes what happens.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Self

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream
from pydantic import BaseModel

from gluepy.conf.schema import Settings
from gluepy.exec.executors import logged, run_attempt
from gluepy.exec.port import Attempt, Emission, Emit, Executor, Outcome, emission_message, emission_of

LONGEST = 1 << 24  # bytes of a line


class SubprocessSettings(BaseModel):
    """The group SUBPROCESS. `prefix` goes before the command of a worker, such as `["nice", "-n", "10"]`."""

    prefix: list[str] = []


class SubprocessExecutor(Executor):
    """Runs each attempt in `python -m subprocess_executor`."""

    settings_group: ClassVar = ("SUBPROCESS", SubprocessSettings)

    def __init__(self, prefix: list[str] | None = None) -> None:
        self.prefix = prefix or []

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(settings.group(*cls.settings_group).prefix)

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        """Start a worker, hand it the attempt, pass on what it emits."""
        command = [*self.prefix, sys.executable, "-m", __name__]
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        process = await anyio.open_process(
            command, stderr=subprocess.DEVNULL, start_new_session=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            await process.stdin.send(json.dumps(attempt.message()).encode() + b"\n")
            lines = BufferedByteReceiveStream(process.stdout)
            with logged(attempt, emit) as tell:
                while True:
                    kind, message = json.loads(await lines.receive_until(b"\n", LONGEST))
                    if kind == "outcome":
                        return Outcome.from_message(message)
                    tell(emission_of(message))
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            why = "its process died"
            return Outcome(status="failed", reason="lost", error_type="ProcessDied", error_message=why)
        finally:  # also when the call is cancelled: the work has to stop before that is let through
            with anyio.CancelScope(shield=True):
                with suppress(ProcessLookupError):  # it may have ended by itself
                    if process.returncode is None:
                        os.killpg(process.pid, signal.SIGKILL)
                await process.aclose()


def main() -> None:
    """The worker."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")  # what the task prints must not get between the lines
    os.dup2(2, 1)
    lock = threading.Lock()

    def tell(kind: str, message: object) -> None:
        with lock:
            out.write(json.dumps([kind, message]) + "\n")
            out.flush()

    def emit(emission: Emission) -> None:
        tell("emission", emission_message(emission))

    attempt = Attempt.from_message(json.loads(sys.stdin.readline()))
    tell("outcome", run_attempt(attempt, emit).message())


if __name__ == "__main__":
    main()
