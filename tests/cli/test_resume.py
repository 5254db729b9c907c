"""`gluepy resume` and `gluepy run LABEL --retry RUN`: what runs again, what is said about it, how it exits."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from console_calls import Console, Terminal, until

PIPE = """
    import os, time
    from pathlib import Path
    from gluepy import DAG, Task, each, parallel
    from gluepy.exec.scope import current_scope

    class Note(Task):
        def run(self):
            with open("ran.txt", "a") as file:
                file.write(current_scope().attempt.task + "\\n")
            print("flag is", self.context.to_dict().get("flag"))

    class Load(Note):
        outputs = ("rows.txt",)
        def run(self):
            super().run()
            (self.path / "rows.txt").write_text("1")

    class Wait(Note):
        def run(self):
            super().run()
            while Path("wait.flag").exists():
                time.sleep(0.02)

    class Fit(Note):
        region: str
        def run(self):
            super().run()
            if self.region == "us" and not Path("good.flag").exists():
                raise ValueError("no data")

    class Report(Note):
        pass

    class PipeDAG(DAG):
        tasks = (Load, Wait, each(Fit, region=["eu", "us"]), Report)
"""


@pytest.fixture
def pipe(gluepy: Console) -> Console:
    """The console beside `pipe.py`, whose `fit[region=us]` fails until `good.flag` is there."""
    gluepy.write("pipe.py", PIPE)
    return gluepy


def ran(console: Console) -> list[str]:
    """The tasks that have run since the last call, by what they wrote themselves."""
    file = console.folder / "ran.txt"
    tasks = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return tasks


def test_what_failed_and_what_follows_it_runs_again(pipe: Console) -> None:
    assert pipe("run", "pipe.py", "--run-id", "first").returncode == 1
    assert sorted(ran(pipe)) == ["fit[region=eu]", "fit[region=us]", "load", "wait"]
    pipe.write("good.flag", "")
    done = pipe("resume")
    assert done.returncode == 0
    assert sorted(ran(pipe)) == ["fit[region=us]", "report"]
    assert done.stdout.startswith("run first of pipedag finished in ")
    lines = done.stderr.splitlines()
    assert lines[:4] == [
        "resuming run first, session 2: 2 tasks again, 3 tasks kept",
        "  fit[region=us]  it failed",
        "  report          it was blocked",
        "  kept: load, wait, fit[region=eu]",
    ]
    assert lines[4].endswith("  run first of pipedag resumed")
    assert "\x1b" not in done.stderr


def test_finished_run_has_nothing_left_to_do(pipe: Console) -> None:
    pipe.write("good.flag", "")
    assert pipe("run", "pipe.py").returncode == 0
    ran(pipe)
    done = pipe("resume", "latest")
    assert done.returncode == 0
    assert "5 tasks kept; nothing is left to do" in done.stderr
    assert ran(pipe) == []


def test_forced_tasks_run_again_with_what_follows(pipe: Console) -> None:
    pipe.write("good.flag", "")
    assert pipe("run", "pipe.py").returncode == 0
    ran(pipe)
    done = pipe("resume", "--force", "fit[region=eu]")
    assert done.returncode == 0
    assert ran(pipe) == ["fit[region=eu]", "report"]
    assert "  fit[region=eu]  it was forced\n  report          fit[region=eu] runs again\n" in done.stderr
    assert pipe("resume", "--from-task", "fit").returncode == 0
    assert sorted(ran(pipe)) == ["fit[region=eu]", "fit[region=us]", "report"]
    done = pipe("resume", "--from-task", "fitt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: DAG 'pipedag' has no task 'fitt'; ")


FOUND = """
    import json
    from pathlib import Path
    from gluepy import DAG, Task, each

    class Load(Task):
        def run(self): assert Path("regions.json").exists(), "not there yet"

    def regions():
        return json.loads(Path("regions.json").read_text())

    class Fit(Task):
        region: str
        def run(self): pass

    class FoundDAG(DAG):
        tasks = (Load, each(Fit, region=regions))
