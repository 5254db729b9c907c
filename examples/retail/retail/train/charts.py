"""The report's picture."""

from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

INK, FAINT, GRID = "#22303c", "#6b7885", "#e3e7eb"
MODEL, HABIT = "#0b7285", "#e8833a"


def draw_report(scores: pl.DataFrame, metrics: dict[str, Any]) -> Figure:
    """How well each department's buyers are found, whom a campaign would reach, and how far to trust a probability."""
    figure = Figure(figsize=(13, 8.2), facecolor="white")
    grid = figure.add_gridspec(
        2, 2, width_ratios=(1.35, 1), left=0.125, right=0.975, top=0.82, bottom=0.1, wspace=0.2, hspace=0.5
    )
    draw_departments(figure.add_subplot(grid[:, 0]), metrics["departments"])
    draw_reach(figure.add_subplot(grid[0, 1]), scores)
    draw_calibration(figure.add_subplot(grid[1, 1]), scores)

    first, last = metrics["weeks"]
    of = metrics["departments"].values()
    sure = sum(department["gain_low"] > 0 for department in of)
    facts = (
        f"Predicted at the end of week {first - 1}, tested on weeks {first} to {last} with "
        f"{scores['household_id'].n_unique():,} households. The models beat habit in {sure} of {len(of)} departments "
        "beyond chance."
    )
    figure.text(0.02, 0.945, f"Who will buy in the next {last - first + 1} weeks?", size=20, weight="bold", color=INK)
    figure.text(0.02, 0.905, facts, size=11.5, color=FAINT)
    figure.text(0.02, 0.02, "Data: The Complete Journey, 84.51°, for research and education.", size=9, color=FAINT)
    return figure


def draw_departments(axes: Axes, departments: dict[str, Any]) -> None:
    """One line for each department, from habit to the model, with the 95 % interval of the gain."""
    names = sorted(departments, key=lambda name: departments[name]["auc"])
    rows = np.arange(len(names))
    of = pl.DataFrame([departments[name] for name in names])
    habit, model = of["habit_auc"], of["auc"]
    axes.hlines(rows, habit, model, color=GRID, linewidth=2)
    axes.hlines(rows, habit + of["gain_low"], habit + of["gain_high"], color=MODEL, alpha=0.2, linewidth=8)
    axes.scatter(habit, rows, color=HABIT, s=44, zorder=3, label="habit: who bought in most of the last 12 weeks")
    axes.scatter(model, rows, color=MODEL, s=62, zorder=4, label="model, with the 95 % interval of its gain")
    axes.set_yticks(rows, names)
    axes.set_ylim(-2.2, len(names) - 0.4)
    style(axes, "Buyers ranked before others", "area under the ROC curve (0.5 is chance)", "x")
    axes.tick_params(axis="y", labelsize=9)
    axes.legend(loc="lower left", bbox_to_anchor=(0, -0.005), facecolor="white", edgecolor="white", framealpha=1)


def draw_reach(axes: Axes, scores: pl.DataFrame) -> None:
    """The share of the buyers among the best-ranked households, where every department counts the same."""
    for score, color, label in (("probability", MODEL, "model"), ("habit", HABIT, "habit")):
        rank = pl.col(score).rank("ordinal", descending=True) / pl.len()
        buyers = scores.with_columns(rank=rank.over("department")).filter("bought").sort("rank")
        weight = 1 / pl.len().over("department")
        reached = buyers.select(weight.cum_sum()).to_series() / scores["department"].n_unique()
        axes.plot(buyers["rank"], reached, color=color, linewidth=2.2, label=label)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (2, 3)), label="chance")
    style(axes, "Buyers reached by a campaign", "households addressed, best first", "both")
    axes.legend(loc="lower right", facecolor="white", edgecolor="white", framealpha=1)


def draw_calibration(axes: Axes, scores: pl.DataFrame) -> None:
    """Predicted against observed, for predictions of 0 to 10 %, 10 to 20 % and so on."""
    steps = (
        scores.group_by(step=(pl.col("probability") * 10).floor())
        .agg(pl.col("probability", "bought").mean())
        .sort("step")
    )
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
    axes.plot(steps["probability"], steps["bought"], color=MODEL, linewidth=1.5, marker="o", markersize=6)
    style(axes, "Predicted and observed", "predicted probability of a purchase", "both")


def style(axes: Axes, title: str, xlabel: str, grid: Any) -> None:
    """A quiet frame: a title, a light grid and no box."""
    axes.set_title(title, loc="left", size=13, weight="bold", color=INK, pad=12)
    axes.set_xlabel(xlabel, color=FAINT, size=10)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=10)
    axes.spines[:].set_visible(False)
    if grid == "both":
        axes.set(xlim=(0, 1.01), ylim=(0, 1.01), yticks=(0.2, 0.4, 0.6, 0.8, 1))
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
