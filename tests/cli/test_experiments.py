"""Runs compared and judged from the command line: `compare`, `check`, `evaluate`, `skill`."""

from __future__ import annotations

import json
import re

import pytest
from console_calls import Console

FLOW = '''
from gluepy import DAG, Goal, Task

class Fit(Task):
    def run(self):
        self.metric("loss", 1 / self.context.depth)

class Accuracy(Task):
    goals = {"auc": Goal("higher", tolerance=0.1)}
    def run(self):
        self.metric("auc", 1 - 1 / self.context.depth)

class TrainDAG(DAG):
    """Fit and judge."""
    label = "train"
    tasks = (Fit,)
    evaluation = (Accuracy,)
'''


@pytest.fixture
def lab(gluepy: Console) -> Console:
    """The console in a project with two runs, of depth 2 and 4, and one of depth 3 that was not judged."""
    gluepy.write("settings.py", "INSTALLED_MODULES = ['flows']\n")
    gluepy.write("flows/__init__.py", "")
    gluepy.write("flows/dags.py", FLOW)
    for run_id, depth, more in (("two", 2, ()), ("four", 4, ()), ("three", 3, ("--skip-evaluation",))):
        assert gluepy("run", "train", "-q", "--run-id", run_id, "-P", f"depth={depth}", *more).returncode == 0
    return gluepy


def rows(text: str) -> list[list[str]]:
    """The cells of a table."""
    return [re.split("  +", line.strip()) for line in text.splitlines()]


def test_compare_shows_what_differs_and_the_best(lab: Console) -> None:
    done = lab("compare", "two", "four", "three")
    assert done.returncode == 0
    table = {row[0]: row[1:] for row in rows(done.stdout)}
    del table["took"]
    assert table == {
        "run": ["two", "four", "three"],
        "depth": ["2", "4", "3"],
        "fit.loss": ["0.5", "0.25", "0.333333"],
        "accuracy.auc": ["0.5", "0.75 *", "–"],
    }
    one = lab("compare", "two", "four", "three", "--metric", "fit.loss", "--min")
    assert [row[-1] for row in rows(one.stdout)] == ["fit.loss", "0.5", "0.25 *", "0.333333"]
    told = json.loads(lab("compare", "two", "four", "--json").stdout)
    assert told["parameters"] == {"depth": [2, 4]}
    assert told["best"] == {"accuracy.auc": [1]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["two"], "two runs are needed"),
        (["two", "four", "--metric", "fit.loss"], "it goes with --max or --min"),
        (["two", "four", "--max"], "it goes with --max or --min"),
        (["two", "four", "--metric", "fit.lss", "--max"], "did you mean 'fit.loss'?"),
        (["two", "four", "--metric", "fit.loss", "--max", "--min"], "mutually exclusive"),
        (["two", "fuor"], "did you mean 'four'?"),
    ],
)
def test_comparison_that_cannot_be_meant_is_told(lab: Console, words: list[str], said: str) -> None:
    done = lab("compare", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_check_fails_if_a_metric_got_worse_or_is_missing(lab: Console) -> None:
    good = lab("check", "four", "--baseline", "two")
    assert (good.returncode, good.stderr) == (0, "")
    assert rows(good.stdout)[1] == ["accuracy.auc", "higher", "0.5", "0.75", "+0.25", "better"]
    bad = lab("check", "two", "--baseline", "four")
    assert bad.returncode == 1
    assert rows(bad.stdout)[1][-1] == "worse, by more than 0.1"
    assert bad.stderr == "1 metric of two worse than in four\n"
    missing = lab("check", "three", "--baseline", "two", "--json")
    assert missing.returncode == 1
    assert json.loads(missing.stdout)["metrics"][0]["verdict"] == "missing"
    nothing = lab("check", "two", "--baseline", "three")
    assert nothing.returncode == 2
    assert "run three has measured nothing that has a goal; declare what is better" in nothing.stderr


def test_evaluate_judges_a_run_that_was_not(lab: Console) -> None:
    done = lab("evaluate", "three")
    assert done.returncode == 0
    assert "2 tasks" in done.stdout
    assert "kept: fit" in done.stderr
    assert lab("check", "three", "--baseline", "two").returncode == 0
    lab.write("flows/dags.py", FLOW.replace("1 - 1", "2 - 1"))
    assert lab("evaluate", "three").returncode == 0
    told = json.loads(lab("show", "three", "--json").stdout)["tasks"]
    assert told["accuracy"]["metrics"]["auc"] == pytest.approx(2 - 1 / 3)
    assert (told["fit"]["attempts"], told["accuracy"]["attempts"]) == (1, 2)


def test_list_counts_the_evaluation_too(lab: Console) -> None:
    assert json.loads(lab("list", "--json").stdout)[0]["tasks"] == 2


def test_skill_is_written_for_this_project(lab: Console) -> None:
    done = lab("skill")
    assert done.returncode == 0
    assert done.stdout.startswith("---\nname: gluepy-experiments\n")
    assert "- `gluepy run train`: Fit and judge." in done.stdout
    assert "{" not in done.stdout
    known = lab("--help").stdout
    for command in re.findall(r"`gluepy ([a-z]+)", done.stdout):
        assert command in known
    assert lab("skill", "agents/SKILL.md").returncode == 0
    assert (lab.folder / "agents" / "SKILL.md").read_text() == done.stdout
    again = lab("skill", "agents/SKILL.md")
    assert again.returncode == 2
    assert "is there already; write over it with --force" in again.stderr
    assert lab("skill", "agents/SKILL.md", "--force").returncode == 0
