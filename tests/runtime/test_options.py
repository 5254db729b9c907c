"""The options of a run: what they do, and what is said about one that cannot be meant."""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pools import ProcessNothing
from steps import Boom, Go, LoopStep, Notes, Region, Score, Step, dag_of, statuses

from gluepy import DAG, Task, each, parallel
from gluepy.core.events import RunStarted, TaskExpanded, TaskSkipped, TaskStarted
from gluepy.errors import ContextError, DagError, ImportFailed, OptionError, RunLocked, UnknownDag, UnknownTask
from gluepy.exec.executors.local import LocalExecutor
from gluepy.exec.port import Executor
from gluepy.runtime import Runtime
from gluepy.testing import ScriptedExecutor, events_of, failed

CHAIN = tuple(Step(id=name) for name in "abcd")


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ({"tasks": ["b"]}, "b"),
        ({"tasks": "b"}, "b"),
        ({"tasks": ["d", "a"]}, "ad"),
        ({"from_task": "c"}, "cd"),
        ({"to_task": "b"}, "ab"),
        ({"from_task": "b", "to_task": "c"}, "bc"),
        ({"tasks": ["a", "b"], "from_task": "b"}, "b"),
        ({"tasks": []}, "abcd"),
    ],
)
async def test_selection_runs_what_it_names_and_takes_the_rest_as_satisfied(go: Go, options: Any, runs: str) -> None:
    executor = ScriptedExecutor()
    result = await go(*CHAIN, executor=executor, **options)
    assert [task for task, _ in executor.started] == list(runs)
    assert result.status == "finished"
    skipped = {event.task: event.reason for event in events_of(result) if isinstance(event, TaskSkipped)}
    assert skipped == {name: "unselected" for name in "abcd" if name not in runs}


async def test_selection_says_in_the_log_what_it_left_out(go: Go) -> None:
    result = await go(*CHAIN, executor=ScriptedExecutor(), tasks=["b"])
    opening = events_of(result)[0]
    assert isinstance(opening, RunStarted)
    assert opening.options["tasks"] == ["b"]


async def test_label_selects_all_its_instances(go: Go) -> None:
    executor = ScriptedExecutor()
    await go(each((Region, Score), region=["eu", "us"]), executor=executor, tasks="score")
    assert {task for task, _ in executor.started} == {"score[region=eu]", "score[region=us]"}


async def test_selection_reaches_what_an_each_will_add(go: Go, notes: Notes) -> None:
    dynamic = each((Region, Score), region=lambda: ["eu", "us"])
    await go(Step(id="a"), dynamic, Step(id="z"), tasks=["each-region", "score"])
    assert sorted(notes.of("end")) == ["score[region=eu]", "score[region=us]"]


async def test_selection_from_an_each_on_runs_all_that_it_adds(go: Go, notes: Notes) -> None:
    await go(Step(id="a"), each(Region, region=lambda: ["eu", "us"]), Step(id="z"), from_task="each-region")
    assert sorted(notes.of("end")) == ["region[region=eu]", "region[region=us]", "z"]


@pytest.mark.parametrize("found", [[], ["eu"]])
@pytest.mark.parametrize(
    "options", [{"tasks": ["region", "a"]}, {"from_task": "region"}, {"to_task": "region"}], ids=str
)
async def test_selection_of_what_an_each_adds_means_the_same_when_the_run_goes_on(
    go: Go, found: list[str], options: Any
) -> None:
    """Also where the `each` has found nothing to which the name could belong."""
    dag = dag_of(each((Region, Score), region=lambda: found), Step(id="a"), Step(id="b"))
    executor = ScriptedExecutor({"a": failed(), "score": failed()})
    async with go.runtime(executor=executor) as runtime:
        first = await runtime.run_dag(dag, check=False, on_failure="continue", **options)
        again = await runtime.resume_run(first.run_id, dag=dag, check=False)
    assert statuses(again) == statuses(first)


