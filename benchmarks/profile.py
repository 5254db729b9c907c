"""Where the time goes: `python -m benchmarks.profile`.

A timer interrupts the main thread two thousand times a second and looks at what it is at (250 times where tasks run in
threads: while it waits, at what these are at). The innermost frame of gluepy, or of the event loop, tells the part; C
code counts as whoever called it. Sampling costs some hundredths, and does not make small functions look big.

A thread is seen where it lets go of the interpreter, which it does in every `os.write`: for threads the log is written
without letting go.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import faulthandler
import gc
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from unittest.mock import patch

import msgspec

import gluepy
from benchmarks import live
from benchmarks.events import Measure
from benchmarks.live import PIPELINE
from benchmarks.machine import isolated
from benchmarks.startup import write
from benchmarks.turns import Effort, full, small
from benchmarks.workloads import InProcess, InThread, OnLoop, Sleep, chain, dag_of, fan_out, layered, side_by_side
from gluepy import DAG, Runtime

INTERVAL_S = 0.0005
THREADS_INTERVAL_S = 0.004  # to look at all threads takes a tenth of a millisecond
LONG_ENOUGH_S = 3.0
SWITCH_S = 0.00002  # threads let go of the interpreter so often, for a sample to come when it is due
HOME = str(Path(gluepy.__file__).parent) + os.sep
PARTS = {  # the first that fits; what stands in no line is "session"
    "core/graph.py": "compile",
    "exec/dag.py": "compile",
    "core/": "schedule",
    "exec/engine.py": "engine",
    "exec/journal.py": "engine",
    "exec/slots.py": "engine",
    "clock.py": "engine",
    "runs/log.py": "write",
    "sinks/": "publish",
    "exec/executors/": "executor",
    "exec/boundary.py": "task",
    "exec/scope.py": "task",
    "exec/port.py": "task",
    "loop.py": "event loop",
    "cli/": "progress",
}
_FRAME = re.compile(r'^  File "(.*)", line \d+ in (.*)$', re.MULTILINE)  # as faulthandler writes it
ORDER = (
    *("compile", "schedule", "engine", "encode", "write", "publish"),
    *("executor", "task", "event loop", "waiting", "progress"),
)


class Profile(msgspec.Struct, kw_only=True):
    """The shares of one workload's time by part and by function, most first, and of garbage collection, which is part
    of all of them. `each_s` is the time a task."""

    workload: str
    each_s: float
    samples: int
    parts: dict[str, float]
    functions: dict[str, float]
    garbage: float


class Sampler:
    """Counts, while `on`, what the main thread is at, and threads with tasks; `only_loop`: only while the main thread
    runs an event loop."""

    def __init__(self, *, threads: bool = False, only_loop: bool = False) -> None:
        self._threads, self._only_loop = threads, only_loop
        self.parts: Counter[str] = Counter()
        self.functions: Counter[str] = Counter()
        self.garbage_s = 0.0
        self._began = 0.0
        self._interval_s = THREADS_INTERVAL_S if threads else INTERVAL_S
        self._stacks = tempfile.TemporaryFile(buffering=0) if threads else None  # noqa: SIM115  # closed with it

    @contextmanager
    def on(self) -> Iterator[None]:
        before, interval_s = signal.signal(signal.SIGALRM, self._sample), sys.getswitchinterval()
        if self._threads:
            sys.setswitchinterval(SWITCH_S)
        gc.callbacks.append(self._collecting)
        signal.setitimer(signal.ITIMER_REAL, self._interval_s, self._interval_s)
        try:
            with patch.object(os, "write", _write) if self._threads else nullcontext():
                yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            gc.callbacks.remove(self._collecting)
            signal.signal(signal.SIGALRM, before)
            sys.setswitchinterval(interval_s)

    def _sample(self, signum: int, frame: FrameType | None) -> None:
        if self._only_loop and not _in_loop(frame):
            return
        part, function = place(_stack(frame))
        if part == "waiting" and self._threads:
            part, function = next(self._at_work(), (part, function))
        self.parts[part] += 1
        self.functions[function] += 1

    def _at_work(self) -> Iterator[tuple[str, str]]:
        """What threads with tasks are at, but for those that wait for their turn."""
        # Frames of other threads, looked at one by one, would be gone before their turn: this takes all at once.
        assert self._stacks is not None
        self._stacks.seek(0)
        self._stacks.truncate()
        faulthandler.dump_traceback(self._stacks)
        self._stacks.seek(0)
        for thread in self._stacks.read().decode().split("\n\n"):
            stack = _FRAME.findall(thread)
            if any(file.endswith("executors/local.py") for file, _ in stack) and stack[0][1] != "proceed":
                yield place(stack)

    def profile(self, name: str, each_s: float, taken_s: float) -> Profile:
        """What was seen in `taken_s` seconds."""
        samples = max(self.parts.total(), 1)
        return Profile(
            workload=name,
            each_s=each_s,
            samples=samples,
            parts={part: seen / samples for part, seen in self.parts.most_common()},
            functions={function: seen / samples for function, seen in self.functions.most_common(25)},
            garbage=self.garbage_s / taken_s,
        )

    def _collecting(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.garbage_s += time.perf_counter() - self._began


def _write(file: int, data: bytes) -> int:
    written: int = _kept.write(file, data, len(data))
    if written < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return written


_kept = ctypes.PyDLL(None, use_errno=True)  # whose functions are called without letting go


def _stack(frame: FrameType | None) -> Iterator[tuple[str, str]]:
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_code.co_qualname
        frame = frame.f_back


def _in_loop(frame: FrameType | None) -> bool:
    return any(file.endswith("asyncio/runners.py") for file, _ in _stack(frame))


def place(stack: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The part and the function that a stack is in: the files and names of its frames, innermost first."""
    function = ""
    for depth, (file, name) in enumerate(stack):
        if not depth and name.rpartition(".")[2] == "select":
            return "waiting", "select"
        if file.startswith(HOME):
            inside = file.removeprefix(HOME).replace(os.sep, "/")
            function = function or f"{inside}: {name}"
            if inside == "core/events.py":
                return "encode", function
            if inside != "exec/task.py":  # of which there is something in authoring and in running: whoever calls it
                return next((part for path, part in PARTS.items() if inside.startswith(path)), "session"), function
        elif "/asyncio/" in file or "/anyio/" in file:
            return "event loop", function or f"{Path(file).parent.name}/{Path(file).name}: {name}"
    return "session", function or "other"


