"""What writing an event down costs: from a task's `self.metric(…)` to a line in the log."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from benchmarks.turns import Effort, Row, in_turn
from benchmarks.workloads import dag_of
from gluepy import Runtime, Task
from gluepy.core import events as e
from gluepy.runs.log import FileLog

_taken_s: list[float] = []


class Measure(Task):
    """Tells so many metrics, each of which is an event, and keeps how long that takes."""

    count: int

    async def run(self) -> None:
        began = time.perf_counter()
        for value in range(self.count):
            self.metric("rows", value)
        _taken_s.append(time.perf_counter() - began)


async def events(effort: Effort) -> AsyncIterator[Row]:
    """One event, by a task and by the log alone, against `os.write` of a line that is ready."""
    count = effort.events
    dag = dag_of((Measure(count=count),))
    async with Runtime() as runtime:
        path = (await runtime.run_dag(dag)).path
        lines = (path / "events.jsonl").read_bytes().splitlines(keepends=True)
        line = next(each for each in reversed(lines) if b'"task.metric"' in each)
        event = e.decode(line)

        async def ready() -> float:
            return _writes(path / "ready.jsonl", line, count)

        async def by_task() -> float:
            await runtime.run_dag(dag)
            return _taken_s.pop()

        floor_s, gluepy_s = await in_turn(ready, by_task, effort.turns)
        yield Row(
            workload="one event written, from a task",
            floor="os.write of a ready line",
            floor_s=floor_s,
            gluepy_s=gluepy_s,
            tasks=count,
            aim=(4.0, 3.0),
        )

        async def by_log() -> float:
            async with FileLog(path / "log.jsonl") as log:
                return _repeated(lambda: log.append(e.encode(event)), count)

        floor_s, gluepy_s = await in_turn(ready, by_log, effort.turns)
        yield Row(
            workload="one event encoded and appended to the log",
            floor="os.write of a ready line",
            floor_s=floor_s,
            gluepy_s=gluepy_s,
            tasks=count,
            detail=True,
        )


def _writes(path: Path, line: bytes, count: int) -> float:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        return _repeated(lambda: os.write(file, line), count)
    finally:
        os.close(file)


def _repeated(call: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - began
