"""`gluepy run`: what it prints where, what it leaves, how it exits."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from console_calls import Console, Terminal

from gluepy.cli import main
from gluepy.conf import used_project

SLASHED = "fit[region=CNTRL/STORE [SUP] 🎉]"


def test_result_goes_to_stdout_and_progress_to_stderr(shop: Console) -> None:
    done = shop("run", "train", "--run-id", "first")
    assert done.returncode == 0
    summary, files = done.stdout.splitlines()
    assert summary.startswith("run first of train finished in ")
    assert summary.endswith(": 4 tasks")
    assert files == f"files: {shop.folder / 'data/runs/first'}"
    lines = [line.split("  ", 1)[1] for line in done.stderr.splitlines()]
    assert lines[0] == "run first of train started: 4 tasks"
    assert "started    load" in lines
    assert any(line.startswith(f"finished   {SLASHED}  ") and line.endswith("  rmse = 0.25") for line in lines)
    assert "loading" not in done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_dag_is_another_name_of_run(shop: Console) -> None:
    assert shop("dag", "train").returncode == 0


def test_failed_run_ends_with_failure_log_and_the_command_that_resumes_it(shop: Console) -> None:
    done = shop("run", "fail", "--run-id", "first")
    assert done.returncode == 1
    assert done.stdout.startswith("run first of fail failed in ")
    assert done.stdout.endswith(": 2 finished, 1 failed, 1 blocked\n")
    report = done.stderr[done.stderr.index("\n\n") :].strip().splitlines()
    assert report[0] == "broken failed in attempt 1: ValueError: bad [red]price[/red]"
    assert report[1] == "  Traceback (most recent call last):"
    assert report[2].startswith(f'    File "{shop.folder}/flows/dags.py", line ')
    assert report[4] == "  ValueError: bad [red]price[/red]"
    log = shop.folder / ".gluepy/runs/first/logs/broken.1.log"
    assert report[5] == f"  log: {log}"
    assert "about to break" in log.read_text()
    assert "/gluepy/exec/" not in done.stderr  # none of our frames
    command = report[-1].removeprefix("resume it with: ")
    assert shlex.split(command)[-4:] == ["-m", "gluepy", "resume", "first"]


def test_resume_command_names_the_project_where_it_was_named(shop: Console, tmp_path: Path) -> None:
    away = tmp_path / "a way"
    away.mkdir()
    done = shop("-C", "..", "run", "fail", "--run-id", "first", cwd=away)
    assert done.returncode == 1
    assert shlex.split(done.stderr.splitlines()[-1])[-5:] == ["gluepy", "--project", "..", "resume", "first"]


def test_resume_command_of_a_projects_script_is_the_script(shop: Console) -> None:
    script = shop.write(
        "run it.py", "import sys\nfrom gluepy.cli import main\nmain(['--project', sys.path[0], *sys.argv[1:]])"
    )
    done = shop("run", "fail", "--run-id", "first", program=(sys.executable, script.name))
    assert done.returncode == 1
    assert shlex.split(done.stderr.splitlines()[-1])[-3:] == ["run it.py", "resume", "first"]


def test_dag_of_a_file_runs_without_a_project(gluepy: Console) -> None:
    gluepy.write(
        "pipe.py",
        """
        from gluepy import DAG, Task
        class A(Task):
            pool = "process"
            def run(self): print("in a process")
        class PipeDAG(DAG): tasks = (A,)
        """,
    )
    done = gluepy("run", "pipe.py:PipeDAG")
    assert done.returncode == 0, done.stderr
    (record,) = gluepy.runs
    assert (record / "logs/a.1.log").read_text() == "in a process\n"
    assert gluepy("run", "pipe.py").returncode == 0


NOISY = """
    import os, subprocess, sys
    from gluepy import DAG, Task
    print("at import")
    class Noisy(Task):
        def run(self):
            print("printed")
            os.write(1, b"written to descriptor 1\\n")
            subprocess.run(["echo", "from a child"])
    class Debug(Task):
        async def run(self): print("loop")
    class NoisyDAG(DAG): tasks = (Noisy, Debug)