async def profile(name: str, dag: type[DAG], count: int, concurrency: int | None, at_least_s: float) -> Profile:
    """Run `dag` again and again, sampled; what is told is divided by `count`."""
    sampler = Sampler(threads="threads" in name)
    runs, taken_s = 0, 0.0
    async with Runtime() as runtime:
        await runtime.run_dag(dag, concurrency=concurrency)
        while taken_s < at_least_s:
            gc.collect()
            began = time.perf_counter()
            with sampler.on():
                await runtime.run_dag(dag, concurrency=concurrency)
            taken_s += time.perf_counter() - began
            runs += 1
    return sampler.profile(name, taken_s / runs / count, taken_s)


async def profiles(effort: Effort) -> list[Profile]:
    """All workloads that have a place in the table of parts."""
    count, at_least_s = effort.tasks, LONG_ENOUGH_S if effort.turns > 1 else 0.01
    many, layers = effort.many[0], max(effort.tasks // 50, 2)
    found = [
        await profile(name, workload.dag, len(workload.graph), concurrency, at_least_s)
        for name, workload, concurrency in (
            (f"chain of {count:,}, loop", chain(OnLoop, count), None),
            (f"layered {layers} × 100, loop", layered(OnLoop, layers, 100), None),
            (f"{count:,} × 10 ms sleeps", side_by_side(Sleep, count), 100),
            (f"1 → {many:,} → 1, loop", fan_out(OnLoop, many), 100),
            (f"chain of {count:,}, threads", chain(InThread, count), None),
            (f"1 → {count:,} → 1, 4 threads", fan_out(InThread, count), 4),
            (f"{count:,} calls, 2 processes", fan_out(InProcess, count), 2),
        )
    ]
    metrics = dag_of((Measure(count=effort.events),))
    found.append(await profile(f"{effort.events:,} events", metrics, effort.events, None, at_least_s))
    return [*found, *(shown(mode, effort.shown) for mode in ("none", "live"))]


def shown(progress: str, count: int) -> Profile:
    """`gluepy run` on a terminal: the part of it that is the run."""
    with tempfile.TemporaryDirectory() as folder:
        write(folder, "many.py", PIPELINE.format(count=count))
        file = Path(folder, "profile.json")
        duration_s = live.run(folder, progress, [sys.executable, "-m", "benchmarks.profile", "--into", str(file)])
        found = msgspec.json.decode(file.read_bytes(), type=Profile)
    return msgspec.structs.replace(found, workload=f"{count:,} no-ops, progress {progress}", each_s=duration_s / count)


def sample_command(into: Path, arguments: list[str]) -> None:
    """Do what `gluepy` does with `arguments`, sampled while there is an event loop."""
    from gluepy.cli import main as gluepy_main

    sampler = Sampler(only_loop=True)
    began = time.perf_counter()
    try:
        with sampler.on():
            gluepy_main(arguments)
    finally:
        into.write_bytes(msgspec.json.encode(sampler.profile("", 0.0, time.perf_counter() - began)))


def table(found: list[Profile]) -> str:
    """Microseconds a task, by part, as Markdown."""
    parts = [*ORDER, *sorted({part for each in found for part in each.parts} - set(ORDER))]
    lines = [f"| workload | µs a task | {' | '.join(parts)} | of that, garbage |", "| --- " * (len(parts) + 3) + "|"]
    for each in found:
        us = each.each_s * 1e6
        cells = [f"{each.parts.get(part, 0.0) * us:.1f}" for part in parts]
        lines.append(f"| {each.workload} | {us:.1f} | {' | '.join(cells)} | {each.garbage * us:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table of parts, and each workload's most expensive functions."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--small", action="store_true", help="only see that it works")
    parser.add_argument("--into", type=Path, help="sample one `gluepy` command, with the arguments that follow")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.into is not None:
        sample_command(options.into, options.arguments)
    with tempfile.TemporaryDirectory() as folder, isolated(Path(folder)):
        found = asyncio.run(profiles(small if options.small else full(5)))
    print(table(found))
    for each in found:
        print(f"\n{each.workload}: {each.each_s * 1e6:.1f} µs a task, {each.samples:,} samples")
        for function, share in each.functions.items():
            print(f"{each.each_s * 1e6 * share:8.2f} µs {share:6.1%}  {function}")


if __name__ == "__main__":
    main()
