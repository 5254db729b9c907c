"""What was: `runs`, `show`'s timeline, `diff`, `prune`; and what runs elsewhere: `watch`, `logs --follow`, `cancel`."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psutil
import pytest
from console_calls import Console, Terminal, until

PIPE = """
    import os, subprocess, sys, time
    from pathlib import Path
    from gluepy import DAG, Task, each

    class Load(Task):
        def run(self):
            self.metric("rows", self.context.to_dict().get("rows", 1))
            time.sleep(self.context.to_dict().get("sleep_s", 0))

    class Hold(Task):
        def run(self):
            print("holding", flush=True)
            while Path("hold.flag").exists():
                time.sleep(0.02)
            print("let go", flush=True)

    class Fit(Task):
        region: str
        def run(self):
            if self.context.to_dict().get("bad") == self.region:
                raise ValueError("bad region")

    class Nest(Task):
        pool = "process"
        def run(self):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            Path("pids.txt").write_text(f"{os.getpid()} {child.pid}")
            child.wait()

    class PipeDAG(DAG):
        label = "pipe"
        tasks = (Load, Hold, each(Fit, region=["eu", "us"]))

    class NestDAG(DAG):
        label = "nest"
        tasks = (Load, Nest)
"""


@pytest.fixture
def pipe(gluepy: Console) -> Console:
    """The console in a project whose `hold` waits while `hold.flag` is there."""
    gluepy.write("settings.py", "INSTALLED_MODULES = ['flows']\n")
    gluepy.write("flows.py", PIPE)
    return gluepy


def holding(console: Console, run_id: str, dag: str = "pipe") -> subprocess.Popen[str]:
    """Start a run that waits, once it does."""
    console.write("hold.flag", "")
    driver = console.start("run", dag, "--run-id", run_id, "-q")
    log = console.folder / f".gluepy/runs/{run_id}/logs/hold.1.log"
    until(lambda: log.exists() and "holding" in log.read_text())
    return driver


# runs


def test_runs_are_listed_newest_first(pipe: Console) -> None:
    for run_id, words in (("b", ()), ("a", ("-P", "bad=us")), ("c", ("--task", "load"))):
        pipe("run", "pipe", "--run-id", run_id, "-q", *words)
    done = pipe("runs")
    assert (done.returncode, done.stderr) == (0, "")
    header, *lines = (re.split("  +", line) for line in done.stdout.splitlines())
    assert header == ["run", "dag", "status", "started", "took", "tasks"]
    assert [line[:3] for line in lines] == [
        ["c", "pipe", "finished"],
        ["a", "pipe", "failed"],
        ["b", "pipe", "finished"],
    ]
    assert lines[1][5] == "3 finished, 1 failed"
    assert pipe("runs", "--dag", "pipe", "--status", "failed", "-n", "1").stdout.splitlines()[1].startswith("a ")
    rows = json.loads(pipe("runs", "--json").stdout)
    assert [row["run_id"] for row in rows] == ["c", "a", "b"]
    assert rows[1]["failed"] == ["fit[region=us]"]
    done = pipe("runs", "--limit", "2")
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == "… older ones with --limit 0\n"


def test_runs_know_who_runs_and_who_was_interrupted(pipe: Console) -> None:
    driver = holding(pipe, "first")
    (row,) = json.loads(pipe("runs", "--json").stdout)
    (later,) = json.loads(pipe("runs", "--json").stdout)
    shown = json.loads(pipe("show", "--json").stdout)
    assert {row["status"], later["status"], shown["status"]} == {"running"}
    assert row["duration_s"] < later["duration_s"] < shown["duration_s"]  # it goes on, although nothing happens
    assert row["counts"] == {"pending": 2, "running": 1, "finished": 1}
    assert json.loads(pipe("runs", "--json", "--status", "finished").stdout) == []
    driver.kill()
    driver.communicate()
    (row,) = json.loads(pipe("runs", "--json", "--status", "interrupted").stdout)
    assert 0 < row["duration_s"] < 30
    assert row["counts"] == {"pending": 2, "interrupted": 1, "finished": 1}
    assert "2 pending, 1 interrupted, 1 finished" in pipe("runs").stdout


def test_mistakes_about_runs_are_one_clear_line(pipe: Console) -> None:
    done = pipe("runs", "--status", "finnished")
    assert done.returncode == 2
    assert done.stderr.endswith("unreadable; did you mean 'finished'?\n")
    done = pipe("runs")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("no runs in ")


def test_index_is_thrown_away_at_will(pipe: Console) -> None:
    pipe("run", "pipe", "--run-id", "first", "-q")
    before = pipe("runs").stdout
    index = pipe.folder / ".gluepy/runs/index.sqlite"
    index.unlink()
    assert pipe("runs").stdout == before
    index.write_bytes(b"no database" * 1000)
    assert pipe("runs").stdout == before
    with closing(sqlite3.connect(index)) as db, db:
        assert db.execute("SELECT run_id FROM runs").fetchall() == [("first",)]
    log = pipe.folder / ".gluepy/runs/broken/events.jsonl"
    log.parent.mkdir()
    log.write_text("nothing\n")
    empty = pipe.folder / ".gluepy/runs/empty/events.jsonl"
    empty.parent.mkdir()
    empty.touch()
    done = pipe("runs")
    assert re.search("empty +unreadable ", done.stdout)
    assert done.returncode == 0
    assert re.search("broken +unreadable ", done.stdout) and f"{log}: it has no events of a run yet" in done.stdout


@pytest.mark.exhaustive
def test_ten_thousand_runs_are_listed(pipe: Console, record_property: Callable[[str, object], None]) -> None:
    """Below 0.2 s beyond the time of a call that lists a single run."""
    pipe("run", "pipe", "--run-id", "first", "-q")
    (record,) = pipe.runs
    text = (record / "events.jsonl").read_text()
    assert pipe("runs").returncode == 0
    alone = best_of(3, lambda: pipe("runs"))
    for number in range(10_000):
        copy = record.with_name(f"copy-{number}")
        copy.mkdir()
        (copy / "events.jsonl").write_text(text.replace('"first"', f'"copy-{number}"'))
    assert pipe("runs", "-n", "1").returncode == 0  # indexes them
    beyond_s = best_of(3, lambda: pipe("runs")) - alone
    record_property("seconds beyond a listing of one run", beyond_s)  # measured, not judged: machines differ
    assert len(json.loads(pipe("runs", "--limit", "0", "--json").stdout)) == 10_001


def best_of(times: int, call: Callable[[], object]) -> float:
    def timed() -> float:
        begun = time.perf_counter()
        call()
        return time.perf_counter() - begun

    return min(timed() for _ in range(times))


# show


@pytest.mark.slow
def test_show_has_a_timeline(gluepy: Console) -> None:
    gluepy.write(
        "demo.py",
        """
        import anyio
        from gluepy import DAG, Task, each
        class Fit(Task):
            n: int
            async def run(self): await anyio.sleep(0.2 * self.n)
        class Report(Task):
            async def run(self): await anyio.sleep(0.1)
        class DemoDAG(DAG): tasks = (each(Fit, n=[1, 2, 3]), Report)
        """,
    )
    assert gluepy("run", "demo.py", "-c", "1", "-q").returncode == 0
    done = gluepy("show", PYTHONIOENCODING="utf-8")
    lines = done.stdout.split("\n\n")[-1].splitlines()
    assert re.fullmatch(r"timeline, 1\.\d+ s long: waiting, then working", lines[0])
    assert [line.split()[0] for line in lines[1:5]] == ["fit[n=1]", "fit[n=2]", "fit[n=3]", "report"]
    assert re.fullmatch(r"fit\[n=3\]  ░{14,22}█{15,22}", lines[3])
    assert lines[5] == "critical path: fit[n=3] → report"
    assert re.fullmatch(
        r"4 attempts: 1\.\d+ s working, .* waiting for a slot; 1 slot busy (9\d|100)% of the time", lines[6]
    )
    assert re.fullmatch(r"with 2 at a time it would take about \d+ ms instead of 1\.\d+ s", lines[7])
    assert "█" not in gluepy("show", PYTHONIOENCODING="ascii").stdout
    told = json.loads(gluepy("show", "--json").stdout)["timeline"]
    assert told["critical_path"] == ["fit[n=3]", "report"]
    assert told["concurrency"] == 1
    assert [bar["task"] for bar in told["bars"]] == ["fit[n=1]", "fit[n=2]", "fit[n=3]", "report"]
    assert 1.2 < told["forecast_s"]["1"] < 1.6
    assert 0.6 < told["forecast_s"]["2"] < 1.0


def test_show_of_a_run_whose_dag_has_lost_a_task_still_has_it_in_the_timeline(gluepy: Console) -> None:
    flow = """
        from gluepy import DAG, Task
        class A(Task):
            async def run(self): pass
        class B(A): pass
        class LossDAG(DAG): tasks = (A, B)
        """
    gluepy.write("loss.py", flow)
    assert gluepy("run", "loss.py", "-q").returncode == 0
    gluepy.write("loss.py", flow.replace("(A, B)", "(A,)"))
    assert gluepy("resume", "-q").returncode == 0
    told = json.loads(gluepy("show", "--json").stdout)
    assert list(told["tasks"]) == ["a"]
    assert [bar["task"] for bar in told["timeline"]["bars"]] == ["a", "b"]
    assert told["timeline"]["critical_path"] == ["a"]


def test_show_of_many_tasks_stays_short(gluepy: Console) -> None:
    gluepy.write(
        "many.py",
        """
        from gluepy import DAG, Task, each
        class Quick(Task):
            n: int
            async def run(self):
                if self.n == 777: raise ValueError("no")
        class ManyDAG(DAG): tasks = each(Quick, n=range(1000))
        """,
    )
    assert gluepy("run", "many.py", "-k", "-q").returncode == 1
    done = gluepy("show")
    assert len(done.stdout.splitlines()) < 130
    assert re.search(r"quick\[n=777\] +failed", done.stdout)
    assert re.search(r"^quick × 1,000 +999 finished, 1 failed +\S+", done.stdout, re.MULTILINE)
    assert "--json has all" not in done.stdout
    assert "… and 961 shorter ones" in done.stdout


def test_damaged_log_is_one_clear_line(gluepy: Console) -> None:
    gluepy.write(
        "found.py",
        """
        from gluepy import DAG, Task, each
        class Late(Task):
            n: int
            def run(self): pass
        class FoundDAG(DAG): tasks = each(Late, n=lambda: [1])
        """,
    )
    assert gluepy("run", "found.py", "--run-id", "first", "-q").returncode == 0
    log = gluepy.folder / ".gluepy/runs/first/events.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if "task.expanded" not in line))
    for command in (("show",), ("watch",), ("logs", "-f"), ("resume",)):
        done = gluepy(*command)
        assert (done.returncode, done.stdout) == (2, ""), command
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "make no run" in done.stderr and str(log) in done.stderr
    assert "unreadable" in gluepy("runs").stdout


@pytest.mark.slow
def test_a_resumed_run_took_as_long_as_its_sessions_wherever_it_is_told(pipe: Console) -> None:
    assert pipe("run", "pipe", "--run-id", "r", "-P", "bad=us", "-P", "sleep_s=0.3", "-q").returncode == 1
    pipe.write("hold.flag", "")
    driver = pipe.start("resume", "r", "--force", "load", "-q")
    log = pipe.folder / ".gluepy/runs/r/logs/hold.2.log"
    until(lambda: log.exists() and "holding" in log.read_text())
    driver.kill()
    driver.communicate()
    (pipe.folder / "hold.flag").unlink()
    (lost,) = json.loads(pipe("runs", "--json").stdout)
    assert lost["status"] == "interrupted"
    assert json.loads(pipe("show", "--json").stdout)["duration_s"] == pytest.approx(lost["duration_s"], abs=1e-5)
    last = json.loads(pipe("resume", "r", "-P", "bad=none", "--json").stdout)
    assert last["status"] == "finished"
    assert last["duration_s"] > lost["duration_s"] >= 2 * 0.3
    told = json.loads(pipe("show", "--json").stdout)
    (listed,) = json.loads(pipe("runs", "--json").stdout)
    assert [told["duration_s"], told["timeline"]["length_s"], listed["duration_s"]] == pytest.approx(
        [last["duration_s"]] * 3, abs=1e-5
    )
    took = re.search("took +(.+)", pipe("show").stdout)
    assert took is not None
    assert f"timeline, {took[1]} long" in pipe("show").stdout
    assert pipe("watch").stdout.startswith(f"run r of pipe finished in {took[1]}: ")


# diff


def test_diff_tells_what_changed(pipe: Console) -> None:
    pipe("run", "pipe", "--run-id", "one", "-q", "-P", "rows=4", "-P", "api_key=old")
    pipe.write("flows.py", PIPE + "\n    # changed\n")
    pipe(
        "run",
        "pipe",
        "--run-id",
        "two",
        "-q",
        "-c",
        "2",
        "-P",
        "rows=5",
        "-P",
        "bad=us",
        "-P",
        "sleep_s=0.3",
        "-P",
        "api_key=new",
    )
    done = pipe("diff", "one", "two")
    assert (done.returncode, done.stderr) == (0, "")
    header, *parts = done.stdout.split("\n\n")
    facts = {line.split()[0]: re.split("  +", line)[1:] for line in header.splitlines()}
    assert facts["run"] == ["one", "two"]
    assert facts["status"] == ["finished", "failed"]
    assert facts["code"][0] != facts["code"][1]
    told = {part.splitlines()[0]: [line.split() for line in part.splitlines()[1:]] for part in parts}
    assert told["options"] == [["concurrency", "–", "→", "2"]]
    assert ["rows", "4", "→", "5"] in told["context"]
    assert "api_key" not in {row[0] for row in told["context"]}  # no record has it
    assert told["tasks"] == [["fit[region=us]", "finished", "→", "failed"]]
    assert told["durations"][0][0] == "load"
    assert told["metrics"] == [["load", "rows", "4", "→", "5", "+25%"]]
    found = json.loads(pipe("diff", "one", "two", "--json").stdout)
    assert found["runs"] == ["one", "two"]
    assert found["metrics"] == {"load rows": [4, 5]}
    assert "old" not in json.dumps(found)
    done = pipe("diff", "one", "one")
    assert done.stdout.splitlines()[-1] == "options, context, statuses, durations, metrics and datasets are the same"


# prune


@pytest.mark.slow
def test_prune_deletes_old_records_and_says_which(pipe: Console) -> None:
    for run_id in ("a", "bb", "c"):
        pipe("run", "pipe", "--run-id", run_id, "-q", "--task", "load")
        (pipe.folder / f"data/runs/{run_id}").mkdir(parents=True)
        pipe.write(f".gluepy-drafts/{run_id}/unpublished/load.1.0a1b2c3d/rows.csv", "precious")
        pipe.write(f"data/.gluepy-attempts/{run_id}/load.1", "worker 1")
    done = pipe("prune", "--keep", "2", "--dry-run")
    assert done.returncode == 0
    assert done.stdout.startswith("a  pipe  finished  ")
    assert "would delete 1 run; " in done.stdout
    assert len(pipe.runs) == 3
    names = [line[:10] for line in pipe("prune", "--keep", "0", "--dry-run").stdout.splitlines()]
    assert names == ["c   pipe  ", "bb  pipe  ", "a   pipe  ", "would dele"]
    assert pipe("prune", "--keep", "2", "--older-than", "1h").stdout == "deleted 0 runs\n"
    done = pipe("prune", "--keep", "2")
    assert done.stdout.splitlines()[-1] == f"deleted 1 run; their files in {pipe.folder}/data/runs stay"
    assert [run.name for run in pipe.runs] == ["bb", "c"]
    assert not (pipe.folder / ".gluepy/runs/a").exists()
    assert (pipe.folder / "data/runs/a").is_dir()
    assert sorted(os.listdir(pipe.folder / ".gluepy-drafts")) == ["bb", "c"]
    assert sorted(os.listdir(pipe.folder / "data/.gluepy-attempts")) == ["bb", "c"]
    time.sleep(1.1)
    done = pipe("prune", "--older-than", "1s", "--files")
    assert "deleted 2 runs and their files in " in done.stdout
    assert pipe.runs == []
    assert not (pipe.folder / "data/runs/bb").exists()
    assert json.loads(pipe("runs", "--json").stdout) == []


@pytest.mark.slow
def test_run_of_which_the_files_cannot_be_deleted_stays_known(pipe: Console) -> None:
    pipe("run", "pipe", "--run-id", "a", "-q", "--task", "load")
    away: dict[str, Any] = {
        "GLUEPY_STORAGE_ROOT": "s3://bucket/data",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "none",
    }
    done = pipe("prune", "--keep", "0", "--files", **away)
    assert done.returncode == 1
    assert done.stderr == "cannot delete a: s3://bucket/data/runs/a: Unable to locate credentials\n"
    assert [run.name for run in pipe.runs] == ["a"]
    pipe.write("s3fs.py", "raise ImportError('it is not there')")
    done = pipe("prune", "--keep", "0", "--files", **away)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "s3:// needs s3fs" in done.stderr


def test_prune_keeps_what_runs(pipe: Console) -> None:
    driver = holding(pipe, "first")
    assert pipe("prune", "--keep", "0").stdout == "deleted 0 runs\n"
    (pipe.folder / "hold.flag").unlink()
    driver.communicate(timeout=240)
    assert pipe("runs", "--status", "finished", "--json").stdout.count("run_id") == 1


def test_prune_wants_to_be_told_what(pipe: Console) -> None:
    for words in ((), ("--older-than", "soon")):
        done = pipe("prune", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1


# watch, logs --follow, cancel


def test_watch_shows_a_run_of_another_process_to_its_end(pipe: Console) -> None:
    driver = holding(pipe, "first")
    watcher = pipe.start("watch")
    assert watcher.stderr is not None
    assert watcher.stderr.readline() == (
        "watching run first; so far: 1 finished, of 4 tasks; Ctrl-C stops watching only\n"
    )
    assert watcher.stderr.readline().endswith("run first of pipe started: 4 tasks\n")
    assert watcher.stderr.readline().endswith("started    hold\n")
    (pipe.folder / "hold.flag").unlink()
    out, err = watcher.communicate(timeout=240)
    assert watcher.returncode == 0
    assert out.startswith("run first of pipe finished in ")
    assert err.count("finished") == 3
    driver.communicate(timeout=240)
    assert pipe("watch", "first").stdout == out  # and it tells of one that has ended


def test_watch_ends_as_the_run_does(pipe: Console) -> None:
    pipe("run", "pipe", "--run-id", "failing", "-q", "-P", "bad=us")
    done = pipe("watch")
    assert done.returncode == 1
    assert "fit[region=us] failed in attempt 1: ValueError: bad region" in done.stderr
    assert done.stderr.endswith(" resume failing\n")
    driver = holding(pipe, "lost")
    watcher = pipe.start("watch", "lost", "--progress", "plain")
    assert watcher.stderr is not None
    watcher.stderr.readline()
    driver.kill()
    driver.communicate()
    out, _ = watcher.communicate(timeout=240)
    assert watcher.returncode == 3
    assert "run lost of pipe was interrupted in " in out
    assert out.endswith(": 1 finished, 1 interrupted, 2 pending\n")


def test_ctrl_c_stops_watching_only(pipe: Console, terminal: Callable[..., Terminal]) -> None:
    driver = holding(pipe, "first")
    screen = terminal("watch")
    screen.wait_for("1 of 4 tasks done", "running", "hold")
    screen.press("\x03")
    assert screen.wait() == 130
    assert screen.text.rstrip("\r\n").endswith("\x1b[?25h") or "\x1b[?25h" in screen.text  # the cursor is back
    assert driver.poll() is None
    (pipe.folder / "hold.flag").unlink()
    driver.communicate(timeout=240)
    assert driver.returncode == 0


def test_logs_are_followed_to_the_end_of_the_run(pipe: Console) -> None:
    driver = holding(pipe, "first")
    follower = pipe.start("logs", "first", "hold", "--follow")
    assert follower.stdout is not None
    assert follower.stdout.readline() == "==> hold, attempt 1 <==\n"
    assert follower.stdout.readline() == "holding\n"
    done = pipe("logs", "first", "holt", "-f")
    assert (done.returncode, done.stderr) == (2, "error: DAG 'pipe' has no task 'holt'; did you mean 'hold'?\n")
    (pipe.folder / "hold.flag").unlink()
    out, _ = follower.communicate(timeout=240)
    assert out == "let go\n"
    assert follower.returncode == 0
    driver.communicate(timeout=240)
    assert pipe("logs", "first", "hold", "-f").stdout == "==> hold, attempt 1 <==\nholding\nlet go\n"


def test_cancel_stops_a_run_of_another_process(pipe: Console) -> None:
    driver = pipe.start("run", "nest", "--run-id", "first", "-q")
    pids = pipe.folder / "pids.txt"
    until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    begun = time.monotonic()
    done = pipe("cancel", "first")
    assert time.monotonic() - begun < 5
    assert done.returncode == 0
    assert done.stdout.startswith("run first of nest was cancelled in ")
    assert done.stdout.endswith(": 1 finished, 1 cancelled\n")
    assert done.stderr.endswith(" resume first\n")
    driver.communicate(timeout=240)
    assert driver.returncode == 1  # cancelled from elsewhere
    until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()), "the end of worker and grandchild")
    assert json.loads(pipe("runs", "--json").stdout)[0]["status"] == "cancelled"


def test_only_what_runs_can_be_cancelled(pipe: Console) -> None:
    pipe("run", "pipe", "--run-id", "first", "-q")
    done = pipe("cancel", "first")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: run first is not running: it finished; `gluepy runs --status running` lists those that are\n"
    )
    assert pipe("cancel", "nope").returncode == 2
    assert pipe("cancel").returncode == 2


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# run --dry-run


@pytest.mark.slow
def test_dry_run_predicts_from_earlier_runs(pipe: Console) -> None:
    done = pipe("run", "pipe", "--dry-run")
    assert done.stdout.splitlines()[-2:] == ["no earlier run tells how long it takes", "nothing was run"]
    assert json.loads(pipe("run", "pipe", "--dry-run", "--json").stdout)["outlook"]["runs"] == 0
    pipe("run", "pipe", "-q", "-P", "sleep_s=0.2")
    done = pipe("run", "pipe", "--dry-run")
    assert re.search(r"expected to take about 2\d\d ms; a guess, learned from 1 earlier run\n", done.stdout)
    pipe("run", "pipe", "-q", "-P", "sleep_s=0.4")
    done = pipe("run", "pipe", "--dry-run")
    assert re.search(
        r"expected to take about 3\d\d ms; between 2\d\d ms and 4\d\d ms, learned from 2 earlier runs", done.stdout
    )
    outlook = json.loads(pipe("run", "pipe", "--dry-run", "--json").stdout)["outlook"]
    assert outlook["runs"] == 2
    assert outlook["tasks_never_run"] == 0
    assert 0.2 < outlook["at_least_s"] < outlook["makespan_s"] < outlook["at_most_s"] < 0.6
    pipe.write("flows.py", PIPE.replace("class Hold(Task)", "class Held(Task)").replace("Load, Hold", "Load, Held"))
    assert "1 of 4 tasks never ran before: each counts as a typical one" in pipe("run", "pipe", "--dry-run").stdout
