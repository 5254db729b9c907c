"""Attempts by files of a folder that driver and workers share: for batch systems, which bring nothing back.

Each attempt has a folder of its own there:

    order       what the driver's `Call.text` says
    reports     what the worker tells, one report a line
    cancel      the driver wants the attempt stopped

and beside these folders `alive`, which a living driver touches again and again.

`python -m gluepy.exec.executors.shared_folder FOLDER` runs the attempt of `FOLDER` on the worker.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from gluepy.exec.executors.remote import Agent, Lease
from gluepy.loop import run_loop

ALIVE = "alive"
_LOOK_S = 0.5  # between two looks for what the driver wants


class AttemptFolder:
    """The driver's side of one attempt's folder. All methods do IO, and raise `OSError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0  # bytes of the reports that were taken

    def place(self, order: str) -> None:
        """Make it, with the order in it."""
        self.path.mkdir()
        (self.path / "order").write_text(order, encoding="utf-8")

    def cancel(self) -> None:
        """Ask the worker to stop the attempt."""
        with suppress(FileNotFoundError):
            (self.path / "cancel").touch()

    def new_reports(self) -> list[str]:
        """The whole lines of `reports` that were not returned before.

        The file is opened each time: on a network file system that is when another machine's writes become visible.
        """
        try:
            with (self.path / "reports").open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [line.decode() for line in whole.splitlines()]

    def remove(self) -> None:
        """Remove it; what the worker still has open does not matter."""
        for name in ("order", "reports", "cancel", "output"):
            with suppress(OSError):
                (self.path / name).unlink()
        with suppress(OSError):
            self.path.rmdir()


def touch(alive: Path) -> None:
    """Tell the workers that the driver is there. What passes through the folder is for nobody but the user."""
    alive.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    alive.touch()


def main() -> None:
    """Run the attempt of the folder that the command line names."""
    folder, worker = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    text, lease = (folder / "order").read_text(encoding="utf-8"), Lease()
    signal.signal(signal.SIGTERM, lambda *_: lease.cancel("the batch system ended its job"))
    threading.Thread(target=_watch_driver, args=(folder, lease), daemon=True).start()
    with (folder / "reports").open("a", encoding="utf-8") as reports:

        def tell(report: str) -> None:
            reports.write(f"{report}\n")
            reports.flush()

        async def run() -> None:
            async with Agent(worker) as agent:
                await agent.run(text, tell, lease)

        run_loop(run)


def _watch_driver(folder: Path, lease: Lease) -> None:
    """Renew the lease while the driver touches its file, and cancel it when the driver asks for that or has removed the
    folder."""
    alive, seen = folder.parent / ALIVE, 0.0
    while True:
        with suppress(OSError):
            touched = os.stat(alive).st_mtime
            if touched != seen:
                seen = touched
                lease.renew()
        if (folder / "cancel").exists() or not folder.exists():
            lease.cancel()
            return
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