NORTH, SOUTH = "[region=north]", "[region=south]"
OF_AN_INSTANCE: list[tuple[dict[str, Any], set[str]]] = [
    ({"from_task": f"region{NORTH}"}, {f"region{NORTH}", f"score{NORTH}", "z"}),
    ({"from_task": f"score{NORTH}"}, {f"score{NORTH}", "z"}),
    ({"to_task": f"score{NORTH}"}, {"a", f"region{NORTH}", f"score{NORTH}"}),
    ({"to_task": f"region{SOUTH}"}, {"a", f"region{SOUTH}"}),
    ({"from_task": f"region{NORTH}", "to_task": f"score{NORTH}"}, {f"region{NORTH}", f"score{NORTH}"}),
    ({"from_task": f"region{NORTH}", "to_task": f"score{SOUTH}"}, set()),
    ({"tasks": [f"score{NORTH}", "a"]}, {f"score{NORTH}", "a"}),
]


@pytest.mark.parametrize(("options", "run"), OF_AN_INSTANCE, ids=lambda each: str(sorted(each)))
async def test_instance_of_an_each_is_selected_whether_its_values_are_known_or_asked_for(
    go: Go, options: Any, run: set[str]
) -> None:
    values = ["north", "south"]
    for region in (values, lambda: values):
        executor = ScriptedExecutor()
        tasks = (Step(id="a"), each((Region, Score), region=region), Step(id="z"))
        if run or callable(region):
            result = await go(*tasks, executor=executor, **options)
            assert result.status == "finished"
        assert {task for task, _ in executor.started} - {"each-region"} == run


async def test_selection_of_an_instance_means_the_same_when_the_run_goes_on(go: Go) -> None:
    dag = dag_of(Step(id="a"), each((Region, Score), region=lambda: ["north", "south"]), Step(id="z"))
    executor = ScriptedExecutor({"score": failed()})
    async with go.runtime(executor=executor) as runtime:
        first = await runtime.run_dag(dag, check=False, from_task=f"region{NORTH}")
        executor.script.clear()
        executor.started.clear()
        again = await runtime.resume_run(first.run_id, dag=dag)
        assert again.status == "finished"
        assert [task for task, _ in executor.started] == [f"score{NORTH}", "z"]
        executor.started.clear()
        await runtime.resume_run(first.run_id, dag=dag, force=f"region{NORTH}")
        assert [task for task, _ in executor.started] == [f"region{NORTH}", f"score{NORTH}", "z"]


@pytest.mark.parametrize(
    "options",
    [
        {"from_task": "region[region=nope]"},
        {"to_task": "score[region=nope]"},
        {"tasks": ["side", "region[region=nope]"]},
        {"tasks": ["always", "region[region=nope]"], "on_failure": "continue"},
    ],
    ids=str,
)
async def test_instance_that_an_each_does_not_find_ends_the_run_and_names_those_that_it_finds(
    go: Go, options: Any
) -> None:
    class Always(Step):
        trigger = "all_done"

    found = ["north", "south"]
    dag = dag_of(Step(id="a"), each((Region, Score), region=lambda: found), Step(id="side"), Always)
    executor = ScriptedExecutor()
    async with go.runtime(executor=executor) as runtime:
        first = await runtime.run_dag(dag, check=False, **options)
        assert first.status == "failed"
        error = first.tasks["each-region"].error
        assert error is not None
        assert (error.type, first.tasks["each-region"].attempts) == ("UnknownInstance", 1)
        label = next(name for name in str(options).split("'") if "[region=nope]" in name).partition("[")[0]
        made = f"each-region made {label}{NORTH}, {label}{SOUTH}"
        assert error.message == f"DAG 'dag' has no task '{label}[region=nope]'; {made}"
        assert {task for task, _ in executor.started} - {"each-region"} <= {"a"}
        assert not [event for event in events_of(first) if isinstance(event, TaskExpanded)]
        found.append("nope")
        again = await runtime.resume_run(first.run_id, dag=dag)
    assert again.status == "finished"
    assert statuses(again)[f"{label}[region=nope]"] == "finished"


