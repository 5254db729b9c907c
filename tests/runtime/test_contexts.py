"""What tasks read as their context: the same in every pool, in a run and when it goes on."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, computed_field, field_validator
from steps import Go

from gluepy import DAG, Task, current_task, parallel
from gluepy.conf import default_context
from gluepy.core.events import RunResumed
from gluepy.exec.scope import current_scope
from gluepy.testing import events_of


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rate: float = Field(alias="Rate")
    depth: int = 3
    day: date = date(2026, 1, 31)
    token: SecretStr

    @field_validator("rate")
    @classmethod
    def of_hundred(cls, value: float) -> float:
        return value / 100

    @computed_field
    def twice(self) -> int:
        return 2 * self.depth


def read() -> None:
    """Write down what the context is here, of which type, and fail until there is a file `go`."""
    task = current_task()
    assert task.context == default_context
    context = task.context.to_dict()
    kinds = {name: type(getattr(task.context, name)).__name__ for name in context}
    assert task.context.token.get_secret_value() == "hush-hush"
    scope = current_scope()
    assert scope is not None
    (task.path / f"{scope.attempt.task}-{scope.attempt.number}.json").write_text(
        json.dumps([context, kinds, repr(task.context)])
    )
    assert (task.storage / "go").exists()


class First(Task):
    def run(self) -> None:
        pass


class InThread(Task):
    def run(self) -> None:
        read()


class OnLoop(Task):
    async def run(self) -> None:
        read()


class InProcess(InThread):
    pool = "process"


class ReadDAG(DAG):
    tasks = (First, parallel(InThread, OnLoop, InProcess))


async def test_the_context_is_the_same_in_every_pool_and_when_the_run_goes_on(go: Go, folder: Path) -> None:
    (folder / "context.yaml").write_text("Rate: 50\ntoken: hush-hush\n")
    settings = go.settings.replaced(CONTEXT_MODEL=f"{__name__}.Model", CONTEXT_FILES=["context.yaml"])
    async with Go(settings).runtime() as runtime:
        first = await runtime.run_dag(ReadDAG, check=False, run_id="run", on_failure="continue")
        assert first.status == "failed"
        (folder / "context.yaml").write_text("Rate: 70\ntoken: hush-hush\n")
        again = await runtime.resume_run("run", check=False)
        (folder / "data/go").touch()
        last = await runtime.resume_run("run", params={"depth": 9})
    assert (again.status, last.status) == ("failed", "finished")
    found = {file.stem: json.loads(file.read_text()) for file in (folder / "data/runs/run").glob("*.json")}
    assert len(found) == 9
    values = {"rate": 0.5, "depth": 3, "day": "2026-01-31", "token": "hush-hush", "twice": 6}
    kinds = {"rate": "float", "depth": "int", "day": "str", "token": "SecretText", "twice": "int"}
    for name, (context, types, shown) in found.items():
        assert context == (values if name[-1] != "3" else {**values, "depth": 9, "twice": 18})
        assert types == kinds
        assert "hush" not in shown
    record = "".join(file.read_text() for file in last.path.rglob("*") if file.is_file())
    assert "hush" not in record


async def test_changed_parameters_are_told_with_the_tasks_that_were_made_with_others(go: Go, folder: Path) -> None:
    settings = go.settings.replaced(REDACT=["*token*"])
    async with Go(settings).runtime() as runtime:
        await runtime.run_dag(ReadDAG, check=False, run_id="run", params={"depth": 3, "token": "hush-hush"})
        params: dict[str, Any] = {"token": "hush-hush"}
        assert runtime.plan_resume("run", params=params).stale == []
        plan = runtime.plan_resume("run", params={**params, "depth": 9})
        assert (plan.params_changed, plan.stale) == ({"depth": (3, 9)}, ["first"])
        await runtime.resume_run("run", check=False, params={**params, "depth": 9})
        plan = runtime.plan_resume("run", params=params)
        assert (plan.params_changed, plan.stale) == ({}, ["first"])  # still
        assert runtime.plan_resume("run", params=params, force="first").stale == []
        (folder / "data/go").touch()
        last = await runtime.resume_run("run", force="first", params=params)
        assert runtime.plan_resume("run", params=params).stale == []
    resumed = [event for event in events_of(last) if isinstance(event, RunResumed)]
    assert [event.params_changed for event in resumed] == [{"depth": [3, 9]}, None]
    assert [event.options["params"] for event in resumed] == [{"token": "***", "depth": 9}] * 2
