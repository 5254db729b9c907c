"""What a peer's script does with its workloads: floor and peer in turn, and one line of JSON on stdout.

This runs in the peer's virtual environment, which has only the standard library and the peer.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import floors, graphs
from benchmarks.graphs import Graph
from benchmarks.work import burn, calls, nothing, nothing_async

THREADS = 4
PROCESSES = 2
BURNS = 8
COLD = 3  # turns of what starts processes, after one that compiles what they import
LONG_S = 20.0

Run = Callable[[], object]
Prepare = Callable[[Graph], Run]


def measure(
    *,
    chain: Prepare | None = None,
    fan_out: Prepare | None = None,
    layered: Prepare | None = None,
    cpu: Run | None = None,
    command: Callable[[Path], Sequence[str]] | None = None,
    counted: bool = True,
    after: Run = lambda: None,
) -> None:
    """Measure what the peer can express, and print it.

    `chain`, `fan_out` and `layered` make of a graph what is to be timed: to run a no-op for each of its tasks, in the
    order that it asks for, `THREADS` of the fan-out at once. `cpu` runs `burn` `BURNS` times in `PROCESSES` processes
    that it starts. `command` writes a pipeline of one task into a folder, and returns the command that runs it there.
    `counted`: the no-ops run in this process, where it can be seen that each of them did. `after` is not timed.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=1_000)
    parser.add_argument("--variant", default="")
    options = parser.parse_args()
    answer = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # what peers print on stdout costs them next to nothing there
    found: dict[str, Any] = {}

    def compare(name: str, tasks: int, floor: Run, peer: Callable[[], Run], *, cold: bool = False) -> None:
        turns = min(options.turns, COLD) if cold else options.turns
        counts = tasks if counted and not cold else 0
        try:
            floor_s, peer_s = in_turn(floor, peer(), turns, after, counts, warm=turns > 1)
            found[name] = {"tasks": tasks, "floor_s": floor_s, "peer_s": peer_s}
        except Exception as error:
            sys.stderr.write(f"{name}: {error!r}\n")
            found[name] = {"tasks": tasks, "error": f"{type(error).__name__}: {error}"[:200]}

    count = options.tasks
    wide = (20, 100) if count >= 1_000 else (10, max(count // 10, 3))
    with ThreadPoolExecutor(THREADS) as pool:
        for name, prepare, graph in (
            ("chain", chain, graphs.chain(count)),
            ("fan_out", fan_out, graphs.fan_out(count)),
            ("layered", layered, graphs.layered(*wide)),
        ):
            if prepare is not None:
                floor = _threads(graph, pool) if name == "fan_out" else _loop(graph)
                compare(name, len(graph), floor, partial(prepare, graph))
    if cpu is not None:
        compare("cpu", 1, _processes, lambda: cpu, cold=True)
    if command is not None:
        with tempfile.TemporaryDirectory() as folder:
            whole = command(Path(folder))
            compare(
                "command", 1, process([sys.executable, "-c", "pass"], folder), lambda: process(whole, folder), cold=True
            )
    os.write(answer, json.dumps(found).encode() + b"\n")


def in_turn(
    floor: Run, peer: Run, turns: int, after: Run, counts: int, *, warm: bool
) -> tuple[list[float], list[float]]:
    """Both sides' seconds, turn by turn. `warm`: one turn more, which comes first and is not counted. A peer that takes
    long gets no more turns."""
    floor_s: list[float] = []
    peer_s: list[float] = []
    for _ in range(turns + warm):
        for side, seconds in ((floor, floor_s), (peer, peer_s)):
            gc.collect()
            calls()
            began = time.perf_counter()
            side()
            seconds.append(time.perf_counter() - began)
            seen = calls()
            if counts and seen != counts:
                raise AssertionError(f"{seen} of {counts} tasks ran")
        after()
        if peer_s[-1] > LONG_S and len(peer_s) > warm:
            break
    return floor_s[warm:], peer_s[warm:]


def process(command: Sequence[str], folder: str) -> Run:
    """Runs `command` in `folder`; it must end well."""
    return lambda: subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)


def script(name: str) -> str:
    """The program `name` of this virtual environment."""
    return str(Path(sys.executable).with_name(name))


def ends(graph: Graph) -> list[int]:
    """The tasks that no other waits for."""
    waited_for = {before for after in graph.values() for before in after}
    return [node for node in graph if node not in waited_for]


def _loop(graph: Graph) -> Run:
    return lambda: asyncio.run(floors.task_group(graph, nothing_async, 100))


def _threads(graph: Graph, pool: ThreadPoolExecutor) -> Run:
    return lambda: floors.futures(graph, nothing, pool, THREADS)


def _processes() -> None:
    with ProcessPoolExecutor(PROCESSES) as pool:
        list(pool.map(burn, range(BURNS)))
