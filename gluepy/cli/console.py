"""From arguments to an exit code: every error becomes what a person needs to read, and nothing more."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from gluepy.cli.app import app
from gluepy.cli.group import BROKEN_PIPE, command_line
from gluepy.cli.invocation import put_variables_back
from gluepy.cli.text import let_go, printable_block, tell, wants_colour
from gluepy.conf import use_project, used_project
from gluepy.errors import GluepyError, OptionError, RunError, TaskError, UsageError, did_you_mean

_BUG = 70  # EX_SOFTWARE of sysexits.h
_BadUsage: Any = typer.BadParameter.__base__  # typer brings click, or parts of it, by version
_ClickError: Any = _BadUsage.__base__
_OPTIONS = {  # the options of a run by their names in Python
    "concurrency": "--concurrency",
    "dag": "LABEL",
    "executor": "--executor",
    "params": "--params",
    "pool": "--pool",
    "sinks": "--sink",
    "run_id": "--run-id",
    "timeout_s": "--timeout",
    "from_task and to_task": "--from-task and --to-task",
}


def exit_code(argv: Sequence[str] | None) -> int:
    """Run the command line, and return the code to exit with. What it changes in this process it puts back."""
    project = used_project()
    try:
        with warnings.catch_warnings():
            return _exit_code(argv)
    finally:
        use_project(project)
        put_variables_back()


def _exit_code(argv: Sequence[str] | None) -> int:
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an old encoding must not turn a result into a traceback
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        let_go(sys.stdout)
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
            return _say_error(error, 2)
        let_go(sys.stdout)
        return _say_error(f"cannot write the output: {error.strerror}", 3)
    except Exception:
        import traceback

        tell(printable_block(traceback.format_exc().rstrip()))
        return _say_error("this is a mistake in gluepy itself; please report it with the lines above", _BUG)
    return code


def _open_closed_streams() -> None:
    """Have standard streams that the caller has closed (`>&-`) lead nowhere: what is opened next would take their
    place, and be written into by whatever prints."""
    names = ("stdin", "stdout", "stderr")
    for number, name in enumerate(names):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free is this one
    for name in names:
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


def _run(argv: Sequence[str] | None) -> int:
    command = command_line(app)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = command.main(args=arguments, prog_name=_program(), standalone_mode=False)
    except _BadUsage as error:
        return _say_error(_usage(error), 2)
    except _ClickError as error:
        return _say_error(error.format_message(), 2)
    except typer.Abort:
        return 130
    except OptionError as error:
        return _say_error(OptionError(_OPTIONS.get(error.option, error.option), error.problem, error.hint), 2)
    except UsageError as error:
        return _say_error(error, 2)
    except RunError as error:  # of a command of the project's
        from gluepy.cli.story import failure_text
        from gluepy.report.failures import Failure

        failures = [Failure.from_error(each) for each in error.exceptions if isinstance(each, TaskError)]
        tell(*failure_text(failures, wants_colour(sys.stderr)))
        return _say_error(error.message, 1)
    except GluepyError as error:
        return _say_error(error, 3)
    return code if isinstance(code, int) else 0


def _say_error(text: object, code: int) -> int:
    tell(f"error: {printable_block(str(text)).strip()}")
    return code


def _usage(error: Any) -> str:
    """One line for what typer found wrong with the command line, with the nearest known option."""
    context = error.ctx
    where = f"see `{context.command_path} --help`" if context is not None else ""
    option = getattr(error, "option_name", None)
    if hasattr(error, "possibilities") and option is not None:
        known = _options_of(context.command) if context is not None else []
        hint = did_you_mean(option, known)
        if not hint and context is not None and option in _options_of(context.find_root().command):
            hint = "; it goes before the command"
        return f"there is no option {option!r}{hint or f'; {where}'}"
    text = " ".join(error.format_message().split()).rstrip(".")
    return f"{text[:1].lower()}{text[1:]}" + (f"; {where}" if where else "")


def _options_of(command: Any) -> list[str]:
    return [name for parameter in command.params for name in parameter.opts if name.startswith("-")]


def _program() -> str:
    name = os.path.basename(sys.argv[0])
    if name == "__main__.py":
        return "gluepy"
    return f"./{name}" if name.endswith(".py") else name
