"""Commands that look: `list`, `graph`, `settings`, `show`, `events`, `logs`, `--help`."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest
import typer
from console_calls import Console, Terminal, until

from gluepy.cli.app import app

SLASHED = "fit[region=CNTRL/STORE [SUP] 🎉]"


def test_version_is_the_packages(gluepy: Console) -> None:
    done = gluepy("--version")
    assert re.fullmatch(r"gluepy \d+\.\d+\.\d+\n", done.stdout)


COMMANDS = tuple(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_help_lists_every_command_with_a_whole_sentence(gluepy: Console) -> None:
    done = gluepy("--help")
    assert done.returncode == 0
    listed = done.stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert all(line.endswith(".") and not line.endswith("..") for line in listed)
    assert gluepy().stdout == done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text(command: str, gluepy: Console) -> None:
    done = gluepy(command, "--help", COLUMNS="200")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: gluepy ")
    options = [line for line in done.stdout.splitlines() if re.match(r"  -", line)]
    assert options
    assert all(re.search(r"\S  +\w+ .*\w", line) for line in options), options
    assert gluepy(command, "-h", COLUMNS="200").stdout == done.stdout


def test_list_has_every_dag(shop: Console) -> None:
    done = shop("list")
    assert done.returncode == 0
    fail, train = (re.split("  +", line) for line in done.stdout.splitlines())
    assert fail == ["fail", "4 tasks", "flows.dags:FailDAG"]
    assert train == ["train", "4 tasks", "flows.dags:TrainDAG", "Train models."]
    rows = json.loads(shop("list", "--json").stdout)
    assert rows[1] == {"dag": "train", "class": "flows.dags:TrainDAG", "about": "Train models.", "tasks": 4}


def test_list_shows_what_is_wrong_with_a_dag(shop: Console) -> None:
    shop.write("flows/tasks.py", "from gluepy import DAG\nclass EmptyDAG(DAG): tasks = ()\n")
    done = shop("list")
    assert done.returncode == 0
    assert "emptydag  error: DAG EmptyDAG (flows.tasks): has no tasks" in done.stdout
    assert "train " in done.stdout


def test_list_of_nothing_says_so(gluepy: Console) -> None:
    gluepy.write("settings.py", "INSTALLED_MODULES = []\n")
    done = gluepy("list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no DAG is defined in INSTALLED_MODULES" in done.stderr


def test_graph_as_text_is_the_authors_tree(shop: Console) -> None:
    assert shop("graph", "train").stdout.splitlines() == [
        "train",
        "├─ load",
        "├─ each region: eu; CNTRL/STORE [SUP] 🎉",
        "│  └─ fit[region]",
        "└─ report",
    ]
    shop.write(
        "pipe.py",
        """
        from gluepy import DAG, Task, each, parallel
        class A(Task):
            def run(self): pass
        class B(A): pass
        class C(A): n: int
        class D(A): pass
        def found(): return [1]
        class SeqDAG(DAG): tasks = (A, parallel(B, (D, C(n=2))), each((C,), n=range(30)), each(C, n=found))
        class MapDAG(DAG): tasks = {A: (), B: A, C(n=1): (A, B)}
        """,
    )
    assert shop("graph", "pipe.py:SeqDAG").returncode == 2  # c[n=2] appears twice
    shop.write("pipe.py", (shop.folder / "pipe.py").read_text().replace("C(n=2)", "C(n=77, id='odd one')"))
    assert shop("graph", "pipe.py:SeqDAG").stdout.splitlines() == [
        "seqdag",
        "├─ a",
        "├─ parallel",
        "│  ├─ b",
        "│  └─ one after another",
        "│     ├─ d",
        "│     └─ odd one",
        "├─ each n: 0; 1; 2; 3; 4; … 30 in all",
        "│  └─ c[n]",
        "└─ each n that pipe:found finds, by the task each-c",
        "   └─ c[n]",
    ]
    assert shop("graph", "pipe.py:MapDAG").stdout.splitlines() == [
        "mapdag",
        "├─ a",
        "├─ b  after a",
        "└─ c[n=1]  after a, b",
    ]


def test_graph_for_other_programs(shop: Console) -> None:
    mermaid = shop("graph", "train", "--format", "mermaid").stdout
    assert mermaid.splitlines()[0] == "flowchart TD"
    assert '    t2["fit#91;region=CNTRL/STORE #91;SUP#93; #127881;#93;"]' in mermaid
    assert "    t0 --> t1" in mermaid
    picture = ET.fromstring(shop("graph", "train", "-f", "svg").stdout)
    space = "{http://www.w3.org/2000/svg}"
    names = {text.text: float(text.attrib["y"]) for text in picture.iter(f"{space}text")}
    assert len(names) == mermaid.count('["')
    assert names[SLASHED] > min(names.values())  # below what it depends on
    assert len(list(picture.iter(f"{space}line"))) == mermaid.count("-->")
    dot = shop("graph", "train", "-f", "dot").stdout
    assert dot.startswith('digraph "train" {')
    assert f'    t2 [label="{SLASHED}"];' in dot
    assert "    t0 -> t2;" in dot


def test_settings_show_values_sources_and_no_secrets(shop: Console) -> None:
    shop.write("settings.py", "INSTALLED_MODULES = ['flows']\nAPI_TOKEN = 'hunter2'\n")
    done = shop("settings", GLUEPY_CONCURRENCY="7")
    assert done.returncode == 0
    rows = {row[0]: row[1:] for row in (re.split("  +", line) for line in done.stdout.splitlines())}
    assert rows["CONCURRENCY"] == ["environment GLUEPY_CONCURRENCY", "7"]
    assert rows["INSTALLED_MODULES"] == ["settings.py", '["flows"]']
    assert rows["API_TOKEN"] == ["settings.py", '"***"']
    assert rows["POOL"] == ["default", '"thread"']
    found = json.loads(shop("settings", "--json").stdout)
    assert found["INSTALLED_MODULES"] == {"value": ["flows"], "source": "settings.py"}
    assert "hunter2" not in json.dumps(found)


def test_settings_are_there_without_a_project(gluepy: Console) -> None:
    done = gluepy("settings")
    assert done.returncode == 0
    assert "no project here" in done.stderr


def test_show_tells_how_a_run_went(shop: Console) -> None:
    shop("run", "fail", "--run-id", "first", "-c", "3")
    done = shop("show", "first")
    assert done.returncode == 0
    header, tasks, _, failure, resume = done.stdout.split("\n\n")
    facts = {line.split()[0]: line.split(maxsplit=1)[1] for line in header.splitlines()}
    assert (facts["run"], facts["dag"], facts["status"]) == ("first", "fail", "failed")
    assert facts["options"] == "concurrency = 3"
    rows = [re.split("  +", line) for line in tasks.splitlines()]
    assert rows[0] == ["task", "status", "attempts", "took"]
    assert rows[1][:3] == ["load", "finished", "1"]
    assert rows[2][:3] == ["broken", "failed", "1"]
    assert rows[2][4] == "ValueError: bad [red]price[/red]"
    assert rows[4] == ["after", "blocked", "by broken"]
    assert failure.startswith("broken failed in attempt 1: ValueError: bad [red]price[/red]\n  Traceback")
    assert resume.endswith("gluepy resume first\n")


@pytest.mark.slow
def test_show_has_metrics_and_takes_the_end_of_an_id(shop: Console) -> None:
    shop("run", "train")
    (record,) = shop.runs
    for name in ("latest", record.name, record.name[-6:]):
        done = shop("show", name)
        assert f"fit[region=eu]  {'':{len(SLASHED) - len('fit[region=eu]')}}" in done.stdout
        metrics = done.stdout.split("\n\n")[2].splitlines()
        assert [re.split("  +", line) for line in metrics] == [
            ["metric"],
            ["fit[region=eu]", "rmse", "0.25"],
            [SLASHED, "rmse", "0.25"],
        ]
        assert "resume" not in done.stdout
    assert shop("show").stdout == done.stdout
    told = json.loads(shop("show", "--json").stdout)
    assert told["status"] == "finished"
    assert told["tasks"][SLASHED]["metrics"] == {"rmse": 0.25}


def test_show_says_why_tasks_did_not_run(shop: Console) -> None:
    shop.write(
        "pipe.py",
        """
        from gluepy import DAG, Skip, Task
        class A(Task):
            def run(self): raise Skip("nothing new")
        class B(Task):
            def run(self): pass
        class PipeDAG(DAG): tasks = (A, B)
        """,
    )
    assert shop("run", "pipe.py").returncode == 0
    done = shop("show")
    rows = [re.split("  +", line) for line in done.stdout.split("\n\n")[1].splitlines()]
    assert [(row[1], row[-1]) for row in rows[1:]] == [
        ("skipped", "nothing new"),
        ("skipped", "what it depends on was skipped"),
    ]
    shop("run", "train", "--task", "load")
    assert "and 3 tasks that the run's selection left out" in shop("show").stdout


def test_show_of_a_run_whose_driver_was_killed(shop: Console) -> None:
    shop.write(
        "pipe.py",
        """
        import anyio
        from gluepy import DAG, Task
        class A(Task):
            async def run(self): await anyio.sleep(1000)
        class PipeDAG(DAG): tasks = (A,)
        """,
    )
    process = shop.start("run", "pipe.py", "--run-id", "first", "-q")
    log = shop.folder / ".gluepy/runs/first/events.jsonl"
    until(lambda: log.exists() and "task.started" in log.read_text())
    running = shop("show", "first")
    assert re.search("status +running", running.stdout)
    assert re.search("a +running", running.stdout)
    assert "resume" not in running.stdout
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = shop("show", "first")
    assert re.search("status +interrupted", done.stdout)
    assert re.search("a +interrupted", done.stdout)
    told = json.loads(shop("show", "first", "--json").stdout)
    assert (told["status"], told["counts"]) == ("interrupted", {"interrupted": 1})
    assert [each["status"] for each in (told["tasks"]["a"], *told["timeline"]["bars"])] == ["interrupted"] * 2
    assert done.stdout.endswith("resume first\n")
    with log.open("a") as file:
        file.write('{"torn": \n')
    assert "the log is damaged: 1 unreadable line" in shop("show", "first").stdout


def test_events_are_the_lines_of_the_log(shop: Console) -> None:
    shop("run", "train", "-q")
    (record,) = shop.runs
    done = shop("events")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (record / "events.jsonl").read_text()
    with (record / "events.jsonl").open("a") as file:
        file.write("torn\n")
    log = record / "events.jsonl"
    assert shop("events", "latest").stderr == f"{log}: 1 unreadable line\n"
    with log.open("a") as file:
        file.write("torn\n")
    assert shop("events", "latest").stderr == f"{log}: 2 unreadable lines\n"


def test_events_are_followed_to_the_end_of_the_run(shop: Console) -> None:
    gate = shop.folder / "gate"
    shop.write(
        "pipe.py",
        f"""
        import os, time
        from gluepy import DAG, Task
        class A(Task):
            def run(self):
                while not os.path.exists({str(gate)!r}): time.sleep(0.01)
        class PipeDAG(DAG): tasks = (A,)
        """,
    )
    run = shop.start("run", "pipe.py", "--run-id", "first", "-q")
    log = shop.folder / ".gluepy/runs/first/events.jsonl"
    until(lambda: log.exists() and "task.started" in log.read_text())
    follower = shop.start("events", "first", "--follow")
    assert follower.stdout is not None
    assert "run.started" in follower.stdout.readline()
    assert "task.started" in follower.stdout.readline()
    gate.touch()
    out, _ = follower.communicate(timeout=240)
    assert out.splitlines()[-1] == log.read_text().splitlines()[-1]
    assert follower.returncode == 0
    run.communicate(timeout=240)


@pytest.mark.slow
def test_logs_are_whole_or_one_tasks(shop: Console) -> None:
    shop("run", "fail", "-q")
    done = shop("logs")
    assert done.returncode == 0
    assert re.findall("==> (.*) <==", done.stdout) == ["load, attempt 1", "broken, attempt 1", "report, attempt 1"]
    assert shop("logs", "latest", "load").stdout == "loading\n"
    assert shop("resume", "--force", "load", "-q").returncode == 1
    assert shop("logs", "latest", "load").stdout.startswith("==> load, attempt 1 <==\nloading\n")
    (shop.runs[-1] / "logs/load.2.log").unlink()
    assert shop("logs", "latest", "load").stdout == "==> load, attempt 1 <==\nloading\n"
    assert "reported" in shop("logs", "latest", "report").stdout
    assert "it has not begun" in shop("logs", "latest", "after").stderr
    done = shop("logs", "latest", "reprot")
    assert (done.returncode, done.stderr) == (2, "error: DAG 'fail' has no task 'reprot'; did you mean 'report'?\n")
    shop("run", "train", "-q")
    assert "no output was kept" in shop("logs", "latest", SLASHED).stderr
    assert "did you mean 'fit'?" in shop("logs", "latest", "fti").stderr


SLOW = "raise RuntimeError('a task module was imported')\n"


def test_looking_at_a_project_imports_none_of_its_tasks(gluepy: Console) -> None:
    gluepy.write("settings.py", "INSTALLED_MODULES = ['flows', 'others']\n")
    for name in ("flows", "others"):
        gluepy.write(f"{name}/__init__.py", "")
        gluepy.write(f"{name}/tasks.py", f"from gluepy import Task\nclass Load(Task): pass\n{SLOW}")
        dag = f"class {name.title()}DAG(DAG):\n    '''Does it.'''\n    tasks = (Load, 'Late')\n"
        gluepy.write(f"{name}/dags.py", f"from gluepy import DAG\nfrom {name}.tasks import Load\n{dag}{SLOW}")
    gluepy.write(
        "flows/commands.py",
        "import typer\napp = typer.Typer()\n@app.command()\ndef greet():\n    '''Say it.'''\n    print('hello')\n",
    )
    listed = gluepy("list")
    assert listed.stdout.splitlines() == [
        "flowsdag   2 tasks  flows.dags:FlowsDAG    Does it.",
        "othersdag  2 tasks  others.dags:OthersDAG  Does it.",
    ]
    shown = gluepy("--help")
    assert shown.stdout.splitlines()[-1].split() == ["greet", "Say", "it."]
    assert gluepy("greet").stdout == "hello\n"
    for done in (listed, shown, gluepy("runs"), gluepy("settings")):
        assert (done.returncode, "RuntimeError" in done.stderr) == (0, False), done.stderr
    checked = gluepy("list", "--check")
    assert (checked.returncode, checked.stdout) == (2, "")
    assert "RuntimeError: a task module was imported" in checked.stderr


@pytest.mark.slow
def test_one_task_is_shown_whole(gluepy: Console) -> None:
    gluepy.write("settings.py", "INSTALLED_MODULES = ['flows']\nLIMITS = {'gpu': 1}\n")
    gluepy.write(
        "flows.py",
        """
        from gluepy import DAG, Skip, Task, each
        class Load(Task):
            outputs = ("rows.txt",)
            def run(self): (self.path / "rows.txt").write_text("1")
        class Fit(Task):
            n: int
            uses = {"gpu": 1}
            timeout_s = 60
            def run(self):
                print("fitting")
                self.metric("rmse", self.n / 4)
                if self.n == 2: raise ValueError("bad two")
                if self.n == 3: raise Skip("no news")
        class Last(Task):
            def run(self): pass
        class OneDAG(DAG): tasks = (Load, each(Fit, n=[1, 2, 3]), Last)
        class WideDAG(DAG): tasks = each(Fit, n=range(4, 14))
        """,
    )
    assert gluepy("run", "onedag", "--run-id", "first", "-q", "-k").returncode == 1
    done = gluepy("show", "first", "fit[n=2]")
    assert (done.returncode, done.stderr) == (0, "")
    facts, attempts, failure = done.stdout.split("\n\n")
    assert [re.split("  +", line) for line in facts.splitlines()] == [
        ["task", "fit[n=2]"],
        ["run", "first"],
        ["status", "failed: ValueError: bad two"],
        ["class", "flows:Fit"],
        ["parameters", "n = 2"],
        ["declared", "at most 60 s, uses 1 gpu"],
        ["after", "load"],
        ["before", "last"],
        ["metrics", "rmse = 0.5"],
    ]
    assert re.search(
        r"^1 +\d{4}-\S+ \S+  .*thread, pid \d+ on .*  failed: ValueError: bad two$", attempts, re.MULTILINE
    )
    assert "raise ValueError" in failure and "logs/fit-n-2-" in failure
    told = json.loads(gluepy("show", "first", "fit", "--json").stdout)
    assert list(told["tasks"]) == ["fit[n=1]", "fit[n=2]", "fit[n=3]"]
    two, three = told["tasks"]["fit[n=2]"], told["tasks"]["fit[n=3]"]
    assert (two["parameters"], two["uses"], two["after"], two["before"]) == ({"n": 2}, {"gpu": 1}, ["load"], ["last"])
    assert [(each["attempt"], each["status"], each["error"]["message"]) for each in two["history"]] == [
        (1, "failed", "bad two")
    ]
    assert (three["status"], three["reason"], three["why"]) == ("skipped", "skip", "no news")
    done = gluepy("show", "first", "ft")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'fit'?" in done.stderr
    assert gluepy("run", "widedag", "-q").returncode == 0
    done = gluepy("show", "latest", "fit")
    assert len(done.stdout.splitlines()) == 11
    assert "to see all of one: gluepy show " in done.stderr


def test_live_rows_at_80_columns_have_the_message_and_what_waits_for_a_limit(
    gluepy: Console, terminal: Callable[..., Terminal]
) -> None:
    gluepy.write("settings.py", "INSTALLED_MODULES = ['flows']\nLIMITS = {'gpu': 1}\nCONCURRENCY = 4\n")
    gluepy.write(
        "flows.py",
        """
        import time
        from pathlib import Path
        from gluepy import DAG, Task, each
        class Fit(Task):
            region: str
            uses = {"gpu": 1}
            def run(self):
                while not Path("go").exists():
                    self.log.info("reading the rows", n=1)
                    time.sleep(0.05)
        class GpuDAG(DAG): tasks = each(Fit, region=["the-north-east-of-the-country", "south"])
        """,
    )
    screen = terminal("run", "gpudag", columns=80)
    screen.wait_for("reading the rows", "waiting    for limit gpu: fit[region=", "0 of 2 tasks done · 1 running · ")
    gluepy.write("go", "")
    assert screen.wait() == 0
    rows = [
        line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.text)) if "reading" in line
    ]
    assert rows
    assert not any(re.search(r"\d{4}-\d\d-\d\d|\[info", row) for row in rows)
    assert max(map(len, rows)) < 80
