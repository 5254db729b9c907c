"""Text that comes in pieces becomes the lines that a terminal would show at last."""

from __future__ import annotations

import random

import pytest

from gluepy.exec.executors.lines import LINE_LENGTH, Lines

UP = "\x1b[A"


def lines_of(*pieces: str) -> list[str]:
    lines: list[str] = []
    made = Lines(lines.append)
    for piece in pieces:
        made.feed(piece)
    made.end()
    return lines


def test_lines_are_cut_at_newlines_however_they_come() -> None:
    text = "one\n\ntwo\r\nthree and more\nwithout a newline"
    generator = random.Random(1)
    for _ in range(200):
        cuts = sorted(generator.choices(range(len(text)), k=generator.randrange(6)))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert lines_of(*pieces) == ["one", "", "two", "three and more", "without a newline"], pieces


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["\r1%", "\r2%", "\r100%", "\n"], ["100%"]),
        (["1%\r", "2%\r", "100%\r", "\n"], ["100%"]),
        (["\r1%\r2%\r100%\nafter\n"], ["100%", "after"]),
        (["\r1%", "\r100%"], ["100%"]),
        (["\r1%", "\r100%", "\r    \r"], []),
        (["\r1%", "\r    \r", "next\n"], ["next"]),
        (["before\n\r1%\r2%\n\nafter\n"], ["before", "2%", "after"]),
        (["text\r\n", "more\r\r\n"], ["text", "more"]),
        (["\x1b[32mgreen\x1b[0m\n"], ["\x1b[32mgreen\x1b[0m"]),
        (["\r\x1b[32m1%\x1b[0m", "\r\x1b[32m2%\x1b[0m", "\n"], ["\x1b[32m2%\x1b[0m"]),
    ],
)
def test_carriage_return_begins_the_line_anew(pieces: list[str], expected: list[str]) -> None:
    assert lines_of(*pieces) == expected
    assert lines_of(*"".join(pieces)) == expected


def nested(leave: bool) -> list[str]:
    """Two bars below each other, as tqdm writes them."""
    pieces = ["\router 0%"]
    for outer in (1, 2):
        for inner in range(5):
            pieces += ["\n", f"\rinner {inner}", UP]
        pieces += [f"\rinner {outer} ended", "\n"] if leave else ["\n", "\r       ", "\r", UP]
        pieces += [f"\router {outer}"]
    return [*pieces, "\n", "after\n"]


def test_bars_below_each_other_are_a_line_each() -> None:
    assert lines_of(*nested(leave=False)) == ["outer 2", "after"]
    assert lines_of(*nested(leave=True)) == ["inner 1 ended", "inner 2 ended", "outer 2", "after"]


def test_bar_that_begins_below_others_that_somebody_else_draws_is_one_line() -> None:
    pieces = [piece for number in range(50) for piece in ("\n", f"\r{number}%", UP)]
    assert [line for line in lines_of(*pieces, "\n") if line] == ["49%"]


def test_bars_are_passed_on_as_soon_as_something_else_is_printed() -> None:
    lines: list[str] = []
    made = Lines(lines.append)
    made.feed("\r1%\r100%\n")
    made.release()
    assert lines == ["100%"]
    made.feed("\r1%")
    made.release()
    assert lines == ["100%"]


def test_line_that_is_drawn_is_shown_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    lines: list[str] = []
    shown: list[str] = []
    made = Lines(lines.append, shown.append)
    for number in range(1001):
        made.feed(f"\r{number}")
        now[0] += 0.01
    made.feed("\nand a piece")
    made.end()
    assert lines == ["1000", "and a piece"]
    assert shown[0] == "0"
    assert 30 <= len(shown) <= 45


@pytest.mark.parametrize("size", [1, 7, 1000, LINE_LENGTH, 10 * LINE_LENGTH])
def test_long_line_keeps_its_beginning_and_its_end(size: int) -> None:
    length = 2 * LINE_LENGTH if size < 1000 else 10 * LINE_LENGTH
    text = "begin" + "x" * (length - 8) + "end"
    half = LINE_LENGTH // 2
    (line,) = lines_of(*(text[start : start + size] for start in range(0, length, size)))
    assert line == f"{text[:half]} … ({length - LINE_LENGTH:,} characters left out) … {text[-half:]}"


def test_line_as_long_as_may_be_is_whole() -> None:
    text = "x" * LINE_LENGTH
    assert lines_of(f"{text}\n", text) == [text, text]
