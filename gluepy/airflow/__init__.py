"""DAGs in Airflow (https://airflow.apache.org): `to_airflow`, for a file in Airflow's dags folder.

    from gluepy.airflow import to_airflow

    dag = to_airflow("train", project="/srv/shop", python="/srv/shop/.venv/bin/python", schedule="@daily")

Nothing of the project is imported into Airflow: the interpreter `python`, which has the project's packages, is asked
for the graph, once for each state of the project's files. Each task runs there too.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from gluepy.airflow.building import build

__all__ = ["to_airflow"]

_ASK_S = 120.0
_NOT_CODE = ("data", "node_modules", "__pycache__")


def to_airflow(
    dag: str,
    *,
    project: str,
    python: str,
    dag_id: str | None = None,
    schedule: str | None = None,
    operator: str = "bash",
) -> Any:
    """The Airflow DAG of `dag`, a label of the project in the folder `project` or "file.py:TrainDAG" there.

    `operator` is "bash", "kubernetes:IMAGE" or "module:factory". Raises `RuntimeError` with what gluepy says where the
    DAG cannot be had: Airflow shows it as an import error.
    """
    words = [python, "-m", "gluepy", "--project", project, "airflow", "describe", dag]
    for option, value in (("--dag-id", dag_id), ("--schedule", schedule), ("--operator", operator)):
        words += [option, value] if value else []
    return build(_asked(words, project))


def _asked(words: list[str], project: str) -> dict[str, Any]:
    cache = _cache(words, project)
    with suppress(OSError, ValueError):
        return _read(cache.read_text(encoding="utf-8"))
    done = subprocess.run(
        words, cwd=project, capture_output=True, text=True, check=False, timeout=_ASK_S, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    described = _read(done.stdout)
    draft = cache.with_suffix(f".{os.getpid()}")
    draft.write_text(done.stdout, encoding="utf-8")
    draft.replace(cache)
    return described


def _read(text: str) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(text)
    return described


def _cache(words: list[str], project: str) -> Path:
    """Where the answer to `words` is kept while the project's files are as they are."""
    digest = sha256(json.dumps(words).encode())
    for folder, folders, names in os.walk(project):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _NOT_CODE)
        for name in sorted(names):
            if name.endswith((".py", ".yaml", ".yml", ".toml", ".env")):
                stat = os.stat(os.path.join(folder, name))
                digest.update(f"{folder}/{name} {stat.st_mtime_ns} {stat.st_size}".encode())
    folder_of_cache = Path(tempfile.gettempdir()) / f"gluepy-airflow-{os.getuid()}"
    folder_of_cache.mkdir(mode=0o700, exist_ok=True)
    return folder_of_cache / f"{digest.hexdigest()[:32]}.json"
