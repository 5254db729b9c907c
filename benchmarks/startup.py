"""What the command line costs: whole processes, against `python -c pass`, and against one that imports typer."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from benchmarks.turns import Effort, Row, in_turn

NOTHING = [sys.executable, "-c", "pass"]
TYPER = [sys.executable, "-c", "import typer"]
GLUEPY = [sys.executable, "-m", "gluepy"]
PIPELINE = """
from gluepy import DAG, Task


class Only(Task):
    def run(self):
        pass


class OneDAG(DAG):
    tasks = (Only,)
"""
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \| +([\w.]+)")


async def startup(effort: Effort) -> AsyncIterator[Row]:
    """`gluepy --help`, and a run of one task."""
    turns = max(2 * effort.turns, 2)
    with tempfile.TemporaryDirectory() as folder:
        write(folder, "one.py", PIPELINE)
        for name, arguments, aim, typer_aim in (
            ("`gluepy --help`", ["--help"], (8.0, 4.0), (1.5, 1.3)),
            ("`gluepy run` of one task", ["run", "one.py"], (20.0, 11.0), (2.8, 2.2)),
        ):
            for floor, told, aims, detail in (
                (NOTHING, "`python -c pass`", aim, False),
                (TYPER, '`python -c "import typer"`', typer_aim, True),
            ):

                async def least(floor: Sequence[str] = floor) -> float:
                    return process(floor, folder)

                async def ours(arguments: Sequence[str] = arguments) -> float:
                    return process([*GLUEPY, *arguments], folder)

                floor_s, gluepy_s = await in_turn(least, ours, turns)
                yield Row(workload=name, floor=told, floor_s=floor_s, gluepy_s=gluepy_s, aim=aims, detail=detail)


def write(folder: str, name: str, text: str) -> None:
    """Write a file of a pipeline."""
    Path(folder, name).write_text(text, encoding="utf-8")


def process(command: Sequence[str], folder: str) -> float:
    """The seconds that `command` takes, from its start to its end. It must end well."""
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def imports() -> dict[str, float]:
    """The seconds that a one-task `gluepy run` spends on importing each package, itself included, most first."""
    with tempfile.TemporaryDirectory() as folder:
        write(folder, "one.py", PIPELINE)
        command = [sys.executable, "-X", "importtime", "-m", "gluepy", "run", "one.py"]
        process(command, folder)  # for the bytecode
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    taken: Counter[str] = Counter()
    for own_us, module in _IMPORT.findall(done.stderr):
        package = module.partition(".")[0].lstrip("_")
        taken["standard library" if _is_standard(package) else package] += int(own_us)
    return {package: us / 1e6 for package, us in taken.most_common()}


def _is_standard(package: str) -> bool:
    return package in sys.stdlib_module_names or f"_{package}" in sys.stdlib_module_names
