"""A run, or the last runs of a DAG, as one HTML file, to be mailed or kept: it needs no script, no server and nothing
from another host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from gluepy.cli.comparing import columns_of
from gluepy.cli.story import dataset_row, facts, failure_text, metric_rows, task_row, value_text
from gluepy.cli.text import STYLE_OF, count, damage, duration, moment, printable, tell
from gluepy.errors import OptionError
from gluepy.report import Bar, RunReport, compare_many

_BARS = 500  # the longest attempts, if there are more
_ROW, _WIDTH, _NAMES = 20, 640, 260  # pixels
_TALL = 60  # pixels of the longest run of several
_SYMBOLS = {  # from what is to be seen first to what is to be seen last
    "failed": "✗",
    "interrupted": "!",
    "cancelled": "■",
    "blocked": "⊘",
    "retrying": "↻",
    "running": "▶",
    "pending": "·",
    "finished": "✓",
    "skipped": "–",
}

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #fff; --line: #d0d7de; --dim: #57606a;
  --good: #1a7f37; --bad: #cf222e; --other: #8a5a00; --bar: #0969da }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --back: #0d1117; --line: #30363d; --dim: #9da7b3;
  --good: #3fb950; --bad: #ff7b72; --other: #d29922; --bar: #58a6ff } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 2rem auto;
  max-width: 64rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line) }
th { color: var(--dim); font-weight: 600 }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .75rem; border-radius: 6px }
.timeline { overflow-x: auto } svg text { font: 12px system-ui, sans-serif; fill: var(--text) }
.green { color: var(--good) } .red { color: var(--bad) } .yellow { color: var(--other) } .dim { color: var(--dim) }
rect.bar { fill: var(--bar) } rect.red { fill: var(--bad) } rect.waiting { fill: var(--line) }
svg text.critical { font-weight: 700 }
.grid td, .grid th { padding: .1rem .35rem; border: 0; vertical-align: bottom } .grid td { text-align: center }
.grid th:first-child { padding-right: 1rem; text-align: left; font-weight: 400; color: var(--text) }
.took { width: .9rem; background: var(--bar); border-radius: 2px 2px 0 0; margin: 0 auto }
"""


def run_page(run: RunReport) -> str:
    """The run as a document of HTML: what `gluepy show` tells, with all tasks."""
    written = [each for each in run.datasets if each.written]
    unselected = sum(task.reason == "unselected" for task in run.tasks.values())
    parts = [
        f"<h1>{_text(run.dag)} {_status(run.status)}</h1>",
        f"<table>{''.join(_fact(name, value) for name, value in _facts(run).items())}</table>",
        *_failures(run),
        *_timeline(run),
        *_section("Tasks", ("task", "status", "attempts", "took", "why"), _tasks(run)),
        *([f"<p>and {count(unselected, 'task')} that the run's selection left out</p>"] if unselected else []),
        *_section("Parameters", ("parameter", "value"), _texts((n, value_text(v)) for n, v in run.parameters.items())),
        *_section("Metrics", ("task", "metric", "value"), _texts(metric_rows(run))),
        *_section("Datasets", ("task", "dataset", "size"), _texts(map(dataset_row, written))),
    ]
    return _document(f"{run.dag} {run.status}", parts)


def history_page(dag: str, runs: Sequence[RunReport]) -> str:
    """Runs of a DAG, the oldest first, as a document of HTML: a grid of their tasks, what differs, a list."""
    title = f"{dag}: {'the last run' if len(runs) == 1 else f'the last {len(runs):,} runs'}"
    found = compare_many(runs)
    head, *differing = columns_of(found)
    listed = (
        (_text(run.run_id), _status(run.status), moment(run.started_at), duration(run.duration_s), _counts(run.counts))
        for run in reversed(runs)
    )
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{_counts(Counter(run.status for run in runs))}</p>",
        *_grid(runs),
        *_section("Parameters and metrics", [_text(name) for name in head], _texts(differing)),
        *(['<p class="dim">* is the best value</p>'] if found.best else []),
        *_section("Runs", ("run", "status", "started", "took", "tasks"), listed),
    ]
    return _document(title, parts)


def save(html: str, file: str) -> None:
    """Write a page to `file`, and say so. Raises `OptionError` if it cannot be written."""
    try:
        Path(file).write_text(html, "utf-8")
    except OSError as error:
        raise OptionError("--html", f"cannot write {file}: {error.strerror}", "name another file") from None
    tell(f"wrote {file}")


def _document(title: str, parts: Iterable[str]) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'"  # texts of tasks are escaped, and could start nothing
    head = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(printable(title))}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body><main>",
    ]
    return "\n".join([*head, *parts, "</main></body></html>\n"])


