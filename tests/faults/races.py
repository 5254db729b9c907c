"""Two drivers that resume the same interrupted run at the same moment. Called by `forking`."""

from __future__ import annotations

import os
import random
import select
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from crash_chains import Crash
from evidence import Evidence, note
from forking import Child, fork, room, warm_up
from sessions import Place, begin, resume

from gluepy import DAG, Task, parallel
from gluepy.testing import until

PATIENCE_S = 120.0  # for the one that is refused to say so


class Step(Task):
    async def run(self) -> None:
        note("begins")
        note("ends")


class Gate(Step):
    """Lasts until there is a file `go`."""

    async def run(self) -> None:
        await until((self.storage / "go").exists)
        await super().run()


class Raced(DAG):
    tasks = (Step(id="first"), parallel(Gate, Step(id="second")), Step(id="last"))


TASKS = {"first", "gate", "second", "last"}


def race_resumes(backend: str, races: int, seed: int, gated: bool) -> dict[str, int]:
    """Race so often; how often who came first, who was refused, and who came when the other had ended.

    `gated` runs cannot end before a driver has been refused; the others may end within the time for which the slower
    driver waits, which then drives the run once more, with nothing left to do.
    """
    luck, told = random.Random(seed), {"refused": 0, "after": 0}
    with room() as folder:
        interrupted = Path(folder, "interrupted")
        place = _place(interrupted)
        _go(place)
        warm_up(lambda: _in_peace(backend, place))
        shutil.rmtree(interrupted)
        assert fork(lambda: _until_the_third_write(backend, _place(interrupted))).died
        for race in range(races):
            copy = Path(folder, f"race-{race}")
            shutil.copytree(interrupted, copy)
            try:
                told[_race(backend, _place(copy), luck, gated)] += 1
            except AssertionError as error:
                evidence = Evidence(_place(copy).record, copy)
                error.add_note(f"race {race}, seed {seed}, {backend}\n{evidence.log.read_text()}\n{evidence.notes()}")
                raise
            shutil.rmtree(copy)
    return told


def _in_peace(backend: str, place: Place) -> None:
    begin(backend, place, Raced)
    resume(backend, place)


def _until_the_third_write(backend: str, place: Place) -> None:
    Crash("after", 3, 0).be_prepared()
    begin(backend, place, Raced)


def _place(folder: Path) -> Place:
    folder.mkdir(exist_ok=True)
    return Place(folder / "runs", folder)


def _go(place: Place) -> None:
    (place.storage / "go").touch()


def _race(backend: str, place: Place, luck: random.Random, gated: bool) -> str:
    line, start = os.pipe()
    if not gated:
        _go(place)

    def resume_with(delay: int) -> Any:
        os.close(start)
        os.read(line, 1)
        for _ in range(delay):
            pass
        return resume(backend, place)

    delays = [luck.randrange(1, 1 << luck.randrange(1, 14)) for _ in range(2)]
    drivers = [Child(partial(resume_with, delay)) for delay in delays]
    os.close(line)
    os.close(start)  # off they go
    if gated:
        select.select([driver.answer for driver in drivers], [], [], PATIENCE_S)
        _go(place)
    answers = [driver.wait().answer for driver in drivers]
    evidence = Evidence(place.record, place.storage)
    evidence.check()
    ran = [answer for answer in answers if "error" not in answer]
    refused = [answer for answer in answers if "error" in answer]
    assert all(answer["error"] == "RunLocked" for answer in refused), refused
    assert ran == [{"run": "finished", "tasks": dict.fromkeys(TASKS, "finished")}] * len(ran)
    assert len(ran) == 1 or (len(ran) == 2 and not gated), answers
    sessions = max(event["session"] for event in evidence.events())
    assert sessions == 1 + len(ran), "one session for each that drives"
    begun = [note.task for note in evidence.notes() if note.what == "begins"]
    assert sorted(begun) == sorted(TASKS), begun
    return "refused" if refused else "after"
