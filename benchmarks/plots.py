"""The report's plots, for light and for dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.peers.results import COLUMNS, PeerResults
from benchmarks.tables import duration
from benchmarks.turns import Row

THEMES = {
    "light": {"ink": "#1f2328", "soft": "#818b98", "line": "#d1d9e0", "ours": "#0969da", "theirs": "#afb8c1"},
    "dark": {"ink": "#f0f6fc", "soft": "#9198a1", "line": "#3d444d", "ours": "#4493f8", "theirs": "#656c76"},
}


def ratios(rows: Sequence[Row], folder: Path) -> None:
    """gluepy's time over the floor's, a line for each workload, with the two aims."""
    shown = [row for row in rows if not row.detail]
    for name, theme in THEMES.items():
        with _figure(folder / f"ratios-{name}.svg", (9.0, 0.42 * len(shown) + 1.1), theme) as figure:
            axes = figure.subplots()
            for place, row in enumerate(reversed(shown)):
                axes.plot([1, row.ratio], [place, place], color=theme["ours"], linewidth=2.5, zorder=2)
                axes.plot(row.ratio, place, "o", color=theme["ours"], markersize=7, zorder=3)
                for aim in row.aim or ():
                    axes.plot(aim, place, "|", color=theme["soft"], markersize=13, markeredgewidth=2, zorder=2)
                right = max([row.ratio, *(row.aim or ())])
                axes.text(right * 1.07, place, f"{row.ratio:.2f}", va="center", color=theme["ink"], fontsize=9)
            axes.axvline(1, color=theme["ink"], linewidth=1, zorder=1)
            axes.set_yticks(
                range(len(shown)), [_plain(f"{row.workload}\nover {row.floor}") for row in reversed(shown)], fontsize=8
            )
            axes.set_xscale("log")
            axes.set_xlim(0.4, max(max([row.ratio, *(row.aim or ())]) for row in shown) * 1.6)
            _decimal(axes)
            axes.set_xlabel("gluepy's time over the floor's; grey: the aims, good and (left of it) excellent")


def peers(results: PeerResults, folder: Path) -> None:
    """Time a task of each peer, one panel a workload."""
    found = [peer for peer in results.peers if peer.workloads]
    for name, theme in THEMES.items():
        with _figure(folder / f"peers-{name}.svg", (10.0, 0.27 * len(found) + 1.3), theme) as figure:
            panels = figure.subplots(1, len(COLUMNS), sharey=True)
            for panel, (key, title) in zip(panels, COLUMNS.items(), strict=True):
                _panel(panel, [(peer.name, peer.workloads.get(key)) for peer in reversed(found)], theme)
                panel.set_title(_broken(title), fontsize=8.5, color=theme["ink"])
            figure.supxlabel("time a task, or for all of it, on a logarithmic scale", fontsize=8, color=theme["soft"])
            panels[0].set_yticks(range(len(found)), [peer.name for peer in reversed(found)], fontsize=9)


def _panel(panel: Any, measured: Sequence[tuple[str, Any]], theme: dict[str, str]) -> None:
    known = [(place, name, each.each_s) for place, (name, each) in enumerate(measured) if each and each.peer_s]
    least = min(seconds for _, _, seconds in known) / 3
    for place, name, seconds in known:
        colour = theme["ours" if name == "gluepy" else "theirs"]
        panel.barh(place, seconds - least, left=least, color=colour, height=0.66)
        panel.text(seconds * 1.25, place, duration(seconds), va="center", fontsize=7.5, color=theme["ink"])
    panel.set_xscale("log")
    panel.set_xlim(least, max(seconds for _, _, seconds in known) * 40)
    panel.xaxis.set_visible(False)
    panel.tick_params(axis="y", length=0)
    for side in panel.spines.values():
        side.set_visible(False)


@contextmanager
def _figure(file: Path, size: tuple[float, float], theme: dict[str, str]) -> Iterator[Figure]:
    ink = theme["ink"]
    looks: Any = {"text.color": ink, "xtick.color": ink, "ytick.color": ink, "axes.labelcolor": ink}
    looks |= {"axes.edgecolor": theme["line"], "font.size": 9.0, "svg.hashsalt": "gluepy", "svg.fonttype": "none"}
    with mpl.rc_context(looks):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})


def _decimal(axes: Any) -> None:
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if value in (0.5, 2, 5, 20, 50) else "")
    axes.grid(axis="x", which="major", linewidth=0.5, alpha=0.4)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _plain(text: str) -> str:
    return text.replace("`", "")


def _broken(title: str) -> str:
    return title.replace(", ", ",\n", 1)
