"""What an Airflow DAG needs to know of one of gluepy's, as JSON."""

from __future__ import annotations

import inspect
import pprint
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from gluepy.conf.dags import find_dag
from gluepy.conf.parameters import load_parameters
from gluepy.conf.schema import Settings
from gluepy.core.events import JSON
from gluepy.core.graph import Graph, Spec, leaves, slug_of
from gluepy.core.policy import Trigger
from gluepy.exec.dag import compile_dag
from gluepy.exec.executors.airflow import AirflowExecutor
from gluepy.runtime.session import reference
from gluepy.version import VERSION

_RULES: Mapping[Trigger, str] = {
    "all_success": "all_success",
    "none_failed": "none_failed",
    "none_failed_min_one_success": "all_done",  # the step judges: of an `each` only what it found counts
    "all_done": "all_done",
    "one_failed": "all_done",  # Airflow's own starts at the first failure: the step waits for all, and judges them
}


def describe(
    dag: str,
    settings: Settings,
    *,
    dag_id: str | None = None,
    schedule: str | None = None,
    operator: str = "bash",
    python: str | None = None,
) -> dict[str, Any]:
    """The description that `building.build` takes. `python` is the interpreter with gluepy and the project's packages,
    where steps run. Raises `UsageError` for a DAG that cannot be found or compiled, or wants what Airflow has not."""
    name = reference(dag)
    found = find_dag(dag, settings)
    compiled = compile_dag(found, settings.LIMITS)
    AirflowExecutor.check_graph(compiled.graph)
    words = [python or sys.executable, "-m", "gluepy"]
    words += ["--project", str(settings.project)] if settings.project is not None else []
    words += ["--settings", settings.SETTINGS_MODULE] if settings.SETTINGS_MODULE != "settings" else []
    options = ["--dag", name, "--executor", "AirflowExecutor", "--skip-code", "99", "--with-parent"]
    return {
        "gluepy": VERSION,
        "dag_id": dag_id or compiled.label,
        "label": compiled.label,
        "about": inspect.cleandoc(found.__doc__ or "").partition("\n")[0] if found.__doc__ else "",
        "schedule": schedule,
        "operator": operator,
        "command": shlex.join(words),
        "options": [shlex.quote(word) for word in options],
        "max_active_tasks": max(16, settings.CONCURRENCY),
        "params": _params(settings),
        "tasks": tasks_of(compiled.graph),
    }


def tasks_of(graph: Graph) -> list[dict[str, Any]]:
    """The tasks as Airflow has them: those that an `each` over a callable adds are one task, which is mapped."""
    described: list[dict[str, Any]] = []
    after_rows: dict[int, list[str]] = {}
    for node in graph.tasks():
        each = graph.expandable(node)
        before = graph.task_dependencies(node)
        task = _task(graph.spec(node), slug_of(graph.task_id(node)))
        task["after"] = [slug for other in before for slug in after_rows.get(other, [slug_of(graph.task_id(other))])]
        if any(other in after_rows for other in before) and task["trigger_rule"] == "all_success":
            task["trigger_rule"] = "none_failed"  # an each that found nothing is skipped there; the step judges
        described.append(task)
        if each is None:
            continue
        chain = []
        expander, previous = task["slug"], task["slug"]
        for leaf in leaves(each.item):
            spec = graph.specs[leaf.spec]
            mapped = _task(spec, _slug_in(described, spec))
            mapped.update(after=[previous], row_of=expander, label=spec.label)
            if previous != expander:
                mapped["trigger_rule"] = "all_done"  # rows go on by themselves: each step judges its own
            described.append(mapped)
            chain.append(mapped["slug"])
            previous = mapped["slug"]
        after_rows[node] = [*chain[-1:], expander]
    return described


def _slug_in(described: list[dict[str, Any]], spec: Spec) -> str:
    slug = slug_of(spec.label)
    taken = {task["slug"] for task in described}
    return slug if slug not in taken else f"{slug}-each"


def _task(spec: Spec, slug: str) -> dict[str, Any]:
    retry = spec.retry
    return {
        "slug": slug,
        "after": [],
        "label": spec.label,
        "expands": spec.expands,
        "row_of": None,
        "retries": retry.attempts - 1,
        "retry_delay_s": retry.wait_s,
        "max_retry_delay_s": max(retry.max_wait_s, retry.wait_s),
        "grows": retry.factor > 1,
        "trigger_rule": _RULES[spec.trigger],
        "timeout_s": spec.timeout_s,
        "pool": next(iter(spec.uses.items()), None),
        "queue": spec.queue,
    }


def _params(settings: Settings) -> dict[str, dict[str, JSON]]:
    """The context's values as a form: each top-level parameter with its type. Secrets stay where steps run."""
    parameters = load_parameters(settings)
    secret = {place[0] for place in parameters.secrets} | {place[0] for place in parameters.hidden}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    described: dict[str, dict[str, JSON]] = {}
    for name, value in parameters.values.items():
        if name in secret:
            continue
        kind = kinds.get(type(value))
        described[name] = {
            "default": value,
            "type": ["number", "integer"] if kind == "number" else kind or ["null", "string"],
        }
    return described


def file_of(described: Mapping[str, Any]) -> str:
    """A DAG file with the description and all that builds it, for a scheduler that has neither project nor gluepy."""
    from gluepy.airflow import building

    source = inspect.getsource(building).partition("from __future__")[2]
    return (
        f'"""The DAG {described["label"]!r}, written by `gluepy airflow export`; after a change, write it again."""\n\n'
        f"from __future__{source}\n\n"
        f"DESCRIBED = {pprint.pformat(dict(described), width=110, sort_dicts=False)}\n\n"
        f"dag = build(DESCRIBED)\n"
    )
