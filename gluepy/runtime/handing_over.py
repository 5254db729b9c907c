"""Handing a run over to an engine of graph level: what the engine and the steps get of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gluepy.conf.parameters import RunParameters
from gluepy.conf.schema import Settings
from gluepy.core.events import SCHEMA_VERSION
from gluepy.core.state import RUNNING, State
from gluepy.exec.graph_level import GraphExecutor, GraphRun, TaskWord
from gluepy.exec.handover import HandedOver
from gluepy.exec.port import RunInfo
from gluepy.exec.steps import RunFile
from gluepy.version import VERSION


def handed_over(
    executor: GraphExecutor,
    run: RunInfo,
    state: State,
    to_run: Sequence[str],
    parameters: RunParameters,
    options: Mapping[str, Any],
    *,
    settings: Settings,
    created_at: str,
    concurrency: int | None,
    is_part: bool,
) -> HandedOver:
    """`executor` as what waits for the steps of `run`, of whose tasks `to_run` are to run. `is_part`: the run's options
    leave some out."""
    session = state.session + 1
    recorded = {name: value for name, value in options.items() if name in ("dag", "from_task", "tasks", "to_task")}
    run_file = RunFile(
        schema_version=SCHEMA_VERSION,
        gluepy_version=VERSION,
        run_id=run.run_id,
        dag=run.dag,
        reference=options["dag"],
        created_at=created_at,
        graph=state.graph.tree.record(),
        context=parameters.recorded(),
        params_digest=parameters.digest(),
        code_version=run.code_version,
        executor=executor.name,
        secrets=[list(place) for place in run.secrets],
        options={name: value for name, value in recorded.items() if value},
        session=session,
        selected=list(to_run) if is_part else None,
        trace=run.trace,
    )

    def make_run(tell: Callable[[str, TaskWord, str], None]) -> GraphRun:
        return GraphRun(
            run,
            state.graph,
            to_run,
            session,
            tell=tell,
            concurrency=concurrency,
            limits=settings.LIMITS,
            options=recorded,
            settings_module=settings.SETTINGS_MODULE if settings.SETTINGS_MODULE != "settings" else "",
        )

    graph = state.graph
    interrupted = frozenset(graph.task_id(node) for node in graph.tasks() if state.status[node] == RUNNING)
    return HandedOver(executor, run_file, make_run, run.path, interrupted)
