"""The root of the command line: gluepy's own commands, those of the project's modules, those of installed packages."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command_name

from gluepy.cli.invocation import Invocation
from gluepy.cli.text import let_go, printable_block, tell
from gluepy.conf.plugins import COMMANDS, entry_points, load
from gluepy.errors import GluepyError, RunError, UsageError, did_you_mean

BROKEN_PIPE = 141  # as a shell tells of a program that SIGPIPE ended
_ClickError: Any = typer.BadParameter.__mro__[2]  # typer brings click, or parts of it, by version


class UnknownCommand(UsageError):
    """There is no such command."""

    def __init__(self, command: str, known: tuple[str, ...]) -> None:
        super().__init__(command, known)
        self.command, self.known = command, known

    def __str__(self) -> str:
        hint = did_you_mean(self.command, self.known) or "; `gluepy --help` lists them"
        return f"there is no command {self.command!r}{hint}"


class CommandClash(UsageError):
    """A project's command has a name that is taken. `module` defines it, `taken_by` says who has it."""

    def __init__(self, command: str, module: str, taken_by: str) -> None:
        super().__init__(command, module, taken_by)
        self.command, self.module, self.taken_by = command, module, taken_by

    def __str__(self) -> str:
        return f"{self.module}: the command {self.command!r} is {self.taken_by} already; give it another name"


class NoCommands(UsageError):
    """A project's module of commands does not say which are meant."""

    def __init__(self, module: str, problem: str, hint: str) -> None:
        super().__init__(module, problem, hint)
        self.module, self.problem, self.hint = module, problem, hint

    def __str__(self) -> str:
        return f"{self.module}: {self.problem}; {self.hint}"


def command_line(app: typer.Typer) -> CommandLine:
    """`app`, a `CommandLine`, with the parameters of its callback only: typer takes a third of what `--help` does to
    make those of all its commands."""
    declared, app.registered_commands = app.registered_commands, []
    try:
        group = typer.main.get_command(app)
    finally:
        app.registered_commands = declared
    assert isinstance(group, CommandLine)
    group.declared = {each.name or get_command_name(each.callback.__name__): each for each in declared if each.callback}
    group.commands = dict.fromkeys(group.declared)
    return group


