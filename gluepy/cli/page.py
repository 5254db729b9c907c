"""A run, or the last runs of a DAG, as one HTML file, to be mailed or kept: it needs no script, no server and nothing
from another host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from gluepy.cli.story import explanation, value_text
from gluepy.cli.text import amount, count, damage, duration, error_line, moment, printable, printable_block
from gluepy.report import Bar, Failure, RunReport, compare_many
from gluepy.traces import without_our_frames

_BARS = 500  # the longest attempts, if there are more
_TRACEBACKS = 20  # different ones
_ROW, _WIDTH, _NAMES = 20, 640, 260  # pixels
_TALL = 60  # pixels of the longest run of several
_SHORT = 8  # characters of a run's id
_WORST = ("failed", "interrupted", "cancelled", "blocked", "retrying", "running", "pending")
_SYMBOLS = {"finished": "✓", "failed": "✗", "running": "▶", "skipped": "–", "cancelled": "■", "interrupted": "!"}

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
th { color: var(--dim); font-weight: 600 } td.number { text-align: right; font-variant-numeric: tabular-nums }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .75rem; border-radius: 6px }
.timeline { overflow-x: auto } svg text { font: 12px system-ui, sans-serif; fill: var(--text) }
.finished { color: var(--good) } .failed { color: var(--bad) } .other { color: var(--other) } .dim { color: var(--dim) }
rect.bar { fill: var(--bar) } rect.failed { fill: var(--bad) } rect.waiting { fill: var(--line) }
svg text.critical { font-weight: 700 }
.grid td, .grid th { padding: .1rem .35rem; border: 0; vertical-align: bottom } .grid td { text-align: center }
.grid th:first-child { padding-right: 1rem; text-align: left; font-weight: 400; color: var(--text) }
.took { width: .9rem; background: var(--bar); border-radius: 2px 2px 0 0; margin: 0 auto }
"""


def page(run: RunReport) -> str:
    """The run as a document of HTML."""
    parts = [
        f"<h1>{_text(run.dag)} {_status(run.status)}</h1>",
        *_facts(run),
        *_failures(run.failures),
        *_timeline(run),
        *_tasks(run),
        *_section("Parameters", ("parameter", "value"), _parameters(run)),
        *_section("Metrics", ("task", "metric", "value"), _metrics(run)),
        *_section("Datasets", ("task", "dataset", "where"), _datasets(run)),
    ]
    return _document(f"{run.dag} {run.status}", parts)


def history_page(dag: str, runs: Sequence[RunReport]) -> str:
    """Runs of a DAG, the oldest first, as a document of HTML: a grid of their tasks, their metrics, a list."""
    title = f"{dag}: {'the last run' if len(runs) == 1 else f'the last {len(runs):,} runs'}"
    words = Counter(run.status for run in runs)
    metrics = compare_many(runs).metrics
    listed = (
        (_text(run.run_id), _status(run.status), _text(moment(run.started_at)), duration(run.duration_s), _counts(run))
        for run in reversed(runs)
    )
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{', '.join(f'{number:,} {word}' for word, number in words.most_common())}</p>",
        *_grid(runs),
        *_section(
            "Metrics",
            ("metric", *(_text(run.run_id[-_SHORT:]) for run in runs)),
            ((_text(name), *map(amount, values)) for name, values in metrics.items()),
        ),
        *_section("Runs", ("run", "status", "started", "took", "tasks"), listed),
    ]
    return _document(title, parts)


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
    yield '<h2>Tasks by run</h2><table class="grid" tabindex="0"><thead><tr><th scope="col">task</th>'
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


def _by_label(run: RunReport) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for task in run.tasks.values():
        found.setdefault(task.label, Counter())[task.status] += 1
    return found


def _cell(label: str, statuses: Counter[str] | None) -> str:
    if statuses is None:
        return "<td></td>"
    worst = next((word for word in _WORST if word in statuses), next(iter(statuses)))
    told = escape(f"{printable(label)}: {', '.join(f'{number:,} {word}' for word, number in statuses.items())}")
    return f'<td class="{_kind(worst)}" title="{told}" aria-label="{told}">{_SYMBOLS.get(worst, "·")}</td>'


