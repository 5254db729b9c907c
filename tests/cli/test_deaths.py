"""How the console tells that a process task died: by what, in which attempt, with how much memory, and what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from console_calls import Console, environment, until

from gluepy.exec.executors import cgroup

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="worker processes are tested on Linux")

PIPE = """
    import ctypes, os, signal, time
    from gluepy import DAG, Retry, Task, parallel

    class Process(Task):
        pool = "process"
    class Kills(Process):
        retries = Retry(attempts=2, wait_s=0)
        def run(self):
            self.block = bytearray(b"x") * (100 << 20)
            print("about to die", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    class Crashes(Process):
        def run(self): ctypes.string_at(0)
    class Exits(Process):
        def run(self): os._exit(3)
    class Grows(Process):
        memory_mb = 100
        def run(self):
            self.block = bytearray(b"x") * (200 << 20)
            time.sleep(60)
    class Hangs(Process):
        timeout_s = 0.05
        def run(self): time.sleep(60)
    class DeathsDAG(DAG):
        tasks = parallel(Kills, Crashes, Exits, Grows, Hangs)
    class Eats(Process):
        def run(self):
            self.block = bytearray(b"x") * (2000 << 20)
    class EatsDAG(DAG):
        tasks = (Eats,)
"""


class Told:
    """What the console said of one run in which everybody died."""

    def __init__(self, console: Console) -> None:
        console.write("pipe.py", PIPE)
        self.run = console("run", "pipe.py:DeathsDAG", "-k", "-c", "3", "--run-id", "first")
        self.show = console("show", "first").stdout
        self.record: dict[str, Any] = json.loads(console("show", "first", "--json").stdout)
        lines = (console.folder / ".gluepy/runs/first/events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        self.failed = {event["task"]: event for event in events if event["event"] == "task.failed"}
        (self.retried,) = (event for event in events if event["event"] == "task.retrying")

    def report(self, task: str) -> list[str]:
        """The lines about the task at the end of the run."""
        found = re.search(rf"^{task} failed in .*?^  log: [^\n]*", self.run.stderr, re.MULTILINE | re.DOTALL)
        assert found is not None, self.run.stderr
        return found[0].splitlines()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return Told(Console(tmp_path_factory.mktemp("deaths")))


WHO = "look for who sent it: a user, a supervisor, or the kernel's log"
DEATHS = {
    "kills": rf"killed by SIGKILL, peak RSS 1\d\d MB; {WHO}",
    "crashes": r"killed by SIGSEGV, peak RSS \d\d MB; a native library crashed; the task's log says where",
    "exits": r"exited with code 3 \(os\._exit\), peak RSS \d\d MB; let the task return or raise instead",
    "grows": r"killed at \d\d\d MB, more than its memory_mb = 100; raise memory_mb, or .*",
}


@pytest.mark.parametrize("task", DEATHS)
def test_the_end_of_a_run_says_how_each_task_died(told: Told, task: str) -> None:
    assert told.run.returncode == 1
    title, *rest = told.report(task)
    attempt = "2 of 2" if task == "kills" else "1"
    assert re.fullmatch(rf"{task} failed in attempt {attempt}: {DEATHS[task]}", title)
    assert re.fullmatch(rf"  log: \S+/logs/{task}\.\d\.log", rest[-1])


@pytest.mark.parametrize("task", DEATHS)
def test_looking_at_the_run_later_says_the_same(told: Told, task: str) -> None:
    assert "\n".join(told.report(task)) in told.show
    assert re.search(rf"^{task} +failed .* {DEATHS[task]}$", told.show, re.MULTILINE)
    assert re.fullmatch(DEATHS[task], told.record["tasks"][task]["error"]["message"])


def test_progress_says_it_while_the_run_goes_on(told: Told) -> None:
    assert re.search(
        rf"retrying   kills  attempt 1 of 2 failed: {DEATHS['kills']}; again in 0 ms$", told.run.stderr, re.MULTILINE
    )
    assert re.search(rf"failed     exits  \S+ m?s  {DEATHS['exits']}$", told.run.stderr, re.MULTILINE)


def test_what_the_task_printed_last_is_told_and_nothing_twice(told: Told) -> None:
    assert told.report("kills")[1:-1] == ["  about to die"]
    assert told.report("exits")[1:-1] == []


def test_a_crash_says_where_in_the_users_code(told: Told) -> None:
    text = "\n".join(told.report("crashes"))
    assert "Fatal Python error: Segmentation fault" in text
    assert re.search(r'File "\S+/pipe\.py", line \d+ in run', text)
    assert "gluepy/exec" not in text


def test_deaths_are_recorded_with_reason_worker_and_cost(told: Told) -> None:
    reasons = {"kills": "lost", "crashes": "lost", "exits": "lost", "grows": "memory", "hangs": "timeout"}
    assert {task: event["reason"] for task, event in told.failed.items()} == reasons
    for event in (*told.failed.values(), told.retried):
        if event["task"] != "hangs":  # it may be told to stop before its worker has begun
            assert event["cpu_s"] >= 0
            assert event["peak_rss_mb"] > 10
            assert event["worker"].startswith("process-")
            assert event["pid"] > 0
    assert told.failed["kills"]["peak_rss_mb"] > 100
    assert told.failed["grows"]["peak_rss_mb"] > 100


# An out-of-memory kill by the kernel, where this machine lets us make a control group.


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 200 MB, below our own."""
    group, limits = _new_group()
    try:
        try:
            for name, value in limits.items():
                if (group / name).exists():
                    (group / name).write_text(value)
        except OSError as error:
            pytest.skip(f"no control group can be limited here: {error}")
        yield group
    finally:
        until(lambda: _is_removed(group), "the end of the last process in the control group")


def _is_removed(group: Path) -> bool:
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


def _new_group() -> tuple[Path, dict[str, str]]:
    limit = str(200 << 20)
    for file in cgroup.files(cgroup.ROOT, cgroup.MEMBERSHIP)[:1]:
        group = file.parent / f"gluepy-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        if (group / "memory.limit_in_bytes").exists():
            return group, {"memory.limit_in_bytes": limit, "memory.swappiness": "0"}
        if (group / "memory.max").exists():
            return group, {"memory.max": limit, "memory.swap.max": "0"}
        group.rmdir()
    pytest.skip("no memory control group here")


def test_an_out_of_memory_kill_is_told_with_its_evidence(gluepy: Console, small_group: Path) -> None:
    gluepy.write("pipe.py", PIPE)
    move = f'echo $$ > {small_group}/cgroup.procs && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", move, "sh", sys.executable, "-m", "gluepy", "run", "pipe.py:EatsDAG"],
        cwd=gluepy.folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    said = r"killed by SIGKILL, peak RSS 1\d\d MB \(cgroup reports an OOM kill\); run fewer of them at once"
    assert re.search(rf"^eats failed in attempt 1: {said}", done.stderr, re.MULTILINE), done.stderr
    assert re.search(said, gluepy("show", "latest").stdout)
