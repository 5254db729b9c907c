"""Calls of the console as users make them: in processes of their own, now and then on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryFile

from forkserver import ForkServer

DEADLINE_S = 240.0
_MODULE = (sys.executable, "-m", "gluepy")
_AT_START = ("PYTHON", "LANG", "LC_")  # what an interpreter looks at when it starts
FORKS = ForkServer()
_OURS = ("GLUEPY_", "NO_COLOR", "FORCE_COLOR", "PYTHONUNBUFFERED", "PYTHONPATH")


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what would change how the console behaves."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**plain, "COLUMNS": "100", "TERM": "xterm-256color", **extra}


def until(condition: Callable[[], object], what: str = "it") -> None:
    """Return once `condition()` is true; fail when that takes too long."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {DEADLINE_S} s"
        time.sleep(0.01)


class Console:
    """Calls the command line. `folder` is the current folder of the calls; `write` makes files in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        *words: str,
        program: Sequence[str] = _MODULE,
        cwd: Path | None = None,
        stdin: str = "",
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        if program == _MODULE and not stdin and not any(name.startswith(_AT_START) for name in env):
            return self._forked(words, cwd or self.folder, environment(**env))
        return subprocess.run(
            [*program, *words],
            cwd=cwd or self.folder,
            env=environment(**env),
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            timeout=DEADLINE_S,
            check=False,
        )

    def _forked(self, words: Sequence[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        with open(os.devnull) as null, TemporaryFile() as out, TemporaryFile() as err:
            streams = [null.fileno(), out.fileno(), err.fileno()]
            code = FORKS.call(words, cwd, env, streams, DEADLINE_S)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode().replace("\r\n", "\n"))
        return subprocess.CompletedProcess([*_MODULE, *words], code, *texts)

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start a call that is not waited for, in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "gluepy", *words],
            cwd=self.folder,
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )

    def write(self, name: str, text: str) -> Path:
        """Make a file."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), "utf-8")
        return file

    @property
    def runs(self) -> list[Path]:
        """The records, oldest first."""
        root = self.folder / ".gluepy/runs"
        return sorted(file.parent for file in root.glob("*/events.jsonl"))


class Terminal:
    """A command on a pseudo-terminal. `text` is all that it has shown so far, escape sequences included."""

    def __init__(self, words: Sequence[str], cwd: Path, rows: int, columns: int, env: dict[str, str]) -> None:
        self.text = ""
        self.code: int | None = None
        self.pid, self._fd = pty.fork()
        if not self.pid:  # it sets the size itself: it may look at it before the parent goes on
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.chdir(cwd)
            os.execvpe(words[0], list(words), env)

    def read(self, wait_s: float = 0.05) -> bool:
        """Take in what is there; False at the end."""
        if self._fd >= 0 and select.select([self._fd], [], [], wait_s)[0]:
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:  # how Linux says that the other end was closed
                data = b""
            if not data:
                os.close(self._fd)
                self._fd = -1
            self.text += data.decode("utf-8", "replace")
        return self._fd >= 0

    def wait_for(self, *texts: str) -> None:
        """Read until all of `texts` have been shown."""
        end = time.monotonic() + DEADLINE_S
        while not all(text in self.text for text in texts):
            assert self.read() and time.monotonic() < end, f"{texts} not in {self.text!r}"

    def press(self, keys: str) -> None:
        """Type `keys`."""
        os.write(self._fd, keys.encode())

    def wait(self) -> int:
        """Read to the end, and return the exit code (negative: the signal)."""
        end = time.monotonic() + DEADLINE_S
        while self.read():
            assert time.monotonic() < end, self.text
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def close(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self._fd >= 0:
            os.close(self._fd)
