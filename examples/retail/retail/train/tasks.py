"""The tasks of the pipeline `train`. They share data through the run's files: features, models, scores, metrics."""

import json
import re
from statistics import fmean
from typing import ClassVar

import joblib
import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import brier_score_loss, roc_auc_score
from threadpoolctl import threadpool_limits

from gluepy import current_task
from gluepy.exec import Goal, Skip, Task
from retail.train.charts import draw_report
from retail.train.features import HERE, HOUSEHOLD, KEY, by_week, examples


class BuildFeatures(Task):
    """The examples to learn from and those to test on, for every department."""

    outputs = ("features.parquet",)

    def run(self) -> None:
        table = self.storage / "transactions.parquet"
        if not table.exists():
            raise FileNotFoundError(f"{table} is not there; run the preprocess pipeline first: ./run.py dag preprocess")
        transactions = pl.read_parquet(self.local(table))
        households, purchases = by_week(transactions, HOUSEHOLD), by_week(transactions, HERE)
        context = self.context
        weeks = range(context.first_week, context.test_week + 1, context.horizon)
        parts = []
        for week in weeks:
            parts.append(examples(households, purchases, week, context.horizon))
            self.progress(len(parts), len(weeks))
        features = pl.concat(parts).sort("department", "week", "household_id")
        with self.atomic("features.parquet") as file:
            features.write_parquet(file)
        self.log.info("features", rows=features.height, columns=features.width - len(KEY))
        self.metric("rows", features.height)


def departments() -> list[str]:
    """The departments to train: those that the context names, or all that the catalogue knows."""
    task = current_task()
    features = pl.scan_parquet(task.local(task.path / "features.parquet"))
    known = sorted(features.select("department").unique().collect().to_series())
    if unknown := set(task.context.departments) - set(known):
        raise ValueError(f"no department is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return list(task.context.departments) or [department for department in known if department != "UNKNOWN"]


class DepartmentTask(Task):
    """Work on one department, in a worker process."""

    pool = "process"
    department: str

    @property
    def file(self) -> str:
        """The department as part of a file's name: `CNTRL/STORE SUP` is `cntrl-store-sup`."""
        return re.sub(r"[^a-z0-9]+", "-", self.department.lower())

    def rows(self, test: bool) -> pl.DataFrame:
        """The department's examples: of the test week, or of the weeks before it."""
        week = pl.col("week")
        features = pl.scan_parquet(self.local(self.path / "features.parquet"))
        chosen = week == self.context.test_week if test else week < self.context.test_week
        return features.filter(pl.col("department") == self.department, chosen).collect()


class Fit(DepartmentTask):
    """Learn who buys in a department."""

    memory_mb = 4096

    def run(self) -> None:
        rows = self.rows(test=False)
        purchases = rows["bought"].sum()
        if purchases < self.context.min_purchases:
            raise Skip(f"too few rows: {purchases} purchases to learn from, {self.context.min_purchases} wanted")
        model = HistGradientBoostingClassifier(**self.context.model, random_state=self.context.seed)
        with threadpool_limits(1):  # the worker processes share the cores already
            model.fit(rows.drop(KEY).to_numpy(), rows["bought"].to_numpy())
        with self.atomic(f"models/{self.file}.joblib") as file:
            joblib.dump(model, file)
        self.log.info("learned", examples=rows.height, purchases=purchases)


class Score(DepartmentTask):
    """Predict who buys after the test week, and compare with habit: who bought in most of the last 12 weeks?"""

    def run(self) -> None:
        rows = self.rows(test=True)
        model = joblib.load(self.local(self.path / f"models/{self.file}.joblib"))
        with threadpool_limits(1):
            probability = model.predict_proba(rows.drop(KEY).to_numpy())[:, 1]
        habit = pl.col("weeks_12_here").fill_null(0) - pl.col("weeks_since_here").fill_null(99) / 100
        scores = rows.select("household_id", "department", "bought", habit=habit, probability=probability)
        with self.atomic(f"scores/{self.file}.parquet") as file:
            scores.write_parquet(file)

        metrics = compare(scores, self.context.seed)
        for name, value in metrics.items():
            self.metric(name, value)
        with self.atomic(f"scores/{self.file}.json") as file:
            file.write_text(json.dumps({self.department: {name: round(value, 4) for name, value in metrics.items()}}))


def compare(scores: pl.DataFrame, seed: int, rounds: int = 200) -> dict[str, float]:
    """The model against habit; the gain in AUC is within `gain_low, gain_high` for 95 of 100 samples of households."""
    bought, probability, habit = (scores[name].to_numpy() for name in ("bought", "probability", "habit"))
    samples = np.random.default_rng(seed).integers(0, scores.height, (rounds, scores.height))
    gains = [roc_auc_score(bought[s], probability[s]) - roc_auc_score(bought[s], habit[s]) for s in samples]
    low, high = np.quantile(gains, [0.025, 0.975])
    return {
        "buyers": int(bought.sum()),
        "auc": roc_auc_score(bought, probability),
        "habit_auc": roc_auc_score(bought, habit),
        "gain_low": low,
        "gain_high": high,
        "brier": brier_score_loss(bought, probability),
    }


class Evaluate(Task):
    """All departments' metrics in one file."""

    trigger = "none_failed"  # departments with too few purchases were skipped
    outputs = ("metrics.json",)
    goals: ClassVar = {"mean_auc": Goal("higher", tolerance=0.002)}

    def run(self) -> None:
        departments: dict[str, dict[str, float]] = {}
        for scored in sorted(self.path.glob("scores/*.json")):
            departments |= json.loads(scored.read_text())
        if not departments:
            raise Skip("no department has enough purchases to learn from")
        means = {name: round(fmean(of[name] for of in departments.values()), 4) for name in ("auc", "habit_auc")}
        weeks = [self.context.test_week + 1, self.context.test_week + self.context.horizon]
        metrics = {"weeks": weeks, "mean": means, "departments": departments}
        with self.atomic("metrics.json") as file:
            file.write_text(json.dumps(metrics, indent=2) + "\n")
        for name, value in means.items():
            self.metric(f"mean_{name}", value)


class Report(Task):
    """The results as a picture."""

    outputs = ("report.png",)

    def run(self) -> None:
        metrics = json.loads((self.path / "metrics.json").read_text())
        scores = pl.concat(pl.read_parquet(self.local(file)) for file in sorted(self.path.glob("scores/*.parquet")))
        with self.atomic("report.png") as file:
            draw_report(scores, metrics).savefig(file, dpi=150)
        self.log.info("report", file=str(self.path / "report.png"))
