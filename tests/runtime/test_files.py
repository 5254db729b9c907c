"""Drafts: published whole, seen by nobody before, swept after a death, and kept where they cannot be published."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from file_tasks import (
    Counts,
    Dies,
    DiesDAG,
    DiesForGood,
    LoopNeeds,
    LoopWrites,
    Needs,
    Overruns,
    OverwritesDAG,
    ProcessNeeds,
    ProcessWrites,
    Rows,
    Several,
    Table,
    Writes,
)
from steps import Go

from gluepy import RunResult, Task
from gluepy.conf.schema import Settings
from gluepy.testing import TaskRun, task_run

SHARED_MEMORY = Path("/dev/shm")
other_file_system = pytest.mark.skipif(
    not SHARED_MEMORY.is_dir() or os.stat(SHARED_MEMORY).st_dev == os.stat("/tmp").st_dev,
    reason="there is no second file system",
)


def places(folder: Path) -> dict[str, dict[str, str]]:
    """Settings, by what is special about where the files go."""
    (folder / "elsewhere").mkdir()
    (folder / "link").symlink_to(folder / "elsewhere")
    return {
        "apart": {"RUNS_ROOT": "runs", "STORAGE_ROOT": "data"},
        "records in the storage": {"RUNS_ROOT": "data/records", "STORAGE_ROOT": "data"},
        "storage around all": {"RUNS_ROOT": "runs", "STORAGE_ROOT": "."},
        "by a link": {"RUNS_ROOT": "link/records", "STORAGE_ROOT": "elsewhere"},
        "by a URL": {"RUNS_ROOT": "runs", "STORAGE_ROOT": f"file://{folder}/data"},
    }


def leftovers(folder: Path) -> list[Path]:
    """Folders for drafts, anywhere."""
    beside = folder.parent / ".gluepy-drafts"
    return [*folder.rglob(".gluepy-drafts"), *folder.rglob("drafts"), *([beside] if beside.exists() else [])]


def unpublished(error: OSError) -> Path:
    """Where the error says that the draft is kept."""
    return Path(str(error.strerror).partition("; what was written is kept in ")[2])


def files_of(result: RunResult) -> list[str]:
    """The names of what the run's tasks wrote."""
    return sorted(path.name for path in Path(result.files).rglob("*"))


def kept_in(result: RunResult) -> tuple[str, str]:
    """The one draft that the run kept, and its text."""
    (file,) = (result.path / "drafts/unpublished").glob("*/*")
    return str(file), file.read_text()


@pytest.mark.parametrize("where", ["apart", "records in the storage", "storage around all", "by a link", "by a URL"])
async def test_no_listing_shows_a_draft(where: str, folder: Path) -> None:
    go = Go(Settings().replaced(**places(folder)[where]))
    await go(*((Writes, ProcessWrites, LoopWrites) if where == "apart" else (Writes,)), check=True)
    assert leftovers(folder) == []


async def test_what_a_killed_attempt_left_is_nobodys_result(folder: Path, go: Go) -> None:
    result = await go(Dies, Counts)
    assert result.tasks["dies"].attempts == 2
    assert files_of(result) == ["model", "part-1.csv"]
    assert leftovers(folder) == []


@pytest.mark.parametrize("task", [DiesForGood, Overruns])
async def test_nothing_is_left_of_an_attempt_that_was_stopped(task: type[Task], folder: Path, go: Go) -> None:
    result = await go(task, check=False)
    assert leftovers(folder) == []
    assert files_of(result) == (["part-1.csv"] if task is Overruns else [])


async def test_drafts_of_a_driver_that_died_are_swept_by_the_resume(folder: Path, go: Go) -> None:
    async with go.runtime() as runtime:
        result = await runtime.run_dag(DiesDAG, check=False)
    left = result.path / "drafts/diesforgood.1.0a1b2c3d/part-1.csv"  # as if nobody had been there to sweep
    left.parent.mkdir(parents=True)
    left.write_text("1")
    beside = folder / ".gluepy-drafts" / result.run_id / "diesforgood.1.0a1b2c3d"
    beside.mkdir(parents=True)
    async with go.runtime() as runtime:
        await runtime.resume_run(result.run_id)
    assert leftovers(folder) == []