class CommandLine(TyperGroup):
    """gluepy's commands, `declared`, each made when it is called; the others, of the project and of installed packages,
    when one of them is typed, or when all are listed.

    Of commands with one name gluepy's goes before the project's, and that before an installed package's (an entry point
    of `gluepy.commands`: a typer app).
    """

    declared: Mapping[str, Any] = MappingProxyType({})
    commands: dict[str, Any]  # None for those that have not been made
    _is_listing = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command `cmd_name`, or None. The project's modules are imported only for what is not gluepy's own."""
        known = self.commands.get(cmd_name)
        if known is None and cmd_name in self.declared:
            if self._is_listing:
                return _line_of(cmd_name, self.declared[cmd_name])
            known = self.commands[cmd_name] = _made(cmd_name, self.declared[cmd_name])
        if known is None:
            known = self._projects(ctx).get(cmd_name)
        return known if known is not None else _installed(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands; without those of a project or package that is broken."""
        try:
            own = list(self._projects(ctx))
        except UsageError as error:
            self._trouble = error
            own = []
        ours = super().list_commands(ctx)
        installed = []
        for name in entry_points(COMMANDS):
            try:
                if name not in (*ours, *own) and _installed(name) is not None:
                    installed.append(name)
            except UsageError as error:
                self._trouble_installed = error
        return [*ours, *own, *installed]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first of `args` names. Raises `UnknownCommand`, with the nearest known name."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise UnknownCommand(args[0], tuple(self.list_commands(ctx)))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. What one of the project's raises is shown without the frames of gluepy and typer."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # typer would say 1: the run failed
            let_go(sys.stdout)
            raise typer.Exit(BROKEN_PIPE) from None
        except Exception as error:
            expected = (GluepyError, RunError, typer.Exit, typer.Abort, _ClickError)
            if ctx.invoked_subcommand in self.commands or isinstance(error, expected):
                raise
            from gluepy.traces import user_stack

            trail = error.__traceback__
            while trail is not None and trail.tb_frame.f_globals.get("__name__", "").startswith(("gluepy.", "typer.")):
                trail = trail.tb_next
            tell(printable_block(user_stack(error.with_traceback(trail))))
            raise typer.Exit(1) from None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list of commands in the help text."""
        self._is_listing = True
        super().format_commands(ctx, formatter)
        self._is_listing = False
        trouble = getattr(self, "_trouble", None)
        if trouble is not None:
            formatter.write(f"\nThe project's own commands cannot be shown: {trouble}\n")
        trouble = getattr(self, "_trouble_installed", None)
        if trouble is not None:
            formatter.write(f"\nAn installed command cannot be shown: {trouble}\n")

    def _projects(self, ctx: Any) -> dict[str, Any]:
        found: dict[str, Any] | None = self.__dict__.get("_found")
        if found is None:
            found = self._found = self._find(ctx)
        return found

    def _find(self, ctx: Any) -> dict[str, Any]:
        from gluepy.cli.invocation import Invocation

        invocation: Invocation = (
            ctx.obj
            if isinstance(ctx.obj, Invocation)
            else Invocation(ctx.params.get("project"), ctx.params.get("settings"), ("gluepy",))
        )
        if invocation.project() is None:
            return {}
        from gluepy.conf.project import import_modules

        settings = invocation.settings()
        import_modules(settings, ("commands",))
        found: dict[str, Any] = {}
        owners: dict[str, str] = {}
        for name in settings.INSTALLED_MODULES:
            module = sys.modules.get(f"{name}.commands")
            if module is None:
                continue
            for command_name, command in _commands_in(module, name).items():
                taken_by = "gluepy's own" if command_name in self.commands else owners.get(command_name)
                if taken_by is not None:
                    raise CommandClash(command_name, module.__name__, taken_by)
                found[command_name] = command
                owners[command_name] = f"a command of {module.__name__}"
        return found


def _made(name: str, declared: Any) -> Any:
    holder = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    holder.registered_commands = [declared]
    return typer.main.get_group(holder).commands[name]


def _line_of(name: str, declared: Any) -> Any:
    """A command that can only be listed."""
    help = inspect.cleandoc(declared.help or declared.callback.__doc__ or "")
    return TyperCommand(name, help=help, short_help=declared.short_help, hidden=declared.hidden)


def _installed(name: str) -> Any:
    """The command `name` of an installed package, or None. Raises `UsageError`."""
    point = entry_points(COMMANDS).get(name)
    if point is None:
        return None
    app = load(point)
    if not isinstance(app, typer.Typer):
        raise NoCommands(point.value, f"{app!r} is not a typer app", f"the entry point {name!r} must name one")
    return typer.main.get_command(app)


def _commands_in(module: Any, name: str) -> dict[str, Any]:
    """The commands that a module `commands` defines: those of a bare app with one command, or one group."""
    apps = {key: value for key, value in vars(module).items() if isinstance(value, typer.Typer)}
    if not apps:
        raise NoCommands(module.__name__, "it defines no typer app", "write `app = typer.Typer()`")
    inner = [group.typer_instance for app in apps.values() for group in app.registered_groups]
    outer = [app for app in apps.values() if not any(app is each for each in inner)]
    app = apps.get("app", outer[0] if len(outer) == 1 else None)
    if app is None:
        raise NoCommands(module.__name__, f"it defines {len(outer)} typer apps", "call the one that is meant `app`")
    own_name = app.info.name if isinstance(app.info.name, str) else None
    holder = typer.Typer(add_completion=False)
    bare = own_name is None and not app.registered_groups and app.registered_callback is None
    if bare and len(app.registered_commands) == 1:
        holder.registered_commands = app.registered_commands
    else:
        holder.add_typer(app, name=own_name or name.rpartition(".")[2])
    return dict(typer.main.get_group(holder).commands)
