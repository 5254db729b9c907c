"""Text for people: escaped, measured, coloured where that is wanted."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TextIO

from gluepy.errors import NOT_RAISED

# What a terminal obeys or hides instead of showing it: control characters, line separators, bidirectional marks,
# invisible characters (but for the joiners that scripts and emoji need).
_INVISIBLE = (
    "\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff"
)
_UNSAFE = re.compile(f"[\x00-\x1f{_INVISIBLE}]")
_UNSAFE_IN_BLOCKS = re.compile(f"[\x00-\x08\x0b-\x1f{_INVISIBLE}]")
_STYLED = re.compile(f"(\x1b\\[(?:0|1|2|31|32|33)m)|[\x00-\x08\x0b-\x1f{_INVISIBLE}]")  # the first are from `styled`
_OUTPUT = re.compile(
    "(?P<colour>\x1b\\[[0-9;:]*m)"
    "|\x1b\\[[0-?]*[ -/]*[@-~]"  # moves the cursor, erases, asks the terminal something
    "|\x1b[\\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\\\)"  # titles, links, the clipboard
    f"|[\x00-\x08\x0b-\x1f{_INVISIBLE}]"
)
RESET = b"\x1b[0m"
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


def shown_output(text: str, colour: bool) -> str:
    """What tasks printed, for a terminal: with its colours where `colour` says so, and without all else that the
    terminal would obey. A carriage return becomes a newline, so that nothing is hidden behind what follows it."""

    def replaced(found: re.Match[str]) -> str:
        if found["colour"]:
            return found["colour"] if colour else ""
        return _escaped(found) if len(found[0]) == 1 else ""

    return _OUTPUT.sub(replaced, text.replace("\r\n", "\n").replace("\r", "\n"))


def for_terminal(output: bytes, colour: bool) -> bytes:
    """`shown_output` for whole lines of a log file."""
    return shown_output(output.decode("utf-8", "backslashreplace"), colour).encode()


def json_text(value: Any) -> str:
    """`value` as JSON on one line, in which everything that a terminal would obey is written as JSON escapes it."""
    import msgspec  # the help does without it

    return _UNSAFE.sub(_json_escaped, msgspec.json.encode(value).decode())


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


def fit_middle(text: str, width: int) -> str:
    """`text`, cut to `width` columns in its middle: ids that differ do so at their end."""
    if cells(text) <= width or not text.isascii():
        return fit(text, width)
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}" if width > 4 else fit(text, width)


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


def amount(number: float | None) -> str:
    """A number as short as it can be without hiding anything that matters; what was measured and is none, as `–`."""
    if number is None or not math.isfinite(number):
        return "–" if number is None else f"{number:g}"
    return f"{int(number):,}" if number == int(number) and abs(number) < 1e15 else f"{number:,.6g}"


def count(number: int, what: str) -> str:
    """`1 task`, `2 tasks`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def waited_thing(limit: str) -> str:
    """What a task waits for, by the name of the limit, or "" for a slot."""
    return f"limit {printable(limit)}" if limit else "a slot"


def damage(bad_lines: int, gaps: int, doubled: int) -> list[str]:
    """What is wrong with an event log, in words; empty when nothing is."""
    bad = "1 unreadable line" if bad_lines == 1 else f"{bad_lines:,} unreadable lines"
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
    """Write lines to stdout. Of what a terminal obeys only the colours of `styled` pass, and only where wanted."""
    sys.stdout.write(_written(lines, sys.stdout))


def tell(*lines: str) -> None:
    """`say`, to stderr; where that cannot be written any more, to nobody."""
    try:
        sys.stderr.write(_written(lines, sys.stderr))
        sys.stderr.flush()
    except OSError:
        let_go(sys.stderr)


def let_go(stream: TextIO) -> None:
    """Send what still goes to a broken `stream` nowhere: what it has buffered would fail again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _written(lines: Iterable[str], stream: TextIO) -> str:
    text = "".join([f"{line}\n" for line in lines])
    if not wants_colour(stream):
        return _UNSAFE_IN_BLOCKS.sub(_escaped, text)
    return _STYLED.sub(lambda found: found[1] or _escaped(found), text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def log_to_stderr() -> None:
    """Have what logs, tasks and sinks that fail, leave stdout alone, which is not kept from them."""
    import structlog

    if not structlog.is_configured():
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
