"""What tests of engines whose parts die have in common: the attempt that is there, and drivers to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from gluepy.runtime import RunResult
from gluepy.testing.wait import until

HERE = Path(__file__).parent


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Here:
    """The attempt at `Held` that runs now: its process, what that has started, and the agent's process."""

    def __init__(self, file: Path) -> None:
        self.worker, self.child, guard = map(int, file.read_text().split())
        self.agent = psutil.Process(guard).ppid()

    def is_gone(self) -> bool:
        return not is_alive(self.worker) and not is_alive(self.child)


async def held(folder: Path) -> Here:
    """The attempt, once it is there."""
    found: list[Path] = []

    def look() -> bool:
        found[:] = folder.glob("data/runs/*/here")
        return bool(found)

    await until(look, 120)
    here = Here(found[0])
    found[0].unlink()
    return here


def lines(result: RunResult, name: str) -> int:
    return len((Path(result.files) / name).read_text().splitlines())


def kill_child(here: Here) -> None:
    os.kill(here.worker, signal.SIGKILL)


def kill_main(here: Here) -> None:
    os.kill(here.agent, signal.SIGKILL)


class Driver:
    """`gluepy` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str, **settings: str) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GLUEPY_")},
            "GLUEPY_INSTALLED_MODULES": '["held_tasks"]',
            "GLUEPY_RUNS_ROOT": str(folder / "runs"),
            "GLUEPY_STORAGE_ROOT": str(folder / "data"),
            "GLUEPY_LIMITS": '{"gpu": 2}',
            "PYTHONPATH": str(HERE),
            **settings,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gluepy", *arguments],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def ended(self) -> tuple[int, str]:
        """Its exit code, and what it said on stderr."""
        _, told = self.process.communicate(timeout=240)
        return self.process.returncode, told