def _grid(runs: Sequence[RunReport]) -> Iterator[str]:
    """Tasks by label downwards, runs from left to right; above each how long it took."""
    labels = list(dict.fromkeys(task.label for run in reversed(runs) for task in run.tasks.values()))
    longest_s = max(run.duration_s for run in runs) or 1.0
    yield '<h2>Tasks by run</h2><table class="grid" tabindex="0" aria-label="Tasks by run">'
    yield '<thead><tr><th scope="col">task</th>'
    for run in runs:
        height = max(2, round(_TALL * run.duration_s / longest_s))
        told = escape(f"{run.run_id} {run.status}, {moment(run.started_at)}, took {duration(run.duration_s)}")
        bar = f'<div class="took" style="height:{height}px"></div>'
        yield f'<th scope="col" title="{told}" aria-label="{told}">{bar}</th>'
    yield "</tr></thead><tbody>"
    by_run = [_by_label(run) for run in runs]
    for label in labels:
        cells = "".join(_cell(label, statuses.get(label)) for statuses in by_run)
        yield f'<tr><th scope="row">{_text(label)}</th>{cells}</tr>'
    yield "</tbody></table>"
    used = {word for statuses in by_run for words in statuses.values() for word in words}
    yield f'<p class="dim">{", ".join(f"{symbol} {word}" for word, symbol in _SYMBOLS.items() if word in used)}</p>'


def _by_label(run: RunReport) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for task in run.tasks.values():
        found.setdefault(task.label, Counter())[task.status] += 1
    return found


def _cell(label: str, statuses: Counter[str] | None) -> str:
    if statuses is None:
        return "<td></td>"
    first = next((word for word in _SYMBOLS if word in statuses), "")
    told = escape(f"{printable(label)}: {_counts(statuses)}")
    return f'<td class="{STYLE_OF.get(first, "")}" title="{told}" aria-label="{told}">{_SYMBOLS.get(first, "·")}</td>'


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {word}" for word, number in counts.items())


def _text(text: str) -> str:
    return f"<bdi>{escape(printable(text))}</bdi>"  # by itself: letters that run from right to left move nothing else


def _texts(rows: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    return ([_text(cell) for cell in row] for row in rows)


def _status(word: str) -> str:
    return f'<span class="{STYLE_OF.get(word, "")}">{_SYMBOLS.get(word, "·")} {escape(word)}</span>'


def _facts(run: RunReport) -> dict[str, str]:
    told = facts(run) | {"tasks": _counts(run.counts)}
    if run.damage:
        words = damage(run.damage.bad_lines, run.damage.gaps, run.damage.doubled)
        told["the log is damaged"] = ", ".join(words)
    return told


def _fact(name: str, value: str) -> str:
    return f'<tr><th scope="row">{name}</th><td>{_text(value)}</td></tr>'


def _failures(run: RunReport) -> Iterator[str]:
    if run.failures:
        yield f"<h2>{count(len(run.failures), 'failure')}</h2>"
        yield f'<pre tabindex="0">{escape(chr(10).join(failure_text(run.failures, colour=False)))}</pre>'


def _timeline(run: RunReport) -> Iterator[str]:
    bars, length_s = run.timeline.bars, run.timeline.length_s
    if not bars or length_s <= 0:
        return
    if len(bars) > _BARS:
        longest = sorted(bars, key=lambda bar: bar.started_s - bar.ended_s)[:_BARS]
        bars = sorted(longest, key=lambda bar: bar.started_s)
    yield "<h2>Timeline</h2>"
    left_out = len(run.timeline.bars) - len(bars)
    more = f" The {_BARS} longest attempts; {left_out:,} more are not drawn." if left_out else ""
    critical = set(run.timeline.critical_path)
    yield (
        f'<p class="dim">{duration(length_s)}; grey is waiting, bold the critical path: what the run had to wait for.'
        f"{more}</p>"
    )
    height = _ROW * len(bars)
    yield '<div class="timeline" tabindex="0" role="region" aria-label="Timeline">'
    yield f'<svg role="img" aria-label="When each attempt ran" width="{_NAMES + _WIDTH + 90}" height="{height}">'
    for row, bar in enumerate(bars):
        yield _bar(bar, row * _ROW, _WIDTH / length_s, is_critical=bar.task in critical)
    yield "</svg></div>"


def _bar(bar: Bar, top: int, per_s: float, *, is_critical: bool) -> str:
    took = bar.ended_s - bar.started_s
    name = printable(bar.task)
    shown = name if len(name) <= 38 else f"{name[:37]}…"
    start, width = _NAMES + bar.started_s * per_s, max(1.0, took * per_s)
    waited = min(bar.queued_s, bar.started_s) * per_s
    told = escape(f"{name}, attempt {bar.attempt}, {bar.status}: {duration(took)}")
    failed = " red" if bar.status == "failed" else ""
    critical = ' class="critical"' if is_critical else ""
    mark = "" if bar.status == "finished" else f" {_SYMBOLS.get(bar.status, '·')}"
    return (
        f'<g><title>{told}</title><text x="0" y="{top + 14}"{critical}>{escape(shown)}</text>'
        f'<rect class="waiting" x="{start - waited:.1f}" y="{top + 8}" width="{waited:.1f}" height="4"/>'
        f'<rect class="bar{failed}" x="{start:.1f}" y="{top + 3}" width="{width:.1f}" height="14" rx="2"/>'
        f'<text x="{start + width + 4:.1f}" y="{top + 14}">{duration(took)}{mark}</text></g>'
    )


def _tasks(run: RunReport) -> Iterator[Sequence[str]]:
    for task in run.tasks.values():
        if task.reason != "unselected":
            name, status, *cells = task_row(task)
            yield _text(name), _status(status), *map(_text, cells)


def _section(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table of cells that are HTML, or nothing if it has none."""
    lines = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    if lines:
        head = "".join(f'<th scope="col">{column}</th>' for column in columns)
        yield f"<h2>{title}</h2>"
        yield f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
