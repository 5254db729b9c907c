"""What `run()` sees of its parameters, wherever it runs."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from steps import Go, dag_of, statuses
from typed import Frozen, LoopTyped, ProcessFrozen, ProcessTyped, Typed

from gluepy import Task, each
from gluepy.core.events import TaskExpanded
from gluepy.errors import DagError
from gluepy.testing import events_of, task_run

DAY = date(2026, 1, 1)


def told() -> list[str]:
    return Path("data/told").read_text().splitlines()


@pytest.mark.parametrize("kind", [Typed, LoopTyped, ProcessTyped])
async def test_run_sees_values_of_the_annotated_types(go: Go, kind: type[Typed]) -> None:
    await go(kind(day=DAY, rate=2), each(kind, day=["2025-01-01"]), each(kind, day=lambda: [date(2024, 1, 1)]))
    rest = "mode=full,file=a/b,rate="
    assert told() == [
        f"{kind.label}[day=2026-01-01,{rest}2] date Mode PosixPath float 2026",
        f"{kind.label}[day=2025-01-01,{rest}1] date Mode PosixPath float 2025",
        f"{kind.label}[day=2024-01-01,{rest}1] date Mode PosixPath float 2024",
    ]


@pytest.mark.parametrize("kind", [Frozen, ProcessFrozen])
async def test_frozen_dataclass_runs_with_its_values(go: Go, kind: type[Frozen]) -> None:
    assert (await go(kind(day=DAY))).status == "finished"
    assert told() == ["frozen 2026"]


class Flaky(Typed):
    def run(self) -> None:
        self.told()
        if not (self.storage / "well").exists():
            raise ValueError("not yet")


async def test_resumed_run_sees_the_recorded_values_with_their_types(go: Go) -> None:
    dag = dag_of(each(Flaky, day=lambda: [DAY]))
    async with go.runtime() as runtime:
        first = await runtime.run_dag(dag, check=False)
        (Path("data") / "well").touch()
        again = await runtime.resume_run(first.run_id, dag=dag)
    assert again.status == "finished"
    assert told() == ["flaky[day=2026-01-01,mode=full,file=a/b,rate=1] date Mode PosixPath float 2026"] * 2


async def test_value_that_a_callable_found_and_no_task_takes_fails_the_each(go: Go) -> None:
    result = await go(each(Typed, day=lambda: [DAY, "soon"]))
    assert statuses(result) == {"each-typed": "failed"}
    error = result.tasks["each-typed"].error
    assert error is not None
    assert "a value for 'day' is 'soon'; expected date (" in error.message
    assert not [event for event in events_of(result) if isinstance(event, TaskExpanded)]


async def test_task_whose_class_has_changed_fails_with_what_it_was_given(go: Go) -> None:
    class Counts(Task):
        n: Any

        def run(self) -> None:
            raise ValueError("not yet")

    class Counted(Task):
        label = "counts"
        n: int

        def run(self) -> None:
            raise AssertionError("it must not run")

    async with go.runtime() as runtime:
        first = await runtime.run_dag(dag_of(each(Counts, n=lambda: ["many"])), check=False)
        again = await runtime.resume_run(first.run_id, dag=dag_of(each(Counted, n=lambda: [1])), check=False)
    (task,) = (task for id, task in again.tasks.items() if id == "counts[n=many]")
    assert task.error is not None
    assert "Counted.n is 'many'; expected int" in task.error.message


def test_task_in_a_test_sees_what_it_would_see_in_a_run(folder: Path) -> None:
    with task_run(folder) as run:
        task = Typed(day="2026-01-01", rate=2)  # type: ignore[arg-type]
        assert (task.day, type(task.rate)) == (DAY, float)
        with pytest.raises(DagError, match=r"Typed\.day is 'soon'; expected date"):
            Typed(day="soon")  # type: ignore[arg-type]
    assert run.emissions == []
