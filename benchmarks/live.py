"""What the live display costs a run: ten thousand no-ops by `gluepy run`, on a terminal, with it and without."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import tempfile
import termios
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from benchmarks.startup import GLUEPY, write
from benchmarks.turns import Effort, Row, in_turn
from gluepy.core import events as e

PIPELINE = """
from gluepy import DAG, Task, each


class Nothing(Task):
    n: int

    async def run(self):
        pass


class ManyDAG(DAG):
    tasks = (each(Nothing, n=range({count})),)
"""


async def live(effort: Effort) -> AsyncIterator[Row]:
    """The duration of the run, by its record: the start of the process is in another row."""
    count = effort.shown
    with tempfile.TemporaryDirectory() as folder:
        write(folder, "many.py", PIPELINE.format(count=count))

        async def without() -> float:
            return run(folder, "none")

        async def shown() -> float:
            return run(folder, "live")

        floor_s, gluepy_s = await in_turn(without, shown, 2 * effort.turns)
        yield Row(
            workload=f"{count:,} no-ops with live progress",
            floor="gluepy without it",
            floor_s=floor_s,
            gluepy_s=gluepy_s,
            tasks=count,
            aim=(1.1, 1.0),
        )


def run(folder: str, progress: str, program: Sequence[str] = GLUEPY) -> float:
    """Run the pipeline with its stderr on a terminal, which somebody reads; returns the seconds of the run."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    reader = threading.Thread(target=_read_to_the_end, args=(ours,))
    reader.start()
    command = [*program, "run", "many.py", "--progress", progress, "--run-id", progress]
    environment = {**os.environ, "TERM": "xterm-256color"}
    try:
        subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=theirs, check=True)
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
    record = Path(os.environ["GLUEPY_RUNS_ROOT"], progress)
    ended = e.decode((record / "events.jsonl").read_bytes().splitlines()[-1])
    record.rename(record.with_name(f"{progress}-{ended.timestamp}"))
    assert isinstance(ended, e.RunFinished)
    return ended.duration_s


def _read_to_the_end(terminal: int) -> None:
    try:
        while os.read(terminal, 1 << 16):
            pass
    except OSError:  # how Linux tells that nobody has the other end open any more
        return
