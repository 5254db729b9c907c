"""`gluepy startproject` and `gluepy startmodule`."""

from __future__ import annotations

import shlex
from pathlib import Path

from gluepy.cli.invocation import Invocation, NoProject
from gluepy.cli.scaffold import install_module, start_module, start_project
from gluepy.cli.text import say


def make_project(invocation: Invocation, name: str) -> int:
    """Make a project, and say how to run it."""
    start_project(name, invocation.where)
    here = Path(name) if invocation.folder is None else invocation.where / name
    say(f"made {here}; run it with:", f"  cd {shlex.quote(str(here))} && ./run.py dag sample")
    return 0


def make_module(invocation: Invocation, name: str) -> int:
    """Make a module in the project, install it, and say how to run it."""
    project = invocation.project()
    if project is None:
        raise NoProject("startmodule", str(invocation.where.absolute()))
    start_module(name, project)
    say(f"made {project / name}")
    if not install_module(name, project):
        say(f"add {name!r} to INSTALLED_MODULES in the project's settings, then run it with:")
    else:
        say("added it to INSTALLED_MODULES; run it with:")
    say(f"  {invocation.command('run', name)}")
    return 0
