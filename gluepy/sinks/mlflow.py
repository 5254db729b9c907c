"""The sink `mlflow`: a run as one run of MLflow, over the REST interface of its tracking server.

MLflow's own client takes four seconds to import and cannot take a run's events as they come; the interface has not
changed since version 1. https://mlflow.org/docs/latest/api_reference/rest-api.html
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import quote, urlsplit

import httpx
import msgspec
from pydantic import BaseModel, ConfigDict

from gluepy.core import events as e
from gluepy.core.policy import Retry
from gluepy.errors import SettingsError
from gluepy.sinks.http import RETRY, RequestFailed, send
from gluepy.sinks.mlflow_runs import (
    MAX_METRICS,
    MAX_PARAMS,
    RUN_ID_TAG,
    Addition,
    EndOfRun,
    RunLog,
    parameters,
)
from gluepy.sinks.port import Sink

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings

_TIMEOUT_S = 30.0


class MlflowSettings(BaseModel):
    """The group MLFLOW. `tracking_uri` and `experiment` are for MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME where
    these are not set; the experiment is by default the DAG's label. `artifacts`: the files that tasks declare as
    outputs are uploaded."""

    model_config = ConfigDict(extra="forbid")

    tracking_uri: str | None = None
    experiment: str | None = None
    artifacts: bool = False


class Mlflow(Sink):
    """Logs runs to the tracking server that the client speaks to which `connect` makes, in the experiment of this name
    or id."""

    settings_group: ClassVar = ("MLFLOW", MlflowSettings)

    def __init__(
        self,
        connect: Callable[[], httpx.Client],
        settings: Settings,
        *,
        experiment: str | None = None,
        experiment_id: str | None = None,
        artifacts: bool = False,
        retry: Retry = RETRY,
    ) -> None:
        self._retry = retry
        self._connect, self._settings = connect, settings
        self._experiment, self._experiment_id, self._artifacts = experiment, experiment_id, artifacts
        self._client: httpx.Client = connect()  # its mistakes are told before a run begins
        self._runs: dict[str, _Run] = {}
        self._entered = 0

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Made as the variables `MLFLOW_*` and then MLFLOW say. Raises `SettingsError` where they name no server."""
        group = settings.group(*cls.settings_group)
        retries = os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "")
        return cls(
            partial(_client, os.environ, group.tracking_uri, settings),
            settings,
            experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME") or group.experiment,
            experiment_id=os.environ.get("MLFLOW_EXPERIMENT_ID"),
            artifacts=group.artifacts,
            retry=msgspec.structs.replace(RETRY, attempts=1 + int(retries)) if retries.isdecimal() else RETRY,
        )

    def __enter__(self) -> Self:
        if self._client.is_closed:
            self._client = self._connect()
        self._entered += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._entered -= 1
        if not self._entered:  # no other run has this sink
            try:
                for run in self._runs.values():
                    run.flush()
            finally:
                self._runs.clear()
                self._client.close()

    def __call__(self, event: e.Event) -> None:
        """Add what `event` tells to its MLflow run, which is found or made with the first. Raises `RequestFailed`."""
        if isinstance(event, e.TaskOutput):
            return
        run = self._runs.get(event.run_id)
        if run is None:
            run = self._runs[event.run_id] = _Run(_Server(self._client, self._retry), RunLog())
        addition = run.log.of(event)
        if isinstance(event, (e.RunStarted, e.RunResumed)) and addition is not None:
            self._open(run, event, addition)
        elif addition is not None:
            run.add(addition)
            if self._artifacts:
                for name in addition.outputs:
                    run.upload(self._settings.run_files(event.run_id), name)
        if isinstance(event, (e.TaskFinished, e.TaskFailed, e.TaskRetrying)) or run.is_full:
            run.flush()
        if isinstance(event, EndOfRun):
            del self._runs[event.run_id]

    def _open(self, run: _Run, event: e.RunStarted | e.RunResumed, addition: Addition) -> None:
        experiment = self._experiment_id or self._find_experiment(run.server, self._experiment or event.dag)
        if parent := os.environ.get("MLFLOW_RUN_ID"):  # of the program that runs gluepy
            addition.tags["mlflow.parentRunId"] = parent
        found = run.find(experiment, event.run_id)
        if found is None:
            run.create(experiment, event.run_id, addition)
        else:
            run.params = {each["key"] for each in found["data"].get("params", ())}
        addition.params = {name: text for name, text in self._parameters(event.run_id) if name not in run.params}
        run.add(addition)
        run.flush()

    def _find_experiment(self, server: _Server, name: str) -> str:
        for _ in range(2):  # somebody else may make it meanwhile
            try:
                found = server.call("GET", "experiments/get-by-name", params={"experiment_name": name})
                return str(found["experiment"]["experiment_id"])
            except RequestFailed as error:
                if error.status != 404:
                    raise
            try:
                return str(server.call("POST", "experiments/create", json={"name": name})["experiment_id"])
            except RequestFailed as error:
                if error.code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise RequestFailed(server.client.base_url.host, f"its experiment {name!r} is deleted", 400)

    def _parameters(self, run_id: str) -> Iterator[tuple[str, str]]:
        """What the run's record has as its context, secrets masked; nothing where there is no record here."""
        import yaml

        try:
            text = (self._settings.runs_root / run_id / "context.yaml").read_text(encoding="utf-8")
        except OSError:
            return
        yield from parameters(yaml.safe_load(text))


