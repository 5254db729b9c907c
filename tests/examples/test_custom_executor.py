"""The example of an executor: it runs as a project, and the documentation shows it as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_example_runs_each_attempt_in_a_process_of_its_own(examples: Path, tmp_path: Path) -> None:
    project = ["--project", str(examples / "custom_executor")]
    roots = {"GLUEPY_STORAGE_ROOT": str(tmp_path / "data"), "GLUEPY_RUNS_ROOT": str(tmp_path / "runs")}
    ran = subprocess.run(
        [sys.executable, "-m", "gluepy", *project, "run", "primes", "--events", str(tmp_path / "events.jsonl")],
        env={**os.environ, **roots},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert {event["executor"] for event in events if event["event"] == "task.started"} == {"SubprocessExecutor"}
    counts = [event["value"] for event in events if event["event"] == "task.metric"]
    assert sum(counts) == 2262
    assert any(event["event"] == "task.progress" for event in events)
    (result,) = (tmp_path / "data").glob("runs/*/primes.json")
    assert json.loads(result.read_text()) == 2262
    (log,) = (tmp_path / "runs").glob("*/logs/add.1.log")
    assert "2262 primes below 20000" in log.read_text()


def test_the_documentation_shows_the_executor_as_it_is(examples: Path) -> None:
    code = (examples / "custom_executor/subprocess_executor.py").read_text()
    assert f"# subprocess_executor.py\n{code}```" in (examples.parent / "docs/executors.md").read_text()
