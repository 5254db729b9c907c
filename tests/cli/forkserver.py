"""Forks processes for calls of the command line from one that has imported gluepy: imports are half of such a call.

`python forkserver.py FD` serves the Unix socket FD. A request is a JSON object of `words`, `cwd` and `env`, with
descriptors for stdin, stdout and stderr; the answer is the wait status of a process that did what
`python -m gluepy WORDS` does.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import pkgutil
import runpy
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_LONGEST = 1 << 20


class ForkServer:
    """Starts the process on the first call."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def call(
        self, words: Sequence[str], cwd: Path, env: Mapping[str, str], streams: Sequence[int], timeout_s: float
    ) -> int:
        """Run one call, and return its exit code (negative: the signal)."""
        if self._socket is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                command = [sys.executable, __file__, str(theirs.fileno())]
                self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=dict(env))
        request = json.dumps({"words": list(words), "cwd": str(cwd), "env": dict(env)}).encode()
        self._socket.settimeout(timeout_s)
        try:
            socket.send_fds(self._socket, [request], list(streams))
            answer = self._socket.recv(16)
        except TimeoutError as error:
            self.close()
            raise subprocess.TimeoutExpired(["gluepy", *words], timeout_s) from error
        return os.waitstatus_to_exitcode(int(answer))

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._socket is not None:
            self._socket.close()
            self._process.kill()
            self._process.wait()
            self._process = self._socket = None


def _serve(ours: socket.socket) -> None:
    import gluepy.cli

    modules = [module.name for module in pkgutil.iter_modules(gluepy.cli.__path__, "gluepy.cli.")]
    for name in (*modules, "anyio._backends._asyncio", "rich.markup"):  # what any run imports
        importlib.import_module(name)
    while True:
        request, streams, _, _ = socket.recv_fds(ours, _LONGEST, 3)
        if not request:
            return
        pid = os.fork()
        if not pid:
            ours.close()
            _become(streams, **json.loads(request))
        for stream in streams:
            os.close(stream)
        ours.send(str(os.waitpid(pid, 0)[1]).encode())


def _become(streams: Sequence[int], words: list[str], cwd: str, env: dict[str, str]) -> None:
    """Be what `python -m gluepy WORDS` is: it does not return."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8")
    errors = io.BufferedWriter(io.FileIO(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(errors, "utf-8", "backslashreplace", line_buffering=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[0] = cwd
    sys.argv = ["gluepy", *words]
    runpy.run_module("gluepy", run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