async def test_instance_that_was_forced_and_is_not_found_ends_the_resumed_run(go: Go) -> None:
    def found() -> list[str]:
        if first_try:
            raise ValueError("not yet")
        return ["north"]

    dag, first_try = dag_of(each(Region, region=found)), True
    async with go.runtime(executor=ScriptedExecutor()) as runtime:
        first = await runtime.run_dag(dag, check=False)
        first_try = False
        for option in ("force", "from_task"):
            again = await runtime.resume_run(first.run_id, dag=dag, check=False, **{option: "region[region=nope]"})  # type: ignore[arg-type]
            error = again.tasks["each-region"].error
            assert error is not None
            assert error.message.endswith("no task 'region[region=nope]'; each-region made region[region=north]")


async def test_instance_may_be_added_by_either_of_two_eaches(go: Go) -> None:
    one, other = (
        each((kind, Region), region=lambda value=value: [value]) for kind, value in ((Step1, "x"), (Step2, "y"))
    )
    tasks: Any = (one, other, Step(id="z"))
    result = await go(*tasks, executor=ScriptedExecutor(), from_task="region[region=y]")
    ran = {task for task, status in statuses(result).items() if status == "finished"}
    assert ran >= {"region[region=y]", "z"}
    assert not ran & {"region[region=x]", "step1[region=x]", "step2[region=y]"}
    result = await go(*tasks, executor=ScriptedExecutor(), from_task="region[region=nope]")
    assert result.tasks["each-step2"].error is not None
    assert result.tasks["each-step1"].status == "finished"


class Step1(Step):
    region: str


class Step2(Step):
    region: str


async def test_what_asks_for_an_each_that_is_selected_runs_again_with_what_comes_before_it(go: Go) -> None:
    dag = dag_of(Step(id="a"), each(Region, region=lambda: ["eu"]), Step(id="b"))
    async with go.runtime(executor=ScriptedExecutor()) as runtime:
        first = await runtime.run_dag(dag, tasks=["a", "region"])
        again = await runtime.resume_run(first.run_id, dag=dag, force="a")
    assert statuses(again) == {
        "a": "finished",
        "each-region": "finished",
        "region[region=eu]": "finished",
        "b": "skipped",
    }
    assert [task for task, result in again.tasks.items() if result.attempts == 2] == [
        "a", "each-region", "region[region=eu]"
    ]  # fmt: skip


async def test_selected_tasks_still_wait_for_each_other_through_what_was_left_out(go: Go) -> None:
    executor = ScriptedExecutor({"a": failed()})
    result = await go(*CHAIN, executor=executor, tasks=["a", "c"])
    assert statuses(result) == {"a": "failed", "b": "skipped", "c": "blocked", "d": "skipped"}


async def test_unknown_task_names_the_nearest(go: Go) -> None:
    with pytest.raises(UnknownTask, match=re.escape("no task 'regoin[region=eu]'; did you mean 'region[region=eu]'?")):
        await go(each(Region, region=["eu"]), tasks=["regoin[region=eu]"])
    for values in (["eu"], lambda: ["eu"]):
        with pytest.raises(UnknownTask, match=re.escape("no task 'regio'; did you mean 'region'?")):
            await go(each(Region, region=values), tasks=["regio"])
    with pytest.raises(UnknownTask, match=re.escape("no task 'x'; its tasks are region, region[region=eu], final")):
        await go(each(Region, region=["eu"]), Region(region="us", id="final"), from_task="x")
    with pytest.raises(OptionError, match="nothing lies between"):
        await go(*CHAIN, from_task="c", to_task="b")
    assert not go.settings.runs_root.exists()  # nothing was begun


async def test_run_id_names_the_run_and_is_taken_once(go: Go) -> None:
    result = await go(Step(id="a"), run_id="mine_1.a-B")
    assert (result.run_id, result.path.name) == ("mine_1.a-B", "mine_1.a-B")
    with pytest.raises(OptionError, match="recorded already"):
        await go(Step(id="a"), run_id="mine_1.a-B")
    for bad in ("../up", "a/b", ".hidden", "x" * 101, "a b", "a\n"):
        with pytest.raises(OptionError, match="cannot name a folder"):
            await go(Step(id="a"), run_id=bad)


