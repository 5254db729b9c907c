"""`settings` and `default_context`: the current run's; outside a run, those of the project around the current folder.

    from gluepy.conf import default_context, settings

Both resolve when an attribute is read: importing them costs next to nothing, and inside a task they are what the run
was started with, options and parameters included. Outside a run they follow the current folder, the `GLUEPY_*`
variables and the files they were read from.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gluepy.conf.context import Context
from gluepy.conf.project import DEFAULT_MODULE, SETTINGS_VARIABLE, find_project, module_file

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings

__all__ = ["default_context", "discovered_project", "settings", "use_project", "used_project"]

_Stamps = tuple[tuple[str, int, int], ...]


class _Discovered:
    """Settings and context of the project around the current folder, read again when what they come from changes."""

    def __init__(self) -> None:
        self._settings: tuple[object, Settings] | None = None
        self._context: tuple[Settings, _Stamps, Context] | None = None
        self.project: Path | None = None

    def settings(self) -> Settings:
        folder, project = Path.cwd(), discovered_project()
        variables = sorted(item for item in os.environ.items() if item[0].startswith("GLUEPY_"))
        module = module_file(os.environ.get(SETTINGS_VARIABLE) or DEFAULT_MODULE, project) if project else None
        read = [project / "pyproject.toml", project / ".env"] if project else []
        key = (folder, project, variables, _stamps([*read, *([module] if module else [])]))
        if self._settings is None or self._settings[0] != key:
            from gluepy.conf.sources import load_settings

            self._settings = (key, load_settings(project))
        return self._settings[1]

    def context(self) -> Context:
        settings = self.settings()
        stamps = _stamps(settings.context_files)
        known = self._context
        if known is None or known[0] is not settings or known[1] != stamps:
            from gluepy.conf.parameters import load_context  # finding a project does without

            known = self._context = (settings, stamps, load_context(settings))
        return known[2]


def _stamps(files: Iterable[Path]) -> _Stamps:
    stamps = []
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            continue
        stamps.append((str(file), stat.st_mtime_ns, stat.st_size))
    return tuple(stamps)


_discovered = _Discovered()


def use_project(folder: Path | None) -> None:
    """Outside a run, take the project in `folder` from now on; None: the one around the current folder."""
    _discovered.project = folder


def used_project() -> Path | None:
    """What `use_project` took last."""
    return _discovered.project


def discovered_project() -> Path | None:
    """The project that is meant where none is named: what `use_project` took, or the one around the current folder."""
    return _discovered.project or find_project(Path.cwd())


def _scope() -> Any:
    """The attempt that runs here, if any; imported late, so that finding a project is cheap."""
    from gluepy.exec.scope import current_scope

    return current_scope()


def _current_settings() -> Settings:
    scope = _scope()
    return _discovered.settings() if scope is None else cast("Settings", scope.settings)


class _SettingsProxy:
    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_current_settings(), name)

    def __repr__(self) -> str:
        return "<gluepy settings, of the current run or project>"


class _ContextProxy(Context):
    __slots__ = ()

    def __init__(self) -> None:
        pass

    @property
    def _values(self) -> dict[str, Any]:  # type: ignore[override]  # where a Context holds its values, this looks them up
        scope = _scope()
        current: Context = _discovered.context() if scope is None else scope.context
        return current._values

    @property
    def _place(self) -> str:  # type: ignore[override]
        return ""


settings: Settings = cast("Settings", _SettingsProxy())
default_context: Context = _ContextProxy()
