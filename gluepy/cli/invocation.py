"""What every command stands on: the project that was asked for, its settings, and how this program was called."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TextIO

from gluepy.cli import exiting
from gluepy.cli.text import printable, tell
from gluepy.errors import OptionError, SettingsWarning, UsageError

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings
    from gluepy.runs.record import Record


class NoProject(UsageError):
    """Something was asked for that only a project has. `folder` is where it was looked for, `what` was asked."""

    def __init__(self, what: str, folder: str) -> None:
        super().__init__(what, folder)
        self.what, self.folder = what, folder

    def __str__(self) -> str:
        return (
            f"{self.what}: there is no project in {self.folder} or above it; go to one, name one with --project DIR, "
            "or make one with `gluepy startproject NAME`"
        )


_FINDS = ("GLUEPY_SETTINGS_MODULE", "GLUEPY_INSTALLED_MODULES", "GLUEPY_RUNS_ROOT", "GLUEPY_STORAGE_ROOT")
_variables_before: dict[str, str | None] = {}


def set_variable(name: str, text: str) -> None:
    """Set a variable of the environment, for this process and those that it starts, until `put_variables_back`."""
    _variables_before.setdefault(name, os.environ.get(name))
    os.environ[name] = text


def put_variables_back() -> None:
    """Have the environment be as `set_variable` found it."""
    while _variables_before:
        name, text = _variables_before.popitem()
        if text is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = text


class Invocation:
    """One call of the command line. `folder` is what --project named, `module` what --settings did, `program` the words
    that call gluepy again."""

    def __init__(self, folder: str | None, module: str | None, program: tuple[str, ...]) -> None:
        self.folder, self.module, self.program = folder, module, program
        self._settings: Settings | None = None
        self._given = {name: os.environ[name] for name in _FINDS if os.environ.get(name)}
        if module is not None:
            from gluepy.conf.project import SETTINGS_VARIABLE

            self._given.pop(SETTINGS_VARIABLE, None)
            set_variable(SETTINGS_VARIABLE, module)

    @property
    def where(self) -> Path:
        """The folder from which the project is looked for, upwards."""
        if self.folder is not None:
            return Path(self.folder)
        try:
            return Path.cwd()
        except FileNotFoundError:
            hint = "go to another one, or name a project with --project DIR"
            raise OptionError("the current folder", "it does not exist any more", hint) from None

    def project(self) -> Path | None:
        """The project's folder, None without one. Raises `UsageError` where --project names no project."""
        from gluepy.conf.project import find_project

        if not self.where.is_dir():
            raise OptionError("--project", f"there is no folder {str(self.where)!r}")
        found = find_project(self.where)
        if found is None and self.folder is not None:
            raise NoProject(f"--project {shlex.quote(self.folder)}", str(self.where.absolute()))
        return found

    def settings(self, options: Mapping[str, object] | None = None, *, quiet: bool = False) -> Settings:
        """The settings, with `options` over them, by the settings' names. What they warn of is told, unless `quiet`."""
        _tell_warnings(quiet)
        if self._settings is None or options:
            from gluepy.conf import use_project
            from gluepy.conf.sources import load_settings, variables_of

            project = self.project()
            use_project(project)
            if project is not None:
                for name, text in variables_of(
                    project
                ).items():  # for the settings module, for tasks and what they start
                    if name not in os.environ:
                        set_variable(name, text)
            if project is None and (here := str(Path.cwd())) not in sys.path:
                sys.path.append(here)  # `--executor mine.Executor` is meant; what is installed still goes first
            self._settings = load_settings(project, {**(options or {}), "SETTINGS_MODULE": self.module})
        return self._settings

    def check_label(self, label: str, settings: Settings) -> None:
        """Raise `NoProject` where only a project could have the DAG `label`, and there is none."""
        if settings.project is None and not settings.INSTALLED_MODULES and ":" not in label and ".py" not in label:
            raise NoProject(f"no DAG labelled {label!r}", str(self.where.absolute()))

    def command(self, *words: str) -> str:
        """The command line that calls gluepy with `words` for the same project and its runs, quoted for a shell."""
        folder = () if self.folder is None or _adds_project(self.program) else ("--project", self.folder)
        module = () if self.module is None else ("--settings", self.module)
        variables = [f"{name}={shlex.quote(text)}" for name, text in self._given.items() if "@" not in text]  # a login
        return " ".join([*variables, shlex.join((*self.program, *folder, *module, *words))])

    def resume_command(self, record: Record, *more: str) -> str:
        """The command line that goes on with the run of `record`, with `more` options and what it has to be given
        again."""
        from gluepy.conf.parameters import asked_again

        params = (word for name in asked_again(record.inputs) for word in ("--param", f"{name}=..."))
        return self.command("resume", record.run_id, *more, *params)


def _tell_warnings(quiet: bool) -> None:
    """Have what settings warn of shown as one line, without a line of source, also where warnings are errors."""
    warnings.simplefilter("default", SettingsWarning)
    show_others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, SettingsWarning):
            show_others(message, category, filename, lineno, file, line)
        elif not quiet:
            tell(f"warning: {printable(str(message))}")

    warnings.showwarning = show


def program_words(script: str) -> tuple[str, ...]:
    """The words by which a shell calls the program that runs as `script` (the first of `sys.argv`)."""
    path = Path(script)
    python = Path(sys.executable).name
    python = python if shutil.which(python) == sys.executable else sys.executable
    if path.name == "__main__.py":
        return python, "-m", "gluepy"
    if path.suffix == ".py":
        has_folder = path.parent != Path() or script.startswith("./")
        return (script,) if has_folder and shutil.which(script) else (python, script)
    return (path.name,) if shutil.which(path.name) == script or not path.name else (script,)


def _adds_project(program: tuple[str, ...]) -> bool:
    # A project's own run.py says --project itself.
    return program[-1].endswith(".py")


@contextmanager
def own_stdout() -> Iterator[IO[bytes]]:
    """Keep stdout to oneself: while the block runs, what anybody else writes there goes to stderr; also afterwards, if
    tasks are still at work and the process is about to end.

    Down to the file descriptor, so that it holds for subprocesses and extension modules too.
    """
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    # A stream of its own: what captures or logs must be able to tell it from stderr.
    strays = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    stdout, sys.stdout = sys.stdout, strays
    try:
        with os.fdopen(own, "wb", buffering=0, closefd=False) as file:
            yield file
    finally:
        give_back = not exiting.process_ends or not exiting.others_at_work()  # else they would write behind the results
        if give_back:
            sys.stdout = stdout
        for stream in (strays, stdout):  # somebody may hold the original one
            with suppress(OSError, ValueError):
                stream.flush()
        if give_back:
            os.dup2(own, 1)
        os.close(own)


@contextmanager
def no_stdin() -> Iterator[None]:
    """While the block runs, what reads from the descriptor of stdin, such as a program that a task starts, is at its
    end: nobody would see that it waits."""
    own = os.dup(0)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(own, 0)
        os.close(own)