"""


def test_json_result_is_all_there_is_on_stdout(gluepy: Console) -> None:
    gluepy.write("noisy.py", NOISY)
    for words in ((), ("--debug",)):
        done = gluepy("run", "noisy.py", "--json", *words)
        assert done.returncode == 0
        result = json.loads(done.stdout)
        assert result["status"] == "finished"
        assert result["dag"] == "noisydag"
        assert {name: task["status"] for name, task in result["tasks"].items()} == {
            "noisy": "finished",
            "debug": "finished",
        }
        assert Path(result["path"]).is_dir()
        assert "at import" in done.stderr
        assert "from a child" in done.stderr


def test_json_result_tells_of_failures(shop: Console) -> None:
    done = shop("run", "fail", "--json", "-q")
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert result["status"] == "failed"
    assert result["counts"] == {"finished": 2, "failed": 1, "blocked": 1}
    error = result["tasks"]["broken"]["error"]
    assert (error["reason"], error["type"]) == ("exception", "ValueError")
    assert Path(error["log"]).is_file()
    assert result["tasks"]["after"]["blocked_by"] == ["broken"]


def test_events_on_stdout_are_the_log_and_nothing_else(gluepy: Console) -> None:
    gluepy.write("noisy.py", NOISY)
    done = gluepy("run", "noisy.py", "--events", "-")
    assert done.returncode == 0
    (record,) = gluepy.runs
    assert done.stdout == (record / "events.jsonl").read_text()
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "run.finished"


def test_events_go_to_a_file_line_by_line(shop: Console) -> None:
    done = shop("run", "train", "--events", "events.jsonl")
    assert done.returncode == 0
    (record,) = shop.runs
    assert (shop.folder / "events.jsonl").read_text() == (record / "events.jsonl").read_text()
    assert done.stdout.startswith("run ")


def test_slow_reader_of_events_gets_them_all(gluepy: Console) -> None:
    gluepy.write(
        "many.py",
        """
        from gluepy import DAG, Task, each
        class Quick(Task):
            n: int
            async def run(self): pass
        class ManyDAG(DAG): tasks = each(Quick, n=range(3000))
        """,
    )
    process = gluepy.start("run", "many.py", "--events", "-", "-q")
    assert process.stdout is not None
    record: list[Path] = []
    while not (record and (record[0] / "events.jsonl").read_text().count("run.finished")):
        record = gluepy.runs  # the run goes on although nobody reads, and its end is not lost
        assert process.poll() is None
    out, _ = process.communicate(timeout=240)
    assert out == (record[0] / "events.jsonl").read_text()
    assert process.returncode == 0


def test_parameters_come_from_options_over_a_file(gluepy: Console) -> None:
    gluepy.write(
        "pipe.py",
        """
        import json
        from gluepy import DAG, Task
        class A(Task):
            def run(self): print(json.dumps(self.context.to_dict()))
        class PipeDAG(DAG): tasks = (A,)
        """,
    )
    gluepy.write("params.yaml", "model: {depth: 1, kind: tree}\nday: 2026-01-01\nmodel.size: 5\n")
    words = ("-P", "model.depth=3", "--param", "names=[1, 2]", "-P", "text=a=b", "-P", "model.size=6", "-P", "odd=NaN")
    done = gluepy("run", "pipe.py", "--params", "params.yaml", *words)
    assert done.returncode == 0, done.stderr
    (record,) = gluepy.runs
    assert json.loads((record / "logs/a.1.log").read_text()) == {
        "model": {"depth": 3, "kind": "tree", "size": 6},
        "day": "2026-01-01",
        "names": [1, 2],
        "text": "a=b",
        "odd": "NaN",
    }


def test_a_megabyte_of_parameters(gluepy: Console) -> None:
    gluepy.write(
        "pipe.py",
        "from gluepy import DAG, Task\n"
        "class A(Task):\n    def run(self): print(len(self.context.text))\n"
        "class PipeDAG(DAG): tasks = (A,)\n",
    )
    gluepy.write("params.json", json.dumps({"text": "é" * 1_000_000}))
    assert gluepy("run", "pipe.py", "--params", "params.json").returncode == 0
    assert (gluepy.runs[0] / "logs/a.1.log").read_text() == "1000000\n"


def test_selection_says_what_it_means(shop: Console) -> None:
    done = shop("run", "train", "--task", SLASHED, "--task", "report")
    assert done.returncode == 0
    assert "2 finished, 2 not selected" in done.stdout
    assert "tasks that are not selected count as done; their files are not in this run's folder, which is new" in (
        done.stderr
    )
    assert "load" not in done.stderr
    done = shop("run", "train", "--from-task", "fit", "--to-task", "fit", "--progress", "none")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 finished, 2 not selected" in done.stdout


def test_keep_going_and_fail_fast(gluepy: Console) -> None:
    gluepy.write(
        "pipe.py",
        """
        import anyio
        from gluepy import DAG, Task, parallel
        class Bad(Task):
            async def run(self): 1 / 0
        class Slow(Task):
            async def run(self): await anyio.sleep(0.5)
        class Then(Task):
            async def run(self): pass
        class PipeDAG(DAG): tasks = parallel(Bad, (Slow, Then))
        """,
    )

    def counts(*words: str) -> dict[str, int]:
        done = gluepy("run", "pipe.py", "-c", "4", "--json", "-q", *words)
        assert done.returncode == 1
        found: dict[str, int] = json.loads(done.stdout)["counts"]
        return found

    assert counts() == {"failed": 1, "finished": 1, "blocked": 1}
    assert counts("--keep-going") == {"failed": 1, "finished": 2}
    assert counts("--fail-fast") == {"failed": 1, "cancelled": 1, "blocked": 1}


def test_timeout_stops_the_run(gluepy: Console) -> None:
    gluepy.write(
        "pipe.py",
        """
        import anyio
        from gluepy import DAG, Task
        class Slow(Task):
            async def run(self): await anyio.sleep(100)
        class PipeDAG(DAG): tasks = (Slow,)
        """,
    )
    done = gluepy("run", "pipe.py", "--timeout", "0.2", "--run-id", "first")
    assert done.returncode == 1
    assert "error: run first took longer than its timeout_s of 0.2 s" in done.stderr
    assert "resume first" in done.stderr.splitlines()[-1]


def test_dry_run_shows_what_would_run_and_leaves_nothing(shop: Console) -> None:
    done = shop("run", "train", "--dry-run", "-c", "3")
    assert done.returncode == 0
    assert done.stdout.splitlines()[:3] == ["train: 4 tasks, 3 at a time, LocalExecutor", "", "wave 1: 1 task"]
    assert f"  {SLASHED}  thread" in done.stdout
    assert done.stdout.endswith("nothing was run\n")
    done = shop("run", "train", "--dry-run", "--from-task", "fit", "--json")
    plan = json.loads(done.stdout)
    assert [[task["task"] for task in wave] for wave in plan["waves"]] == [["fit[region=eu]", SLASHED], ["report"]]
    assert (plan["tasks"], plan["unselected"]) == (3, 1)
    assert shop.runs == []
    assert not (shop.folder / "data").exists()


def test_debug_runs_inline_and_uncaptured(shop: Console) -> None:
    shop.write(
        "pipe.py",
        """
        import threading
        from gluepy import DAG, Task
        class A(Task):
            def run(self):
                print("on", threading.current_thread().name)
                breakpoint()
                self.log.info("logged")
        class PipeDAG(DAG): tasks = (A,)
        """,
    )
    done = shop("run", "pipe.py", "--debug", PYTHONBREAKPOINT="builtins.print")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "on MainThread"
    assert "logged" in done.stderr


def test_quiet_prints_errors_only(shop: Console) -> None:
    done = shop("run", "train", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = shop("run", "fail", "-q")
    assert (done.returncode, done.stdout) == (1, "")
    assert "ValueError: bad" in done.stderr
    assert "started" not in done.stderr


@pytest.mark.parametrize(
    ("env", "coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "0"}, False),
    ],
)
def test_colour_is_for_terminals_unless_the_environment_says_otherwise(
    env: dict[str, str], coloured: bool, shop: Console
) -> None:
    done = shop("run", "fail", cwd=None, **env)
    assert ("\x1b[31m" in done.stderr) is coloured
    assert ("\x1b" in done.stdout + done.stderr) is coloured


def test_control_characters_are_shown_not_obeyed(gluepy: Console) -> None:
    gluepy.write(
        "pipe.py",
        r"""
        from gluepy import DAG, Task
        class A(Task):
            name: str
            def run(self): raise RuntimeError("\x1b[2J\u202eboo\r\x07\n\x1b]0;title\x07")
        class PipeDAG(DAG): tasks = (A(name="\x1b[31mred\u202e\n"),)
        """,
    )
    done = gluepy("run", "pipe.py")
    assert done.returncode == 1
    assert r"failed     a[name=\x1b[31mred\u202e\x0a]" in done.stderr
    assert r"RuntimeError: \x1b[2J\u202eboo" in done.stderr
    shown = gluepy("show", "latest")
    assert shown.returncode == 0
    for text in (done.stdout, done.stderr, shown.stdout):
        assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text)


def test_old_encoding_is_no_traceback(shop: Console) -> None:
    done = shop("run", "train", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert r"\U0001f389" in done.stderr


def test_many_alike_failures_show_their_traceback_once(gluepy: Console) -> None:
    gluepy.write(
        "pipe.py",
        """
        from gluepy import DAG, Task, each
        class A(Task):
            n: int
            def run(self): raise ValueError("always")
        class PipeDAG(DAG): tasks = each(A, n=range(30))
        """,
    )
    done = gluepy("run", "pipe.py", "-k", "-c", "2")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.count("failed in attempt 1: ValueError: always") == 30
    assert done.stderr.count("  log: ") == 30
    assert done.stderr.count("  with the same traceback as a[n=0]") == 29


def test_lost_process_shows_the_end_of_its_log(gluepy: Console) -> None:
    gluepy.write(
        "pipe.py",
        """
        import os
        from gluepy import DAG, Task
        class A(Task):
            pool = "process"
            def run(self):
                print("last words", flush=True)
                os._exit(7)
        class PipeDAG(DAG): tasks = (A,)
        """,
    )
    done = gluepy("run", "pipe.py")
    assert done.returncode == 1
    assert "\n  last words\n" in done.stderr


def test_missing_outputs_are_told_once_with_the_end_of_the_log(gluepy: Console) -> None:
    gluepy.write(
        "make.py",
        """
        from gluepy import DAG, Task
        class Make(Task):
            outputs = ("a.txt", "b.txt")
            def run(self):
                print("making a")
                (self.path / "a.txt").write_text("")
        class MakeDAG(DAG): tasks = (Make,)
        """,
    )
    done = gluepy("run", "make.py", "--run-id", "first")
    assert done.returncode == 1
    why = "run() ended well, but its declared outputs are missing: b.txt"
    log = gluepy.folder / ".gluepy/runs/first/logs/make.1.log"
    told = done.stderr.partition("\n\n")[2]
    assert told.startswith(f"make failed in attempt 1: {why}\n  making a\n  log: {log}\n\n")
    assert why in log.read_text()


def test_retry_that_waits_for_a_thread_says_so(gluepy: Console) -> None:
    gluepy.write(
        "slow.py",
        """
        import time
        from gluepy import DAG, Retry, Task, parallel
        class AtOnce(Task):
            timeout_s = 0.05
            retries = Retry(attempts=2, wait_s=0)
            def run(self): time.sleep(0.1)
        class Later(AtOnce):
            retries = Retry(attempts=2, wait_s=0.1, jitter=0)
        class SlowDAG(DAG): tasks = parallel(AtOnce, Later)
        """,
    )
    told = gluepy("run", "slow.py").stderr
    ended = "when its thread has ended, in 10 s at the latest\n"
    assert f"(pool = 'process' can be); again {ended}" in told
    assert f"(pool = 'process' can be); again after 100 ms and {ended}" in told


def test_unwritable_runs_root_stops_the_run(shop: Console) -> None:
    done = shop("run", "train", GLUEPY_RUNS_ROOT="/proc/runs")  # where not even root may write
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: run ")
    assert line.endswith("; set RUNS_ROOT to a writable folder")


def test_file_in_place_of_runs_root_stops_the_run(shop: Console) -> None:
    shop.write("runs", "")
    done = shop("run", "train", GLUEPY_RUNS_ROOT="runs")
    assert done.returncode == 3
    assert done.stderr.startswith("error: run ")


@pytest.mark.slow
def test_reader_that_goes_away_is_no_traceback(gluepy: Console) -> None:
    gluepy.write(
        "pipe.py",
        """
        from gluepy import DAG, Task, each
        class A(Task):
            n: int
            async def run(self): pass
        class PipeDAG(DAG): tasks = each(A, n=range(3000))
        """,
    )
    python = shlex.quote(sys.executable)
    for words, code in (
        ("run pipe.py --events - -q", "0"),
        ("run pipe.py --progress plain 2>&1 >/dev/null", "0"),
        ("events latest", "141"),
        ("show latest", "141"),
        ("graph pipe.py -f dot", "141"),
    ):
        line = f"({python} -m gluepy {words}; echo $? > code) | true"
        done = gluepy("-c", f"{line}; cat code", program=("bash",))
        assert done.stderr == "", words
        assert done.stdout.split() == [code], words


def test_full_device_is_no_traceback(shop: Console) -> None:
    done = shop("-c", f"{shlex.quote(sys.executable)} -m gluepy list > /dev/full", program=("bash",))
    assert done.returncode == 3
    assert done.stderr == "error: cannot write the output: No space left on device\n"


def test_broken_sink_leaves_stdout_alone(shop: Console) -> None:
    shop.write("flows/sinks.py", "def broken(event): raise OSError('no sink today')\n")
    done = shop("run", "train", "--json", GLUEPY_SINKS='["flows.sinks.broken"]')
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "finished"
    assert "no sink today" in done.stderr


def test_stdout_has_results_only_whoever_writes_there(shop: Console) -> None:
    shop.write(
        "loud.py",
        """
        import os, sys, threading
        from gluepy import DAG, Task
        print("while imported")
        held = sys.__stdout__
        class Loud(Task):
            def run(self):
                os.write(1, b"by descriptor\\n")
                os.system("echo by a child")
                thread = threading.Thread(target=print, args=("by a thread",))
                thread.start()
                thread.join()
                held.write("by the stream\\n")
                print("by print")
        class LoudDAG(DAG): tasks = (Loud,)
        """,
    )
    done = shop("run", "loud.py", "--progress", "none")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["run"]
    assert {"while imported", "by descriptor", "by a child"} <= set(done.stderr.splitlines())
    logged = shop("logs", "latest").stdout.splitlines()
    assert [line for line in logged if line.startswith("by ")] == ["by a thread", "by the stream", "by print"]


def test_live_display_has_no_attributes_with_no_color(shop: Console, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("run", "train", NO_COLOR="1")
    screen.wait_for("finished")
    assert screen.wait() == 0
    assert not re.search(r"\x1b\[[0-9;]*[1-9][0-9;]*m", screen.text)


def test_long_id_is_cut_in_progress(shop: Console) -> None:
    shop.write(
        "long.py",
        """
        from gluepy import DAG, Task
        class Wide(Task):
            text: str
            def run(self): pass
        class LongDAG(DAG): tasks = (Wide(text="x" * 5000),)
        """,
    )
    done = shop("run", "long.py", "--progress", "plain")
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if "wide[text=xxx" in line]
    assert len(lines) == 2
    assert all("xxx…" in line and len(line) < 250 for line in lines)


def test_command_line_inside_a_program_leaves_its_project_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.gluepy]\nconcurrency = 3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        main(["--project", str(tmp_path), "settings"])
    assert ended.value.code == 0
    assert "CONCURRENCY" in capsys.readouterr().out
    assert used_project() is None


@pytest.mark.slow
def test_sinks_are_named_by_an_option_that_can_be_repeated(shop: Console) -> None:
    shop.write("flows/sinks.py", "def tell(event): print('got', event.seq, flush=True)\n")
    done = shop("run", "train", "--sink", "jsonlines", "--sink", "flows.sinks.tell", GLUEPY_JSONLINES__PATH="all/lines")
    assert done.returncode == 0, done.stderr
    (record,) = (file.parent for file in (shop.folder / ".gluepy/runs").glob("*/events.jsonl"))
    assert (shop.folder / "all/lines").read_bytes() == (record / "events.jsonl").read_bytes()
    assert "got 1\n" in done.stderr
    failed = shop("run", "train", "--sink", "jsonline")
    assert failed.returncode == 2
    assert "did you mean 'jsonlines'?; the option sinks names it" in failed.stderr
    failed = shop("run", "train", "--dry-run", "--sink", "flows.sinks")
    assert (failed.returncode, "--sink: 'flows.sinks' is not a sink" in failed.stderr) == (2, True)
    again = shop("resume", "latest", "--force", "load", "--sink", "flows.sinks.tell")
    assert (again.returncode, "got " in again.stderr) == (0, True), again.stderr
