"""A run's timeline for people: bars, the critical path, waiting against working, what more slots would bring."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from gluepy.cli.text import cells, count, duration, fit, padded, printable, styled, waited_thing
from gluepy.core.events import JSON
from gluepy.core.forecast import Forecast
from gluepy.core.state import FINISHED, State
from gluepy.core.timeline import Bar, Timeline, waited_for, with_more_slots

_BARS = 40
_WIDTH = 40
_NAME = 40
_PATH = 12  # tasks of the critical path
_WORTH = 0.02  # of a run's time: what is less is nothing


@dataclass(kw_only=True)
class Shape:
    """What a run's timeline tells. `slots` is how many tasks it ran at a time, at most; `status` is the run's."""

    timeline: Timeline
    state: State
    slots: int
    limits: Mapping[str, int]
    status: str

    def record(self) -> dict[str, JSON]:
        """As JSON."""
        timeline = self.timeline
        return {
            "length_s": round(timeline.length_s, 6),
            "working_s": round(timeline.working_s, 6),
            "waiting_s": round(timeline.waiting_s, 6),
            "critical_path": timeline.critical_path,
            "concurrency": self.slots,
            "bars": [
                {
                    "task": bar.task,
                    "attempt": bar.attempt,
                    "queued_s": bar.queued_s,
                    "started_s": round(bar.started_s, 6),
                    "ended_s": round(bar.ended_s, 6),
                    "status": self.status if bar.status == "running" else bar.status,
                }
                for bar in timeline.bars
            ],
            "waited_for_s": {waited_thing(name): round(seconds, 6) for name, seconds in self._waited.items()},
            "forecast_s": {str(slots): round(found.makespan_s, 6) for slots, found in self._forecasts().items()},
        }

    def text(self, colour: bool) -> Iterator[str]:
        """As lines; none for a run of which nothing can be told."""
        timeline = self.timeline
        if len(timeline.bars) < 2 or timeline.length_s <= 0:
            return
        yield styled(f"timeline, {duration(timeline.length_s)} long: waiting, then working", "dim", colour)
        yield from self._bars(colour)
        yield from self._words()

    def _bars(self, colour: bool) -> Iterator[str]:
        rows: dict[str, list[Bar]] = {}
        for bar in self.timeline.bars:
            rows.setdefault(bar.task, []).append(bar)
        shown = list(rows)
        if len(shown) > _BARS:
            longest = sorted(shown, key=lambda task: -sum(bar.ended_s - bar.started_s for bar in rows[task]))
            kept = set(longest[: _BARS - 1])
            shown = [task for task in shown if task in kept]
        names = {task: fit(printable(task), _NAME) for task in shown}
        column = max(map(cells, names.values()))
        critical = set(self.timeline.critical_path)
        for task in shown:
            bars = rows[task]
            drawn = self._drawn(bars)
            failed = bars[-1].status in ("failed", "cancelled")
            style = "red" if failed else "bold" if task in critical else ""
            yield f"{padded(names[task], column)}  {styled(drawn, style, colour)}"
        if len(shown) < len(rows):
            yield f"… and {len(rows) - len(shown):,} shorter ones"

    def _drawn(self, bars: list[Bar]) -> str:
        waiting, working = ("░", "█") if _blocks() else (".", "#")
        line = [" "] * (_WIDTH + 1)
        scale = _WIDTH / self.timeline.length_s
        for bar in bars:
            ready, start = (round(min(_WIDTH, max(0.0, at * scale))) for at in _waited(bar))
            end = round(min(_WIDTH, max(0.0, bar.ended_s * scale)))
            line[ready:start] = waiting * (start - ready)
            line[start : max(end, start + 1)] = working * max(end - start, 1)
        return "".join(line).rstrip()

    def _words(self) -> Iterator[str]:
        timeline = self.timeline
        path = [printable(task) for task in timeline.critical_path]
        if len(path) > 1:
            shown = path if len(path) <= _PATH else [*path[: _PATH - 2], "…", path[-1]]
            yield f"critical path: {(' → ' if _blocks() else ' > ').join(shown)}"
        busy = timeline.working_s / (timeline.length_s * self.slots)
        attempts = count(len(timeline.bars), "attempt")
        line = f"{attempts}: {duration(timeline.working_s)} working"
        if timeline.waiting_s >= _WORTH * timeline.length_s:
            worth = [(name, seconds) for name, seconds in self._waited.items() if seconds >= _WORTH * timeline.length_s]
            waited = [f"{duration(seconds)} ready and waiting for {waited_thing(name)}" for name, seconds in worth]
            line = ", ".join([line, *waited])
        yield f"{line}; {count(self.slots, 'slot')} busy {min(busy, 1.0):.0%} of the time"
        forecasts = self._forecasts()
        if forecasts:
            now, twice = (forecasts[slots].makespan_s for slots in (self.slots, 2 * self.slots))
            limit, limit_s = forecasts[2 * self.slots].narrowest
            if now - twice > _WORTH * now:
                instead = f"{duration(twice)} instead of {duration(now)}"
                yield f"with {2 * self.slots} at a time it would take about {instead}"
            elif limit:
                bound = f"what uses it takes {duration(limit_s)}, {self._limits()[limit]:,} at a time"
                yield f"more concurrency would bring nothing: limit {printable(limit)} keeps it as long; {bound}"
            elif len(path) > 1:
                yield "more concurrency would bring nothing: it is as long as its critical path"

    @cached_property
    def _waited(self) -> dict[str, float]:
        """Where the time of waiting is worth telling, for what: the limits first."""
        waited = waited_for(self.timeline, self.state, self.limits)
        return {name: waited[name] for name in sorted(waited, key=lambda name: (not name, name))}

    def _limits(self) -> dict[str, int]:
        needed: dict[str, int] = {}
        for spec in self.state.graph.specs:
            for name, amount in spec.uses.items():
                needed[name] = max(needed.get(name, 0), amount)
        return {**needed, **self.limits}

    def _forecasts(self) -> dict[int, Forecast]:
        """How long a finished run would take, by how many tasks run at a time."""
        state = self.state
        ran = sum(status == FINISHED for status in state.status)
        if state.run != "finished" or ran < 2:
            return {}
        simulated = with_more_slots(state, 1, self._limits())
        return {slots: simulated(slots) for slots in (self.slots, 2 * self.slots)}


def most_at_once(timeline: Timeline) -> int:
    """How many attempts ran at the same time, at most."""
    edges = sorted(
        (at, step)
        for bar in timeline.bars
        for at, step in ((bar.started_s, 1), (bar.ended_s, -1))
        if bar.ended_s > bar.started_s
    )
    most = running = 0
    for _, step in edges:
        running += step
        most = max(most, running)
    return most


def _waited(bar: Bar) -> tuple[float, float]:
    return bar.started_s - bar.queued_s, bar.started_s


def _blocks() -> bool:
    try:
        "█░→".encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True
