"""A project on disk: where it is, what makes a folder one, and the user's modules in it.

Nothing here imports pydantic: finding a project has to be cheap.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from gluepy.errors import ImportFailed, SettingsError, did_you_mean
from gluepy.traces import user_stack

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings

SETTINGS_VARIABLE = "GLUEPY_SETTINGS_MODULE"
DEFAULT_MODULE = "settings"
SUBMODULES = ("tasks", "dags", "commands")

_TABLE = re.compile(r"^\s*\[\s*tool\s*\.\s*gluepy\s*[].]", re.MULTILINE)


def find_project(start: Path) -> Path | None:
    """The project that the folder (or file) `start` lies in: the nearest folder, upwards, that is one; None without.

    A folder is a project when it has `[tool.gluepy]` in its pyproject.toml, or the settings module: the one that the
    variable GLUEPY_SETTINGS_MODULE names, or a `settings.py` that is gluepy's (it says INSTALLED_MODULES or gluepy, or
    a `run.py` beside it says gluepy). The `settings.py` of another framework does not make a project.
    """
    start = start.absolute()
    named = os.environ.get(SETTINGS_VARIABLE) or ""
    for folder in (start, *start.parents):
        if named and module_file(named, folder) is not None:
            return folder
        if _mentions(folder / "pyproject.toml", _TABLE):
            return folder
        settings = module_file(DEFAULT_MODULE, folder)
        if settings is not None and (_mentions(settings, _SETTINGS_MARK) or _mentions(folder / "run.py", _RUN_MARK)):
            return folder
    return None


_SETTINGS_MARK = re.compile(r"\b(INSTALLED_MODULES|gluepy|GLUEPY_\w+)\b")
_RUN_MARK = re.compile(r"\bgluepy\b")


def _mentions(file: Path, mark: re.Pattern[str]) -> bool:
    try:
        return mark.search(file.read_text("utf-8", errors="replace")) is not None
    except OSError:
        return False


def module_file(name: str, folder: Path) -> Path | None:
    """The source file of the module `name` under `folder`, or None when it is not there."""
    base = folder.joinpath(*name.split("."))
    for file in (base.with_name(base.name + ".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def put_on_path(project: Path) -> None:
    """Have imports look in `project` before all that is installed: its modules win over others of the same name.

    The standard library stays ahead: a `secrets.py` or `random.py` of the project would break every library that
    imports the real one later. A folder that is on `sys.path` ahead of all that is installed stays where it is.
    """
    folder = str(project.absolute())
    place = _behind_standard_library()
    if folder not in sys.path[: place + 1]:
        sys.path[:] = [entry for entry in sys.path if entry != folder]
        sys.path.insert(place, folder)
        # Who looked into it before may not see what was written since within one tick of the file system's clock. Not
        # importlib.invalidate_caches, which from Python 3.13 on takes 10 ms to import what nobody needs.
        for seen in list(sys.path_importer_cache):
            if seen == folder or seen.startswith(folder + os.sep):
                sys.path_importer_cache.pop(seen, None)


def put_standard_library_first() -> None:
    """Move the folder that Python itself put first, of the script or of `python -m`, behind the standard library."""
    if sys.path and not sys.flags.safe_path and sys.path[0] not in _STANDARD_LIBRARY:
        sys.path.insert(_behind_standard_library(), sys.path[0])
        del sys.path[0]


_STANDARD_LIBRARY = (os.path.dirname(os.__file__), os.path.join(os.path.dirname(os.__file__), "lib-dynload"))


def _behind_standard_library() -> int:
    return max((place for place, entry in enumerate(sys.path, 1) if entry in _STANDARD_LIBRARY), default=0)


def import_modules(
    settings: Settings, parts: Sequence[str] = SUBMODULES, *, only: str | None = None
) -> list[ModuleType]:
    """Import each of INSTALLED_MODULES, or the one that `only` names, and those of its `parts` that exist (`tasks`,
    `dags` and `commands`); return all of them.

    Raises `ImportFailed` for a module that is missing or does not import, with the traceback of the user's own frames,
    and `SettingsError` for a name that is not a valid module name.
    """
    if settings.project is not None:
        put_on_path(settings.project)
    modules: list[ModuleType] = []
    for name in settings.INSTALLED_MODULES if only is None else (only,):
        if not all(part.isidentifier() for part in name.split(".")):
            source = settings.sources.get("INSTALLED_MODULES", "")
            raise SettingsError("INSTALLED_MODULES", source, f"{name!r} is not the name of a module")
        module = _import_installed(name, settings.project)
        modules.append(module)
        for part in parts:
            full = f"{name}.{part}"
            if hasattr(module, "__path__") and (full in sys.modules or importlib.util.find_spec(full) is not None):
                modules.append(_imported(full))
    if settings.project is not None:
        for module in modules:
            _refuse_namesake(module, settings.project)
    return modules


def import_object(path: str, *, named_by: str = "") -> Any:
    """The object at the dotted path `pkg.module.Name` (or `pkg.module:Name`, `pkg.module:Outer.Name`).

    `named_by` says in errors what names the path (CONTEXT_MODEL). Raises `ImportFailed`.
    """
    hint = f"{named_by} names it" if named_by else ""
    module_name, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    parts = name.split(".")
    if not all(part.isidentifier() for part in (*module_name.split("."), *parts)):
        raise ImportFailed(path, "it is not a dotted path such as 'package.module.Name'", hint=hint)
    module = _imported(module_name, path, hint)
    try:
        return reduce(getattr, parts, module)
    except AttributeError:
        full = f"{module_name}.{name}"
        if hasattr(module, "__path__") and not parts[1:] and importlib.util.find_spec(full) is not None:
            return _imported(full, path, hint)
        known = [each for each in vars(module) if not each.startswith("_")]
        why = f"module {module_name!r} has no {name!r}{did_you_mean(name, known)}"
        raise ImportFailed(path, why, hint=hint) from None


def load_file(file: Path) -> ModuleType:
    """Import a Python file by its path, so that worker processes can import it again by its name.

    The file's folder goes first on `sys.path`; for a file in a package that is the folder of the outermost package,
    and the name is dotted. Raises `ImportFailed` for a file that is missing, whose name is not a valid module
    name or hides another module, or that does not import.
    """
    file = file.absolute()
    if file.is_dir():
        raise ImportFailed(str(file), "it is a folder", hint="name a file in it")
    if not file.is_file():
        near = did_you_mean(file.name, (each.name for each in file.parent.glob("*.py")))
        raise ImportFailed(str(file), f"there is no such file{near}")
    if file.suffix != ".py" or not file.stem.isidentifier():
        hint = "rename it to letters, digits, _ and .py"
        raise ImportFailed(str(file), "its name is not a valid module name", hint=hint)
    folder, name = file.parent, file.stem
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        folder, name = folder.parent, f"{folder.name}.{name}"
    top = name.partition(".")[0]
    loaded = sys.modules.get(top)
    if loaded is not None and not _lies_in(loaded, folder):
        raise ImportFailed(str(file), f"a module {top!r} is already imported{_from(loaded)}", hint="rename the file")
    elsewhere = [entry for entry in sys.path if Path(entry or ".").absolute() != folder]
    hidden = PathFinder.find_spec(top, elsewhere)
    own = module_file(top, folder)
    is_own = own is not None and hidden is not None and _is_file(hidden.origin, own)  # found by way of a link
    if top in sys.stdlib_module_names or (_is_module(hidden) and not is_own):
        raise ImportFailed(str(file), f"its name hides the installed module {top!r}", hint="rename the file")
    put_on_path(folder)
    return _imported(name, str(file))


def load_settings_module(name: str, project: Path | None, *, named_by: str = "") -> ModuleType | None:
    """The settings module `name`. Without `named_by`, which says what asks for it, None when the project has none.

    One that lies in the project is read again when its file has changed, or when the module that is loaded by this
    name belongs to another project. Raises `ImportFailed` when it does not import.
    """
    file = module_file(name, project) if project is not None else None
    if file is None:
        return _imported(name, hint=f"{named_by} names it") if named_by else None
    if name in _loading:
        why = "it reads gluepy's settings while it is being imported"
        raise ImportFailed(name, why, hint="only set values there")
    stat = file.stat()
    version = (str(file), stat.st_mtime_ns, stat.st_size)
    module = sys.modules.get(name)
    if module is not None:
        known = getattr(module, "__gluepy_version__", None)
        if known == version or (known is None and getattr(module, "__file__", None) == str(file)):
            return module
    parent = name.rpartition(".")[0]
    if parent:
        _imported(parent, name)
    return _guarded(name, "", lambda: _execute(name, file, version))


_loading: set[str] = set()


class _FromSource(SourceFileLoader):
    """Compiles anew: a byte-code cache cannot tell two edits of a small file within the same second."""

    def get_code(self, fullname: str) -> CodeType:
        file = self.get_filename(fullname)
        return self.source_to_code(self.get_data(file), file)


def _execute(name: str, file: Path, version: tuple[str, int, int]) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file, loader=_FromSource(name, str(file)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.pop(name, None)
    sys.modules[name] = module
    _loading.add(name)
    try:
        spec.loader.exec_module(module)
        module.__dict__["__gluepy_version__"] = version
    finally:
        _loading.discard(name)
        if "__gluepy_version__" not in module.__dict__:
            del sys.modules[name]
            if before is not None:
                sys.modules[name] = before
    return module


def _imported(name: str, asked: str = "", hint: str = "") -> ModuleType:
    return _guarded(name, asked, lambda: importlib.import_module(name), hint)


def _guarded(name: str, asked: str, load: Callable[[], ModuleType], hint: str = "") -> ModuleType:
    """`load()`, with what goes wrong in it as an `ImportFailed` of `asked` (by default `name`)."""
    try:
        return load()
    except ImportFailed:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            near = did_you_mean(error.name, _neighbours(error.name))
            raise ImportFailed(asked or name, f"there is no module {error.name!r}{near}", hint=hint) from None
        raise _failed(asked or name, error, hint) from error
    except SystemExit as error:
        why = 'it calls sys.exit() on import; a script needs `if __name__ == "__main__":`'
        raise ImportFailed(asked or name, why, user_stack(error), hint) from error
    except Exception as error:
        raise _failed(asked or name, error, hint) from error


def _failed(name: str, error: Exception, hint: str) -> ImportFailed:
    first = (str(error).splitlines() or [""])[0]
    stack = user_stack(error)
    hidden = _hidden_by_standard_library(error)
    if hidden is not None:
        hint = f"{hidden} has the name of a module of the standard library, which comes first: rename the file"
    return ImportFailed(name, f"{type(error).__name__}: {first}", stack if "\n" in stack else "", hint)


def _hidden_by_standard_library(error: Exception) -> Path | None:
    """The user's file that was probably meant by what a module of the standard library does not have."""
    if isinstance(error, ImportError):
        name = error.name or ""
    else:
        module = error.obj if isinstance(error, AttributeError) else None
        name = module.__name__ if isinstance(module, ModuleType) else ""
    top = name.partition(".")[0]
    if top not in sys.stdlib_module_names:
        return None
    folders = (Path(entry or ".") for entry in sys.path if entry not in _STANDARD_LIBRARY)
    return next(filter(None, (module_file(top, folder) for folder in folders)), None)


