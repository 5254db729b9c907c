"""`gluepy airflow`: what orchestrators need to know of a DAG, as files."""

from __future__ import annotations

from gluepy.airflow.describing import describe, file_of
from gluepy.cli.invocation import Invocation
from gluepy.cli.text import json_text, say
from gluepy.errors import OptionError, did_you_mean

_ACTIONS = ("export", "describe")  # the latter is what `to_airflow` calls


def export_airflow(
    invocation: Invocation,
    action: str,
    label: str,
    *,
    schedule: str | None,
    operator: str,
    dag_id: str | None,
    python: str | None,
) -> int:
    """`gluepy airflow export`"""
    if action not in _ACTIONS:
        raise OptionError(
            "airflow", f"there is no {action!r}{did_you_mean(action, _ACTIONS)}", "export writes a DAG file"
        )
    if operator != "bash" and ":" not in operator:
        raise OptionError("--operator", f"{operator!r} is not known", "bash, kubernetes:IMAGE or module:factory")
    settings = invocation.settings()
    invocation.check_label(label, settings)
    described = describe(label, settings, dag_id=dag_id, schedule=schedule, operator=operator, python=python)
    say(json_text(described) if action == "describe" else file_of(described).rstrip("\n"))
    return 0
