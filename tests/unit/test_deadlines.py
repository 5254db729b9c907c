"""`Deadlines`: the earliest first, the others forgotten."""

from __future__ import annotations

import math
import random

from gluepy.exec.timeouts import Deadlines


def test_deadlines_come_due_in_order_and_once() -> None:
    deadlines = Deadlines()
    for node, at in enumerate((3.0, 1.0, 2.0, 9.0)):
        deadlines.add(node, at)
    assert deadlines.next() == 1.0
    deadlines.forget(2)
    assert list(deadlines.due(3.0)) == [1, 0]
    assert list(deadlines.due(3.0)) == []
    assert deadlines.next() == 9.0
    deadlines.forget(3)
    deadlines.forget(3)
    assert deadlines.next() == math.inf


def test_a_later_attempt_of_a_node_has_a_deadline_of_its_own() -> None:
    deadlines = Deadlines()
    deadlines.add(0, 1.0)
    deadlines.forget(0)
    deadlines.add(0, 5.0)
    assert list(deadlines.due(4.0)) == []
    assert list(deadlines.due(5.0)) == [0]


def test_what_has_ended_takes_no_room() -> None:
    deadlines, luck = Deadlines(), random.Random(1)
    running: set[int] = set()
    for node in range(20_000):
        deadlines.add(node, 3600.0 + luck.random())
        running.add(node)
        if len(running) == 8:
            deadlines.forget(running.pop())
        assert len(deadlines) <= 2 * 8 + 17
    for node in running:
        deadlines.forget(node)
    assert len(deadlines) <= 17
