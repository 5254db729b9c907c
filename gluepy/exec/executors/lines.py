"""Text that comes in pieces, cut into lines as a terminal would show them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

LINE_LENGTH = 65_536  # characters of a line; a longer one loses its middle, and says so
PARTIAL_S = 0.25  # between two looks at a line that is still being drawn
_HALF = LINE_LENGTH // 2
_ROWS = 24  # of progress bars below each other
_TOKEN = re.compile(r"\r*\n|\r|\x1b\[(\d*)A|[^\r\n\x1b]+|\x1b")


class Lines:
    """Passes whole lines on to `on_line`, without their newlines; None drops them.

    A carriage return begins the line anew, and a cursor that goes up comes back to an earlier one, as progress bars
    draw: what counts is how such a line looked last. How it looks until then goes to `on_partial`, a few times a
    second. Where bars have been drawn, lines are held until something else is printed, `release` or `end`. `redact`
    masks what would no longer be recognized behind a cut. `on_fed` is called when the lines of one call have been
    passed on.
    """

    def __init__(
        self,
        on_line: Callable[[str], None] | None = None,
        on_partial: Callable[[str], None] | None = None,
        redact: Callable[[str], str] | None = None,
        on_fed: Callable[[], None] | None = None,
    ) -> None:
        self.on_line, self.on_partial, self.redact, self.on_fed = on_line, on_partial, redact, on_fed
        self._row = _Row()
        self._rows: list[_Row] = []  # while bars are drawn: all rows that may still change, `_row` among them
        self._above = 0  # rows that the cursor is above all that was drawn here: bars of others are there, or were
        self._shown = 0.0

    def feed(self, text: str) -> None:
        """Take what was printed next."""
        if self.on_line is None:
            return
        if self._rows or "\r" in text or self._row.is_restarted:
            self._draw(text)
        else:
            on_line, row = self.on_line, self._row
            *whole, rest = text.split("\n")
            for piece in whole:
                if row.length or len(piece) > LINE_LENGTH:
                    row.add(piece)
                    piece = row.take(self.redact)
                on_line(piece)
            if rest:
                row.add(rest)
        if self.on_fed is not None:
            self.on_fed()

    @property
    def length(self) -> int:
        """How long the line is that is being printed."""
        return self._row.length

    def release(self) -> None:
        """Pass on what can only change if the cursor goes up again: something else is to be printed."""
        if len(self._rows) > 1 and self._row is self._rows[-1] and not self._row.length:
            self._settle()
            if self.on_fed is not None:
                self.on_fed()

    def end(self) -> None:
        """A line that lacks its newline is a line too. What comes from now on is dropped."""
        if self.on_line is not None:
            last = self._rows[-1] if self._rows else self._row
            self._settle()
            if last.length:
                self._pass_on(last)
            if self.on_fed is not None:
                self.on_fed()
        self.on_line = self.on_partial = self.on_fed = None
        self._row = _Row()

    def _settle(self) -> None:
        """Pass on all rows but the last."""
        rows, self._rows, self._above = self._rows, [], 0
        for row in rows[:-1]:
            if not row.is_blank():  # wiped, or never drawn
                self._pass_on(row)
        if rows:
            self._row = rows[-1]

    def _pass_on(self, row: _Row) -> None:
        if self.on_line is not None and not (row.is_bar and row.is_blank()):  # a bar that was wiped away
            self.on_line(row.take(self.redact))

    def _draw(self, text: str) -> None:
        for token in _TOKEN.finditer(text):
            piece, row = token[0], self._row
            if piece[-1] == "\n":
                self._newline()
            elif piece == "\r":
                row.is_restarted = True
            elif token[1] is not None:
                if self._rows:
                    self._up(int(token[1] or 1))
            else:
                if self._rows and not row.is_restarted and not row.length and row is self._rows[-1]:
                    self._settle()  # not a bar below others
                    row = self._row
                elif row.is_restarted:
                    self._above = 0
                    row.restart()
                    self._rows = self._rows or [row]
                row.add(piece)
        if self._rows and self._row.is_bar and self.on_partial is not None:
            now = time.monotonic()
            if now - self._shown >= PARTIAL_S and not self._row.is_blank():
                self._shown = now
                self.on_partial(self._row.text(self.redact))

    def _newline(self) -> None:
        row, rows = self._row, self._rows
        if self._above:
            self._above -= 1
            row.is_restarted = True
        elif not rows:
            self._row = _Row()
            self._pass_on(row)
        elif row is rows[-1] and not any(each.is_bar for each in rows):
            self._settle()
            self._row = _Row()
            self._pass_on(row)
        elif row is rows[-1]:
            self._row = _Row()
            rows.append(self._row)
            if len(rows) > _ROWS:
                self._pass_on(rows.pop(0))
        else:
            self._row = row = rows[rows.index(row) + 1]
            if row.is_blank():
                row.take()
            else:
                row.is_restarted = True

    def _up(self, by: int) -> None:
        at = self._rows.index(self._row) - self._above - by
        self._above = max(0, -at)
        self._row = self._rows[max(0, at)]


class _Row:
    """One line on its way: its beginning, and its end where it is too long to be kept whole."""

    __slots__ = ("_head", "_kept", "_tail", "_tailed", "is_bar", "is_restarted", "length")

    def __init__(self) -> None:
        self.is_bar = self.is_restarted = False
        self._clear()

    def _clear(self) -> None:
        self._head: list[str] = []
        self._tail: list[str] = []
        self.length = self._kept = self._tailed = 0

    def restart(self) -> None:
        """What is added next replaces what is there."""
        self.is_bar = not self.length or not self.is_blank()  # one that was wiped is none any more
        self.is_restarted = False
        self._clear()

    def add(self, piece: str) -> None:
        self.length += len(piece)
        room = LINE_LENGTH - self._kept
        if room > 0:
            self._head.append(piece[:room])
            self._kept += min(len(piece), room)
            piece = piece[room:]
        if piece:
            self._tail.append(piece[-LINE_LENGTH:])
            self._tailed += len(self._tail[-1])
            if self._tailed > 2 * LINE_LENGTH:
                self._tail = ["".join(self._tail)[-LINE_LENGTH:]]
                self._tailed = LINE_LENGTH

    def text(self, redact: Callable[[str], str] | None = None) -> str:
        head = "".join(self._head)
        if self.length <= LINE_LENGTH:
            return head
        tail = "".join((head[_HALF:], *self._tail))
        if redact is not None:
            head, tail = redact(head), redact(tail)
        return f"{head[:_HALF]} … ({self.length - 2 * _HALF:,} characters left out) … {tail[-_HALF:]}"

    def take(self, redact: Callable[[str], str] | None = None) -> str:
        """The text; the row is as new then."""
        text = self.text(redact)
        self.is_bar = self.is_restarted = False
        self._clear()
        return text

    def is_blank(self) -> bool:
        return not self._tail and not any(part.strip() for part in self._head)