class _Server:
    """The server that `client` speaks to."""

    def __init__(self, client: httpx.Client, retry: Retry) -> None:
        self.client, self.retry = client, retry

    def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """What it answers. Raises `RequestFailed`."""
        answer = send(self.client, method, f"/api/2.0/mlflow/{path}", self.retry, **options)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            why = "it does not answer as MLflow does; is MLFLOW_TRACKING_URI right?"
            raise RequestFailed(self.client.base_url.host, why)
        return found


class _Run:
    """A run of MLflow, and what is not yet sent of it."""

    def __init__(self, server: _Server, log: RunLog) -> None:
        self.server, self.log = server, log
        self.id, self._artifact_uri = "", ""
        self.params: set[str] = set()  # what the server knows
        self._pending = Addition()

    @property
    def is_full(self) -> bool:
        """Whether there is enough for a request."""
        return len(self._pending.metrics) >= MAX_METRICS

    def find(self, experiment: str, run_id: str) -> dict[str, Any] | None:
        """The run of gluepy's run, if there is one."""
        quoted = run_id.replace("'", "\\'")
        body = {"experiment_ids": [experiment], "filter": f"tags.`{RUN_ID_TAG}` = '{quoted}'", "max_results": 1}
        runs = self.server.call("POST", "runs/search", json=body).get("runs") or [None]
        return self._take(runs[0])

    def create(self, experiment: str, run_id: str, addition: Addition) -> None:
        """Make the run."""
        tags = _pairs(addition.tags)
        body = {"experiment_id": experiment, "start_time": addition.at_ms, "tags": tags}
        try:
            made = self.server.call("POST", "runs/create", json=body | {"run_name": addition.tags["mlflow.runName"]})
        except RequestFailed:
            if self.find(experiment, run_id) is None:  # it was made, and only the answer was lost
                raise
        else:
            self._take(made["run"])

    def add(self, addition: Addition) -> None:
        """Have it sent with the next request."""
        pending = self._pending
        pending.metrics += addition.metrics
        pending.params |= addition.params
        pending.tags |= addition.tags
        if addition.status is not None:
            pending.status, pending.at_ms = addition.status, addition.at_ms
            if addition.status != "RUNNING":
                self.flush()

    def flush(self) -> None:
        """Send what is pending."""
        pending = self._pending
        if not self.id:
            return
        for metrics in _batches(pending.metrics, MAX_METRICS):
            self._log(metrics=metrics)
        for params in _batches(_pairs(pending.params), MAX_PARAMS):
            self._log(params=params)
        for tags in _batches(_pairs(pending.tags), MAX_PARAMS):
            self._log(tags=tags)
        if pending.status is not None:
            end = {} if pending.status == "RUNNING" else {"end_time": pending.at_ms}
            self.server.call("POST", "runs/update", json={"run_id": self.id, "status": pending.status, **end})
        self._pending = Addition()

    def upload(self, files: str, name: str) -> None:
        """Upload a file, or all in a folder, from below the folder `files`."""
        from upath import UPath

        if "://" in name or name.startswith("/"):
            return  # it outlives the run where it is
        path = UPath(files) / name
        for each in path.rglob("*") if path.is_dir() else (path,):
            if each.is_file():
                below = each.path.removeprefix(UPath(files).path).lstrip("/")
                content = each.read_bytes()
                if self._artifact_uri.startswith("mlflow-artifacts:"):
                    place = urlsplit(self._artifact_uri).path.strip("/")
                    url = f"/api/2.0/mlflow-artifacts/artifacts/{quote(f'{place}/{below}')}"
                    send(self.server.client, "PUT", url, self.server.retry, content=content)
                else:  # the client of MLflow writes there itself, too
                    target = UPath(self._artifact_uri) / below
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content)

    def _take(self, run: dict[str, Any] | None) -> dict[str, Any] | None:
        if run is not None:
            self.id, self._artifact_uri = run["info"]["run_id"], run["info"].get("artifact_uri", "")
        return run

    def _log(self, **values: Any) -> None:
        self.server.call("POST", "runs/log-batch", json={"run_id": self.id, **values})


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": name, "value": text} for name, text in values.items()]


def _batches(values: list[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch


def _client(environment: Mapping[str, str], uri: str | None, settings: Settings) -> httpx.Client:
    variable = environment.get("MLFLOW_TRACKING_URI")
    name, source = ("MLFLOW_TRACKING_URI", "the environment") if variable else ("MLFLOW.tracking_uri", "")
    uri = variable or uri
    source = source or settings.source("MLFLOW")
    if not uri:
        why = "nothing names a tracking server of MLflow"
        raise SettingsError(name, source, why, "set it, or MLFLOW_TRACKING_URI, as in http://localhost:5000")
    if not uri.startswith(("http://", "https://")):
        shown = settings.mask("uri", uri)
        hint = "start one with `mlflow server` and name its URL"
        raise SettingsError(name, source, f"{shown!r} is not a tracking server (http:// or https://)", hint)
    headers, auth = {}, None
    if token := environment.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    elif user := environment.get("MLFLOW_TRACKING_USERNAME"):
        auth = httpx.BasicAuth(user, environment.get("MLFLOW_TRACKING_PASSWORD", ""))
    verify: Any = environment.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
    if environment.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        verify = False
    elif isinstance(verify, str):
        import ssl

        verify = ssl.create_default_context(cafile=verify)
    try:
        timeout_s = float(environment.get("MLFLOW_HTTP_REQUEST_TIMEOUT") or _TIMEOUT_S)
        return httpx.Client(base_url=uri, headers=headers, auth=auth, verify=verify, timeout=timeout_s)
    except (httpx.InvalidURL, ValueError, OSError) as error:
        raise SettingsError(name, source, f"MLflow's variables cannot be meant: {error}", "") from None