async def test_ids_of_runs_sort_by_time(go: Go) -> None:
    ids = [(await go(Step(id="a"), executor=ScriptedExecutor())).run_id for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", id) for id in ids)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"concurrency": 0}, "concurrency: 0 must be a positive whole number"),
        ({"concurrency": True}, "concurrency"),
        ({"concurrency": "4"}, "concurrency"),
        ({"timeout_s": 0}, "timeout_s: 0 must be a positive number"),
        ({"timeout_s": "1"}, "timeout_s"),
        ({"pool": "threads"}, "did you mean 'thread'?"),
        ({"on_failure": "continu"}, "did you mean 'continue'?"),
        ({"paramz": {}}, "did you mean 'params'?"),
        ({"params": [1]}, "not a mapping"),
        ({"params": {"a": object()}}, "not a JSON value"),
        ({"executor": 3}, "not an executor"),
        ({"executor": object}, "not an executor"),
        ({"sinks": [3]}, "not a sink"),
        ({"sinks": 3}, "sinks: 3 is not a list; give a list of sinks"),
        ({"sinks": print}, "as in sinks=[print]"),
        ({"timeout_s": True}, "timeout_s: True must be a positive number"),
        ({"run_id": 3}, "run_id: 3 is not text"),
        ({"from_task": 3}, "from_task: 3 is not text; give a task's id or label"),
        ({"tasks": 3}, "tasks: 3 does not name tasks"),
        ({"tasks": [3]}, "tasks: [3] does not name tasks"),
    ],
)
async def test_option_that_cannot_be_meant_is_refused_by_name_before_anything_runs(
    go: Go, notes: Notes, options: Any, told: str
) -> None:
    with pytest.raises(OptionError, match=re.escape(told)):
        await go(Step(id="a"), **options)
    assert notes.lines() == []
    assert not go.settings.runs_root.exists()


async def test_dag_that_is_none_is_refused_by_name(go: Go) -> None:
    async with go.runtime() as runtime:
        with pytest.raises(UnknownDag, match="INSTALLED_MODULES"):
            await runtime.run_dag("nosuch")
        with pytest.raises(OptionError, match="not a DAG"):
            await runtime.run_dag(Step)  # type: ignore[arg-type]
        with pytest.raises(DagError, match="has no `tasks`"):
            await runtime.run_dag(DAG)
        with pytest.raises(DagError, match="no tasks"):
            await runtime.run_dag(dag_of())


async def test_dag_in_a_file_is_run_by_its_path(go: Go, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine_by_path.py").write_text(
        "from gluepy import DAG, Task\n"
        "class Load(Task):\n    pool = 'process'\n    def run(self):\n        self.metric('rows', 3)\n"
        "class MineDAG(DAG):\n    label = 'mine'\n    tasks = (Load,)\n"
    )
    monkeypatch.delitem(sys.modules, "mine_by_path", raising=False)
    async with go.runtime() as runtime:
        result = await runtime.run_dag("mine_by_path.py:MineDAG")
    assert (result.dag, result.status) == ("mine", "finished")


async def test_param_that_the_context_refuses_is_told_before_anything_runs(go: Go) -> None:
    with pytest.raises(ContextError, match="64 bits"):
        await go(Step(id="a"), params={"big": 2**70})
    assert not go.settings.runs_root.exists()


@pytest.mark.parametrize("option", [ScriptedExecutor, ScriptedExecutor(), "gluepy.testing.ScriptedExecutor"])
async def test_executor_is_an_instance_a_class_or_its_dotted_path(go: Go, option: Any) -> None:
    async with Runtime(go.settings) as runtime:
        result = await runtime.run_dag(dag_of(Step(id="a")), executor=option)
    (started,) = (event for event in events_of(result) if isinstance(event, TaskStarted))
    assert started.executor == "ScriptedExecutor"


