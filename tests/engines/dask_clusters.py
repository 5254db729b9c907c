"""Dask clusters for tests: a scheduler and workers, each a process of its own, on free ports of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pytest

_STARTED_S = 60.0

_is_missing = find_spec("distributed") is None
if _is_missing and os.environ.get("CI") == "true":
    raise RuntimeError("these tests need Dask: pip install 'gluepy[dask]'")
needs_dask = pytest.mark.skipif(_is_missing, reason="it needs Dask: pip install 'gluepy[dask]'")


class Cluster:
    """A scheduler and `workers`, each with a nanny and one thread. `modules` are the workers' INSTALLED_MODULES."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 2,
        modules: Sequence[str] = (),
        resources: str = "slot=1",
        allowed_failures: int = 0,
    ) -> None:
        self._folder, self._workers, self._resources = folder, workers, resources
        self.scheduler_file = folder / "scheduler.json"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GLUEPY_")},
            "GLUEPY_INSTALLED_MODULES": json.dumps(list(modules)),
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(allowed_failures),
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        }
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0", "--no-show",
            "--scheduler-file", str(self.scheduler_file),
        )  # fmt: skip
        _wait(lambda: self.scheduler_file.exists() and self.scheduler_file.read_text().endswith("}"), self.scheduler)
        self.address: str = json.loads(self.scheduler_file.read_text())["address"]
        for _ in range(self._workers):
            self.add_worker()
        if self._workers:
            self._wait_for_workers()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        processes = [*self.workers, *([self.scheduler] if self.scheduler else [])]
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def add_worker(self) -> subprocess.Popen[bytes]:
        """Start another worker."""
        worker = self._start(
            "worker", self.address, "--host", "127.0.0.1", "--nthreads", "1", "--dashboard-address", "127.0.0.1:0",
            "--memory-limit", "0", "--local-directory", str(self._folder),
            *(["--resources", self._resources] if self._resources else []),
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def agents(self) -> list[int]:
        """The ids of the workers' processes, below their nannies."""
        found: list[int] = []
        for worker in self.workers:
            with suppress(psutil.NoSuchProcess):
                below = psutil.Process(worker.pid).children()
                found += [each.pid for each in below if "multiprocessing.spawn" in " ".join(each.cmdline())]
        return found

    def kill_scheduler(self) -> None:
        """SIGKILL it."""
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{arguments[0]}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]],
                stdout=log, stderr=log, cwd=self._folder, env=self.environment, start_new_session=True,
            )  # fmt: skip

    def _wait_for_workers(self) -> None:
        from distributed import Client

        connect: Any = Client
        with connect(self.address, set_as_default=False) as client:
            client.wait_for_workers(self._workers, timeout=_STARTED_S)


def _wait(until: object, process: subprocess.Popen[bytes]) -> None:
    assert callable(until)
    deadline = time.monotonic() + _STARTED_S
    while not until():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "it did not start"
        time.sleep(0.05)
