"""Tasks that judge a run: after all others, left out on demand, and again later with newer code."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import pytest
from steps import Fails, Go, LoopStep, Notes, Step, dag_of, statuses

from gluepy import DAG, Goal, Task, parallel
from gluepy.core.policy import Goal as CoreGoal
from gluepy.errors import DagError, OptionError
from gluepy.exec.dag import compile_dag
from gluepy.report import RunReport, check_run, compare_many
from gluepy.runs.record import Record
from gluepy.runtime import Runtime


class Accuracy(Task):
    goals: ClassVar = {"auc": Goal("higher", tolerance=0.1), "rmse": "lower"}
    auc = 0.5

    def run(self) -> None:
        self.metric("auc", self.auc)
        self.metric("rmse", self.context.get("rmse", 1.0))


def judged(*tasks: Any, by: Any = (Accuracy,)) -> type[DAG]:
    """A DAG with an evaluation."""
    inside = tasks[0] if isinstance(tasks[0], dict) else tasks
    return cast("type[DAG]", type("Judged", (DAG,), {"tasks": inside, "evaluation": by, "label": "judged"}))


def report(runtime: Runtime, run_id: str) -> RunReport:
    """What is recorded of a run."""
    return RunReport.from_record(Record(runtime.settings.runs_root, run_id), runtime.settings)


@pytest.fixture
async def runtime(go: Go) -> Any:
    async with go.runtime() as runtime:
        yield runtime


@pytest.mark.parametrize("tasks", [(parallel(Step, LoopStep),), ({Step: (), LoopStep: Step},)])
async def test_evaluation_runs_after_all_other_tasks(runtime: Runtime, tasks: Any) -> None:
    result = await runtime.run_dag(judged(*tasks))
    assert statuses(result) == {"step": "finished", "loopstep": "finished", "accuracy": "finished"}
    graph = report(runtime, result.run_id).state.graph
    before = {graph.task_id(node) for node in graph.ancestors([graph.index["accuracy"]]) if graph.ids[node]}
    assert before == {"step", "loopstep", "accuracy"}


async def test_evaluation_that_is_left_out_runs_when_it_is_asked_for(runtime: Runtime, notes: Notes) -> None:
    dag = judged(Step)
    result = await runtime.run_dag(dag, skip_evaluation=True)
    assert statuses(result) == {"step": "finished", "accuracy": "skipped"}
    assert result.reasons == {"accuracy": "unselected"}
    assert statuses(await runtime.resume_run(result.run_id, dag=dag)) == statuses(result)  # as the run had it
    again = await runtime.resume_run(result.run_id, dag=dag, evaluate=True)
    assert statuses(again) == {"step": "finished", "accuracy": "finished"}
    assert again.tasks["accuracy"].attempts == 1
    assert notes.of("begin") == ["step"]


async def test_evaluation_runs_again_with_newer_code_and_nothing_else_does(runtime: Runtime, notes: Notes) -> None:
    result = await runtime.run_dag(judged(Step))
    newer = type("Accuracy", (Accuracy,), {"auc": 0.9, "__module__": __name__})
    again = await runtime.resume_run(result.run_id, dag=judged(Step, by=(newer,)), evaluate=True)
    assert again.metrics["accuracy"]["auc"] == 0.9
    assert again.tasks["accuracy"].attempts == 2
    assert notes.of("begin") == ["step"]
    plan = runtime.plan_resume(result.run_id, dag=judged(Step))
    assert not plan.again


async def test_run_gets_an_evaluation_that_its_dag_did_not_have(runtime: Runtime) -> None:
    result = await runtime.run_dag(dag_of(Step, label="judged"))
    again = await runtime.resume_run(result.run_id, dag=judged(Step), evaluate=True)
    assert statuses(again) == {"step": "finished", "accuracy": "finished"}


async def test_run_that_has_not_finished_is_not_evaluated(runtime: Runtime) -> None:
    dag = judged(Step, Fails)
    result = await runtime.run_dag(dag, check=False)
    assert statuses(result)["accuracy"] == "blocked"
    with pytest.raises(OptionError, match="has not finished: fails is failed; first `gluepy resume"):
        await runtime.resume_run(result.run_id, dag=dag, evaluate=True)
    plain = await runtime.run_dag(dag_of(Step))
    with pytest.raises(OptionError, match="DAG 'dag' has no evaluation"):
        await runtime.resume_run(plain.run_id, dag=dag_of(Step), evaluate=True)


async def test_run_is_worse_than_its_baseline_beyond_a_tolerance_alone(runtime: Runtime) -> None:
    async def run(auc: float, **options: Any) -> RunReport:
        task = type("Accuracy", (Accuracy,), {"auc": auc, "__module__": __name__})
        return report(runtime, (await runtime.run_dag(judged(Step, by=(task,)), **options)).run_id)

    base = await run(0.5)
    verdicts = {
        name: [each.verdict for each in check_run(await run(auc, **options), base)]
        for name, auc, options in (
            ("same", 0.5, {}),
            ("within", 0.45, {"params": {"rmse": 0.5}}),
            ("worse", 0.35, {"params": {"rmse": 1.001}}),
            ("missing", 0.5, {"skip_evaluation": True}),
        )
    }
    assert verdicts == {
        "same": ["same", "same"],
        "within": ["tolerated", "better"],
        "worse": ["worse", "worse"],
        "missing": ["missing", "missing"],
    }


async def test_runs_side_by_side_have_what_differs_and_the_best(runtime: Runtime) -> None:
    results = [await runtime.run_dag(judged(Step), params={"rmse": rmse, "same": 1}) for rmse in (3, 1, 2)]
    reports = [report(runtime, result.run_id) for result in results]
    found = compare_many(reports)
    assert found.parameters == {"rmse": [3, 1, 2]}
    assert found.metrics == {"accuracy.auc": [0.5] * 3, "accuracy.rmse": [3.0, 1.0, 2.0]}
    assert found.best == {"accuracy.auc": [0, 1, 2], "accuracy.rmse": [1]}
    assert compare_many(reports, {"accuracy.rmse": CoreGoal("higher")}).best == {"accuracy.rmse": [0]}


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({Accuracy: ()}, "`evaluation` is {<class"),
        (3, "`evaluation` is 3; give it a tuple of tasks$"),
        ((Step,), "step"),
        (("Nothing",), "Nothing"),
    ],
)
def test_evaluation_that_cannot_be_meant_is_refused(evaluation: Any, said: str) -> None:
    with pytest.raises(DagError, match=said):
        compile_dag(judged(Step, by=evaluation))


@pytest.mark.parametrize("goals", [["auc"], {"auc": "up"}, {"": "lower"}, {"auc": None}, {3: "lower"}])
def test_goals_that_cannot_be_meant_are_refused(goals: Any) -> None:
    with pytest.raises(DagError, match=r"goals: .*give names of metrics 'lower', 'higher' or a Goal"):
        compile_dag(dag_of(type("Odd", (Step,), {"goals": goals})))


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf"), "1", True])
def test_tolerance_is_a_number_from_0_on(tolerance: Any) -> None:
    with pytest.raises(ValueError, match="tolerance 0 or a positive number"):
        Goal("lower", tolerance)