"""


@pytest.mark.slow
def test_forcing_what_an_each_has_not_added_yet_says_so_and_runs_what_is_due(gluepy: Console) -> None:
    gluepy.write("found.py", FOUND)
    assert gluepy("run", "found.py", "--run-id", "first").returncode == 1
    for words in (("--force", "fit"), ("--from-task", "fit"), ("--force", "fit[region=eu]")):
        done = gluepy("resume", "first", *words)
        assert done.returncode == 1
        assert f"no task {words[1]!r} to run again: each-fit has not found its values yet\n" in done.stderr
    gluepy.write("regions.json", "[]")
    done = gluepy("resume", "first", "--force", "fit", "--json")
    assert json.loads(done.stdout)["counts"] == {"finished": 2}
    done = gluepy("resume", "first", "--force", "fit")
    assert done.returncode == 0
    assert "2 tasks kept; nothing is left to do\nno task 'fit' to run again: each-fit found no values\n" in done.stderr
    done = gluepy("resume", "first", "--force", "fit[region=eu]")
    assert (done.returncode, done.stderr.partition(";")[0]) == (2, "error: DAG 'founddag' has no task 'fit[region=eu]'")
    assert gluepy("run", "found.py", "--task", "load", "--run-id", "some").returncode == 0
    done = gluepy("resume", "some", "--force", "fit")
    assert "no task 'fit' to run again: each-fit is not in the run's selection\n" in done.stderr


def test_forced_each_says_that_it_keeps_the_values_that_it_found(gluepy: Console) -> None:
    gluepy.write("found.py", FOUND)
    gluepy.write("regions.json", '["eu"]')
    assert gluepy("run", "found.py").returncode == 0
    gluepy.write("regions.json", '["us"]')
    done = gluepy("resume", "--force", "each-fit")
    assert done.returncode == 0
    assert done.stderr.splitlines()[1:3] == [
        "  each-fit        it was forced; the values that it found are kept",
        "  fit[region=eu]  each-fit runs again",
    ]


@pytest.mark.slow
def test_from_task_of_a_resume_leaves_nothing_out_later(pipe: Console) -> None:
    """It says what runs again, not what the run is about: what failed elsewhere still has to run."""
    pipe.write(
        "two.py",
        """
        from pathlib import Path
        from gluepy import DAG, Task, parallel
        class A(Task):
            def run(self):
                assert Path("good.flag").exists()
        class B(Task):
            def run(self): pass
        class TwoDAG(DAG): tasks = parallel(A, B)
        """,
    )
    assert pipe("run", "two.py").returncode == 1
    assert pipe("resume", "--from-task", "b").returncode == 1
    pipe.write("good.flag", "")
    done = pipe("resume", "--json", "-q")
    assert {task: result["status"] for task, result in json.loads(done.stdout)["tasks"].items()} == {
        "a": "finished",
        "b": "finished",
    }


@pytest.mark.slow
def test_selection_of_the_run_stays(pipe: Console) -> None:
    assert pipe("run", "pipe.py", "--task", "fit", "--run-id", "some").returncode == 1
    ran(pipe)
    pipe.write("good.flag", "")
    done = pipe("resume")
    assert done.returncode == 0
    assert ran(pipe) == ["fit[region=us]"]
    assert ": 2 finished, 3 not selected\n" in done.stdout
    done = pipe("resume", "--force", "load")
    assert (done.returncode, done.stderr) == (
        2,
        "error: task 'load': the selection of run some left it out; start a new run\n",
    )


@pytest.mark.slow
def test_new_task_that_the_selection_leaves_out_changes_nothing(pipe: Console) -> None:
    pipe.write("good.flag", "")
    assert pipe("run", "pipe.py", "--task", "load", "--task", "report", "--run-id", "some").returncode == 0
    ran(pipe)
    check = "class Check(Note):\n        pass\n\n    class Report(Note):"
    pipe.write("pipe.py", PIPE.replace("class Report(Note):", check).replace(", Report)", ", Check, Report)"))
    done = pipe("resume")
    assert "session 2: 2 tasks kept; nothing is left to do\nthe DAG has changed: added: check\n" in done.stderr
    assert ran(pipe) == []
    assert "and 4 tasks that the run's selection left out\n" in pipe("show").stdout


def test_gone_outputs_are_made_again(pipe: Console) -> None:
    pipe.write("good.flag", "")
    assert pipe("run", "pipe.py", "--run-id", "first").returncode == 0
    ran(pipe)
    (pipe.folder / "data/runs/first/rows.txt").unlink()
    done = pipe("resume")
    assert done.returncode == 0
    assert "  load            its declared outputs are gone\n  wait            load runs again\n" in done.stderr
    assert sorted(ran(pipe)) == ["fit[region=eu]", "fit[region=us]", "load", "report", "wait"]


def test_killed_driver_loses_nothing(pipe: Console) -> None:
    pipe.write("wait.flag", "")
    pipe.write("good.flag", "")
    driver = pipe.start("run", "pipe.py", "--run-id", "first")
    until(lambda: "wait" in (pipe.folder / "ran.txt").read_text() if (pipe.folder / "ran.txt").exists() else False)
    driver.kill()
    driver.communicate()
    (pipe.folder / "wait.flag").unlink()
    ran(pipe)
    done = pipe("resume")
    assert done.returncode == 0
    assert done.stderr.splitlines()[:3] == [
        "resuming run first, session 2: 1 task again, 3 tasks still to run, 1 task kept",
        "  wait  it was interrupted",
        "  kept: load",
    ]
    assert sorted(ran(pipe)) == ["fit[region=eu]", "fit[region=us]", "report", "wait"]


def test_second_driver_is_refused(pipe: Console) -> None:
    pipe.write("wait.flag", "")
    pipe.write("good.flag", "")
    driver = pipe.start("run", "pipe.py", "--run-id", "first")
    until(lambda: (pipe.folder / "ran.txt").exists())
    done = pipe("resume", "first")
    (pipe.folder / "wait.flag").unlink()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: run first is being driven by another process (process {driver.pid}); "
        "wait for it, or `gluepy cancel first`\n"
    )
    assert driver.wait(240) == 0
    driver.communicate()


@pytest.mark.slow
def test_runs_are_found_by_ending_and_label(pipe: Console) -> None:
    pipe.write(
        "other.py",
        "from gluepy import DAG, Task\nclass A(Task):\n    def run(self): 1 / 0\nclass OtherDAG(DAG): tasks = (A,)\n",
    )
    pipe.write("good.flag", "")
    for file, name in (("pipe.py", "1-aa"), ("other.py", "2-ab"), ("pipe.py", "3-ac")):
        pipe("run", file, "--run-id", name, "-q")
    assert pipe("resume", "aa").stdout.startswith("run 1-aa of pipedag finished")
    assert pipe("resume", "latest:pipedag").stdout.startswith("run 3-ac of pipedag finished")
    assert pipe("resume", "latest:otherdag").stdout.startswith("run 2-ab of otherdag failed")
    for name, error in (("zz", "no run 'zz' in "), ("latest:nodag", "no run 'latest:nodag' in ")):
        done = pipe("resume", name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {error}")
    pipe("run", "pipe.py", "--run-id", "4-aa", "-q")
    done = pipe("resume", "aa")
    assert done.returncode == 2
    assert done.stderr == "error: 'aa' could be any of 2 runs, among them 1-aa, 4-aa\n"


def test_changed_parameters_are_recorded(pipe: Console) -> None:
    assert pipe("run", "pipe.py", "-P", "flag=1", "--run-id", "first").returncode == 1
    pipe.write("good.flag", "")
    assert pipe("resume", "-P", "flag=2").returncode == 0
    record = pipe.folder / ".gluepy/runs/first"
    assert (record / "logs/report.1.log").read_text() == "flag is 2\n"
    assert json.loads((record / "context.yaml").read_text())["flag"] == 2
    assert pipe("resume", "--force", "report").returncode == 0
    assert (record / "logs/report.2.log").read_text() == "flag is 2\n"


def test_changes_of_the_dag_are_told(pipe: Console) -> None:
    assert pipe("run", "pipe.py").returncode == 1
    ran(pipe)
    pipe.write("good.flag", "")
    changed = PIPE.replace("tasks = (Load, Wait,", "tasks = (Load, Check,").replace(
        "class Report(Note):", "class Check(Note):\n        pass\n\n    class Report(Note):"
    )
    pipe.write("pipe.py", changed)
    done = pipe("resume")
    assert done.returncode == 0, done.stderr
    assert "the DAG has changed: added: check\nthe DAG has changed: removed: wait\n" in done.stderr
    assert ran(pipe)[0] == "check"


@pytest.mark.slow
def test_task_that_comes_back_has_its_past_and_its_logs(pipe: Console) -> None:
    assert pipe("run", "pipe.py", "--run-id", "first").returncode == 1
    pipe.write("pipe.py", PIPE.replace('each(Fit, region=["eu", "us"]), ', ""))
    assert pipe("resume", "-P", "flag=2").returncode == 0
    ran(pipe)
    pipe.write("pipe.py", PIPE)
    pipe.write("good.flag", "")
    done = pipe("resume", "-P", "flag=3")
    assert "session 3: 2 tasks again, 3 tasks kept\n" in done.stderr
    assert "  fit[region=us]  it failed\n" in done.stderr
    assert ran(pipe) == ["fit[region=us]", "report"]
    first, _, second = pipe("logs", "first", "fit[region=us]").stdout.partition("\n\n")
    assert first.startswith("==> fit[region=us], attempt 1 <==\nflag is None\n")
    assert second == "==> fit[region=us], attempt 2 <==\nflag is 3\n"


@pytest.mark.slow
def test_change_of_the_code_alone_is_told(pipe: Console) -> None:
    def version() -> str:
        return str(json.loads(pipe("show", "--json").stdout)["code_version"])

    assert pipe("run", "pipe.py").returncode == 1
    first = version()
    assert re.search(f"^code +{first}$", pipe("show").stdout, re.MULTILINE)
    assert "has changed" not in pipe("resume").stderr
    pipe.write("pipe.py", PIPE.replace("no data", "still no data"))
    done = pipe("resume")
    second = version()
    assert f"the code has changed: {first} in session 2, {second} now\n" in done.stderr
    assert "the DAG has changed" not in done.stderr
    assert re.search(f"^code +{second}; it began with {first}$", pipe("show").stdout, re.MULTILINE)
    assert json.loads(pipe("show", "--json").stdout)["first_code_version"] == first
    pipe.write("good.flag", "")
    pipe.write("pipe.py", PIPE)
    assert f"the code has changed: {second} in session 3, {first} now\n" in pipe("resume").stderr
    assert re.search(f"^code +{first}$", pipe("show").stdout, re.MULTILINE)


def test_damage_of_the_log_is_told(pipe: Console) -> None:
    assert pipe("run", "pipe.py", "--run-id", "first").returncode == 1
    pipe.write("good.flag", "")
    file = pipe.folder / ".gluepy/runs/first/events.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    finished = next(n for n, line in enumerate(lines) if b'"task.finished"' in line and b'"wait"' in line)
    lines[finished] = b'{"torn": \n'
    file.write_bytes(b"".join(lines))
    done = pipe("resume")
    assert done.returncode == 0
    damage = "1 unreadable line and 1 missing event"
    assert f"warning: its log has {damage}; tasks whose end is lost run again\n" in done.stderr
    assert "  wait            it was interrupted\n" in done.stderr


@pytest.mark.slow
def test_dry_run_lists_every_task_and_runs_nothing(gluepy: Console) -> None:
    gluepy.write(
        "pipe.py",
        """
        from pathlib import Path
        from gluepy import DAG, Retry, Task, parallel
        class Load(Task):
            def run(self): pass
        class Flaky(Task):
            retries = Retry(attempts=2, wait_s=1000)
            def run(self): raise ConnectionError("not yet")
        class Hold(Task):
            async def run(self):
                import anyio
                Path("held").touch()
                await anyio.sleep(1000)
        class Last(Load): pass
        class PipeDAG(DAG): tasks = (Load, parallel(Flaky, Hold), Last)
        """,
    )
    driver = gluepy.start("run", "pipe.py", "--run-id", "first", "-q")
    log = gluepy.folder / ".gluepy/runs/first/events.jsonl"
    until(lambda: (gluepy.folder / "held").exists() and b"task.retrying" in log.read_bytes())
    driver.kill()
    driver.communicate()
    before = log.read_bytes()
    done = gluepy("resume", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    counts = "1 task again, 1 task still to run, 1 task due for another attempt, 1 task kept"
    assert done.stdout.splitlines() == [
        f"resuming run first, session 2: {counts}",
        "  hold   it was interrupted",
        "  last   still to run",
        "  flaky  due for another attempt",
        "  load   kept",
        "nothing was run",
    ]
    told = json.loads(gluepy("resume", "--dry-run", "--json").stdout)
    assert told["again"] == {"hold": "it was interrupted"}
    assert (told["waiting"], told["retrying"], told["kept"]) == (["last"], ["flaky"], ["load"])
    assert log.read_bytes() == before
    done = gluepy("resume", "--dry-run", "--events", "-")
    assert (done.returncode, done.stderr) == (2, "error: --events: with --dry-run there are none\n")


@pytest.mark.slow
def test_kept_tasks_are_named_while_they_are_few(gluepy: Console) -> None:
    gluepy.write(
        "many.py",
        """
        from gluepy import DAG, Task, each
        class Do(Task):
            n: int
            async def run(self): assert self.n < self.context.fail
        class ManyDAG(DAG): tasks = each(Do, n=range(30))
        """,
    )
    assert gluepy("run", "many.py", "-k", "-q", "-P", "fail=3").returncode == 1
    done = gluepy("resume", "-k", "--progress", "none", "-P", "fail=29")
    assert "\n  kept: do[n=0], do[n=1], do[n=2]\n" in done.stderr
    done = gluepy("resume", "-k", "--progress", "none", "-P", "fail=30")
    assert ", session 3: 1 task again, 29 tasks kept\n" in done.stderr
    assert "kept:" not in done.stderr


@pytest.mark.slow
def test_explanation_is_at_most_a_screenful(gluepy: Console) -> None:
    gluepy.write(
        "many.py",
        """
        from gluepy import DAG, Task, each
        class Fail(Task):
            n: int
            async def run(self): raise ValueError("no")
        class ManyDAG(DAG): tasks = each(Fail, n=range(300))
        """,
    )
    assert gluepy("run", "many.py", "-k", "-q").returncode == 1
    done = gluepy("resume", "-k", "--progress", "none")
    assert done.returncode == 1
    told = done.stderr.partition("\n\n")[0].splitlines()
    assert told[0].endswith(", session 2: 300 tasks again")
    assert len(told) == 17
    assert told[-1] == "  … and 285 more; `gluepy events` has each as task.reset"


def test_result_and_events_of_a_resume_are_for_machines(pipe: Console) -> None:
    assert pipe("run", "pipe.py").returncode == 1
    pipe.write("good.flag", "")
    done = pipe("resume", "--json", "--events", "events.jsonl")
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert result["status"] == "finished"
    assert result["counts"] == {"finished": 5}
    events = [json.loads(line) for line in (pipe.folder / "events.jsonl").read_text().splitlines()]
    assert events[0]["event"] == "run.resumed"
    assert {event["session"] for event in events} == {2}
    assert events[-1]["event"] == "run.finished"


def test_quiet_resume_says_nothing(pipe: Console) -> None:
    pipe("run", "pipe.py")
    pipe.write("good.flag", "")
    done = pipe("resume", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_failed_resume_ends_as_a_failed_run_does(pipe: Console) -> None:
    assert pipe("run", "pipe.py", "--run-id", "first").returncode == 1
    done = pipe("resume")
    assert done.returncode == 1
    assert "fit[region=us] failed in attempt 2 of 2: ValueError: no data" in done.stderr
    assert done.stderr.endswith(" resume first\n")
    assert done.stdout.startswith("run first of pipedag failed in ")


def test_resume_shows_its_plan_above_the_live_lines(pipe: Console, terminal: Callable[..., Terminal]) -> None:
    assert pipe("run", "pipe.py", "--run-id", "first").returncode == 1
    pipe.write("good.flag", "")
    screen = terminal("resume")
    assert screen.wait() == 0
    assert "resuming run first, session 2: 2 tasks again, 3 tasks kept\r\n" in screen.text
    assert "  report          it was blocked\r\n" in screen.text


def test_live_footer_counts_what_was_done_before(pipe: Console, terminal: Callable[..., Terminal]) -> None:
    assert pipe("run", "pipe.py", "--run-id", "first").returncode == 1
    pipe.write("wait.flag", "")
    pipe.write("good.flag", "")
    screen = terminal("resume", "--from-task", "wait")
    screen.wait_for("1 of 5 tasks done", "1 running")
    (pipe.folder / "wait.flag").unlink()
    assert screen.wait() == 0


def test_ctrl_c_cancels_a_resumed_run(pipe: Console) -> None:
    pipe.write("wait.flag", "")
    driver = pipe.start("run", "pipe.py", "--run-id", "first")
    until(lambda: (pipe.folder / "ran.txt").exists() and "wait" in (pipe.folder / "ran.txt").read_text())
    driver.kill()
    driver.communicate()
    ran(pipe)
    driver = pipe.start("resume")
    until(lambda: (pipe.folder / "ran.txt").exists())
    driver.send_signal(signal.SIGINT)
    (pipe.folder / "wait.flag").unlink()
    _, err = driver.communicate(timeout=240)
    assert driver.returncode == 130
    assert err.endswith(" resume first\n")


@pytest.mark.slow
def test_retry_resumes_a_run_of_that_dag(shop: Console) -> None:
    assert shop("run", "fail", "--run-id", "1-fail").returncode == 1
    assert shop("run", "train", "--run-id", "2-train").returncode == 0
    done = shop("dag", "fail", "--retry", "1-fail")
    assert done.returncode == 1
    assert done.stdout.startswith("run 1-fail of fail failed in ")
    assert "resuming run 1-fail, session 2: 2 tasks again, 2 tasks kept" in done.stderr
    assert shop("run", "fail", "--retry", "latest").stdout.startswith("run 1-fail of fail")
    done = shop("dag", "train", "--retry", "1-fail")
    assert done.returncode == 2
    assert done.stderr == "error: --retry: run 1-fail is a run of 'fail', not of 'train'; see `gluepy runs`\n"
    done = shop("dag", "trian", "--retry", "1-fail")
    assert done.returncode == 2
    assert "did you mean 'train'?" in done.stderr
    assert shop("dag", "fail", "--retry", "latest", "--dry-run").stdout.startswith("resuming run 1-fail, session 4: ")
    for words in (("--task", "load"), ("--to-task", "load"), ("--run-id", "x")):
        done = shop("dag", "fail", "--retry", "1-fail", *words)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {words[0]} and --retry: ")


@pytest.mark.slow
def test_dag_of_a_moved_file_is_found_with_retry(pipe: Console) -> None:
    assert pipe("run", "pipe.py", "--run-id", "first").returncode == 1
    pipe.write("good.flag", "")
    (pipe.folder / "pipe.py").rename(pipe.folder / "moved.py")
    done = pipe("resume")
    assert done.returncode == 2
    assert done.stderr.endswith("there is no such file any more; if it was moved: gluepy run FILE --retry first\n")
    done = pipe("run", "moved.py", "--retry", "first")
    assert done.returncode == 0, done.stderr
    assert pipe("resume").returncode == 0  # and where it is now is remembered


def test_executor_beside_the_dag_is_found_without_a_project(gluepy: Console, tmp_path: Path) -> None:
    import subprocess
    import sysconfig

    from console_calls import environment

    gluepy.write("mine.py", "from gluepy.exec.executors import LocalExecutor\nclass Polite(LocalExecutor): pass\n")
    gluepy.write(
        "sub/pipe.py",
        "from gluepy import DAG, Task\nclass A(Task):\n    def run(self): pass\nclass PipeDAG(DAG): tasks = (A,)\n",
    )
    # Not `python -m`, which puts the current folder on sys.path itself.
    script = Path(sysconfig.get_path("scripts")) / "gluepy"
    done = subprocess.run(
        [script, "run", "sub/pipe.py", "--executor", "mine.Polite"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


POLITE = """
    from gluepy.exec.executors import LocalExecutor

    class Polite(LocalExecutor):
        pass
