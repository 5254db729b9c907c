"""How long a run will take, as far as earlier ones tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gluepy.cli.text import count, duration, printable
from gluepy.core.events import JSON
from gluepy.core.forecast import Forecast, forecast
from gluepy.core.graph import Graph
from gluepy.core.selection import Selection
from gluepy.runs.durations import Durations, typical


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A run's expected length in seconds: with each task's median duration, its shortest, its longest.

    `runs` is the number of earlier runs that it is learned from, `new` the number of `tasks` that none of them had, and
    `finders` are the tasks that will add others, which are not counted. `limit` is the named limit, if any, that keeps
    the run longer than its critical path: for `limit_s` at least.
    """

    runs: int
    tasks: int
    new: int
    finders: list[str]
    typical_s: float = 0.0
    least_s: float = 0.0
    most_s: float = 0.0
    critical_path_s: float = 0.0
    limit: str = ""
    limit_s: float = 0.0

    @classmethod
    def from_durations(
        cls, graph: Graph, selection: Selection | None, concurrency: int, limits: Mapping[str, int], known: Durations
    ) -> Estimate:
        """The outlook on a run of `graph`, from what is `known` of earlier runs."""
        chosen = [node for node in graph.tasks() if selection is None or node in selection.nodes]
        names = {node: (graph.task_id(node), graph.spec(node).label) for node in chosen}
        medians = {node: known.median(*names[node]) for node in chosen}
        seen = [seconds for seconds in medians.values() if seconds is not None]
        finders = [graph.task_id(node) for node in chosen if graph.expandable(node)]
        new = len(chosen) - len(seen)
        if not seen:
            return cls(runs=0, tasks=len(chosen), new=new, finders=finders)
        usual = typical(seen)
        likely = {node: usual if seconds is None else seconds for node, seconds in medians.items()}
        spread = {node: known.spread(*names[node]) or (usual, usual) for node in chosen}

        def run(seconds: Mapping[int, float]) -> Forecast:
            return forecast(
                graph,
                lambda node: seconds.get(node, 0.0),
                concurrency=concurrency,
                limits=limits,
                selection=selection,
            )

        found = run(likely)
        limit, limit_s = found.narrowest
        return cls(
            runs=known.runs,
            tasks=len(chosen),
            new=new,
            finders=finders,
            typical_s=found.makespan_s,
            least_s=run({node: least for node, (least, _) in spread.items()}).makespan_s,
            most_s=run({node: most for node, (_, most) in spread.items()}).makespan_s,
            critical_path_s=found.critical_path_s,
            limit=limit,
            limit_s=limit_s,
        )

    def record(self) -> dict[str, JSON]:
        """As JSON."""
        told: dict[str, JSON] = {"runs": self.runs, "tasks_never_run": self.new, "not_counted_after": self.finders}
        if self.runs:
            told |= {
                "makespan_s": round(self.typical_s, 6),
                "at_least_s": round(self.least_s, 6),
                "at_most_s": round(self.most_s, 6),
                "critical_path_s": round(self.critical_path_s, 6),
            }
            if self.limit:
                told |= {"limit": self.limit, "limit_s": round(self.limit_s, 6)}
        return told

    def text(self) -> Iterator[str]:
        """As lines: how long, and how sure that is."""
        if not self.runs:
            yield "no earlier run tells how long it takes"
            return
        around = f"between {duration(self.least_s)} and {duration(self.most_s)}"
        sure = around if self.runs > 1 else "a guess"
        learned = f"learned from {count(self.runs, 'earlier run')}"
        yield f"expected to take about {duration(self.typical_s)}; {sure}, {learned}"
        if self.limit:
            least = f"at least {duration(self.limit_s)} however many tasks run at a time"
            yield f"{least}, for limit {printable(self.limit)}"
        elif self.critical_path_s < self.typical_s:
            yield f"at least {duration(self.critical_path_s)} however many tasks run at a time"
        if self.new:
            yield f"{self.new:,} of {count(self.tasks, 'task')} never ran before: each counts as a typical one"
        if self.finders:
            yield f"what comes of {', '.join(map(printable, self.finders[:3]))} is not counted: it is not known yet"
