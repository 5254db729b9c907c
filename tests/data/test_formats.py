"""Datasets by name: each format, by each library, on disks and in an object store; and what is recorded of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pydantic
import pytest

from gluepy import Task
from gluepy.core import events as e
from gluepy.data import DataError, facts_of
from gluepy.testing import task_run

ROWS = [{"region": "eu", "price": 1.5}, {"region": "us", "price": 2.0}, {"region": "eu", "price": 3.0}]
TABLES: dict[str, tuple[Callable[[], Any], Any, Callable[[Any], list[dict[str, Any]]]]] = {
    "polars": (lambda: pl.DataFrame(ROWS), pl.DataFrame, lambda value: value.to_dicts()),
    "polars, lazy": (lambda: pl.LazyFrame(ROWS), pl.LazyFrame, lambda value: value.collect().to_dicts()),
    "pandas": (lambda: pd.DataFrame(ROWS), pd.DataFrame, lambda value: value.to_dict("records")),
    "pyarrow": (lambda: pa.Table.from_pylist(ROWS), pa.Table, lambda value: value.to_pylist()),
    "duckdb": (
        lambda: duckdb.from_arrow(pa.Table.from_pylist(ROWS)),
        duckdb.DuckDBPyRelation,
        lambda value: value.to_arrow_table().to_pylist(),
    ),
}
FORMS = ("parquet", "csv", "tsv", "json", "jsonl", "arrow", "csv.gz", "jsonl.bz2", "parquet.xz")


class Any_(Task):
    def run(self) -> None: ...


@dataclasses.dataclass
class Point:
    x: int
    y: float


class Struct(msgspec.Struct):
    name: str
    points: list[Point] = []


class Model(pydantic.BaseModel):
    depth: int
    rate: float = 0.5


@pytest.fixture
def task(tmp_path: Path) -> Any:
    with task_run(tmp_path):
        yield Any_()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("library", TABLES)
def test_table_comes_back_as_it_was(task: Task, library: str, form: str) -> None:
    make, kind, rows = TABLES[library]
    task.write(f"prices.{form}", make())
    assert (task.path / f"prices.{form}").is_file()
    assert rows(task.read(f"prices.{form}", kind)) == ROWS


@pytest.mark.parametrize("library", ["polars", "pandas", "pyarrow", "duckdb"])
def test_table_by_partitions_is_a_folder(task: Task, library: str) -> None:
    make, kind, rows = TABLES[library]
    task.write("prices.parquet", make(), partition_by=["region"])
    assert (task.path / "prices.parquet").is_dir()
    found = sorted(rows(task.read("prices.parquet", kind)), key=lambda row: row["price"])
    assert [(str(row["region"]), row["price"]) for row in found] == [("eu", 1.5), ("us", 2.0), ("eu", 3.0)]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("a.json", {"a": [1, None, "x"]}, None),
        ("a.json", Point(1, 2.5), Point),
        ("a.json", Struct("s", [Point(1, 2.0)]), Struct),
        ("a.json", Model(depth=3), Model),
        ("a.json", [Model(depth=3), Model(depth=4, rate=1.0)], list[Model]),
        ("a.jsonl", [Point(1, 2.0), Point(3, 4.0)], list[Point]),
        ("a.yaml", {"no": "NO", "list": [1, 2.5, True], "text": "12:30"}, None),
        ("a.csv", [{"x": "1", "y": "a,b"}, {"x": "2", "y": 'q"'}], list[dict[str, str]]),
        ("a.csv", [Point(1, 2.0), Point(3, 4.5)], list[Point]),
        ("a.txt", "grüße\n", None),
        ("a.bin", b"\x00\x01", None),
        ("a.json.gz", {"a": 1}, dict),
        ("noext", b"bytes", bytes),
    ],
)
def test_plain_value_comes_back_as_it_was(task: Task, name: str, value: Any, kind: Any) -> None:
    task.write(name, value)
    assert task.read(name, kind) == value


def test_table_without_a_wanted_type_is_one_of_polars(task: Task) -> None:
    task.write("a.parquet", pa.Table.from_pylist(ROWS))
    assert isinstance(task.read("a.parquet"), pl.DataFrame)
    assert task.read("a.parquet", list[dict[str, Any]]) == ROWS
    task.write("b.parquet", ROWS)
    assert task.read("b.parquet", pd.DataFrame).shape == (3, 2)


def test_arrays_come_back(task: Task) -> None:
    task.write("a.npy", np.arange(6).reshape(2, 3))
    assert task.read("a.npy", np.ndarray).shape == (2, 3)
    task.write("b.npz", {"x": np.ones(2), "y": np.zeros(3)})
    assert set(task.read("b.npz")) == {"x", "y"}


def test_pickles_need_trust(task: Task) -> None:
    for name in ("a.pickle", "a.joblib"):
        with pytest.raises(DataError, match="trust=True"):
            task.write(name, {1, 2})
        task.write(name, {1, 2}, trust=True)
        with pytest.raises(DataError, match="runs code"):
            task.read(name)
        assert task.read(name, trust=True) == {1, 2}


@pytest.mark.slow
def test_figures_are_saved_by_their_library(task: Task) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2, 3])
    task.write("curve.png", figure)
    task.write("curve.svg", figure)
    assert task.read("curve.png")[:4] == b"\x89PNG"
    assert "<svg" in task.read("curve.svg")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("a.parqet", pl.DataFrame(), "did you mean 'parquet'"),
        ("a.json", {1, object()}, "cannot hold it"),
        ("a.txt", 3, "has text"),
        ("a.jsonl", {"a": 1}, "has rows"),
        ("a.csv", [1, 2], "rows with names"),
        ("a", object(), "nothing writes a"),
    ],
)
def test_what_a_format_cannot_hold_is_said_and_leaves_nothing(task: Task, name: str, value: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        task.write(name, value)
    assert not (task.path / name).exists()


def test_what_does_not_fit_the_wanted_type_is_said(task: Task) -> None:
    task.write("a.json", {"x": "one"})
    with pytest.raises(DataError, match="does not fit Point"):
        task.read("a.json", Point)
    (task.path / "b.json").write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        task.read("b.json")
    with pytest.raises(FileNotFoundError):
        task.read("c.json")


def test_same_contents_have_the_same_fingerprint(task: Task, tmp_path: Path) -> None:
    for name in ("a.csv.gz", "b.csv.gz"):
        task.write(name, pl.DataFrame(ROWS))
    # the name of the file is in neither
    first, second = (facts_of(Path(str(task.path)) / name).fingerprint for name in ("a.csv.gz", "b.csv.gz"))
    assert len(first) == len(second) == 32
    task.write("a.parquet", pl.DataFrame(ROWS))
    one = facts_of(Path(str(task.path)) / "a.parquet")
    task.write("a.parquet", pl.DataFrame(ROWS[:2]))
    assert facts_of(Path(str(task.path)) / "a.parquet").fingerprint != one.fingerprint


class Writes(Task):
    def run(self) -> None:
        self.write("prices.parquet", pl.DataFrame(ROWS))


class Reads(Task):
    pool = "process"

    def run(self) -> None:
        self.metric("rows", self.read("prices.parquet", pl.LazyFrame).collect().height)


class ReadsHere(Reads):
    pool = "thread"


def _told(events: list[e.Event]) -> list[dict[str, Any]]:
    return [json.loads(e.encode(event)) for event in events if isinstance(event, e.DatasetRead | e.DatasetWritten)]


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["disk", "bucket"])
async def test_what_tasks_read_and_write_is_recorded(
    settings: Any, storage: str, request: pytest.FixtureRequest
) -> None:
    from gluepy import DAG
    from gluepy.runtime import Runtime
    from gluepy.testing import events_of

    class Prices(DAG):
        tasks = (Writes, Reads if storage == "disk" else ReadsHere)

    changed = (
        settings if storage == "disk" else {"STORAGE_ROOT": request.getfixturevalue("bucket"), "RUNS_ROOT": "runs"}
    )
    async with Runtime(changed) as runtime:
        result = await runtime.run_dag(Prices)
    written, read = _told(events_of(result))
    assert (written["event"], read["event"]) == ("dataset.written", "dataset.read")
    assert written["columns"] == {"region": "String", "price": "Float64"}
    assert (written["dataset"], written["rows"]) == ("prices.parquet", 3)
    assert read["rows"] == 3
    assert written["fingerprint"] == read["fingerprint"]
    assert written["url"].startswith("file:///" if storage == "disk" else "s3://")


async def test_nothing_is_recorded_where_the_setting_says_so(folder: Path) -> None:
    from gluepy import DAG
    from gluepy.runtime import Runtime
    from gluepy.testing import events_of

    class Prices(DAG):
        tasks = (Writes, ReadsHere)

    async with Runtime({"DATASET_EVENTS": False, "STORAGE_ROOT": "data", "RUNS_ROOT": "runs"}) as runtime:
        result = await runtime.run_dag(Prices)
    assert _told(events_of(result)) == []
