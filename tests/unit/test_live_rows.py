"""The rows of the live display: what a line of output says, names that are cut, what is ahead of a run."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from gluepy.cli.progress import message_of
from gluepy.cli.remaining import Remaining
from gluepy.cli.text import fit_middle
from gluepy.clock import rfc3339
from gluepy.core import events as e
from gluepy.core.graph import Each, Leaf, Seq, Spec, Tree
from gluepy.runs.durations import Durations, durations_file
from gluepy.runs.record import Record, write_private


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2026-11-26T02:30:12.369442Z [info     ] reading rows of='a b' rows=3", "reading rows of='a b' rows=3"),
        ("2026-11-26 02:30:12,381 WARNING  lg: std warning 3", "lg: std warning 3"),
        ("[2026-11-26 02:30:12] - ERROR - no rows", "no rows"),
        ("12:30:00 | INFO | done", "done"),
        ('{"rows": 3, "event": "reading rows", "level": "info"}', "reading rows"),
        ('{"message": "two\\nlines"}', "two lines"),
        ('{"rows": 3}', '{"rows": 3}'),
        ("{not json", "{not json"),
        ("Error reading 2026-11-26", "Error reading 2026-11-26"),
        ("02:30:12 row \x1b[31mred", "row \\x1b[31mred"),
        ("epoch 3 of 10", "epoch 3 of 10"),
    ],
)  # fmt: skip
def test_a_row_says_the_message_of_a_log_line(line: str, message: str) -> None:
    assert message_of(line).replace("\\x0a", " ") == message


def test_ids_are_cut_where_they_are_alike() -> None:
    assert fit_middle("train[region=north,fold=3]", 40) == "train[region=north,fold=3]"
    assert fit_middle("train[region=north,fold=3]", 15) == "train[r…fold=3]"
    assert fit_middle("train", 3) == "tr…"


SPECS = (
    Spec(cls="f:Load", label="load"),
    Spec(cls="f:Use", label="use", params=("n",), uses={"one": 1}),
    Spec(cls="f:Use", label="each-use", expands=True),
)
HEAD = ("info", "run", "dag")


class Written:
    """A run that writes its log, as of now."""

    def __init__(self, root: Path, tree: Tree) -> None:
        self.record, self.seq = Record.create(root, "run", {}), 0
        self.now = time.time()
        self.write(e.RunStarted, 1, "2", "host", 1, tree.record(), "digest", "code", {})

    def write(self, kind: type, *facts: object) -> None:
        self.seq += 1
        with self.record.events.open("ab") as log:
            log.write(e.encode(kind(self.seq, 1, rfc3339(self.now), *HEAD, *facts)))

    def start(self, task: str) -> None:
        self.write(e.TaskStarted, task, 1, 1, "x", "thread", "host", 1, 0.0)

    def finish(self, task: str, duration_s: float) -> None:
        self.write(e.TaskFinished, task, 1, "x", "thread", duration_s)


def learned(root: Path, **labels: float) -> None:
    file = durations_file(root, "dag")
    file.parent.mkdir(parents=True)

    known = Durations(1, {}, {label: [seconds] for label, seconds in labels.items()})
    write_private(file, msgspec.json.encode(known).decode())


def test_what_is_left_counts_what_limits_let_run(tmp_path: Path) -> None:
    learned(tmp_path, load=10.0, use=20.0)
    run = Written(tmp_path, Tree(SPECS, Seq((Leaf(0), Each(Leaf(1), ("n",), [[1], [2], [3]])))))
    ahead = Remaining(run.record, "dag", 8, {"one": 1})
    ahead.look(0.0)
    assert ahead.left_s == pytest.approx(70)
    run.start("load")
    run.finish("load", 10.0)
    run.start("use[n=1]")
    ahead.look(0.5)  # too soon
    assert ahead.waiting == {}
    ahead.look(2.0)
    assert ahead.left_s == pytest.approx(60, abs=5)
    assert ahead.usual_s == {"use[n=1]": 20.0}
    assert ahead.waiting == {"one": ["use[n=2]", "use[n=3]"]}
    assert not ahead.at_least


def test_of_what_never_ran_nothing_is_said_until_some_of_it_did(tmp_path: Path) -> None:
    run = Written(tmp_path, Tree(SPECS, Seq((Leaf(0), Each(Leaf(1), ("n",), [[1], [2], [3]])))))
    ahead = Remaining(run.record, "dag", 8, {"one": 1})
    run.start("load")
    run.finish("load", 10.0)
    ahead.look(0.0)
    assert ahead.left_s is None
    run.start("use[n=1]")
    run.finish("use[n=1]", 7.0)
    ahead.look(2.0)
    assert ahead.left_s == pytest.approx(14)


def test_what_an_each_will_find_is_beyond_what_is_known(tmp_path: Path) -> None:
    learned(tmp_path, load=10.0, use=20.0, **{"each-use": 1.0})
    run = Written(tmp_path, Tree(SPECS, Seq((Leaf(0), Each(Leaf(1), ("n",), None, 2)))))
    ahead = Remaining(run.record, "dag", 8, {"one": 1})
    ahead.look(0.0)
    assert ahead.at_least
    assert ahead.left_s == pytest.approx(11)
    run.start("load")
    run.finish("load", 10.0)
    run.start("each-use")
    run.write(e.TaskExpanded, "each-use", 1, [[1], [2]])
    run.finish("each-use", 1.0)
    ahead.look(2.0)
    assert (ahead.at_least, round(ahead.left_s or 0)) in {(False, seconds) for seconds in range(38, 43)}


def test_a_log_that_cannot_be_read_disturbs_no_display(tmp_path: Path) -> None:
    record = Record(tmp_path, "nowhere")
    ahead = Remaining(record, "dag", 8, {})
    ahead.look(0.0)
    assert (ahead.left_s, ahead.usual_s, ahead.waiting) == (None, {}, {})
