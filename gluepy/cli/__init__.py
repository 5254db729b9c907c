"""The command line: `gluepy`, `python -m gluepy`, and `main` for a project's own run.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line with the arguments `argv` (default: those of this process) and exit with its code.

    0 success; 1 the run failed; 2 usage or configuration; 3 the run could not go on; 130 SIGINT; 143 SIGTERM.
    """
    from gluepy.conf.project import put_standard_library_first

    if argv is None:  # it is this process's own command line
        put_standard_library_first()
    from gluepy.cli import exiting
    from gluepy.cli.console import exit_code  # typer takes its time, and scripts import this for `main` alone

    exiting.process_ends = True
    exiting.leave(exit_code(argv))
