"""Ray clusters for tests: a head and nodes, each a tree of processes.

Ray listens on all interfaces. The fixture `only_loopback` moves the test's thread, and what it starts, into a network
namespace that has the loopback interface alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import pytest

_STARTED_S = 120.0
_NEWNET = 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1

_is_missing = find_spec("ray") is None
if _is_missing and os.environ.get("CI") == "true":
    raise RuntimeError("these tests need Ray: pip install 'gluepy[ray]'")
needs_ray = pytest.mark.skipif(
    _is_missing or sys.platform != "linux" or os.geteuid() != 0,
    reason="it needs Ray (pip install 'gluepy[ray]') and root on Linux, for a network namespace",
)
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # else a token is left in the home folder


@pytest.fixture(scope="module")
def only_loopback() -> Iterator[None]:
    """A network of the test's own."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    with open(f"/proc/self/task/{threading.get_native_id()}/ns/net") as home:
        assert libc.unshare(_NEWNET) == 0, os.strerror(ctypes.get_errno())
        with socket.socket() as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
        os.environ.update(ENVIRONMENT)
        yield
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        assert libc.setns(home.fileno(), _NEWNET) == 0, os.strerror(ctypes.get_errno())


class RayCluster:
    """A head with `cpus`. `modules` are the workers' INSTALLED_MODULES, found in `path`; it is started in `folder`."""

    def __init__(
        self,
        folder: Path,
        *,
        cpus: int = 2,
        resources: str = "{}",
        modules: Sequence[str] = (),
        path: Path | None = None,
    ) -> None:
        self._folder, self._cpus, self._resources = folder, cpus, resources
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GLUEPY_")},
            "GLUEPY_INSTALLED_MODULES": json.dumps(list(modules)),
            "PYTHONPATH": os.pathsep.join([*([str(path)] if path else []), *(entry for entry in sys.path if entry)]),
        }
        self._starters: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        # Short, since sockets are in it.
        self._temporary = tempfile.TemporaryDirectory(
            prefix="r", dir="/tmp", ignore_cleanup_errors=True
        )  # a short path
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.head = self._start(
            "--head", f"--port={port}", f"--num-cpus={self._cpus}", f"--resources={self._resources}",
            "--include-dashboard=false", f"--temp-dir={self._temporary.name}",
        )  # fmt: skip
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for starter in reversed(self._starters):
            self.kill(starter)
        self._temporary.cleanup()

    def add_node(self, *, cpus: int = 1, resources: str = "{}") -> subprocess.Popen[bytes]:
        """Start another node."""
        return self._start(f"--address={self.address}", f"--num-cpus={cpus}", f"--resources={resources}")

    def kill(self, starter: subprocess.Popen[bytes]) -> None:
        """SIGKILL a node, with all its processes."""
        found = self.processes(starter)
        with suppress(ProcessLookupError):
            os.killpg(starter.pid, signal.SIGKILL)
        for each in found:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        starter.wait()

    @staticmethod
    def processes(starter: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Those of a node."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(starter.pid).children(recursive=True)
        return []

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--object-store-memory=80000000"]
        log = self._folder / f"ray-{len(self._starters)}.log"
        with log.open("wb") as file:
            starter = subprocess.Popen(
                [*command, *options],
                stdout=file, stderr=file, cwd=self._folder, env=self._environment, start_new_session=True,
            )  # fmt: skip
        self._starters.append(starter)
        deadline = time.monotonic() + _STARTED_S
        while "--block" not in log.read_text():  # it says that it will wait
            assert starter.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "it did not start"
            time.sleep(0.05)
        return starter
