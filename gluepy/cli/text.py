"""Text for people: escaped, measured, coloured where that is wanted."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TextIO

from gluepy.errors import NOT_RAISED

# What could move the cursor or turn the reading direction: control characters, line separators, bidirectional marks.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_IN_BLOCKS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SGR = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}
STYLE_OF = {
    "finished": "green",
    "failed": "red",
    "retrying": "yellow",
    "cancelled": "yellow",
    "interrupted": "yellow",
    "blocked": "yellow",
    "skipped": "dim",
    "started": "dim",
    "pending": "dim",
}


def printable(text: str) -> str:
    """`text` on one line, with everything that a terminal would obey instead of show written as an escape."""
    return text if text.isprintable() else _UNSAFE.sub(_escaped, text.replace("\t", " "))


def printable_block(text: str) -> str:
    """`printable` for text of many lines: newlines and tabs stay."""
    return _UNSAFE_IN_BLOCKS.sub(_escaped, text.replace("\r\n", "\n"))


def first_line(text: str) -> str:
    """The first line of `text` that is not empty, printable, with an ellipsis where more follows."""
    lines = [line for line in text.splitlines() if line.strip()]
    return printable(lines[0].strip()) + (" …" if len(lines) > 1 else "") if lines else ""


def error_line(kind: str, message: str, reason: str) -> str:
    """An error on one line: `ValueError: bad price`. What no code raised needs no name: `killed by SIGKILL`."""
    line = first_line(message)
    if line and (not kind or reason in NOT_RAISED):
        return line
    return f"{printable(kind)}: {line}" if line else printable(kind) or reason


def cells(text: str) -> int:
    """How many columns `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # tables of Unicode, for those who need them

    return cell_len(text)


def fit(text: str, width: int) -> str:
    """`text`, cut to `width` columns, with an ellipsis where it was cut."""
    if cells(text) <= width:
        return text
    if width < 1:
        return ""
    if text.isascii():
        return text[: width - 1] + "…"
    from rich.cells import set_cell_size

    return set_cell_size(text, width - 1).rstrip(" ") + "…"


def padded(text: str, width: int) -> str:
    """`text` with spaces after it, up to `width` columns."""
    return text + " " * (width - cells(text))


def table(rows: Iterable[Sequence[str]], indent: str = "") -> list[str]:
    """Lines with the cells of `rows` in columns. The last column is as wide as it likes."""
    listed = list(rows)
    widths: list[int] = []
    for row in listed:
        for column, cell in enumerate(row[:-1]):
            if column == len(widths):
                widths.append(0)
            widths[column] = max(widths[column], cells(cell))
    return [
        indent + "  ".join([*(padded(cell, widths[n]) for n, cell in enumerate(row[:-1])), row[-1]]).rstrip()
        for row in listed
    ]


def moment(timestamp: str) -> str:
    """A timestamp in local time; what is none (in a damaged log) as it stands."""
    try:
        return f"{datetime.fromisoformat(timestamp).astimezone():%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return printable(timestamp)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `20 ms`, `1.25 s`, `12.3 s`, `2 min 05 s`, `1 h 02 min`."""
    if not seconds < 1e15:
        return "?"  # a damaged log can hold any number
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0005 or seconds <= 0 else "<1 ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def amount(number: float) -> str:
    """A number as short as it can be without hiding anything that matters."""
    return f"{int(number):,}" if number == int(number) and abs(number) < 1e15 else f"{number:,.6g}"


def count(number: int, what: str) -> str:
    """`1 task`, `2 tasks`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def damage(bad_lines: int, gaps: int, doubled: int) -> list[str]:
    """What is wrong with an event log, in words; empty when nothing is."""
    bad = "1 line that is no event" if bad_lines == 1 else f"{bad_lines:,} lines that are no events"
    twice = f"{count(doubled, 'event')} with a number that was there before"
    found = ((bad_lines, bad), (gaps, count(gaps, "missing event")), (doubled, twice))
    return [words for number, words in found if number]


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour what goes to `stream`: on a terminal that can, unless NO_COLOR; always with FORCE_COLOR."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "") not in ("", "0"):
        return True
    return is_terminal(stream)


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def styled(text: str, style: str, colour: bool) -> str:
    """`text` in a colour, or as it is."""
    return f"\x1b[{_SGR[style]}m{text}\x1b[0m" if colour and style in _SGR and text else text


def say(*lines: str) -> None:
    """Write lines to stdout."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def tell(*lines: str) -> None:
    """Write lines to stderr; where nobody reads it any more, to nobody."""
    try:
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()
    except BrokenPipeError:
        let_go(sys.stderr)


def let_go(stream: TextIO) -> None:
    """Send what still goes to a broken `stream` nowhere: what it has buffered would fail again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
