"""Where the settings' values come from: options, environment, `.env`, the settings module, pyproject.toml."""

from __future__ import annotations

import os
import re
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gluepy.conf.project import DEFAULT_MODULE, import_object, load_settings_module, put_on_path
from gluepy.conf.schema import JSON_NAMES, NAMES, TEXT_SOURCES, Settings, decoded, short
from gluepy.errors import ImportFailed, SettingsError, SettingsWarning, nearest

PREFIX = "GLUEPY_"
PYPROJECT = "[tool.gluepy] in pyproject.toml"
SHIPPED_GROUPS = ("LOCAL",)  # groups of the executors and sinks in this package, known without importing them
EXECUTORS, SINKS = "gluepy.executors", "gluepy.sinks"  # groups of entry points, for short names

Found = dict[str, tuple[Any, str]]  # a value and where it came from, by name

_OPTIONS = {"EXECUTOR_BACKEND": "executor"}  # where the option of a run is not the setting's name in lower case


def load_settings(
    project: Path | None, options: Mapping[str, object] = types.MappingProxyType({}), *, warn: bool = True
) -> Settings:
    """The settings of the project in the folder `project`, or without one.

    By precedence: `options` (by the settings' names; None counts as not given), variables GLUEPY_<NAME> (empty counts
    as not set), `.env` in the project, the settings module, `[tool.gluepy]` in pyproject.toml (keys in either case),
    defaults. The project is put on `sys.path`. Raises `SettingsError` for what is unknown or ill-typed, and
    `ImportFailed` for a settings module that does not import. Warns (`SettingsWarning`) of names in the settings module
    that look like misspelt settings, unless `warn` is false.
    """
    if project is not None:
        project = project.absolute()
        put_on_path(project)
    layers = [_options(options), _environment(os.environ, "environment ")]
    if project is not None:
        layers += [_dotenv(project / ".env"), _table(project / "pyproject.toml")]
    named = next((layer["SETTINGS_MODULE"] for layer in layers if "SETTINGS_MODULE" in layer), (DEFAULT_MODULE, ""))
    module, source = named
    if not isinstance(module, str):
        raise SettingsError("SETTINGS_MODULE", source, f"the name of a module is wanted, not {short(module)}")
    from_module, own = _module(module, project, source, warn)
    layers.insert(3, from_module)

    found: Found = {}
    for layer in layers:
        for name in NAMES:
            if name in layer:
                found.setdefault(name, layer[name])
    sources = dict.fromkeys(NAMES, "default") | {name: source for name, (_, source) in (own | found).items()}
    settings = Settings(
        project=project,
        sources=sources,
        own={name: value for name, (value, _) in own.items()},
        **{name: value for name, (value, _) in found.items()},
    )
    return settings.replaced(groups=_groups(settings, layers, own))


def _options(options: Mapping[str, object]) -> Found:
    return {
        name: (value, f"option {_OPTIONS.get(name, name.lower())}")
        for name, value in options.items()
        if value is not None
    }


def _environment(variables: Mapping[str, str | None], where: str) -> Found:
    found: Found = {}
    for variable, text in variables.items():
        if not variable.startswith(PREFIX) or not text:
            continue
        name = variable.removeprefix(PREFIX)
        source = f"{where}{variable}"
        value: Any = text
        if name in JSON_NAMES:
            value = decoded(name, text, source)
        found[name] = (value, source)
    return found


def _dotenv(file: Path) -> Found:
    try:
        file.open().close()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(".env", str(file), f"cannot be read: {error.strerror}") from None
    from dotenv import dotenv_values  # a part of pydantic-settings that few projects need
    from dotenv.parser import parse_stream

    try:
        with file.open(encoding="utf-8") as stream:
            for binding in parse_stream(stream):
                if binding.error:
                    line = f"line {binding.original.line}"
                    raise SettingsError(".env", str(file), f"{line} is not NAME=value")
        values = dotenv_values(file, encoding="utf-8")
    except UnicodeDecodeError:
        raise SettingsError(".env", str(file), "it is not UTF-8 text") from None
    return _environment(values, ".env ")


def _table(file: Path) -> Found:
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError("pyproject.toml", str(file), f"cannot be read: {error.strerror}") from None
    import tomllib

    try:
        table = tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError("pyproject.toml", str(file), f"it is not TOML: {error}") from None
    tools = table.get("tool")
    keys = tools.get("gluepy", {}) if isinstance(tools, dict) else {}
    if not isinstance(keys, dict):
        raise SettingsError("[tool.gluepy]", str(file), f"a table is wanted, not {short(keys)}")
    found: Found = {}
    for key, value in keys.items():
        name = key.upper().replace("-", "_")
        if name in found:
            raise SettingsError(name, PYPROJECT, f"it is there twice, once as {key!r}", "keep one spelling")
        found[name] = (value, PYPROJECT)
    return found


