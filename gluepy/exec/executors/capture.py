"""What attempts print and log, as lines: to the attempt's log file and to live subscribers.

`streams.py` finds what is printed in this process, `logs.py` what is logged; by `following.py` the threads that an
attempt starts belong to it.
"""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from pathlib import Path

from gluepy.clock import rfc3339
from gluepy.exec.executors.lines import Lines
from gluepy.exec.port import Attempt, Emission, Emit, Outcome, Output
from gluepy.redact import Redactor


class AttemptOutput:
    """The lines of one attempt. `write` takes text in pieces, `line` whole lines; from any thread. Those of a piece are
    written to the file in one go, as are those that are `added` up to `pass_on`. `redact` masks what a line must not
    tell."""

    def __init__(
        self, file: Path | None, emit: Callable[[Emission], None], redact: Callable[[str], str] | None = None
    ) -> None:
        self._path, self._emit, self.redact = file, emit, redact
        self._file: io.FileIO | None = None
        self._closed = False
        self._streams: dict[str, Lines] = {}
        self._added: list[tuple[str, str]] = []  # streams and lines
        self._lock = threading.RLock()  # a `__del__` may print while a line is taken

    def write(self, stream: str, text: str) -> None:
        """Take a piece of text; what ends in a newline is a line."""
        with self._lock:
            lines = self._streams.get(stream)
            if lines is None:
                lines = Lines(partial(self._take, stream), partial(self.show, stream), self.redact, self._pass_on)
                self._streams[stream] = lines
            if len(self._streams) > 1:
                for other in self._streams.values():
                    if other is not lines:
                        other.release()
            lines.feed(text)

    def line(self, stream: str, line: str) -> None:
        """Take one line, without its newline."""
        with self._lock:
            self.add(stream, line)
            self.pass_on()

    def add(self, stream: str, line: str) -> None:
        """Take one line, which need not be passed on before `pass_on`."""
        if line.endswith("\r"):
            self.show(stream, line[:-1])
            return
        with self._lock:
            self._added.append((stream, line))

    def show(self, stream: str, line: str) -> None:
        """Show how a line looks that is still being drawn."""
        with self._lock:
            self.pass_on()  # what came before it
            if not self._closed:
                self._emit(Output(stream, f"{line if self.redact is None else self.redact(line)}\r"))

    def close(self) -> None:
        """What was written without a newline is a line too."""
        with self._lock:
            streams = list(self._streams.values())
            self._streams.clear()
            for lines in streams:
                lines.end()
            self.pass_on()
            self._closed = True
            if self._file is not None:
                self._file.close()
                self._file = None

    def pass_on(self) -> None:
        """Write what was added, and tell it."""
        with self._lock:
            self._pass_on()

    def _take(self, stream: str, line: str) -> None:
        self._added.append((stream, line))

    def _pass_on(self) -> None:
        added = self._added
        if len(added) == 1:  # as of a program that prints line by line
            (stream, line), self._added = added[0], []
            if self.redact is not None:
                line = self.redact(line)
            self._keep(f"{line}\n")
            if not self._closed:
                self._emit(Output(stream, line))
        elif added:
            self._added = []
            lines, redact = [line for _, line in added], self.redact
            if redact is not None:
                lines = redact.lines(lines) if isinstance(redact, Redactor) else [*map(redact, lines)]
            self._keep("\n".join(lines) + "\n")
            if not self._closed:
                for (stream, _), line in zip(added, lines, strict=True):
                    self._emit(Output(stream, line))

    def _keep(self, text: str) -> None:
        if self._path is not None:
            try:
                self._append(self._path, text.encode("utf-8", "replace"))
            except OSError as error:  # a full disk stops the run at its next event; output alone must not fail a task
                Context().run(_warn, self._path, error)  # as nobody's attempt, which would print into the same file
                self._path = None

    def _append(self, path: Path, data: bytes) -> None:
        if self._closed:  # an abandoned thread goes on: its file must not stay open for good
            with io.FileIO(path, "a", opener=_private) as file:
                _write(file, data)
            return
        if self._file is None:
            self._file = io.FileIO(path, "a", opener=_private)
        _write(self._file, data)


def _private(file: str, flags: int) -> int:
    return os.open(file, flags, 0o600)


def _write(file: io.FileIO, data: bytes) -> None:
    while data:  # a file that reaches its limit takes a part, and says why with the next
        data = data[file.write(data) :]


def _warn(path: Path, error: OSError) -> None:
    import structlog

    why = error.strerror or str(error)
    structlog.get_logger("gluepy.exec").warning("the log file of a task is cut short", file=str(path), error=why)


@contextmanager
def logged(attempt: Attempt, emit: Emit) -> Iterator[Emit]:
    """`emit`, for the near end of an executor: while the run captures, lines of output also go to the attempt's log
    file."""
    record = attempt.run.record
    if not attempt.run.capture or not record:
        yield emit
        return
    output = AttemptOutput(Path(record, attempt.log), emit)
    try:
        yield lambda each: output.line(each.stream, each.line) if isinstance(each, Output) else emit(each)
    finally:
        output.close()


def tell_failure(attempt: Attempt, outcome: Outcome, output: AttemptOutput) -> None:
    """Have the attempt's log tell that it failed, if it has, and how."""
    if outcome.status != "failed":
        return
    text = outcome.error_stack or f"{outcome.error_type}: {outcome.error_message}"
    if attempt.run.log_format == "json":
        error = {"type": outcome.error_type, "message": outcome.error_message}
        text = json.dumps(
            {
                "event": f"{attempt.task} failed",
                "run_id": attempt.run.run_id,
                "task": attempt.task,
                "attempt": attempt.number,
                "level": "error",
                "timestamp": rfc3339(time.time()),
                **{f"error.{name}": value for name, value in error.items()},
                "error.stack": outcome.error_stack,
            }
        )
    output.write("log", f"{text}\n")
