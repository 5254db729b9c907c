"""Runs whose drivers die at random points, one after another, until one comes to the end. Called by `forking`."""

from __future__ import annotations

import os
import random
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anyio.lowlevel
from broken_disk import stand_in
from evidence import Evidence, Noted, note
from forking import Ended, die, fork, room, warm_up
from sessions import Place, begin, resume

from gluepy import DAG, Retry, Task, each, parallel
from gluepy.exec.scope import current_scope
from gluepy.runs.reading import RunReader

IN_A_ROW = 12  # then a run may end in peace
SYNCS = ("none", "none", "none", "none", "none", "none", "batch", "commit")


class Load(Task):
    async def run(self) -> None:
        note("begins")
        await anyio.lowlevel.checkpoint()
        note("ends")


class Clean(Task):
    """In a thread."""

    n: int

    def run(self) -> None:
        note("begins")
        note("ends")


class Flaky(Task):
    """Every other attempt fails."""

    retries = Retry(attempts=3, wait_s=0.002, jitter=0)

    async def run(self) -> None:
        note("begins")
        self.metric("tries", 1)
        scope = current_scope()
        assert scope is not None
        if scope.attempt.number % 2:
            raise ConnectionError("as told")
        note("ends")


class Late(Load):
    n: int


class Report(Clean):
    n: int = 0


def found() -> list[int]:
    note("begins")
    note("ends")
    return [1, 2]


class Pipe(DAG):
    tasks = (
        Load,
        parallel(each(Clean, n=[1, 2]), (Flaky, each(Late, n=found))),
        Report(id="report"),
        Report(id="sent"),
    )


TASKS = {"load", "clean[n=1]", "clean[n=2]", "flaky", "each-late", "late[n=1]", "late[n=2]", "report", "sent"}


class Crash(NamedTuple):
    """Where a driver dies: before, within or after its `nth` write to the log, or right after the `nth` note that a
    task makes. Of a write within which it dies, `luck` decides what comes through."""

    where: Literal["before", "within", "after", "note"]
    nth: int
    luck: int

    @classmethod
    def somewhere(cls, luck: random.Random) -> Crash:
        where = luck.choice(("before", "within", "within", "after", "note"))
        return cls(where, luck.randint(1, luck.randint(1, 22)), luck.randrange(1 << 32))  # type: ignore[arg-type]

    def be_prepared(self) -> None:
        numbers = count(1)

        def write(file: int, data: bytes) -> int:
            here = next(numbers) == self.nth
            if here and self.where == "before":
                die()
            if here and self.where == "within":
                os.write(file, data[: self._length(data)])
                die()
            written = os.write(file, data)
            if here:
                die()
            return written

        def noted(what: str) -> None:
            if next(numbers) == self.nth:
                die()

        if self.where == "note":
            Noted.call = staticmethod(noted)
        else:
            stand_in(write)

    def _length(self, data: bytes) -> int:
        """Mostly any, at times all but the newline at the end, or whole lines."""
        luck = random.Random(self.luck)
        ends = [end + 1 for end, byte in enumerate(data[:-1]) if byte == ord("\n")]
        return luck.choice(
            (luck.randrange(len(data)), luck.randrange(len(data)), len(data) - 1, luck.choice([0, *ends]))
        )


class Chain:
    """One run after another in `folder`, each with what was recorded as finished when its drivers died."""

    def __init__(self, folder: Path, backend: str, sync: str) -> None:
        self.folder, self.backend, self.sync = folder, backend, sync
        self.history: list[Crash | None] = []
        self.number = 0
        self.begin()

    def begin(self) -> None:
        self.number += 1
        storage = self.folder / f"storage-{self.number}"
        storage.mkdir()
        self.place = Place(self.folder / "runs", storage, f"run-{self.number}", self.sync)
        self.evidence = Evidence(self.place.record, storage)
        self.recorded: set[str] = set()
        self.seen = 0

    def session(self, crash: Crash | None) -> Ended:
        """Drive the run once more."""
        self.history.append(crash)

        def work() -> Any:
            if crash is not None:
                crash.be_prepared()
            if self.place.record.exists():
                return resume(self.backend, self.place)
            return begin(self.backend, self.place, Pipe)

        return fork(work)

    def check(self) -> None:
        self.evidence.check()
        notes = self.evidence.notes()
        again = {note.task for note in notes[self.seen :]} & self.recorded
        assert not again, f"recorded as finished, and ran again: {again}"
        finished = self.evidence.finished()
        assert self.recorded <= finished, f"reset although they had finished: {self.recorded - finished}"
        self.recorded, self.seen = finished, len(notes)

    def check_end(self, answer: Any) -> None:
        assert answer == {"run": "finished", "tasks": dict.fromkeys(answer["tasks"], "finished")}, answer
        assert self.evidence.outcome() == ("finished", dict.fromkeys(TASKS, "finished"))
        assert set(answer["tasks"]) == TASKS
        lost = TASKS - {note.task for note in self.evidence.notes() if note.what == "ends"}
        assert not lost, f"finished without: {lost}"
        reader = RunReader(self.evidence.log)
        list(reader.events())
        assert reader.state.run == "finished"
        assert (reader.gaps, reader.doubled) == (0, 0)


def crash_chains(backend: str, crashes: int, seed: int) -> Any:
    """Have drivers die at `crashes` points; how many of them died where, and how many while they resumed a run."""
    luck = random.Random(seed)
    warm_up(lambda: _in_peace(backend))
    died: Counter[str] = Counter()
    resuming = 0
    while died.total() < crashes:
        with room() as folder:
            chain = Chain(Path(folder), backend, luck.choice(SYNCS))
            try:
                deaths = to_the_end(chain, luck, crashes - died.total())
            except AssertionError as error:
                known = [f"seed {seed}, {backend}, {chain.sync}", *chain.history, *chain.evidence.notes()]
                error.add_note("\n".join(map(str, [*known, chain.evidence.log.read_text()])))
                raise
        died.update(crash.where for crash, _ in deaths)
        resuming += sum(resumed for _, resumed in deaths)
    return {"died": died, "resuming": resuming}


def to_the_end(chain: Chain, luck: random.Random, at_most: int) -> list[tuple[Crash, bool]]:
    """Drive a run, with one driver after another, until one comes to the end; where the others died, and whether they
    were resuming it."""
    deaths: list[tuple[Crash, bool]] = []
    while True:
        crash = Crash.somewhere(luck) if len(deaths) < min(at_most, IN_A_ROW) else None
        resumes = bool(chain.evidence.events())
        ended = chain.session(crash)
        chain.check()
        if ended.died:
            assert crash is not None
            deaths.append((crash, resumes))
        elif "error" not in ended.answer:
            chain.check_end(ended.answer)
            return deaths
        else:  # there is nothing to go on from
            assert ended.answer["error"] == "UnreadableLog", ended.answer
            assert "no events of a run yet" in ended.answer["message"], ended.answer
            assert not resumes, "what was recorded could not be resumed"
            chain.begin()


def _in_peace(backend: str) -> None:
    with room() as folder:
        place = Place(Path(folder, "runs"), Path(folder))
        begin(backend, place, Pipe)
        resume(backend, place)
