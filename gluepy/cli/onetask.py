"""One task of a run, whole: `gluepy show RUN TASK`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gluepy.cli.story import Failure, Story, failure_text, value_text
from gluepy.cli.text import STYLE_OF, amount, duration, error_line, first_line, moment, printable, styled, table
from gluepy.core import events as e
from gluepy.core.events import JSON
from gluepy.core.graph import slug_of

_SHOWN = 20  # of the tasks before it, and of those after it
_Ended = e.TaskFinished | e.TaskFailed | e.TaskRetrying | e.TaskCancelled | e.TaskSkipped


class OneTask:
    """A task as `events`, all of its run, tell of it. `held_back` are the run's ready tasks that do not run."""

    def __init__(self, story: Story, node: int, events: Sequence[e.Event], held_back: Mapping[int, str]) -> None:
        self._story, self._node, self._held_back = story, node, held_back
        self.id = story.state.graph.task_id(node)
        self._events = [event for event in events if getattr(event, "task", None) == self.id]

    def record(self) -> dict[str, JSON]:
        """As JSON: what `show --json` has of it, how it is declared, and each attempt."""
        graph = self._story.state.graph
        spec = graph.spec(self._node)
        return {
            **self._story.task(self._node, self._held_back),
            "label": spec.label,
            "class": spec.cls,
            "parameters": graph.params(self._node),
            "trigger": spec.trigger,
            "max_attempts": spec.retry.attempts,
            "timeout_s": spec.timeout_s,
            "memory_mb": spec.memory_mb,
            "uses": spec.uses,
            "inputs": list(spec.inputs),
            "outputs": list(spec.outputs),
            "after": self._in_order(self._story.state.graph.task_dependencies(self._node)),
            "before": self._in_order(self._story.state.graph.task_dependents(self._node)),
            "history": list(self._attempts()),
        }

    def text(self, colour: bool) -> Iterator[str]:
        """As lines: how it stands, how it is declared, each attempt, its metrics, its failure whole."""
        story, node = self._story, self._node
        state, spec = story.state, story.state.graph.spec(node)
        status = str(story.task(node)["status"])
        what = story.what(node, self._held_back)
        declared = [f"up to {spec.retry.attempts} attempts"] if spec.retry.attempts > 1 else []
        declared += [f"at most {spec.timeout_s:g} s"] if spec.timeout_s is not None else []
        declared += [f"at most {spec.memory_mb:,} MB"] if spec.memory_mb is not None else []
        declared += [f"uses {units:,} {name}" for name, units in spec.uses.items()]
        declared += [f"trigger {spec.trigger}"] if spec.trigger != "all_success" else []
        params = state.graph.params(node)
        metrics = state.metrics.get(node, {})
        facts = [
            ("task", printable(self.id)),
            ("run", printable(story.record.run_id)),
            ("status", styled(status, STYLE_OF.get(status, "bold"), colour) + (f": {what}" if what else "")),
            ("class", printable(spec.cls)),
            ("parameters", ", ".join(f"{printable(name)} = {value_text(value)}" for name, value in params.items())),
            ("declared", _listed(declared)),
            ("after", _listed(self._in_order(self._story.state.graph.task_dependencies(self._node)))),
            ("before", _listed(self._in_order(self._story.state.graph.task_dependents(self._node)))),
            ("inputs", _listed(spec.inputs)),
            ("outputs", _listed(spec.outputs)),
            ("metrics", ", ".join(f"{printable(name)} = {amount(value)}" for name, value in metrics.items())),
        ]
        yield from table(fact for fact in facts if fact[1])
        attempts = list(self._attempts())
        if attempts:
            yield ""
            yield from table([("attempt", "started", "waited", "took", "where", "how"), *map(_row, attempts)])
        logs = [attempt["log"] for attempt in attempts if attempt["log"]]
        error = state.error.get(node)
        if error is not None and status in ("failed", "retrying"):
            yield ""
            yield from failure_text([Failure.of(error, story.record.path)], colour)
        elif logs:
            yield f"log: {printable(logs[-1])}"

    def _in_order(self, nodes: Sequence[int]) -> list[str]:
        wanted = set(nodes)
        return [self._story.state.graph.task_id(node) for node in self._story.nodes if node in wanted]

    def _attempts(self) -> Iterator[dict[str, JSON]]:
        attempts: dict[int, dict[str, JSON]] = {}
        for event in self._events:
            match event:
                case e.TaskStarted():
                    file = self._story.record.logs / f"{slug_of(self.id)}.{event.attempt}.log"
                    attempts[event.attempt] = {
                        "attempt": event.attempt,
                        "session": event.session,
                        "status": "running",
                        "started_at": event.timestamp,
                        "queued_s": event.queued_s,
                        "executor": event.executor,
                        "pool": event.pool,
                        "host": event.host,
                        "pid": event.pid,
                        "log": str(file) if file.exists() else None,
                    }
                case e.TaskFinished() | e.TaskFailed() | e.TaskRetrying() | e.TaskCancelled() | e.TaskSkipped():
                    if (attempt := attempts.get(event.attempt)) is not None:
                        attempt |= _end(event)
        for attempt in attempts.values():
            if attempt["status"] == "running" and self._story.status != "running":
                attempt["status"] = "interrupted"
            yield attempt


def _end(event: _Ended) -> dict[str, JSON]:
    """What the end of an attempt adds to what is known of it."""
    kinds = {e.TaskFinished: "finished", e.TaskCancelled: "cancelled", e.TaskSkipped: "skipped"}
    end: dict[str, JSON] = {"status": kinds.get(type(event), "failed"), "duration_s": event.duration_s}
    for name in ("worker", "pid", "host", "cpu_s", "peak_rss_mb"):
        if (value := getattr(event, name, None)) is not None:
            end[name] = value
    match event:
        case e.TaskFailed() | e.TaskRetrying():
            names = ("reason", "error_type", "error_message", "error_stack")
            end["error"] = {name.removeprefix("error_"): getattr(event, name) for name in names}
        case e.TaskSkipped():
            end["why"] = event.why
    return end


def _row(attempt: Mapping[str, JSON]) -> tuple[str, ...]:
    took = attempt.get("duration_s")
    where = f"{attempt['pool']}, pid {attempt['pid']} on {attempt['host']}"
    used = [f"{duration(attempt['cpu_s'])} CPU"] if "cpu_s" in attempt else []
    used += [f"peak RSS {attempt['peak_rss_mb']:,.0f} MB"] if "peak_rss_mb" in attempt else []
    error, said = attempt.get("error"), first_line(attempt.get("why", ""))
    why = error_line(error["type"], error["message"], error["reason"]) if error is not None else said
    return (
        str(attempt["attempt"]),
        moment(attempt["started_at"]),
        duration(attempt["queued_s"]),
        duration(took) if took is not None else "",
        printable(where),
        ", ".join([attempt["status"], *used]) + (f": {why}" if why else ""),
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(printable, names[:_SHOWN])) + more
