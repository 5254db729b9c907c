"""Makes an Airflow DAG of a description of one of gluepy's.

`gluepy airflow export` writes this text into the files that it makes: it needs Airflow, and nothing of gluepy.
"""

from __future__ import annotations

import importlib
import json
import shlex
from datetime import timedelta
from typing import Any

_RUN = "{{ dag_run.conf.get('gluepy_run') or (dag.dag_id ~ '__' ~ run_id) }}"
_COMMAND = (
    "RUN=$(printf %s \"$STEP_RUN\" | tr -c 'A-Za-z0-9_.-' - | cut -c 1-100); "
    'exec {command} step "$RUN" "$STEP_TASK" {options} --params /dev/stdin <<< "$STEP_PARAMS"'
)


def build(described: dict[str, Any]) -> Any:
    """The DAG that `described` describes (`gluepy.airflow.describing`): each task is an operator that runs a step."""
    from airflow.sdk import DAG, Param

    params = {
        name: Param(value["default"], **{key: each for key, each in value.items() if key != "default"})
        for name, value in described["params"].items()
    }
    dag = DAG(
        dag_id=described["dag_id"],
        description=described["about"] or None,
        schedule=described["schedule"],
        catchup=False,
        params=params,
        tags=["gluepy"],
        max_active_tasks=described["max_active_tasks"],
        doc_md=f"`gluepy run {described['label']}`, written by gluepy {described['gluepy']}.",
    )
    made: dict[str, Any] = {}
    with dag:
        for task in described["tasks"]:
            operator = _operator(described, task, made)
            for other in task["after"]:
                made[other] >> operator
            made[task["slug"]] = operator
    return dag


def _operator(described: dict[str, Any], task: dict[str, Any], made: dict[str, Any]) -> Any:
    options = [*described["options"], *(["--list-added"] if task["expands"] else [])]
    command = _COMMAND.format(command=described["command"], options=" ".join(options))
    environment = {"STEP_RUN": _RUN, "STEP_TASK": task["slug"], "STEP_PARAMS": "{{ params | tojson }}"}
    arguments: dict[str, Any] = {
        "task_id": task["slug"],
        "retries": task["retries"],
        "retry_delay": timedelta(seconds=task["retry_delay_s"]),
        "max_retry_delay": timedelta(seconds=task["max_retry_delay_s"]),
        "retry_exponential_backoff": task["grows"],
        "trigger_rule": task["trigger_rule"],
    }
    if task["timeout_s"] is not None:  # its step keeps it; this is for a step that hangs
        arguments["execution_timeout"] = timedelta(seconds=task["timeout_s"] + 60)
    if task["pool"] is not None:
        arguments["pool"], arguments["pool_slots"] = task["pool"]
    if task["queue"] is not None:
        arguments["queue"] = task["queue"]
    if task["expands"]:
        arguments["do_xcom_push"] = True
    make, arguments_of, text = _kinds(described["operator"], task["expands"])
    if task["row_of"] is None:
        return make(**arguments, **arguments_of(command, environment))
    label = task["label"]
    fixed = arguments_of("", environment)
    name = next(iter(fixed))  # of the argument that has the command
    rows = made[task["row_of"]].output.map(lambda row: arguments_of(_of_row(command, row[label]), environment)[name])
    shown = f"{{{{ (task.{name}{text}).rpartition('# ')[2][1:-1] }}}}"
    del fixed[name]
    return make.partial(**arguments, **fixed, map_index_template=shown).expand(**{name: rows})


def _of_row(command: str, task: str) -> str:
    """The command for one row of an each: Airflow does not render what a row gives. The comment is how it is shown."""
    return f"STEP_TASK={shlex.quote(task)}; {command}  # {json.dumps(task)}"


def _kinds(kind: str, expands: bool) -> tuple[Any, Any, str]:
    """The class of operators of this kind, what its arguments are besides the common ones, the command's first, and how
    the command's text is reached in that."""
    if kind == "bash":
        from airflow.providers.standard.operators.bash import BashOperator

        def bash(command: str, environment: dict[str, str]) -> dict[str, Any]:
            arguments = {"bash_command": command, "env": environment, "append_env": True, "skip_on_exit_code": 99}
            return {**arguments, **({"output_processor": json.loads} if expands else {"do_xcom_push": False})}

        return BashOperator, bash, ""
    if kind.startswith("kubernetes:"):
        from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

        def pod(command: str, environment: dict[str, str]) -> dict[str, Any]:
            return {
                "arguments": [command],
                "image": kind.partition(":")[2],
                "cmds": ["bash", "-c"],
                "env_vars": environment,
                "skip_on_exit_code": 99,
            }

        return KubernetesPodOperator, pod, "[0]"
    module, _, name = kind.partition(":")
    factory = getattr(importlib.import_module(module), name)

    def own(command: str, environment: dict[str, str]) -> dict[str, Any]:
        return {"command": command, "environment": environment}

    return factory, own, ""
