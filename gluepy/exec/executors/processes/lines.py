"""What a worker and everything below it print, line by line."""

from __future__ import annotations

from collections.abc import Callable

OnLine = Callable[[str, str], None]

LINE_CAP = 64 * 1024  # bytes of a line that are passed on


class Lines:
    """Cuts one stream's bytes into lines, for `on_line`; None drops them."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.on_line: OnLine | None = None
        self.kept, self.cut = bytearray(), 0

    def feed(self, data: bytes) -> None:
        """Take what was read next."""
        if self.on_line is None:
            return
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._add(part)
            self._pass_on(self.on_line)
        self._add(rest)

    def end(self) -> None:
        """Hand on a line that lacks its newline. What comes from now on is dropped."""
        on_line, self.on_line = self.on_line, None
        if self.kept and on_line is not None:
            self._pass_on(on_line)

    def _add(self, part: bytes) -> None:
        room = LINE_CAP - len(self.kept)
        self.kept += part[:room]
        self.cut += max(0, len(part) - room)

    def _pass_on(self, on_line: OnLine) -> None:
        line = self.kept.decode("utf-8", "replace")
        if self.cut:
            line += f" … (cut: {self.cut:,} more bytes)"
        self.kept, self.cut = bytearray(), 0
        on_line(self.stream, line)
