"""When the attempts of a run ran, what they waited for, and what more slots would have brought."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import msgspec

from gluepy.core.events import JSON
from gluepy.core.forecast import Forecast
from gluepy.core.state import FINISHED, State
from gluepy.core.timeline import Bar, Timeline, waited_for, with_more_slots
from gluepy.report.tasks import awaited


class RunTimeline:
    """The timeline of a run, without the pauses between its sessions.

    `bars` are the attempts in the order in which they started; one that has not ended has the status of its run,
    running or interrupted. `length_s` is how long the run took, `working_s` the time of all attempts, `waiting_s` how
    long ready tasks waited. `critical_path` are the tasks that the run had to wait for, the last one last.
    `concurrency` is how many attempts ran at a time, at most.
    """

    def __init__(
        self, timeline: Timeline, state: State, *, concurrency: int, limits: Mapping[str, int], status: str
    ) -> None:
        self.bars: list[Bar] = [
            msgspec.structs.replace(bar, status=status) if bar.status == "running" else bar for bar in timeline.bars
        ]
        self.length_s, self.working_s, self.waiting_s = timeline.length_s, timeline.working_s, timeline.waiting_s
        self.critical_path: list[str] = timeline.critical_path
        self.concurrency = max(concurrency, _most_at_once(timeline))
        self._timeline, self._state, self._given = timeline, state, limits

    @cached_property
    def waited_for_s(self) -> dict[str, float]:
        """How long ready tasks waited, by the name of the limit that they waited for; "", which is last, is a slot."""
        waited = waited_for(self._timeline, self._state, self._given)
        return {name: waited[name] for name in sorted(waited, key=lambda name: (not name, name))}

    @cached_property
    def limits(self) -> dict[str, int]:
        """The named limits that were set, and of the others that tasks use the most that one of them takes."""
        needed: dict[str, int] = {}
        for spec in self._state.graph.specs:
            for name, amount in spec.uses.items():
                needed[name] = max(needed.get(name, 0), amount)
        return {**needed, **self._given}

    @cached_property
    def forecasts(self) -> dict[int, Forecast]:
        """How long a finished run would take, by how many tasks run at a time: as many as did, and twice as many. Empty
        for a run that has not finished, or in which fewer than two tasks ran."""
        state = self._state
        if state.run != "finished" or state.status.count(FINISHED) < 2:
            return {}
        simulated = with_more_slots(state, 1, self.limits)
        return {slots: simulated(slots) for slots in (self.concurrency, 2 * self.concurrency)}

    def to_json(self) -> dict[str, JSON]:
        """As in the `timeline` of `gluepy show --json`."""
        return {
            "length_s": round(self.length_s, 6),
            "working_s": round(self.working_s, 6),
            "waiting_s": round(self.waiting_s, 6),
            "critical_path": self.critical_path,
            "concurrency": self.concurrency,
            "bars": [
                {
                    "task": bar.task,
                    "attempt": bar.attempt,
                    "queued_s": bar.queued_s,
                    "started_s": round(bar.started_s, 6),
                    "ended_s": round(bar.ended_s, 6),
                    "status": bar.status,
                }
                for bar in self.bars
            ],
            "waited_for_s": {awaited(name): round(seconds, 6) for name, seconds in self.waited_for_s.items()},
            "forecast_s": {str(slots): round(found.makespan_s, 6) for slots, found in self.forecasts.items()},
        }


def _most_at_once(timeline: Timeline) -> int:
    begun = sorted(bar.started_s for bar in timeline.bars if bar.ended_s > bar.started_s)
    ended = sorted(bar.ended_s for bar in timeline.bars if bar.ended_s > bar.started_s)
    most = over = 0
    for number, at in enumerate(begun, 1):
        while ended[over] <= at:
            over += 1
        most = max(most, number - over)
    return most
