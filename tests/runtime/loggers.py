"""Tasks that say something by whatever libraries people log with. Set up when this module is imported, as programs do:
before any run has begun, or, in a worker process, by its first call."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click
import loguru
import structlog
from rich.console import Console
from tqdm import tqdm

from gluepy import Task

loguru.logger.remove()
own = logging.getLogger("own")
own.propagate = False
own.setLevel(logging.DEBUG)


@contextmanager
def set_up(stream: Any) -> Iterator[None]:
    """The program's configuration, made before the run: everything holds `stream` itself."""
    sink = loguru.logger.add(stream, format="LOGURU {level} {message}")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("OWN %(levelname)s %(message)s"))
    own.addHandler(handler)
    held.append(stream)
    consoles.append(Console(file=stream, width=200))
    try:
        yield
    finally:
        consoles.pop()
        held.pop()
        own.removeHandler(handler)
        loguru.logger.remove(sink)


for_good = ExitStack()  # of a worker process
held: list[Any] = []
consoles: list[Console] = []


class Says(Task):
    """Says `n` in every way there is, once each."""

    n: int

    def run(self) -> None:
        loguru.logger.info("loguru {}", self.n)
        own.debug("own %s", self.n)
        logging.getLogger("plain").info("plain %s", self.n)
        logging.getLogger("plain").debug("hidden %s", self.n)
        self.log.info("self.log", n=self.n)
        structlog.get_logger().info("structlog", n=self.n)
        warnings.warn(f"warned {self.n}", stacklevel=1)
        for stream in held:
            print("held", self.n, file=stream)
        for console in consoles:
            console.print(f"[bold]console {self.n}[/]")
        Console(width=200).print(f"rich {self.n}")
        Console(stderr=True, width=200).print(f"rich-err {self.n}")
        click.echo(f"click {self.n}")
        click.echo(click.style(f"click-err {self.n}", fg="red"), err=True)
        for _ in tqdm(range(40), desc=f"bar {self.n}", mininterval=0):
            pass
        print("end", self.n)


class LoopSays(Says):
    async def run(self) -> None:  # type: ignore[override]
        Says.run(self)


class ProcessSays(Says):
    pool = "process"

    def run(self) -> None:
        if not held:
            for_good.enter_context(set_up(sys.stderr))
        super().run()


SAID = (
    "LOGURU INFO loguru {}",
    "OWN DEBUG own {}",
    "plain: plain {}",
    "self.log n={}",
    "structlog",
    "UserWarning: warned {}",
    "held {}",
    "console {}",
    "rich {}",
    "rich-err {}",
    "click {}",
    "click-err {}",
    "bar {}: 100%",
    "end {}",
)


class Intercepts(logging.Handler):
    """Loguru's recipe for what logs by the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        loguru.logger.log(record.levelname, record.getMessage())