def _import_installed(name: str, project: Path | None) -> ModuleType:
    where = f"INSTALLED_MODULES names it; looked in {project}" if project is not None else "INSTALLED_MODULES names it"
    return _imported(name, hint=where)


def _refuse_namesake(module: ModuleType, project: Path) -> None:
    """A module from elsewhere that took the place of the project's own would run other DAGs than the user sees."""
    name, file = module.__name__, getattr(module, "__file__", None)
    own = module_file(name, project) or project.joinpath(*name.split("."))
    if file is not None and own.exists() and not _lies_in(module, project):
        hint = "rename one of them, or run each project in a process of its own"
        raise ImportFailed(name, f"the module of that name is {file}, not the project's own {own}", hint=hint)


def _lies_in(module: ModuleType, folder: Path) -> bool:
    files = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(Path(file).resolve().is_relative_to(folder.resolve()) for file in files if file)


def _is_file(origin: str | None, file: Path) -> bool:
    try:
        return origin is not None and os.path.samefile(origin, file)
    except OSError:
        return False


def _from(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return f" from {file}" if file else ""


def _is_module(spec: ModuleSpec | None) -> bool:
    return spec is not None and spec.origin is not None  # without an origin it is a mere folder


def _neighbours(name: str) -> list[str]:
    """Names of modules beside the missing one, for a hint."""
    parent, _, _ = name.rpartition(".")
    package = sys.modules.get(parent) if parent else None
    place = _behind_standard_library()
    folders = list(getattr(package, "__path__", ())) if package else [*sys.path[:1], *sys.path[place : place + 1]]
    names: list[str] = []
    for folder in folders:
        try:
            entries = list(os.scandir(folder or "."))
        except OSError:
            continue
        stems = (each.name if each.is_dir() else each.name.removesuffix(".py") for each in entries)
        names += [f"{parent}.{stem}" if parent else stem for stem in stems if stem.isidentifier()]
    return names