"""


def executors(console: Console, run: str) -> set[str]:
    events = map(json.loads, console("events", run).stdout.splitlines())
    return {event["executor"] for event in events if event["event"] == "task.started" and event["session"] == 2}


@pytest.mark.slow
def test_resumed_run_goes_on_with_the_executor_that_it_was_given(pipe: Console) -> None:
    pipe.write("mine.py", POLITE)
    for run in ("r1", "r2"):
        assert pipe("run", "pipe.py", "--executor", "mine.Polite", "--run-id", run).returncode == 1
    pipe.write("good.flag", "")
    assert pipe("resume", "r1").returncode == 0
    assert executors(pipe, "r1") == {"Polite"}
    assert pipe("resume", "r2", "--executor", "gluepy.exec.executors.LocalExecutor").returncode == 0
    assert executors(pipe, "r2") == {"LocalExecutor"}


@pytest.mark.slow
def test_run_that_was_out_of_time_says_so_and_how_to_go_on(pipe: Console) -> None:
    pipe.write("wait.flag", "")
    pipe.write("good.flag", "")
    ended = pipe("run", "pipe.py", "--timeout", "0.5", "--run-id", "slow")
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("resume slow --timeout 1")
    assert "failed: it took longer than its timeout_s of 0.5 s" in pipe("show", "slow").stdout
    assert json.loads(pipe("show", "slow", "--json").stdout)["reason"] == "timeout"
    (pipe.folder / "wait.flag").unlink()
    assert pipe("resume", "slow", "--timeout", "30").returncode == 0
    assert "timeout_s of" not in pipe("show", "slow").stdout.partition("options")[0]


@pytest.mark.slow
def test_parameters_given_to_a_resumed_run_outlive_a_driver_that_dies_before_it_writes_them(pipe: Console) -> None:
    assert pipe("run", "pipe.py", "--run-id", "r").returncode == 1
    context = pipe.folder / ".gluepy/runs/r/context.yaml"
    assert not context.exists()  # it has no parameters
    assert pipe("resume", "r", "-P", "flag=7").returncode == 1
    assert '"flag": 7' in context.read_text()
    context.unlink()  # as if it had died after the event and before the file
    assert pipe("resume", "r").returncode == 1
    assert '"flag": 7' in context.read_text()


@pytest.mark.slow
def test_secret_parameters_are_in_no_file_and_are_asked_for_again(gluepy: Console) -> None:
    gluepy.write("settings.py", "INSTALLED_MODULES = ['flow']\n")
    gluepy.write("context.yaml", "depth: 3\napi_key: hush-1\n")
    gluepy.write(
        "flow.py",
        """
        from pathlib import Path
        from gluepy import DAG, Task
        class Load(Task):
            def run(self): assert self.context.token == "hush-2"
        class Fit(Task):
            pool = "process"
            def run(self):
                assert (self.context.api_key, self.context.token) == ("hush-1", "hush-2")
                assert Path("go").exists()
                print(self.context)
        class FlowDAG(DAG):
            label = "flow"
            tasks = (Load, Fit)
        """,
    )
    begun = gluepy("run", "flow", "-P", "token=hush-2")
    (run,) = gluepy.runs
    again = f" resume {run.name} --param token=..."
    assert again in begun.stderr
    assert again in gluepy("show").stdout
    missing = gluepy("resume")
    assert missing.returncode == 2
    assert f"run {run.name} needs them again; give it with --param token=…" in missing.stderr
    plan = gluepy("resume", "-P", "token=hush-2", "-P", "depth=9", "--dry-run")
    assert "a parameter has changed: depth is 9, it was 3\n" in plan.stdout
    assert "1 task finished with other parameters and does not run again: load\n" in plan.stdout
    gluepy.write("go", "")
    done = gluepy("resume", "-P", "token=hush-2", "-P", "depth=9")
    assert done.returncode == 0, done.stderr
    assert "a parameter has changed: depth is 9, it was 3\n" in done.stderr
    shown = [gluepy(*words).stdout for words in (("show", "--json"), ("events",), ("runs", "--json"), ("settings",))]
    written = [file.read_text() for file in run.rglob("*") if file.is_file()]
    for text in (begun.stdout, begun.stderr, plan.stdout, done.stdout, done.stderr, *shown, *written):
        assert "hush" not in text


def test_drafts_of_a_driver_that_was_killed_are_no_results_and_go(gluepy: Console, tmp_path: Path) -> None:
    gluepy.write(
        "pipe.py",
        """
        import os, signal
        from pathlib import Path
        from gluepy import DAG, Task

        class Load(Task):
            def run(self):
                with self.atomic("part-1.csv") as file, self.atomic(self.storage / "model") as folder:
                    file.write_text("1")
                    folder.mkdir()
                    (folder / "part-2.csv").write_text("1")
                    if not Path("go").exists():
                        os.kill(os.getpid(), signal.SIGKILL)

        class Count(Task):
            def run(self):
                self.metric("found", len(list(self.storage.rglob("*.csv"))))

        class PipeDAG(DAG):
            tasks = (Load, Count)
        """,
    )
    assert gluepy("run", "pipe.py").returncode == -9
    drafts = gluepy.runs[0] / "drafts"
    assert len(list(drafts.rglob("*.csv"))) == 2
    assert list((tmp_path / "data").rglob("*.csv")) == []
    gluepy.write("go", "")
    done = gluepy("resume", "latest", "--json")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "data").rglob("*.csv"))) == 2
    assert not drafts.exists()
