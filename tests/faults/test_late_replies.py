"""The reply of a call that was stopped reaches nobody: not the next call, not the next attempt."""

from __future__ import annotations

import select
import signal
from pathlib import Path

import anyio
import anyio.lowlevel
import psutil
import pytest
from near_misses import TASKS, NearMiss
from workers import WORKERS, Heard, call, wait_for_reply

from gluepy import DAG, each
from gluepy.conf.schema import Settings
from gluepy.core.events import TaskFailed, TaskFinished, TaskMetric, TaskRetrying
from gluepy.exec.executors.processes import WorkerPool
from gluepy.runtime import Runtime
from gluepy.testing import events_of

pytestmark = WORKERS
LATE = """
import os, time
while not os.path.exists({gate!r}): time.sleep(0.001)
print('late', flush=True)
send(b'late')
result = b'late reply'
"""


@pytest.mark.parametrize("stop", ["cancelled", "killed", "guard killed"])
async def test_a_reply_that_lies_unread_when_its_call_is_stopped_is_not_the_next_calls(
    stop: str, tmp_path: Path
) -> None:
    got: list[bytes] = []

    async def late(pool: WorkerPool, gate: Path) -> None:
        got.append((await call(pool, LATE.format(gate=str(gate)))).body)

    async with WorkerPool() as pool:
        for number in range(5):
            await call(pool)
            async with anyio.create_task_group() as group:
                gate = tmp_path / str(number)
                group.start_soon(late, pool, gate)
                while pool._idle:
                    await anyio.lowlevel.checkpoint()
                gate.touch()
                wait_for_reply(pool, b"late reply", b"late")  # nothing of it has been read
                (worker,) = pool._workers
                if stop == "cancelled":
                    group.cancel_scope.cancel()
                else:
                    process = psutil.Process(worker.process.pid)
                    target = process.parent() if stop == "guard killed" else process
                    assert target is not None
                    target.send_signal(signal.SIGKILL)
                    assert select.select([worker.process.life], (), (), 10)[0]  # until that can be known
            assert len(got) == (0 if stop == "cancelled" else number + 1)  # a reply that was sent in time counts
            heard = Heard()
            reply = await call(pool, f"print({number})\nsend(b'own')\nresult = b'{number}'", heard)
            assert (reply.body, heard.stdout, heard.messages) == (b"%d" % number, [str(number)], [b"own"])


class NearMissesDAG(DAG):
    tasks = each(NearMiss, n=range(TASKS))


async def test_an_attempt_that_ends_at_its_deadline_is_never_taken_for_the_next_one(
    settings: Settings, folder: Path
) -> None:
    (folder / "data").mkdir()
    async with Runtime(settings) as runtime:
        result = await runtime.run_dag(NearMissesDAG, check=False, on_failure="continue")
    seen: dict[tuple[str, str], int] = {}  # who ran each attempt, by its own account
    for file in (folder / "data").glob("* * *"):
        n, number, pid = file.name.split()
        assert seen.setdefault((f"nearmiss[n={n}]", number), int(pid)) == int(pid)
    first = 0
    for event in events_of(result):
        if isinstance(event, TaskMetric):
            assert event.value == event.attempt
        elif isinstance(event, TaskFinished | TaskRetrying | TaskFailed):
            ran = seen.get((event.task, str(event.attempt)))
            if isinstance(event, TaskFinished):
                assert ran is not None
                first += event.attempt == 1
                assert event.pid == ran
            else:
                assert event.reason == "timeout"
                assert ran is None or event.pid in (ran, None)  # None: it was stopped before its worker was heard of
    print(f"{first} of {TASKS} were in time")