def _counts(run: RunReport) -> str:
    return ", ".join(f"{number:,} {word}" for word, number in run.counts.items())


def _text(text: str) -> str:
    return f"<bdi>{escape(printable(text))}</bdi>"  # by itself: letters that run from right to left move nothing else


def _kind(word: str) -> str:
    return word if word in ("finished", "failed") else "dim" if word in ("pending", "skipped") else "other"


def _status(word: str) -> str:
    return f'<span class="{_kind(word)}">{_SYMBOLS.get(word, "·")} {escape(word)}</span>'


def _facts(run: RunReport) -> Iterator[str]:
    facts = {
        "run": run.run_id,
        "started": moment(run.started_at),
        "took": duration(run.duration_s),
        "tasks": _counts(run),
        "code": run.code_version,
    }
    if run.damage:
        facts["the log is damaged"] = ", ".join(damage(run.damage.bad_lines, run.damage.gaps, run.damage.doubled))
    rows = (f'<tr><th scope="row">{name}</th><td>{_text(value)}</td></tr>' for name, value in facts.items() if value)
    yield f"<table>{''.join(rows)}</table>"


def _failures(failures: Sequence[Failure]) -> Iterator[str]:
    if failures:
        yield f"<h2>{count(len(failures), 'failure')}</h2>"
    seen: dict[str, str] = {}
    for failure in failures:
        error = _text(error_line(failure.type, failure.message, failure.reason))
        yield f"<p>{_text(failure.task)} failed in attempt {failure.attempt}: {error}</p>"
        told = "\n".join(without_our_frames(failure.stack.splitlines()))
        if told in seen:
            yield f'<p class="dim">with the same traceback as {seen[told]}</p>'
        elif told and len(seen) < _TRACEBACKS:
            seen[told] = _text(failure.task)
            yield f"<pre>{escape(printable_block(told))}</pre>"


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
    failed = " failed" if bar.status == "failed" else ""
    critical = ' class="critical"' if is_critical else ""
    mark = "" if bar.status == "finished" else f" {_SYMBOLS.get(bar.status, '·')}"
    return (
        f'<g><title>{told}</title><text x="0" y="{top + 14}"{critical}>{escape(shown)}</text>'
        f'<rect class="waiting" x="{start - waited:.1f}" y="{top + 8}" width="{waited:.1f}" height="4"/>'
        f'<rect class="bar{failed}" x="{start:.1f}" y="{top + 3}" width="{width:.1f}" height="14" rx="2"/>'
        f'<text x="{start + width + 4:.1f}" y="{top + 14}">{duration(took)}{mark}</text></g>'
    )


def _tasks(run: RunReport) -> Iterator[str]:
    chosen = [task for task in run.tasks.values() if task.reason != "unselected"]
    rows = (
        (
            _text(task.task),
            _status(task.status),
            f"{task.attempts:,}",
            duration(task.duration_s) if task.attempts else "",
            _text(explanation(task)),
        )
        for task in chosen
    )
    yield from _section("Tasks", ("task", "status", "attempts", "took", "why"), rows)


def _parameters(run: RunReport) -> Iterator[tuple[str, ...]]:
    for name, value in run.parameters.items():
        yield _text(name), _text(value_text(value))


def _metrics(run: RunReport) -> Iterator[tuple[str, ...]]:
    for task in run.tasks.values():
        for name, value in task.metrics.items():
            yield _text(task.task), _text(name), amount(value)


def _datasets(run: RunReport) -> Iterator[tuple[str, ...]]:
    for each in run.datasets:
        if each.written:
            yield _text(each.task), _text(each.dataset), _text(each.url)


def _section(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table of cells that are HTML, or nothing if it has none."""
    lines = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    if lines:
        head = "".join(f'<th scope="col">{column}</th>' for column in columns)
        yield f"<h2>{title}</h2>"
        yield f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
