"""MLflow's tracking server: a strict one in this process, which knows what gluepy asks of it, and a real one.

The strict one refuses what the real one refuses, with the same codes; the tests of the real one keep it honest. That
one runs in the environment that TEST_MLFLOW names, or in one made once in the user's cache folder, which takes minutes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import parse_qs, unquote, urlsplit
from urllib.request import urlopen

from receivers import Request

VERSION = "3.18.0"
_KEY = re.compile(r"^[/\w.\- :]{1,250}$")
_START_S = 300.0


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Tracking:
    """What the strict server knows; `answer` is for a `Receiver`."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}  # ids by name
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, bytes] = {}

    def answer(self, request: Request) -> tuple[int, str, bytes]:
        parts = urlsplit(request.path)
        try:
            below = "/api/2.0/mlflow-artifacts/artifacts/"
            if parts.path.startswith(below):
                self.artifacts[unquote(parts.path.removeprefix(below))] = request.body
                return 200, "application/json", b"{}"
            name = parts.path.removeprefix("/api/2.0/mlflow/").replace("/", "_").replace("-", "_")
            if request.body:
                assert request.headers["content-type"] == "application/json"
                assert len(request.body) <= 1_000_000
                given = json.loads(request.body)
            else:
                given = {key: values[0] for key, values in parse_qs(parts.query).items()}
            found = getattr(self, f"_{name}")(**given)
        except Refused as error:
            told = {"error_code": error.code, "message": error.message}
            return error.status, "application/json", json.dumps(told).encode()
        return 200, "application/json", json.dumps(found or {}).encode()

    def run(self) -> dict[str, Any]:
        """The only run."""
        (run,) = self.runs.values()
        return run

    def _experiments_get_by_name(self, experiment_name: str) -> dict[str, Any]:
        if experiment_name not in self.experiments:
            raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"Could not find experiment with name '{experiment_name}'")
        return {"experiment": {"experiment_id": self.experiments[experiment_name], "name": experiment_name}}

    def _experiments_create(self, name: str) -> dict[str, Any]:
        if name in self.experiments:
            raise Refused(400, "RESOURCE_ALREADY_EXISTS", f"Experiment(name={name}) already exists.")
        self.experiments[name] = str(len(self.experiments) + 1)
        return {"experiment_id": self.experiments[name]}

    def _runs_create(
        self, experiment_id: str, start_time: int, tags: list[dict[str, str]], run_name: str
    ) -> dict[str, Any]:
        assert experiment_id in self.experiments.values()
        id = f"{len(self.runs) + 1:032x}"
        uri = f"mlflow-artifacts:/{experiment_id}/{id}/artifacts"
        info: dict[str, Any] = {"run_id": id, "experiment_id": experiment_id, "artifact_uri": uri, "run_name": run_name}
        info |= {"status": "RUNNING", "start_time": start_time}
        self.runs[id] = {"info": info, "metrics": set(), "params": {}, "tags": {}}
        self._runs_log_batch(id, tags=tags)
        return {"run": self._told(self.runs[id])}

    def _runs_search(self, experiment_ids: list[str], filter: str, max_results: int) -> dict[str, Any]:
        asked = re.fullmatch(r"tags\.`([\w.]+)` = '(.*)'", filter)
        assert asked is not None
        found = [
            self._told(run)
            for run in self.runs.values()
            if run["info"]["experiment_id"] in experiment_ids and run["tags"].get(asked[1]) == asked[2]
        ]
        return {"runs": found[:max_results]} if found else {}

    def _runs_log_batch(self, run_id: str, **values: list[dict[str, Any]]) -> None:
        run = self._known(run_id)
        assert values.keys() <= {"metrics", "params", "tags"}
        for kind, most in (("metrics", 1000), ("params", 100), ("tags", 100)):
            if len(values.get(kind, ())) > most:
                raise Refused(400, "INVALID_PARAMETER_VALUE", f"A batch logging request can contain at most {most}")
            for each in values.get(kind, ()):
                if not _KEY.match(each["key"]) or os.path.normpath(each["key"]) != each["key"]:
                    raise Refused(400, "INVALID_PARAMETER_VALUE", f"Invalid value {each['key']!r}")
        for each in values.get("metrics", ()):
            assert each.keys() == {"key", "value", "timestamp", "step"}
            value = float(each["value"])
            run["metrics"].add((each["key"], each["step"], value if value == value else "NaN", each["timestamp"]))
        for each in values.get("params", ()):
            if run["params"].setdefault(each["key"], each["value"]) != each["value"] or len(each["value"]) > 6000:
                raise Refused(400, "INVALID_PARAMETER_VALUE", "Changing param values is not allowed.")
        for each in values.get("tags", ()):
            assert len(each["value"]) <= 8000
            run["tags"][each["key"]] = each["value"]

    def _runs_update(self, run_id: str, status: str, end_time: int | None = None) -> None:
        assert status in ("RUNNING", "FINISHED", "FAILED", "KILLED")
        self._known(run_id)["info"] |= {"status": status, "end_time": end_time}

    def _known(self, id: str) -> dict[str, Any]:
        if id not in self.runs:
            raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"Run with id={id} not found")
        return self.runs[id]

    @staticmethod
    def _told(run: dict[str, Any]) -> dict[str, Any]:
        pairs = {
            kind: [{"key": key, "value": value} for key, value in run[kind].items()] for kind in ("params", "tags")
        }
        return {"info": run["info"], "data": pairs}


def environment() -> Path:
    """The folder of the virtual environment with MLflow."""
    named = os.environ.get("TEST_MLFLOW")
    if named:
        return Path(named)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / f"gluepy-tests/mlflow-{VERSION}"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin/pip"), "install", "-q", f"mlflow=={VERSION}"], check=True)
        (folder / "done").touch()
    return folder


@contextmanager
def real_server(folder: Path) -> Iterator[str]:
    """The address of a real server, which keeps what it has in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(environment() / "bin/mlflow"),
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    variables = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHON"))}
    variables["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, cwd=folder, start_new_session=True)
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
            while not _is_up(f"{url}/health"):
                assert process.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.1)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_up(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


READ = """
import json, sys
import mlflow
client = mlflow.MlflowClient(sys.argv[1])
runs = []
for experiment in client.search_experiments():
    for run in client.search_runs([experiment.experiment_id]):
        id = run.info.run_id
        history = {key: client.get_metric_history(id, key) for key in run.data.metrics}
        metrics = {key: sorted([each.step, each.value] for each in values) for key, values in history.items()}
        files = [each.path for each in client.list_artifacts(id)]
        runs.append({
            "experiment": experiment.name, "name": run.info.run_name, "status": run.info.status, "files": files,
            "start": run.info.start_time, "end": run.info.end_time, "params": run.data.params, "tags": run.data.tags,
            "metrics": metrics,
        })
print(json.dumps(runs))
"""


def read_back(url: str) -> list[dict[str, Any]]:
    """All runs that a real server has, as MLflow's own client reads them."""
    python = environment() / "bin/python"
    done = subprocess.run([python, "-c", READ, url], capture_output=True, text=True, timeout=300, check=True)
    runs: list[dict[str, Any]] = json.loads(done.stdout)
    return runs
