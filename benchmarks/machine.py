"""On what it was measured, and of what."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]


class Machine(msgspec.Struct, kw_only=True):
    """What a reader needs to know of the machine, and the commit that was measured."""

    cores: int
    processor: str
    memory_gib: float
    system: str
    python: str
    commit: str
    day: str

    @classmethod
    def here(cls) -> Machine:
        """This one, now."""
        return cls(
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            processor=_processor(),
            memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
            system=platform.system(),
            python=platform.python_version() + (f" with uvloop {version('uvloop')}" if find_spec("uvloop") else ""),
            commit=_commit(),
            day=datetime.now(UTC).strftime("%Y-%m-%d"),
        )

    def text(self) -> str:
        """As half a sentence."""
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        where = f"{cores} ({self.processor}), {self.memory_gib:.0f} GiB, {self.system}, Python {self.python}"
        return f"{where}; commit {self.commit}, {self.day}"


@contextmanager
def isolated(folder: Path) -> Iterator[None]:
    """Have records, files and bytecode in `folder`, and this package importable, for processes that are started
    meanwhile; they keep bytecode as Python does unless it is told otherwise."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        "GLUEPY_RUNS_ROOT": str(folder / "runs"),
        "GLUEPY_STORAGE_ROOT": str(folder / "data"),
        "PYTHONPATH": paths,
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _commit() -> str:
    try:
        commit = _git("rev-parse", "--short", "HEAD").strip()
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "gluepy", "benchmarks/*.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + (" with changes" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
