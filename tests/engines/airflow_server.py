"""A real Airflow: API server, scheduler and DAG processor as processes, with sqlite, in an environment of its own.

The environment is the one that TEST_AIRFLOW names, or made once in the user's cache folder, which takes minutes.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

VERSION = "3.3.2"
_START_S = 300.0


def environment() -> Path:
    """The folder of the virtual environment with Airflow."""
    named = os.environ.get("TEST_AIRFLOW")
    if named:
        return Path(named)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / f"gluepy-tests/airflow-{VERSION}"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(folder / "bin/pip"), "install", "-q", f"apache-airflow=={VERSION}"]
        subprocess.run(install, check=True)
        (folder / "done").touch()
    return folder


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class AirflowServer:
    """Airflow in `folder`; `dags` is where DAG files go. `async with` is not needed: it starts processes, and ends them
    by their groups."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.dags, self.port = folder, folder / "dags", free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._python = environment() / "bin/python"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.dags.mkdir(parents=True)
        (folder / "passwords.json").write_text(json.dumps({"gluepy": "gluepy"}))
        self._environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("AIRFLOW", "GLUEPY", "PYTHON"))
            },
            "PATH": f"{self._python.parent}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(self._python.parent.parent),
            "HOME": str(folder),
            "AIRFLOW_HOME": str(folder),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "3",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(16),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "gluepy:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "2",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "2",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
        }

    def __enter__(self) -> Self:
        self._airflow("db", "migrate")
        for piece in ("api-server", "scheduler", "dag-processor"):
            self.start(piece)
        end = time.monotonic() + _START_S
        while not self._answers():
            assert time.monotonic() < end, (self.folder / "api-server.out").read_text()[-2000:]
            time.sleep(0.5)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for piece in list(self._processes):
            self.kill(piece)

    def start(self, piece: str) -> None:
        """Start `api-server`, `scheduler` or `dag-processor`."""
        out = (self.folder / f"{piece}.out").open("ab")
        with out:
            self._processes[piece] = subprocess.Popen(
                [str(self._python), "-m", "airflow", piece],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def kill(self, piece: str) -> None:
        """End a piece at once, with its group."""
        process = self._processes.pop(piece)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def client(self) -> httpx.Client:
        """A client of its REST interface, which is logged in."""
        answer = httpx.post(f"{self.url}/auth/token", json={"username": "gluepy", "password": "gluepy"}, timeout=30)
        token = answer.raise_for_status().json()["access_token"]
        return httpx.Client(base_url=f"{self.url}/api/v2", headers={"Authorization": f"Bearer {token}"}, timeout=30)

    def wait_for_dag(self, dag: str) -> None:
        """Return once Airflow knows the DAG."""
        end = time.monotonic() + _START_S
        with self.client() as client:
            while client.get(f"/dags/{dag}").status_code != 200:
                errors: Any = client.get("/importErrors").json()
                assert not errors.get("import_errors"), errors
                assert time.monotonic() < end, f"Airflow never read {dag}"
                time.sleep(0.5)

    def _airflow(self, *words: str) -> None:
        command = [str(self._python), "-m", "airflow", *words]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    def _answers(self) -> bool:
        try:
            self.client().close()
        except httpx.HTTPError:
            return False
        return True