async def test_what_names_a_module_that_is_missing_is_told(go: Go) -> None:
    for options in ({"executor": "nowhere.Executor"}, {"sinks": ["nowhere.Sink"]}):
        ((name, _),) = options.items()
        with pytest.raises(ImportFailed, match=f"the option {name} names it"):
            await go(Step(id="a"), **options)


async def test_executor_of_the_settings_is_the_default(go: Go) -> None:
    go.settings = go.settings.replaced(EXECUTOR_BACKEND="gluepy.testing.ScriptedExecutor")
    result = await go(Step(id="a"))
    (started,) = (event for event in events_of(result) if isinstance(event, TaskStarted))
    assert started.executor == "ScriptedExecutor"


async def test_pool_of_the_class_beats_the_option_which_beats_the_setting(go: Go, notes: Notes) -> None:
    class Threaded(Step):
        pool = "thread"

    go.settings = go.settings.replaced(POOL="process")
    await go(Step(id="by-setting"), LoopStep(id="loop"))
    await go(Step(id="by-option"), Threaded(id="by-class"), pool="thread")
    await go(Step(id="by-option-too"), pool="process")
    here = {line[1] for line in notes.lines() if int(line[3]) == os.getpid()}
    assert here == {"loop", "by-option", "by-class"}


async def test_class_in_a_function_is_refused_for_a_process_with_a_hint(go: Go) -> None:
    class Local(Task):
        pool = "process"

        def run(self) -> None:
            pass

    with pytest.raises(DagError, match=r"inside a function cannot go to a worker process; move it to a module"):
        await go(Local)
    assert not go.settings.runs_root.exists()
    with pytest.raises(DagError, match="worker process"):
        await go(type("Made", (Step,), {"__qualname__": "f.<locals>.Made"}), pool="process")


async def test_debug_runs_one_task_at_a_time_in_the_loops_own_thread(
    go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    threads: list[int] = []
    most = [0, 0]

    class Here(Task):
        def run(self) -> None:
            most[0] += 1
            most[1] = max(most)
            threads.append(threading.get_ident())
            print("printed")
            most[0] -= 1

    tasks = parallel(*(Here(id=str(number)) for number in range(4)), ProcessNothing(id="process"))
    result = await go(tasks, debug=True, capture=True)
    assert result.status == "finished"
    assert set(threads) == {threading.get_ident()}
    assert most[1] == 1
    assert capsys.readouterr().out == "printed\n" * 4
    assert list((result.path / "logs").iterdir()) == []


async def test_debug_lets_a_failure_be_seen_like_any(go: Go) -> None:
    class Broken(Task):
        def run(self) -> None:
            raise Boom("no")

    result = await go(Broken, debug=True)
    error = result.tasks["broken"].error
    assert error is not None
    assert isinstance(error.__cause__, Boom)


async def test_two_runs_with_one_id_at_once_are_one_run_and_one_refusal(go: Go) -> None:
    executor = ScriptedExecutor()
    dag = dag_of(Step(id="a"))
    async with go.runtime(executor=executor) as runtime, runtime.stream_dag(dag, run_id="same") as run:
        with pytest.raises((OptionError, RunLocked)):
            await runtime.run_dag(dag, run_id="same")
        assert (await run.result()).status == "finished"


async def test_executor_class_may_take_what_it_needs_from_the_settings(go: Go) -> None:
    made: list[int] = []

    class Mine(LocalExecutor):
        @classmethod
        def from_settings(cls, settings: Any) -> Any:
            made.append(settings.CONCURRENCY)
            return cls()

    assert issubclass(Mine, Executor)
    assert (await go(Step(id="a"), executor=Mine)).status == "finished"
    assert made == [4]


class Graph(DAG):
    tasks: ClassVar = {Step(id="x"): ()}


async def test_instances_stand_in_mappings_too(go: Go) -> None:
    async with go.runtime() as runtime:
        assert statuses(await runtime.run_dag(Graph)) == {"x": "finished"}
