"""A task of the event loop that swallows its cancellation cannot be stopped, and does not hold the command up."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from console_calls import Console, Terminal

pytestmark = pytest.mark.slow

FLOW = """
    import anyio
    from gluepy import DAG, Task
    from gluepy.core import scheduler

    scheduler.GRACE_S = 0.2

    class Stubborn(Task):
        async def run(self):
            print("here", flush=True)
            while True:
                try:
                    await anyio.sleep(60)
                except BaseException:
                    pass

    class Late(Stubborn):
        timeout_s = 0.2

    class LateDAG(DAG): tasks = (Late,)
    class StubbornDAG(DAG): tasks = (Stubborn,)
"""


def test_command_ends_although_a_task_goes_on_beyond_its_deadline(gluepy: Console) -> None:
    gluepy.write("flow.py", FLOW)
    done = gluepy("run", "flow.py:LateDAG", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["status"] == "failed"
    assert "it swallows its cancellation" in done.stderr
    assert "resume it with: " in done.stderr


def test_one_signal_ends_the_command_although_a_task_goes_on(
    gluepy: Console, terminal: Callable[..., Terminal]
) -> None:
    gluepy.write("flow.py", FLOW)
    screen = terminal("run", "flow.py:StubbornDAG")
    screen.wait_for("running")
    screen.press("\x03")
    assert screen.wait() == 130
    (run,) = gluepy.runs
    assert json.loads((run / "events.jsonl").read_text().splitlines()[-1])["event"] == "run.cancelled"
