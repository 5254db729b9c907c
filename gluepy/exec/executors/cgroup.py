"""Evidence of the out-of-memory killer: how many processes of this control group it has killed."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
LATELY_S = 0.02


class OomKills:
    """The kernel's count, kept open between `open` and `close`. `root` is where control groups are mounted,
    `membership` the file that says which of them this process is in."""

    def __init__(self, root: Path = ROOT, membership: Path = MEMBERSHIP) -> None:
        self._root, self._membership = root, membership
        self._fd = -1
        self._counted, self._counted_at = 0, -math.inf

    def open(self) -> None:
        """Look for the file that has the count."""
        for file in files(self._root, self._membership):
            with suppress(OSError):
                self._fd = os.open(file, os.O_RDONLY)
                return

    def count(self) -> int:
        """How many processes were killed so far; 0 where that cannot be told."""
        counted = 0
        if self._fd >= 0:
            with suppress(OSError, ValueError, IndexError):
                words = os.pread(self._fd, 1024, 0).split()
                counted = int(words[words.index(b"oom_kill") + 1])
        self._counted, self._counted_at = counted, time.monotonic()
        return counted

    def lately(self) -> int:
        """What `count` said or would have said at most `LATELY_S` ago."""
        return self._counted if time.monotonic() - self._counted_at < LATELY_S else self.count()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def files(root: Path, membership: Path) -> list[Path]:
    """Where the count may be, the likeliest first: version 1 and 2, and the root of either as a container sees it."""
    found = []
    with suppress(OSError, ValueError), membership.open() as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            group = path.lstrip("/")
            if not controllers:
                found += [root / group / "memory.events.local", root / group / "memory.events"]
            elif "memory" in controllers.split(","):
                found.insert(0, root / "memory" / group / "memory.oom_control")
    return [*found, root / "memory.events", root / "memory" / "memory.oom_control"]
