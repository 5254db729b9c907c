"""Files in an object store, a real S3 server on this machine: they behave as on a disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem  # type: ignore[import-untyped]
from steps import Go
from store_tasks import OTHER, UsesDAG, names
from upath import UPath

from gluepy import DAG, Task
from gluepy.conf.schema import Settings
from gluepy.errors import RunStopped
from gluepy.testing import task_run

pytestmark = pytest.mark.slow


def left() -> list[str]:
    """What is left in the folder for temporary files."""
    return [name for name in os.listdir(tempfile.gettempdir()) if "gluepy" in name]


@pytest.fixture
def storage(bucket: str) -> Any:
    """A storage in the object store, for `task_run`."""
    return UPath(f"{bucket}/data")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # it takes some time
async def test_all_ways_to_files_work_in_all_pools(bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", str(folder / "here"))
    store = S3FileSystem()
    if store.exists(OTHER):
        store.rm(OTHER, recursive=True)
    store.mkdir(OTHER)
    go = Go(Settings(STORAGE_ROOT=f"{bucket}/data", RUNS_ROOT="runs"))
    async with go.runtime() as runtime:
        result = await runtime.run_dag(UsesDAG)
    assert [task.attempts for task in result.tasks.values()] == [1, 2, 2, 2, 1]
    store.invalidate_cache()
    run = f"runs/{result.run_id}"
    there = {"before.txt", f"{run}/before.txt"}
    for task in ("loopuses", "processuses", "uses"):
        there |= {f"{task}/champion", f"{task}/model/about", f"{task}/model/deep/weights-2", f"{run}/{task}.csv"}
        there |= {f"{run}/model-{task}/about", f"{run}/model-{task}/deep/weights-2"}
    assert {name.partition("/data/")[2] for name in store.find(bucket)} == there
    assert left() == []
    assert not (result.path / "drafts").exists()


def test_copies_go_with_the_attempt(storage: Any, temporary: Path) -> None:
    with task_run(storage) as run:
        (run.path / "rows.csv").write_text("1")
        copy = Task().local("rows.csv")
        assert copy.is_relative_to(temporary)
        assert (copy.name, copy.read_text()) == ("rows.csv", "1")
    assert left() == []


def test_what_is_not_there_cannot_be_copied(storage: Any) -> None:
    with task_run(storage), pytest.raises(FileNotFoundError, match=r"no such file or folder.*/runs/test/rows\.csv"):
        Task().local("rows.csv")
    assert left() == []


def test_key_that_leads_out_of_its_folder_is_not_copied(storage: Any) -> None:
    import boto3  # type: ignore[import-untyped]

    with task_run(storage):
        client: Any = boto3.client("s3")
        client.put_object(Bucket=storage.path.split("/")[0], Key="data/model/../../../evil", Body=b"1")
        with pytest.raises(ValueError, match="leads out of the folder"):
            Task().local(storage / "model")
    assert left() == []


@pytest.mark.parametrize("name", ["../x", "a/../../x", ".", "", "{path}", "{path}/../x", "{storage}", "{storage}/../x"])
def test_name_that_leads_out_or_means_everything_is_refused(name: str, storage: Any) -> None:
    with (
        task_run(storage) as run,
        pytest.raises(ValueError, match=r"atomic\('.*'\) (leads out of|would take the place)"),
    ):
        Task().atomic(name.format(path=run.path, storage=run.storage))


def test_file_and_folder_do_not_take_each_others_place(storage: Any) -> None:
    with task_run(storage) as run:
        (run.path / "file").write_text("before")
        (run.path / "folder/file").write_text("before")
        with pytest.raises(NotADirectoryError) as caught, Task().atomic("file") as draft:
            draft.mkdir()
            (draft / "new").write_text("precious")
        assert (kept(caught.value) / "new").read_text() == "precious"
        with pytest.raises(IsADirectoryError) as told, Task().atomic("folder") as draft:
            draft.write_text("precious")
        assert kept(told.value).read_text() == "precious"
        assert names(run.path) == ["file", "folder/file"]


def test_what_cannot_be_uploaded_is_kept(storage: Any) -> None:
    with task_run(storage), pytest.raises(OSError) as caught, Task().atomic("s3://no-such-bucket/rows.csv") as draft:
        draft.write_text("precious")
    assert kept(caught.value).read_text() == "precious"


def test_empty_folder_cannot_be_published(storage: Any) -> None:
    with task_run(storage), pytest.raises(FileNotFoundError, match="no empty folders"), Task().atomic("model") as draft:
        draft.mkdir()


def test_path_of_the_user_keeps_its_options(
    storage: Any, bucket: str, object_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    own = UPath(f"{bucket}/own/rows.csv", key="testing", secret="testing", endpoint_url=object_store)
    assert not own.exists()
    assert not own.parent.exists()
    with tempfile.TemporaryDirectory() as local, task_run(Path(local)):
        with Task().atomic(own) as file:
            file.write_text("1")
        assert Task().local(own).read_text() == "1"
    assert own.exists()
    assert own.read_text() == "1"


class Writes(Task):
    outputs = ("rows.csv",)

    def run(self) -> None:
        self.metric("found", len(list(self.path.glob("*.csv"))))
        with self.atomic("rows.csv") as file:
            file.write_text("1")


class Fails(Task):
    inputs = ("rows.csv",)
    outputs = ("never.csv",)

    async def run(self) -> None:
        assert self.local("rows.csv").read_text() == "1"


class WritesDAG(DAG):
    tasks = (Writes, Fails)


async def test_resume_runs_again_what_has_lost_its_outputs(bucket: str, folder: Path) -> None:
    go = Go(Settings(STORAGE_ROOT=bucket, RUNS_ROOT="runs"))
    async with go.runtime() as runtime:
        result = await runtime.run_dag(WritesDAG, check=False)
        error = result.tasks["fails"].error
        assert error is not None
        assert (error.reason, error.message) == (
            "outputs",
            "run() ended well, but its declared outputs are missing: never.csv",
        )
        assert list(runtime.plan_resume(result.run_id).again) == ["fails"]
        S3FileSystem().rm(f"{result.files}/rows.csv")
        assert list(runtime.plan_resume(result.run_id).again) == ["writes", "fails"]


async def test_resume_without_a_way_to_the_store_says_so(
    bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = Go(Settings(STORAGE_ROOT=bucket, RUNS_ROOT="runs"))
    async with go.runtime() as runtime:
        result = await runtime.run_dag(WritesDAG, check=False)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        S3FileSystem.clear_instance_cache()
        with pytest.raises(RunStopped, match="cannot look for the outputs of writes: Unable to locate credentials"):
            runtime.plan_resume(result.run_id)


def kept(error: OSError) -> Path:
    """Where the error says that the draft is kept."""
    told = f"{error.strerror}\n{getattr(error, '__notes__', '')}"
    return Path(told.partition("what was written is kept in ")[2].splitlines()[0].rstrip("']"))
