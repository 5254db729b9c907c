"""Where the time goes: `python -m benchmarks.profile`.

A timer interrupts the loop's thread two thousand times a second and looks at what it is at. The innermost frame of
gluepy, or of the event loop, tells the part; C code counts as whoever called it. Sampling costs about a hundredth, and
unlike a tracing profiler it does not make small functions look big.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import msgspec

import gluepy
from benchmarks.machine import isolated
from benchmarks.turns import Effort, full, small
from benchmarks.workloads import InProcess, InThread, OnLoop, Sleep, Workload, chain, fan_out, layered, side_by_side
from gluepy import Runtime

INTERVAL_S = 0.0005
LONG_ENOUGH_S = 3.0
HOME = str(Path(gluepy.__file__).parent) + os.sep
PARTS = {  # the first that fits; what stands in no line is "session"
    "core/graph.py": "compile",
    "exec/dag.py": "compile",
    "core/": "schedule",
    "exec/engine.py": "engine",
    "clock.py": "engine",
    "runs/log.py": "write",
    "sinks/": "publish",
    "exec/executors/": "executor",
    "exec/boundary.py": "task",
    "exec/scope.py": "task",
    "exec/port.py": "task",
    "loop.py": "event loop",
}
ORDER = ("compile", "schedule", "engine", "encode", "write", "publish", "executor", "task", "event loop", "waiting")


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
    """Counts, while `on`, what the main thread is at."""

    def __init__(self) -> None:
        self.parts: Counter[str] = Counter()
        self.functions: Counter[str] = Counter()
        self.garbage_s = 0.0
        self._began = 0.0

    @contextmanager
    def on(self) -> Iterator[None]:
        before = signal.signal(signal.SIGALRM, self._sample)
        gc.callbacks.append(self._collecting)
        signal.setitimer(signal.ITIMER_REAL, INTERVAL_S, INTERVAL_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            gc.callbacks.remove(self._collecting)
            signal.signal(signal.SIGALRM, before)

    def _sample(self, signum: int, frame: FrameType | None) -> None:
        part, function = place(frame)
        self.parts[part] += 1
        self.functions[function] += 1

    def _collecting(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.garbage_s += time.perf_counter() - self._began


def place(frame: FrameType | None) -> tuple[str, str]:
    """The part and the function that a stack is in."""
    if frame is not None and frame.f_code.co_name == "select":
        return "waiting", "select"
    function = ""
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_qualname
        if file.startswith(HOME):
            inside = file.removeprefix(HOME).replace(os.sep, "/")
            function = function or f"{inside}: {name}"
            if inside == "core/events.py":
                return "encode", function
            if inside != "exec/task.py":  # of which there is something in authoring and in running: whoever calls it
                return next((part for path, part in PARTS.items() if inside.startswith(path)), "session"), function
        elif "/asyncio/" in file or "/anyio/" in file:
            return "event loop", function or f"{Path(file).parent.name}/{Path(file).name}: {name}"
        frame = frame.f_back
    return "session", function or "other"


async def profile(name: str, workload: Workload, concurrency: int | None, at_least_s: float) -> Profile:
    """Run `workload` again and again, sampled."""
    sampler = Sampler()
    runs, taken_s = 0, 0.0
    async with Runtime() as runtime:
        await runtime.run_dag(workload.dag, concurrency=concurrency)
        while taken_s < at_least_s:
            gc.collect()
            began = time.perf_counter()
            with sampler.on():
                await runtime.run_dag(workload.dag, concurrency=concurrency)
            taken_s += time.perf_counter() - began
            runs += 1
    samples = max(sampler.parts.total(), 1)
    return Profile(
        workload=name,
        each_s=taken_s / runs / len(workload.graph),
        samples=samples,
        parts={part: sampler.parts[part] / samples for part, _ in sampler.parts.most_common()},
        functions={function: count / samples for function, count in sampler.functions.most_common(25)},
        garbage=sampler.garbage_s / taken_s,
    )


async def profiles(effort: Effort) -> list[Profile]:
    """All workloads that have a place in the table of parts."""
    count, at_least_s = effort.tasks, LONG_ENOUGH_S if effort.turns > 1 else 0.01
    many = effort.many[0]
    layers = max(count // 50, 2)
    return [
        await profile(name, workload, concurrency, at_least_s)
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, isolated(Path(folder)):
        found = asyncio.run(profiles(small if options.small else full(5)))
    print(table(found))
    for each in found:
        print(f"\n{each.workload}: {each.each_s * 1e6:.1f} µs a task, {each.samples:,} samples")
        for function, share in each.functions.items():
            print(f"{each.each_s * 1e6 * share:8.2f} µs {share:6.1%}  {function}")


if __name__ == "__main__":
    main()
