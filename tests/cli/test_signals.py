"""Ctrl-C once and twice, SIGTERM: real signals to real processes, on a terminal and without one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from console_calls import Console, Terminal, until

PIPE = """
    import os, subprocess, sys, time
    import anyio
    from gluepy import DAG, Task, parallel

    class Loop(Task):
        async def run(self): await anyio.sleep(1000)
    class Thread(Task):
        def run(self): time.sleep(1000)
    class Process(Task):
        pool = "process"
        def run(self):
            child = subprocess.Popen(["sleep", "1000"])
            with open("pids", "w") as file: file.write(f"{os.getpid()} {child.pid} ")
            child.wait()
    class Spin(Task):
        async def run(self):
            open("spinning", "w").close()
            while True: pass
    class AllDAG(DAG): tasks = parallel(Loop, Thread, Process)
    class SpinDAG(DAG): tasks = (Spin,)
"""


@pytest.fixture
def pipe(gluepy: Console) -> Console:
    gluepy.write("pipe.py", PIPE)
    return gluepy


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def started(console: Console) -> list[int]:
    """Wait until the process task has a child; the pids of both."""
    file = console.folder / "pids"
    until(lambda: file.exists() and len(file.read_text().split()) == 2, "the start of the process task")
    return [int(pid) for pid in file.read_text().split()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_cancels_cleanly(number: signal.Signals, code: int, pipe: Console) -> None:
    run = pipe.start("run", "pipe.py:AllDAG", "-c", "3", "--run-id", "first")
    pids = started(pipe)
    run.send_signal(number)
    out, err = run.communicate(timeout=240)
    assert run.returncode == code
    assert out.startswith("run first of alldag cancelled in ")
    assert "cancelling… " in err
    assert err.splitlines()[-1].endswith("resume first")
    assert all(is_gone(pid) for pid in pids)
    events = [json.loads(line) for line in (pipe.folder / ".gluepy/runs/first/events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "run.cancelled"
    assert sorted(event["task"] for event in events if event["event"] == "task.cancelled") == [
        "loop",
        "process",
        "thread",
    ]


def test_second_signal_kills_although_a_task_holds_the_loop(pipe: Console) -> None:
    run = pipe.start("run", "pipe.py:SpinDAG", "--run-id", "first")
    until((pipe.folder / "spinning").exists)
    run.send_signal(signal.SIGINT)
    assert run.stderr is not None
    while "press Ctrl-C again to kill" not in (line := run.stderr.readline()):
        assert line
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=240)
    assert run.returncode == 130
    assert "killed; resume it with:" in told
    assert told.rstrip().endswith("resume first")
    assert "status    interrupted" in pipe("show", "first").stdout.replace("status   ", "status    ")


def test_second_signal_kills_worker_processes_too(pipe: Console) -> None:
    pipe.write(
        "pipe.py", PIPE.replace("class Loop(Task):\n        async def run(self): await anyio.sleep(1000)", STUBBORN)
    )
    run = pipe.start("run", "pipe.py:AllDAG", "-c", "3")
    pids = started(pipe)
    until((pipe.folder / "spinning").exists)
    run.send_signal(signal.SIGTERM)
    assert run.stderr is not None
    while "another signal kills" not in (line := run.stderr.readline()):
        assert line
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=240)
    assert run.returncode == 143
    until(lambda: all(is_gone(pid) for pid in pids), "the end of the worker and its child")


LOOP = """class Loop(Task):
        async def run(self): await anyio.sleep(1000)"""
STUBBORN = """class Loop(Task):
        async def run(self):
            while not os.path.exists("pids"): await anyio.sleep(0.01)
            open("spinning", "w").close()
            while True: pass"""


def test_signal_before_anything_runs(pipe: Console) -> None:
    pipe.write("slow.py", "import time\nopen('importing', 'w').close()\ntime.sleep(1000)\n")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        (pipe.folder / "importing").unlink(missing_ok=True)
        run = pipe.start("run", "slow.py")
        until((pipe.folder / "importing").exists)
        run.send_signal(number)
        out, err = run.communicate(timeout=240)
        assert (run.returncode, out, err) == (code, "", "")
    assert pipe.runs == []


def test_background_job_ignores_ctrl_c_as_shells_want(pipe: Console) -> None:
    pipe.write(
        "short.py",
        """
        import os, time
        from gluepy import DAG, Task
        class A(Task):
            def run(self):
                open("begun", "w").close()
                while not os.path.exists("gate"): time.sleep(0.01)
        class ShortDAG(DAG): tasks = (A,)
        """,
    )
    run = subprocess.Popen(
        [sys.executable, "-m", "gluepy", "run", "short.py", "-q"],
        cwd=pipe.folder,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    until((pipe.folder / "begun").exists)
    run.send_signal(signal.SIGINT)
    (pipe.folder / "gate").touch()
    assert run.wait(240) == 0


def test_ctrl_c_on_a_terminal_once(pipe: Console, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("run", "pipe.py:AllDAG", "-c", "3", "--run-id", "first")
    screen.wait_for("running", "3 running")
    pids = started(pipe)
    screen.press("\x03")
    assert screen.wait() == 130
    assert "run first of alldag cancelled in " in screen.text
    assert screen.text.rindex("\x1b[?25h") > screen.text.rindex("\x1b[?25l")  # the cursor is back
    assert all(is_gone(pid) for pid in pids)


def test_ctrl_c_on_a_terminal_twice_while_a_task_holds_the_loop(
    pipe: Console, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal("run", "pipe.py:SpinDAG")
    until(lambda: screen.read() and (pipe.folder / "spinning").exists())
    screen.press("\x03")
    screen.wait_for("cancelling… press Ctrl-C again to kill")
    screen.press("\x03")
    assert screen.wait() == 130
    assert screen.text.rindex("\x1b[?25h") > screen.text.rindex("\x1b[?25l")


def test_run_is_live_on_a_terminal(gluepy: Console, terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    gluepy.write(
        "pipe.py",
        """
        import os, time
        from gluepy import DAG, Retry, Task, each
        class First(Task):
            retries = Retry(attempts=2, wait_s=0.01)
            tries = "tries"
            def run(self):
                if not os.path.exists("tried"):
                    open("tried", "w").close()
                    raise ConnectionError("no [b]route[/b]")
                self.progress(40, 120)
                print("row \\x1b[31m[red]40[/red]")
                while not os.path.exists("gate"): time.sleep(0.01)
                self.metric("rows", 120)
        class Wide(Task):
            n: int
            def run(self):
                while not os.path.exists("gate2"): time.sleep(0.01)
        class PipeDAG(DAG): tasks = (First, each(Wide, n=range(30)))
        """,
    )
    screen = terminal("run", "pipe.py", "-c", "30", rows=12, columns=90)
    screen.wait_for(
        "retrying   ",
        "first  attempt 1 of 2 failed: ConnectionError: no [b]route[/b]; again in ",
        "running    first  ",
        "attempt 2 of 2  40/120",
        r"row \x1b[31m[red]40[/red]",
        "0 of 31 tasks done · 1 running",
    )
    (tmp_path / "gate").touch()
    screen.wait_for("first  ", "rows = 120", "30 running", "… and 22 more")
    (tmp_path / "gate2").touch()
    assert screen.wait() == 0
    assert "wide[n=29]  " in screen.text
    assert "finished in" in screen.text
    assert "\x1b[31m[red]" not in screen.text  # the task's own escapes are not obeyed


@pytest.mark.parametrize(
    ("env", "live", "coloured"),
    [
        ({}, True, True),
        ({"NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, False, True),
    ],
)
def test_environment_of_a_terminal_is_heeded(
    env: dict[str, str], live: bool, coloured: bool, shop: Console, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal("run", "fail", **env)
    assert screen.wait() == 1
    assert ("\x1b[?25l" in screen.text) is live
    assert ("\x1b[31m" in screen.text) is coloured
    if not live and not coloured:
        assert "\x1b" not in screen.text


@pytest.mark.slow
def test_plain_and_none_hold_on_a_terminal_too(shop: Console, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("run", "train", "--progress", "plain", NO_COLOR="1")
    assert screen.wait() == 0
    assert "started    load" in screen.text
    assert "\x1b" not in screen.text
    screen = terminal("run", "train", "--progress", "none")
    assert screen.wait() == 0
    assert screen.text.count("\r\n") == 2  # the result


@pytest.mark.slow
def test_ten_thousand_quick_tasks_all_scroll_by(gluepy: Console, terminal: Callable[..., Terminal]) -> None:
    gluepy.write(
        "pipe.py",
        """
        from gluepy import DAG, Task, each
        class A(Task):
            n: int
            async def run(self): pass
        class PipeDAG(DAG): tasks = each(A, n=range(10_000))
        """,
    )
    screen = terminal("run", "pipe.py", "-c", "8")
    assert screen.wait() == 0
    assert screen.text.count("finished ") >= 10_000
    assert screen.text.count("tasks done") < 200  # redrawn some ten times a second, not with each task
