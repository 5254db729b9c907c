"""An executor written outside the package, by the port's text alone: each attempt is a Python process of its own.

Run as a module it is the far end: it reads an attempt as JSON, and writes what happens as lines of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from gluepy.errors import ExecutorBroken
from gluepy.exec.executors.capture import logged
from gluepy.exec.executors.remote import run_attempt
from gluepy.exec.port import Attempt, Emission, Emit, Executor, Outcome, emission_message, emission_of

_LONGEST = 1 << 24


class SubprocessExecutor(Executor):
    """Runs each attempt through `python -m`."""

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        """Start a process, hand it the attempt, pass on what it tells."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        process = await anyio.open_process(
            [sys.executable, "-m", __name__], stderr=subprocess.DEVNULL, start_new_session=True, env=environment
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            await process.stdin.send(json.dumps(attempt.message()).encode() + b"\n")
            lines = BufferedByteReceiveStream(process.stdout)
            with logged(attempt, emit) as tell:
                while True:
                    kind, message = json.loads(await lines.receive_until(b"\n", _LONGEST))
                    if kind == "outcome":
                        return Outcome.of(message)
                    tell(emission_of(message))
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError) as error:
            raise ExecutorBroken(self.name, f"the process of {attempt.task!r} died") from error
        finally:
            with anyio.CancelScope(shield=True):
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                await process.aclose()


def main() -> None:
    """The far end."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")  # what the task prints must not get between the lines
    os.dup2(2, 1)
    lock = threading.Lock()

    def tell(kind: str, message: object) -> None:
        with lock:
            told.write(json.dumps([kind, message]) + "\n")
            told.flush()

    def emit(emission: Emission) -> None:
        tell("emission", emission_message(emission))

    attempt = Attempt.of(json.loads(sys.stdin.readline()))
    tell("outcome", run_attempt(attempt, emit).message())


if __name__ == "__main__":
    main()
