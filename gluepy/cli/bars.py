"""A run's timeline in plain text: bars, the critical path, waiting against working, what more slots would bring."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from gluepy.cli.text import cells, count, duration, fit, padded, printable, styled, waited_thing
from gluepy.report import Bar, RunTimeline

_BARS = 40
_WIDTH = 40
_NAME = 40
_PATH = 12  # tasks of the critical path
_WORTH = 0.02  # of a run's time: what is less is nothing


def timeline_text(timeline: RunTimeline, colour: bool) -> Iterator[str]:
    """As lines; none for a run of which nothing can be told."""
    if len(timeline.bars) < 2 or timeline.length_s <= 0:
        return
    yield styled(f"timeline, {duration(timeline.length_s)} long: waiting, then working", "dim", colour)
    yield from _bars(timeline, colour)
    yield from _words(timeline)


def _bars(timeline: RunTimeline, colour: bool) -> Iterator[str]:
    rows: dict[str, list[Bar]] = {}
    for bar in timeline.bars:
        rows.setdefault(bar.task, []).append(bar)
    shown = list(rows)
    if len(shown) > _BARS:
        longest = sorted(shown, key=lambda task: -sum(bar.ended_s - bar.started_s for bar in rows[task]))
        kept = set(longest[: _BARS - 1])
        shown = [task for task in shown if task in kept]
    names = {task: fit(printable(task), _NAME) for task in shown}
    column = max(map(cells, names.values()))
    critical = set(timeline.critical_path)
    for task in shown:
        bars = rows[task]
        drawn = _drawn(timeline, bars)
        failed = bars[-1].status in ("failed", "cancelled")
        style = "red" if failed else "bold" if task in critical else ""
        yield f"{padded(names[task], column)}  {styled(drawn, style, colour)}"
    if len(shown) < len(rows):
        yield f"… and {len(rows) - len(shown):,} shorter ones"


def _drawn(timeline: RunTimeline, bars: list[Bar]) -> str:
    waiting, working = ("░", "█") if _blocks() else (".", "#")
    line = [" "] * (_WIDTH + 1)
    scale = _WIDTH / timeline.length_s
    for bar in bars:
        ready, start = (round(min(_WIDTH, max(0.0, at * scale))) for at in _waited(bar))
        end = round(min(_WIDTH, max(0.0, bar.ended_s * scale)))
        line[ready:start] = waiting * (start - ready)
        line[start : max(end, start + 1)] = working * max(end - start, 1)
    return "".join(line).rstrip()


def _words(timeline: RunTimeline) -> Iterator[str]:
    path = [printable(task) for task in timeline.critical_path]
    if len(path) > 1:
        shown = path if len(path) <= _PATH else [*path[: _PATH - 2], "…", path[-1]]
        yield f"critical path: {(' → ' if _blocks() else ' > ').join(shown)}"
    busy = timeline.working_s / (timeline.length_s * timeline.concurrency)
    attempts = count(len(timeline.bars), "attempt")
    line = f"{attempts}: {duration(timeline.working_s)} working"
    if timeline.waiting_s >= _WORTH * timeline.length_s:
        worth = [
            (name, seconds) for name, seconds in timeline.waited_for_s.items() if seconds >= _WORTH * timeline.length_s
        ]
        waited = [f"{duration(seconds)} ready and waiting for {waited_thing(name)}" for name, seconds in worth]
        line = ", ".join([line, *waited])
    yield f"{line}; {count(timeline.concurrency, 'slot')} busy {min(busy, 1.0):.0%} of the time"
    forecasts = timeline.forecasts
    if forecasts:
        now, twice = (forecasts[slots].makespan_s for slots in (timeline.concurrency, 2 * timeline.concurrency))
        limit, limit_s = forecasts[2 * timeline.concurrency].narrowest
        if now - twice > _WORTH * now:
            instead = f"{duration(twice)} instead of {duration(now)}"
            yield f"with {2 * timeline.concurrency} at a time it would take about {instead}"
        elif limit:
            bound = f"what uses it takes {duration(limit_s)}, {timeline.limits[limit]:,} at a time"
            yield f"more concurrency would bring nothing: limit {printable(limit)} keeps it as long; {bound}"
        elif len(path) > 1:
            yield "more concurrency would bring nothing: it is as long as its critical path"


def _waited(bar: Bar) -> tuple[float, float]:
    return bar.started_s - bar.queued_s, bar.started_s


def _blocks() -> bool:
    try:
        "█░→".encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True