# ---- publishing


@pytest.fixture
def run(tmp_path: Path) -> Iterator[TaskRun]:
    """Around a task of which the storage is the folder `data`."""
    (tmp_path / "data").mkdir()
    with task_run(tmp_path / "data") as run:
        yield run


def write_file(path: Path) -> None:
    path.write_text("precious")


def write_folder(path: Path) -> None:
    path.mkdir()
    (path / "part").write_text("precious")


Write = Callable[[Path], None]


def test_folder_takes_the_place_of_a_folder(run: TaskRun) -> None:
    for number in range(3):
        with Task().atomic("model") as folder:
            folder.mkdir()
            (folder / f"weights-{number}").write_text("1")
    assert [path.name for path in (run.path / "model").iterdir()] == ["weights-2"]


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_folder_is_replaced_where_paths_cannot_change_places(
    platform: str, run: TaskRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    test_folder_takes_the_place_of_a_folder(run)
    assert [path.name for path in run.path.iterdir()] == ["model"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can have two paths change places")
def test_there_is_no_moment_without_a_folder_that_is_replaced(run: TaskRun) -> None:
    gone, stop = list[int](), threading.Event()
    path = str(run.path / "model")
    with Task().atomic("model") as folder:
        folder.mkdir()

    def watch() -> None:
        while not stop.is_set():
            if not os.path.exists(path):
                gone.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(100):
        with Task().atomic("model") as folder:
            write_folder(folder)
    stop.set()
    watcher.join()
    assert gone == []


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_link_is_replaced_and_what_it_points_to_stays(write: Write, run: TaskRun) -> None:
    for name, make in (("file", write_file), ("folder", write_folder)):
        make(Path(str(run.storage), f"old-{name}"))
        Path(str(run.storage), name).symlink_to(str(run.storage / f"old-{name}"))
        with Task().atomic(run.storage / name) as draft:
            write(draft)
        assert not Path(str(run.storage), name).is_symlink()
        assert Path(str(run.storage), name).is_dir() == (write is write_folder)
    assert Path(str(run.storage), "old-file").read_text() == "precious"
    assert Path(str(run.storage), "old-folder/part").read_text() == "precious"


@pytest.mark.parametrize("name", ["x" * 246 + ".csv", "ä" * 120 + ".parquet", ".hidden", "a b/c'd.csv", "sub/../x.csv"])
def test_every_name_that_a_file_can_have_can_be_published(name: str, run: TaskRun) -> None:
    with Task().atomic(name) as draft:
        assert draft.name == Path(name).name
        write_file(draft)
    assert Path(os.path.normpath(f"{run.path}/{name}")).read_text() == "precious"


@pytest.mark.parametrize(("there", "write"), [(write_folder, write_file), (write_file, write_folder)])
def test_what_cannot_be_published_is_kept(there: Write, write: Write, run: TaskRun, tmp_path: Path) -> None:
    there(Path(str(run.storage), "model"))
    told = None
    for _ in range(2):
        with (
            pytest.raises(OSError, match="what was written is kept in") as caught,
            Task().atomic(run.storage / "model") as draft,
        ):
            write(draft)
        kept = unpublished(caught.value)
        assert kept != told
        told = kept
        assert (kept / "part" if write is write_folder else kept).read_text() == "precious"
        assert not draft.exists()
    there_still = Path(str(run.storage), "model")
    assert (there_still / "part" if there is write_folder else there_still).read_text() == "precious"
    assert not kept.is_relative_to(tmp_path / "data")


async def test_what_could_not_be_published_outlives_the_run_and_its_resume(folder: Path, go: Go) -> None:
    async with go.runtime() as runtime:
        result = await runtime.run_dag(OverwritesDAG, check=False)
    told = str(result.tasks["overwrites"].error)
    assert (told.partition("; what was written is kept in ")[2].partition(": ")[0], "2") == kept_in(result)
    async with go.runtime() as runtime:
        await runtime.resume_run(result.run_id, check=False)
    kept_in(result)


@other_file_system
@pytest.mark.parametrize("storage", ["", "data"])
def test_another_file_system_makes_no_difference(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as there, task_run(tmp_path / "data") as run:
        target = Path(there, storage)
        for number in range(2):
            with Task().atomic(target / "rows.csv") as file, Task().atomic(target / "model") as folder:
                assert list(Path(there).rglob("*.csv")) == ([target / "rows.csv"] if number else [])
                file.write_text(str(number))
                file.chmod(0o640)
                write_folder(folder)
                (folder / str(number)).touch()
        assert (target / "rows.csv").read_text() == "1"
        assert stat.S_IMODE((target / "rows.csv").stat().st_mode) == 0o640
        assert sorted(path.name for path in target.rglob("*")) == ["1", "model", "part", "rows.csv"]
        with pytest.raises(IsADirectoryError) as caught, Task().atomic(target / "model") as file:
            write_file(file)
        assert unpublished(caught.value).read_text() == "precious"
        assert sorted(path.name for path in target.rglob("*")) == ["1", "model", "part", "rows.csv"]
        assert list(run.storage.rglob("*.csv")) == []


@pytest.mark.skipif(os.getuid() != 0 and len(os.getgroups()) < 2, reason="there is one group only")
def test_what_is_published_belongs_to_the_group_that_its_folder_hands_on(run: TaskRun) -> None:
    group = next(group for group in (*os.getgroups(), 1) if group != os.getgid())
    os.chown(str(run.path), -1, group)
    Path(str(run.path)).chmod(0o2775)
    with Task().atomic("model") as folder:
        write_folder(folder)
    assert {path.stat().st_gid for path in run.path.rglob("*")} == {group}


@pytest.mark.parametrize(
    "name", ["../x", "..", "a/../../x", "a/../..", ".", "", "{path}/../x", "{storage}/../x", "{path}", "{storage}", "/"]
)
def test_name_that_leads_out_or_means_everything_is_refused(name: str, run: TaskRun, tmp_path: Path) -> None:
    name = name.format(path=run.path, storage=run.storage)
    before = sorted(tmp_path.rglob("*"))
    for given in (name, Path(name)):
        with pytest.raises(ValueError, match=r"atomic\('.*'\) (leads out of|would take the place of) "):
            Task().atomic(given)
    assert sorted(tmp_path.rglob("*")) == before


def test_url_that_became_a_path_is_refused(run: TaskRun) -> None:
    with pytest.raises(ValueError, match="'s3:/bucket/x' was a URL before it became a Path"):
        Task().atomic(Path("s3://bucket/x"))


def test_an_error_or_an_empty_block_leaves_nothing(run: TaskRun, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Task().atomic("x.csv") as file:
        write_file(file)
        _ = 1 / 0
    with pytest.raises(FileNotFoundError, match="nothing was written"), Task().atomic("x.csv"):
        pass
    assert list(run.path.iterdir()) == []
    assert leftovers(tmp_path) == []


# ---- declared inputs


@pytest.mark.parametrize("task", [Needs, ProcessNeeds, LoopNeeds])
async def test_task_does_not_start_without_its_inputs(task: type[Task], folder: Path, go: Go) -> None:
    result = await go(Rows, Table(name="table"), task, tasks=[task.label])
    error = result.tasks[task.label].error
    assert error is not None
    assert (error.reason, error.type) == ("exception", "MissingInputs")
    assert error.message == (
        "its declared inputs are missing: rows.csv (an output of rows), ./table.csv (an output of table[name=table]), "
        "other.csv (an output of no task of this DAG)"
    )
    assert not (folder / "data/it-ran").exists()


@pytest.mark.parametrize("task", [Needs, ProcessNeeds, LoopNeeds])
async def test_task_starts_once_its_inputs_are_there(task: type[Task], folder: Path, go: Go) -> None:
    class Other(Rows):
        outputs = ("other.csv",)

        def run(self) -> None:
            (self.path / "other.csv").touch()

    await go(Rows, Table(name="table"), Other, task, check=True)
    assert (folder / "data/it-ran").exists()


async def test_property_that_gives_one_name_for_a_tuple_is_told(go: Go) -> None:
    result = await go(Rows, Several)
    assert "Several.inputs is 'rows.csv'; give a tuple of names" in str(result.tasks["several"].error)
