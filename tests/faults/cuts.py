"""A driver that dies before, in and after every event of a session, for `shapes`. Called by `forking`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

from broken_disk import stand_in
from evidence import Evidence, Outcome
from forking import Ended, die, fork, room, stay, warm_up
from sessions import Place, begin, resume
from shapes import SHAPES, Shape

from gluepy.exec.dag import compile_dag

When = Literal["before", "torn", "unterminated", "after"]
WHENS: tuple[When, ...] = ("before", "torn", "unterminated", "after")


class Cut(NamedTuple):
    """Die when the `nth` event of the session is to be written, when half of its line or all but the newline has been,
    or when it has."""

    nth: int
    when: When

    def be_prepared(self) -> None:
        seen = 0

        def write(file: int, data: bytes) -> int:
            nonlocal seen
            lines = [] if data == b"\n" else data.splitlines(keepends=True)
            before, seen = seen, seen + len(lines)
            if seen >= self.nth:
                whole, line = lines[: self.nth - before - 1], lines[self.nth - before - 1]
                os.write(file, b"".join(whole) + line[: self._length(line)])
                die()
            return os.write(file, data)

        stand_in(write)

    def _length(self, line: bytes) -> int:
        return {"before": 0, "torn": len(line) // 2, "unterminated": len(line) - 1, "after": len(line)}[self.when]


class Scene:
    """A shape's run in a folder of its own."""

    def __init__(self, folder: Path, backend: str, shape: Shape) -> None:
        self.folder, self.backend, self.shape = folder, backend, shape
        (folder / "storage").mkdir(parents=True, exist_ok=True)
        self.place = Place(folder / "runs", folder / "storage")
        self.evidence = Evidence(self.place.record, self.place.storage)
        graph = compile_dag(shape.dag).graph
        self.edges = [(graph.task_id(one), graph.task_id(other)) for one, other in graph.task_edges()]

    def copy(self, to: Path) -> Scene:
        shutil.copytree(self.folder, to)
        return Scene(to, self.backend, self.shape)

    def begin(self) -> Any:
        return begin(self.backend, self.place, self.shape.dag, **self.shape.options)

    def resume(self, **options: Any) -> Any:
        return resume(self.backend, self.place, **options)

    def session(self, cut: Cut | None = None, first: bool = True) -> Ended:
        """The session that may be cut: the first of its kind, or one that goes on with it."""

        def work() -> Any:
            if cut is not None:
                cut.be_prepared()
            if first and self.shape.again is None:
                return self.begin()
            return self.resume(**(self.shape.again or {} if first else {}))

        ended = stay(work) if cut is None else fork(work)
        self.evidence.check()
        return ended

    def go_on(self) -> None:
        """As a user would: resume the run, or begin anew if there is nothing to resume."""
        if self.evidence.events():
            ended = self.session(first=False)
        else:
            refused = self.session(first=False).answer
            assert refused["error"] == "UnreadableLog", refused
            assert not self.evidence.notes(), "something ran, and nothing is recorded"
            shutil.rmtree(self.place.record)
            ended = self.session()
        outcome = self.evidence.outcome()
        assert ended.answer == {"run": outcome.run, "tasks": outcome.tasks}
        self.check_order()

    def check_order(self) -> None:
        """What finished began, for the last time, after the last end of whatever it depends on."""
        when = {(note.what, note.task): number for number, note in enumerate(self.evidence.notes())}
        for dependency, dependent in self.edges:
            end, begin = when.get(("ends", dependency)), when.get(("begins", dependent))
            assert end is None or begin is None or end < begin, f"{dependency} ran again, and {dependent} did not"


def cut_everywhere(names: list[str], backend: str) -> dict[str, int]:
    """Cut the shapes' runs at every event, and then once more while they are resumed; how many cuts each had."""
    warm_up(lambda: _in_peace(backend, names))
    return {name: _cut_shape(backend, SHAPES[name], name) for name in names}


def _in_peace(backend: str, names: list[str]) -> None:
    for name in names:
        with room() as folder:
            scene = Scene(Path(folder), backend, SHAPES[name])
            scene.begin()
            scene.resume()


def _cut_shape(backend: str, shape: Shape, name: str) -> int:
    with room() as folder:
        scene = Scene(Path(folder, "before"), backend, shape)
        if shape.again is not None:
            stay(scene.begin)
        ended, events = _undisturbed(scene, first=True)
        cuts = _cut_session(scene, ended, events, f"{name} on {backend}", first=True)
        scene = scene.copy(Path(folder, "cut"))
        assert scene.session(Cut(max(2, events // 2), "after")).died
        resumed, events = _undisturbed(scene, first=False)
        assert resumed == ended, f"{name} on {backend}: resumed after half of its events"
        return cuts + _cut_session(scene, ended, events, f"{name} on {backend}, resumed", first=False)


def _undisturbed(scene: Scene, first: bool) -> tuple[Outcome, int]:
    """How the session ends if nothing happens to it, and the number of its events."""
    seen = len(scene.evidence.events())
    copy = scene.copy(scene.folder.with_name("undisturbed"))
    answer = copy.session(first=first).answer
    copy.check_order()
    outcome, events = copy.evidence.outcome(), len(copy.evidence.events()) - seen
    assert answer == {"run": outcome.run, "tasks": outcome.tasks}
    shutil.rmtree(copy.folder)
    return outcome, events


def _cut_session(scene: Scene, wanted: Outcome, events: int, name: str, first: bool) -> int:
    cuts = [Cut(nth, when) for nth in range(1, events + 1) for when in WHENS]
    for cut in cuts:
        copy = scene.copy(scene.folder.with_name("copy"))
        try:
            assert copy.session(cut, first).died
            copy.go_on()
            assert copy.evidence.outcome() == wanted
        except AssertionError as error:
            error.add_note(f"{name}, {cut}:\n{copy.evidence.log.read_text()}\n{copy.evidence.notes()}")
            raise
        shutil.rmtree(copy.folder)
    return len(cuts)
