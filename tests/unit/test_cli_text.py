"""Text for people: nothing of what others wrote is obeyed by a terminal."""

from __future__ import annotations

import io
import re
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gluepy.cli.text import for_terminal, json_text, printable, printable_block, say, shown_output, styled, tell

OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
ATTACKS = st.text() | st.lists(
    st.sampled_from([*"\x1b[]m;?20HJ\x07\\P_^\r\n\t\x9b\x9d\u202e", "\x1b[2K", "\x1b]0;", "\x1b[31m", "\x1b\\", "word"])
).map("".join)


@given(ATTACKS)
def test_no_text_moves_the_cursor(text: str) -> None:
    assert not OBEYED.search(printable(text))
    assert not OBEYED.search(printable_block(text).replace("\t", ""))


@pytest.mark.parametrize("text", ["plain", "größe", "日本語", "🎉", "👩‍🔬", "می‌خواهم"])
def test_words_of_any_language_stay_as_they_are(text: str) -> None:
    assert printable(text) == printable_block(text) == shown_output(text, True) == text


@given(ATTACKS)
def test_output_of_tasks_keeps_its_colours_and_nothing_else(text: str) -> None:
    shown = shown_output(text, True)
    assert not OBEYED.search(re.sub("\x1b\\[[0-9;:]*m|\t", "", shown))
    assert "\x1b" not in shown_output(text, False)


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"),
        ("\x1b]0;a title\x07after", "after"),
        ("\x1b]8;;https://evil.example\x1b\\text\x1b]8;;\x1b\\", "text"),
        ("\x1b]52;c;cm0gLXJmIC8=\x07", ""),
        ("\x1b[2J\x1b[1;1Hover", "over"),
        ("\x1b\x1b[2J]0;pieced together\x07", "\\x1b]0;pieced together\\x07"),
        ("10 %\r20 %\r\n", "10 %\n20 %\n"),
        ("a\tb\x07\x00", "a\tb\\x07\\x00"),
    ],
)
def test_titles_links_and_the_clipboard_are_out_of_reach(output: str, shown: str) -> None:
    assert shown_output(output, True) == shown


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert for_terminal(b"caf\xe9 \x9b2J\n", True) == b"caf\\xe9 \\x9b2J\n"


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_says_the_same_in_characters_that_no_terminal_obeys(value: object) -> None:
    text = json_text(value)
    assert not OBEYED.search(text)
    assert msgspec.json.decode(text) == value


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("out", [io.StringIO, _Tty])
def test_what_is_said_is_guarded_once_more(out: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    line = f"{styled('fine', 'red', out is _Tty)} \x1b]0;title\x07 \x9b2J \x1b[5m two\nlines"
    for name, write in (("stdout", say), ("stderr", tell)):
        stream = out()
        monkeypatch.setattr(sys, name, stream)
        write(line)
        fine = "\x1b[31mfine\x1b[0m" if out is _Tty else "fine"
        assert stream.getvalue() == f"{fine} \\x1b]0;title\\x07 \\x9b2J \\x1b[5m two\nlines\n"