def _module(name: str, project: Path | None, named_by: str, warn: bool) -> tuple[Found, Found]:
    """What the settings module says: settings, and the user's own names. No module is fine where nobody names one."""
    module = load_settings_module(name, project, named_by=named_by)
    if module is None:
        return {}, {}
    source = Path(getattr(module, "__file__", None) or name)
    if project is not None and source.is_relative_to(project):
        source = source.relative_to(project)
    ours: Found = {}
    own: Found = {}
    for each, value in vars(module).items():
        if not each.isupper() or each.startswith("_") or each == "TYPE_CHECKING" or isinstance(value, types.ModuleType):
            continue
        known = each in NAMES and each != "SETTINGS_MODULE"
        (ours if known else own)[each] = (value, str(source))
    for each in own if warn else ():
        bare = each.removeprefix(PREFIX)
        near = bare if bare in NAMES else nearest(bare, NAMES, cutoff=0.85)
        if near and each != "SETTINGS_MODULE":
            text = f"{source} defines {each}, which is not a setting of gluepy; did you mean {near}?"
            _warn(text, each, module)
    return ours, own


def _warn(text: str, name: str, module: types.ModuleType) -> None:
    """Warn where the settings module defines `name`, once for each time that the module is read."""
    file = getattr(module, "__file__", None) or module.__name__
    try:
        lines = Path(file).read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    line = next((number for number, each in enumerate(lines, 1) if re.match(rf"\s*{name}\b", each)), 1)
    registry = module.__dict__.setdefault("__warningregistry__", {})
    warnings.warn_explicit(text, SettingsWarning, str(file), line, module.__name__, registry)


def _groups(settings: Settings, layers: list[Found], own: Found) -> dict[str, Found]:
    """The groups' fields from all layers. Raises `SettingsError` for names that are neither settings nor groups'."""
    declared: list[str] | None = None
    groups: dict[str, Found] = {}
    for layer in (*layers[:4], own, *layers[4:]):
        flat = sorted(layer.items(), key=lambda item: "__" not in item[0])  # NAME__FIELD beats the same NAME's mapping
        for name, (value, source) in flat:
            group, _, field = name.partition("__")
            if name in NAMES or (layer is own and not isinstance(value, Mapping)):
                continue
            if layer is not own and group not in SHIPPED_GROUPS:
                if declared is None:
                    declared = _declared(settings, name, source)
                if group not in declared:
                    raise _unknown(name, source, [*NAMES, *SHIPPED_GROUPS, *declared])
            fields = groups.setdefault(group, {})
            if layer is own:
                group, field, fields = name, "", groups.setdefault(name, {})
            if field:
                fields.setdefault(field.lower(), (value, source))
                continue
            if isinstance(value, str) and source.startswith(TEXT_SOURCES):
                value = decoded(name, value, source)
            if not isinstance(value, Mapping):
                raise SettingsError(name, source, f"a mapping is wanted, not {short(value)}")
            for key, each in value.items():
                fields.setdefault(str(key).lower(), (each, source))
    return groups


def _declared(settings: Settings, name: str, source: str) -> list[str]:
    """Groups that the classes named by EXECUTOR_BACKEND and SINKS declare, imported because `name` may be of one."""
    named = [(settings.EXECUTOR_BACKEND, EXECUTORS, "EXECUTOR_BACKEND")]
    named += [(sink, SINKS, "SINKS") for sink in settings.SINKS]
    groups = []
    for path, entry_points, setting in named:
        try:
            declared = getattr(import_object(path, entry_points=entry_points, named_by=setting), "settings_group", None)
        except ImportFailed:
            if nearest(name, NAMES):
                raise _unknown(name, source, list(NAMES)) from None  # a misspelt setting is the likelier mistake
            raise
        if declared is not None:
            groups.append(declared[0])
    return groups


def _unknown(name: str, source: str, known: list[str]) -> SettingsError:
    spelled: Callable[[str], str] = str
    asked = name
    if source.startswith(TEXT_SOURCES):
        spelled, asked = (lambda each: PREFIX + each), PREFIX + name
    elif source == PYPROJECT:
        spelled, asked = str.lower, name.lower()
    near = nearest(name.upper(), known)
    hint = f"did you mean {spelled(near)!r}?" if near else "`gluepy settings` lists them all"
    where = source.partition(" ")[0] if source.startswith(TEXT_SOURCES) else source
    return SettingsError(asked, where, "there is no such setting", hint)
