"""A disk that fails under the log: the run stops and says so, nothing runs on, and once the disk is well it goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import anyio
import psutil
import pytest
from broken_disk import standing_in
from disk_tasks import ManySteps, ProcessHolds, Step, Steps
from evidence import Evidence
from forking import room
from sessions import Place

from gluepy import DAG, parallel
from gluepy.errors import RunStopped
from gluepy.runs.log import Sync
from gluepy.runtime import RunResult, Runtime
from gluepy.testing import until

GONE_S = 60.0  # a worker that is left then was not killed: it would go on for longer
Fault = Literal["full", "error", "short", "short and full", "nothing"]
FAULTS: tuple[Fault, ...] = ("full", "error", "short", "short and full", "nothing")
WHY = {
    "full": "No space left on device; free some space, then resume the run",
    "short and full": "No space left on device; free some space, then resume the run",
    "error": "Input/output error",
    "nothing": "nothing was written",
}


class Disk:
    """The n-th write, or flush, goes wrong. A full disk stays full, and one that takes nothing goes on so; what else
    is tried after an error would succeed."""

    def __init__(self, nth: int, fault: Fault = "error", *, flush: bool = False) -> None:
        self.nth, self.fault, self.flushes = nth, fault, flush
        self.calls = 0
        self.failed: Callable[[], None] = lambda: None

    def write(self, file: int, data: bytes) -> int:
        if self.flushes:
            return os.write(file, data)
        self.calls += 1
        if self.calls == self.nth and self.fault != "short":
            self.failed()
        if self.calls == self.nth and "short" in self.fault:
            return os.write(file, data[: len(data) // 2])
        if self.calls >= self.nth and "full" in self.fault:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.calls >= self.nth and self.fault == "nothing":
            return 0
        if self.calls == self.nth and self.fault == "error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.write(file, data)

    def flush(self, file: int) -> None:
        self.calls += self.flushes
        if self.flushes and self.calls == self.nth:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(file)

    def __repr__(self) -> str:
        return f"{self.fault} at {'flush' if self.flushes else 'write'} {self.nth}, {self.calls} came"


@contextmanager
def scene_of(dag: type[DAG] = Steps, sync: Sync = "none") -> Iterator[Scene]:
    """A run in a folder of its own; what goes wrong comes with what is known of it."""
    with room() as folder:
        scene = Scene(Path(folder), dag, sync)
        try:
            yield scene
        except BaseException as error:
            error.add_note("\n".join(map(str, [*scene.history, *scene.evidence.events(), *scene.evidence.notes()])))
            raise


class Scene:
    """A run, with what it leaves behind, on disks that fail and on good ones."""

    def __init__(self, folder: Path, dag: type[DAG], sync: Sync) -> None:
        self.place, self.dag = Place(folder / "runs", folder, sync=sync), dag
        self.evidence = Evidence(self.place.record, folder)
        self.history: list[Disk] = []

    async def run(self, disk: Disk) -> RunResult:
        """Begin the run, or go on with it, on a bad disk. Nothing may begin after a write that failed; of a flush that
        fails, in a thread of its own, the loop hears a moment later."""
        self.history.append(disk)
        begun: list[int] = []
        disk.failed = lambda: begun.append(self._begun())
        try:
            with standing_in(disk.write, disk.flush), anyio.fail_after(120):
                return await self.drive()
        finally:
            self.evidence.check()
            assert begun in ([], [self._begun()]), "something began after the failure"

    async def stops(self, disk: Disk, why: str) -> None:
        """Run, and see it stop for a documented reason."""
        with pytest.raises(RunStopped) as caught:
            await self.run(disk)
        assert str(caught.value).endswith(f"events.jsonl: {why}")

    async def finishes(self) -> None:
        """Go on as a user would, on a good disk: everything ends well, and what had finished does not run again."""
        if not self.evidence.events():
            assert not self.evidence.notes()
            self.place = self.place._replace(run_id="anew")
            self.evidence = Evidence(self.place.record, self.place.storage)
        finished, seen = self.evidence.finished(), len(self.evidence.notes())
        result = await self.drive()
        self.evidence.check()
        outcome = self.evidence.outcome()
        assert set(outcome.tasks.values()) == {"finished"}
        assert outcome == (result.status, {id: task.status for id, task in result.tasks.items()})
        ended = {note.task for note in self.evidence.notes() if note.what == "ends"}
        assert set(outcome.tasks) == ended, "recorded, but did not end"
        assert not finished & {note.task for note in self.evidence.notes()[seen:]}, "had finished, and ran again"

    async def drive(self) -> RunResult:
        async with Runtime(self.place.settings()) as runtime:
            if self.place.record.exists():
                return await runtime.resume_run(self.place.run_id)
            return await runtime.run_dag(self.dag, run_id=self.place.run_id)

    def _begun(self) -> int:
        return sum(note.what == "begins" for note in self.evidence.notes())


async def break_write(scene: Scene, nth: int, fault: Fault) -> None:
    disk = Disk(nth, fault)
    if fault == "short":
        assert (await scene.run(disk)).status == "finished"
        assert disk.calls > nth
        return
    await scene.stops(disk, WHY[fault])
    assert disk.calls == nth + (fault in ("short and full", "nothing")), "it was tried again"
    held = [note.what for note in scene.evidence.notes() if note.task == "holds"][-2:]
    assert held in ([], ["begins", "stopped"], ["begins", "ends"])


async def break_writes(fault: Fault, dag: type[DAG], writes: int) -> None:
    for nth in range(1, writes + 1):
        with scene_of(dag) as scene:
            await break_write(scene, nth, fault)
            await scene.finishes()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_run_stops_at_a_write_that_fails_and_goes_on_once_the_disk_is_well(fault: Fault) -> None:
    await break_writes(fault, Steps, 20)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_run_stops_at_any_of_200_writes_and_goes_on(fault: Fault) -> None:
    await break_writes(fault, ManySteps, 200)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_resumed_run_stops_at_a_write_that_fails_and_goes_on_once_the_disk_is_well(fault: Fault) -> None:
    for nth in range(1, 12):
        with scene_of() as scene:
            await break_write(scene, 10, "short and full")
            await break_write(scene, nth, fault)  # the first is the newline that a torn line lacks
            await scene.finishes()


@pytest.mark.parametrize("sync", ["batch", "commit"])
async def test_a_run_stops_at_a_flush_that_fails_and_never_tries_it_again(sync: Sync) -> None:
    for nth in range(1, 100):
        with scene_of(sync=sync) as scene:
            disk = Disk(nth, flush=True)
            try:
                await scene.run(disk)
            except RunStopped as stopped:
                assert str(stopped).endswith("events.jsonl: Input/output error")
                assert disk.calls == nth, "it was tried again"
                await scene.finishes()
            else:
                assert disk.calls < nth, "a flush failed, and nobody was told"
                break
    assert 1 < nth < 99


class Fills(Step):
    """Fills the disk, once the task in a process is under way, and wants to write."""

    async def run(self) -> None:
        await until((self.storage / "notes").exists)
        (self.storage / "full").touch()
        await super().run()


class Doomed(DAG):
    tasks = parallel(ProcessHolds, Fills)


async def test_workers_are_killed_when_the_log_cannot_be_written(
    record_property: Callable[[str, object], None],
) -> None:
    with scene_of(Doomed) as scene:

        def write(file: int, data: bytes) -> int:
            if (scene.place.storage / "full").exists():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return os.write(file, data)

        with standing_in(write), pytest.raises(RunStopped), anyio.fail_after(120):
            await scene.drive()
        stopped = time.monotonic()
        (worker,) = {note.pid for note in scene.evidence.notes() if note.task == "processholds"}
        await until(lambda: is_gone(worker), GONE_S)
        record_property("worker_gone_after_s", time.monotonic() - stopped)
        scene.evidence.check()


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


PIPE = """
import errno, os
from broken_disk import stand_in
from gluepy import DAG, Task

def full(file, data):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

class Fills(Task):
    async def run(self):
        if not os.path.exists("mended"):
            stand_in(full)

class After(Task):
    def run(self):
        open("after", "a").close()

class PipeDAG(DAG): tasks = (Fills, After)
"""


def test_the_command_line_tells_of_a_full_disk_and_what_to_do_and_exits_with_3(tmp_path: Path) -> None:
    (tmp_path / "pipe.py").write_text(PIPE)
    done = gluepy(tmp_path, "run", "pipe.py", "--run-id", "run", "--progress", "none")
    assert done.returncode == 3
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: run run stopped: cannot write ")
    assert error.endswith(f"run/events.jsonl: {WHY['full']}")
    assert hint.startswith("resume it with: ")
    assert hint.endswith(" resume run")
    assert not (tmp_path / "after").exists()
    (tmp_path / "mended").touch()
    done = gluepy(tmp_path, "resume", "run")
    assert (done.returncode, (tmp_path / "after").exists()) == (0, True), done.stderr


def gluepy(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GLUEPY_")}
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), plain.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "gluepy", *words],
        cwd=folder,
        env={**plain, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
