"""Odd environments: it runs, or says in one line what is in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from console_calls import Console, environment

from gluepy.cli.console import exit_code


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-", "2>/dev/full", "2>&1 | true"])
def test_streams_that_cannot_be_written_take_no_run_down(closed: str, shop: Console) -> None:
    command = f"set -o pipefail; {sys.executable} -m gluepy run train"
    done = shop("-c", f"{command} {closed}", program=("bash",))
    assert done.returncode in ((0,) if "|" not in closed else (0, 141)), done.stderr
    assert "mistake in gluepy" not in done.stderr
    assert '"event":"run.finished"' in (shop.runs[0] / "events.jsonl").read_text()


def test_commands_that_look_or_fail_do_so_without_streams_too(shop: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shop("run", "train", "-q").returncode == 0
    monkeypatch.chdir(shop.folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    words = ["list", "runs", "show", "events", "logs", "settings", "--help", "--version", "run train --dry-run", "nope"]
    codes = []
    for each in words:
        with monkeypatch.context() as patch:
            for name in ("stdin", "stdout", "stderr"):
                patch.setattr(sys, name, None)  # what Python makes of one that is closed
            codes.append(exit_code(each.split()))
            for stream in (sys.stdin, sys.stdout, sys.stderr):
                stream.close()
    assert codes == [0] * (len(words) - 1) + [2]
    full = shop("-c", f"{sys.executable} -m gluepy list >/dev/full", program=("bash",))
    assert (full.returncode, full.stderr) == (3, "error: cannot write the output: No space left on device\n")


def test_task_that_asks_for_input_fails_at_once(gluepy: Console) -> None:
    gluepy.write(
        "ask.py",
        """
        import subprocess
        from gluepy import DAG, Task, parallel
        class Thread(Task):
            def run(self): input("name? ")
        class Process(Thread):
            pool = "process"
        class Loop(Task):
            async def run(self): input("name? ")
        class Stops(Task):
            def run(self): breakpoint()
        class Program(Task):
            def run(self): assert subprocess.check_output("cat") == b""
        class AskDAG(DAG): tasks = parallel(Thread, Process, Loop, Stops, Program)
        """,
    )
    program = f"(echo early; sleep 60) | {sys.executable} -m gluepy run ask.py -k"
    process = subprocess.Popen(
        ["bash", "-c", program], cwd=gluepy.folder, env=environment(), stderr=subprocess.PIPE, encoding="utf-8",
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        told = ""
        while "resume it with" not in told:
            line = process.stderr.readline()
            assert line, told
            told += line
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert told.count("EOFError: a task has no standard input: make it a parameter, or run with --debug") >= 2
    assert "process failed in attempt 1: EOFError" in told
    assert "RuntimeError: breakpoint() in a task whose output is captured; run with --debug" in told
    assert "finished   program" in told


def test_file_that_changes_the_current_folder_can_be_resumed(gluepy: Console) -> None:
    gluepy.write("elsewhere/nothing", "")
    gluepy.write(
        "pipe.py",
        """
        import os
        os.chdir("elsewhere")
        from gluepy import DAG, Task
        class A(Task):
            def run(self): assert os.path.exists("../go")
        class PipeDAG(DAG): tasks = (A,)
        """,
    )
    failed = gluepy("run", "pipe.py")
    gluepy.write("go", "")
    done = gluepy("-c", failed.stderr.splitlines()[-1].removeprefix("resume it with: "), program=("bash",))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_run_of_a_script_is_resumed_from_the_shell_and_from_the_script(gluepy: Console) -> None:
    script = """
        import sys
        from pathlib import Path
        import gluepy
        from gluepy import DAG, Task
        class A(Task):
            def run(self): assert Path("go").exists()
        class B(A):
            pool = "process"
        class FlowDAG(DAG):
            label = "flow"
            tasks = (A, B)
        if __name__ == "__main__":
            print(gluepy.run_dag_sync(FlowDAG, check=False).status)
        """
    gluepy.write("flow.py", script)
    resumes = script.replace("gluepy.run_dag_sync(FlowDAG, check=False).status", "__import__('anyio').run(resume)")
    resumes = resumes.replace(
        "if __name__", "async def resume():\n            return (await gluepy.resume_run()).status\n        if __name__"
    )
    begun = gluepy("flow.py", program=(sys.executable,))
    assert begun.stdout == "failed\n", begun.stderr
    assert gluepy("resume").returncode == 1
    gluepy.write("go", "")
    done = gluepy("resume")
    assert done.returncode == 0, done.stderr
    gluepy.write("flow.py", resumes)
    assert gluepy("flow.py", program=(sys.executable,)).stdout == "finished\n"
    gluepy.write(
        "bare.py",
        "import gluepy\nclass A(gluepy.Task):\n    def run(self): 1 / 0\n"
        "class BareDAG(gluepy.DAG): tasks = (A,)\ngluepy.run_dag_sync(BareDAG, check=False)\n",
    )
    assert gluepy("bare.py", program=(sys.executable,)).returncode == 0
    told = gluepy("resume").stderr
    assert "it starts a run while it is imported; put what it runs under `if __name__ ==" in told
    code = "import gluepy\nclass A(gluepy.Task):\n    def run(self): 1 / 0\nclass D(gluepy.DAG): tasks = (A,)\n"
    assert gluepy("-c", f"{code}gluepy.run_dag_sync(D, check=False)", program=(sys.executable,)).returncode == 0
    assert "the run began in a notebook or console, which defined it; resume it there, or from a file" in (
        gluepy("resume").stderr
    )


def test_script_with_closed_streams_runs(gluepy: Console) -> None:
    gluepy.write(
        "flow.py",
        "import gluepy\nclass A(gluepy.Task):\n    def run(self): print('hello')\n"
        "class D(gluepy.DAG): tasks = (A,)\nif __name__ == '__main__':\n    gluepy.run_dag_sync(D, capture=True)\n",
    )
    assert gluepy("-c", f"{sys.executable} flow.py <&- >&- 2>&-", program=("bash",)).returncode == 0


def test_file_found_by_way_of_a_link_hides_nothing(gluepy: Console) -> None:
    gluepy.write(
        "real/flow_of_mine.py",
        "import gluepy\nclass A(gluepy.Task):\n    def run(self): pass\nclass D(gluepy.DAG): tasks = (A,)\n",
    )
    gluepy.write("other/flow_of_mine.py", "")
    (gluepy.folder / "link").symlink_to("real")
    path = str(gluepy.folder / "link")
    assert gluepy("run", "real/flow_of_mine.py", PYTHONPATH=path).returncode == 0
    assert "its name hides the installed module" in gluepy("run", "other/flow_of_mine.py", PYTHONPATH=path).stderr


def test_names_that_are_not_utf8_and_homes_that_are_not_there_are_one_line(gluepy: Console) -> None:
    odd = gluepy.folder / os.fsdecode(b"odd-\xff")
    odd.mkdir()
    (odd / "settings.py").write_text("INSTALLED_MODULES = []\n")
    (odd / "flow.py").write_text("")
    for words, cwd in ((("list",), odd), (("-C", str(odd), "run", "x"), None), (("run", str(odd / "flow.py")), None)):
        done = gluepy(*words, cwd=cwd)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "is not UTF-8, which everything in a run's record has to be" in done.stderr
    done = gluepy("runs", GLUEPY_RUNS_ROOT="~nobody-of-this-name/runs")
    assert done.returncode == 2
    assert "there is no home folder ~nobody-of-this-name; write the whole path" in done.stderr


def test_warning_of_the_settings_is_one_line_also_where_warnings_are_errors(gluepy: Console) -> None:
    gluepy.write("settings.py", "INSTALLED_MODULES = []\nCONCURENCY = 3\n")
    done = gluepy("list", PYTHONWARNINGS="error")
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == (
        "warning: settings.py defines CONCURENCY, which is not a setting of gluepy; did you mean CONCURRENCY?"
    )
