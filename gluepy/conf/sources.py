"""Where the settings' values come from: options, environment, `.env`, the settings module, pyproject.toml."""

from __future__ import annotations

import os
import re
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from gluepy.conf.plugins import EXECUTORS, SINKS, entry_points, find
from gluepy.conf.project import DEFAULT_MODULE, load_settings_module, put_on_path
from gluepy.conf.schema import DEFAULT, JSON_NAMES, NAMES, SHOWN_MASKED, Settings, Source, decoded, problem, short
from gluepy.errors import ImportFailed, SettingsError, SettingsWarning, nearest
from gluepy.extension import Extension

PREFIX = "GLUEPY_"
PYPROJECT = Source("pyproject", "[tool.gluepy] in pyproject.toml")
SHIPPED_GROUPS = (
    "LOCAL",
    "CELERY",
    "DASK",
    "SLURM",
    "JSONLINES",
    "STRUCTLOG",
    "OTEL",
    "OPENLINEAGE",
    "PROMETHEUS",
    "MLFLOW",
    "WEBHOOK",
)  # groups of the executors and sinks in this package, known without importing them

Found = dict[str, tuple[Any, Source]]  # a value and where it came from, by name
Kinds = dict[str, Any]  # annotations, by name

_OPTIONS = {
    "EXECUTOR_BACKEND": "executor",
    "SETTINGS_MODULE": "settings",
}  # where the option of a run is not the setting's name in lower case


def load_settings(
    project: Path | None, options: Mapping[str, object] = types.MappingProxyType({}), *, warn: bool = True
) -> Settings:
    """The settings of the project in the folder `project`, or without one.

    By precedence: `options` (by the settings' names; None counts as not given), variables GLUEPY_<NAME> (empty counts
    as not set), `.env` in the project, the settings module, `[tool.gluepy]` in pyproject.toml (keys in either case),
    defaults. The user's own names in the settings module are set by options, variables and `.env` too; text then
    becomes what the name's annotation says, or of the type of its value. The project is put on `sys.path`. Raises
    `SettingsError` for what is unknown or ill-typed, and `ImportFailed` for a settings module that does not import.
    Warns (`SettingsWarning`) of names in the settings module that look like misspelt settings, unless `warn` is false.
    """
    if project is not None:
        project = project.absolute()
        put_on_path(project)
    layers = [_options(options), _environment(os.environ, "environment")]
    if project is not None:
        layers += [_dotenv(project / ".env"), _table(project / "pyproject.toml")]
    named = [layer["SETTINGS_MODULE"] for layer in layers if "SETTINGS_MODULE" in layer]
    module, source = named[0] if named else (DEFAULT_MODULE, DEFAULT)
    if not isinstance(module, str):
        raise SettingsError("SETTINGS_MODULE", source, f"the name of a module is wanted, not {short(module)}")
    if not all(part.isidentifier() for part in module.split(".")) or module.endswith(".py"):
        dotted = module.removesuffix(".py").strip("./").replace("/", ".")
        hint = f"write {dotted}" if all(part.isidentifier() for part in dotted.split(".")) else ""
        raise SettingsError("SETTINGS_MODULE", source, f"{module!r} is not the name of a module", hint)
    from_module, own, kinds = _module(module, project, str(source) if named else "", warn)
    layers.insert(3, from_module)

    found: Found = {}
    for layer in layers:
        for name in NAMES:
            if name in layer:
                found.setdefault(name, layer[name])
    sources = dict.fromkeys(NAMES, DEFAULT) | {name: source for name, (_, source) in found.items()}
    settings = Settings(project=project, sources=sources, **{name: value for name, (value, _) in found.items()})
    _take_own(settings, layers, own, kinds)
    groups = _groups(settings, layers, own)
    return settings.replaced(
        groups=groups,
        own={name: value for name, (value, _) in own.items()},
        sources=sources | {name: source for name, (_, source) in own.items() if name not in found},
    )


def _options(options: Mapping[str, object]) -> Found:
    return {
        name: (value, Source("option", _OPTIONS.get(name, name.lower())))
        for name, value in options.items()
        if value is not None
    }


def _environment(variables: Mapping[str, str | None], kind: Literal["environment", ".env"]) -> Found:
    found: Found = {}
    for variable, text in variables.items():
        if not variable.startswith(PREFIX) or not text:
            continue
        name = variable.removeprefix(PREFIX)
        if _of_kubernetes(name, text):
            continue
        source = Source(kind, variable)
        value: Any = text
        if name in JSON_NAMES:
            value = decoded(name, text, source)
        found[name] = (value, source)
    return found


_SERVICE = re.compile(
    r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)


def _of_kubernetes(name: str, text: str) -> bool:
    """Whether Kubernetes sets GLUEPY_<name> in every container, for a Service that is called gluepy or gluepy-…"""
    if _SERVICE.fullmatch(name) is None:
        return False
    return not name.endswith("PORT") or "SERVICE" in name or "_PORT_" in f"_{name}" or "://" in text


def variables_of(project: Path) -> dict[str, str]:
    """The variables of the project's `.env` that are not gluepy's. Raises `SettingsError`."""
    values = _read_dotenv(project / ".env")
    return {name: text for name, text in values.items() if text is not None and not name.startswith(PREFIX)}


def _dotenv(file: Path) -> Found:
    return _environment(_read_dotenv(file), ".env")


def _read_dotenv(file: Path) -> dict[str, str | None]:
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
        return dotenv_values(file, encoding="utf-8")
    except UnicodeDecodeError:
        raise SettingsError(".env", str(file), "it is not UTF-8 text") from None


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
        raise SettingsError("[tool.gluepy]", str(file), f"expected a table, got {short(keys)}")
    found: Found = {}
    for key, value in keys.items():
        name = key.upper().replace("-", "_")
        if name in found:
            raise SettingsError(name, PYPROJECT, f"it is there twice, once as {key!r}", "keep one spelling")
        found[name] = (value, PYPROJECT)
    return found


def _module(name: str, project: Path | None, named_by: str, warn: bool) -> tuple[Found, Found, Callable[[], Kinds]]:
    """What the settings module says: settings, the user's own names, and which of these have annotations. No module is
    fine where nobody names one."""
    module = load_settings_module(name, project, named_by=named_by)
    if module is None:
        return {}, {}, dict
    source = Path(getattr(module, "__file__", None) or name)
    if project is not None and source.is_relative_to(project):
        source = source.relative_to(project)
    ours: Found = {}
    own: Found = {}
    for each, value in vars(module).items():
        if not each.isupper() or each.startswith("_") or each == "TYPE_CHECKING" or isinstance(value, types.ModuleType):
            continue
        known = each in NAMES and each != "SETTINGS_MODULE"
        (ours if known else own)[each] = (value, Source("module", str(source)))
    for each in own if warn else ():
        bare = each.removeprefix(PREFIX)
        near = bare if bare in NAMES else nearest(bare, NAMES, cutoff=0.85)
        if near and each != "SETTINGS_MODULE":
            text = f"{source} defines {each}, which is not a setting of gluepy; did you mean {near}?"
            _warn(text, each, module)
    return ours, own, lambda: _annotations(module)


def _annotations(module: types.ModuleType) -> Kinds:
    """The annotated names of the settings module that are the user's own, also those without a value."""
    try:
        hints = typing.get_type_hints(module)
    except Exception:
        return {}  # of something that is only imported for a type checker
    return {name: kind for name, kind in hints.items() if name.isupper() and name not in NAMES}


def _take_own(settings: Settings, layers: list[Found], own: Found, annotated: Callable[[], Kinds]) -> None:
    """Have `own`, the user's names in the settings module, be what options, environment and `.env` say they are, and
    take them out of these `layers`. Raises `SettingsError` for text that is not of the type."""
    kinds: Kinds | None = None
    declared: list[str] | None = None
    taken: set[str] = set()
    for layer in layers[:3]:
        for name, (value, source) in list(layer.items()):
            if name in NAMES:
                continue
            kinds = annotated() if kinds is None else kinds
            base, _, below = (name, "", "") if name in own or name in kinds else name.partition("__")
            default = own[base][0] if base in own else None
            if (base not in own and base not in kinds) or (below and not isinstance(default, Mapping)):
                continue
            if isinstance(default, Mapping):
                if declared is None:
                    declared = _declared(settings, name, source)
                if base in declared or base in SHIPPED_GROUPS:
                    continue  # a group of an executor or a sink
            del layer[name]
            if name in taken or base in taken:
                continue
            taken.add(name)
            if below:
                fields: Mapping[Any, Any] = default or {}
                key = next((key for key in fields if str(key).upper() == below), below.lower())
                own[base] = ({**fields, key: _typed(name, value, None, fields.get(key), source)}, source)
            else:
                own[base] = (_typed(name, value, kinds.get(base), default, source), source)


def _typed(name: str, value: Any, kind: Any, default: Any, source: Source) -> Any:
    """What `value`, text unless an option says it, is for a name with this annotation, or else this default."""
    if not isinstance(value, str) or not source.is_text:
        return value
    kind = type(default) if kind is None else kind
    if kind in (str, type(None)):
        return value
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

    from gluepy.conf.model import structured

    if isinstance(kind, type) and issubclass(kind, Path):
        kind = Path
    if structured(kind):
        value = decoded(name, value, source)
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SettingsError(name, source, problem(name, first, SHOWN_MASKED)) from None
    except PydanticSchemaGenerationError:
        hint = "annotate it in the settings module with a type that text can be of"
        raise SettingsError(name, source, f"text cannot be of type {getattr(kind, '__name__', kind)}", hint) from None


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
            if layer is not own and name in own and source == PYPROJECT and not isinstance(own[name][0], Mapping):
                raise SettingsError(
                    name.lower(), source, f"{own[name][1]} defines it, and goes over this", "keep it there"
                )
            if layer is not own and group not in SHIPPED_GROUPS:
                if declared is None:
                    declared = _declared(settings, name, source)
                if group not in declared:
                    raise _unknown(name, source, [*NAMES, *SHIPPED_GROUPS, *declared, *own], settings)
            fields = groups.setdefault(group, {})
            if layer is own:
                group, field, fields = name, "", groups.setdefault(name, {})
            if field:
                fields.setdefault(field.lower(), (value, source))
                continue
            if isinstance(value, str) and source.is_text:
                value = decoded(name, value, source)
            if not isinstance(value, Mapping):
                raise SettingsError(name, source, f"a mapping is wanted, not {short(value)}")
            for key, each in value.items():
                fields.setdefault(str(key).lower(), (each, source))
    return groups


def _declared(settings: Settings, name: str, source: Source) -> list[str]:
    """The groups of settings that extensions declare, looked for because `name` may be of one: of those that
    EXECUTOR_BACKEND and SINKS name, which are imported for it, and by the short names of all that are installed."""
    groups = [short_name.upper() for kind in (EXECUTORS, SINKS) for short_name in entry_points(kind)]
    named: list[tuple[object, str, str]] = [(settings.EXECUTOR_BACKEND, EXECUTORS, "EXECUTOR_BACKEND")]
    named += [(sink, SINKS, "SINKS") for sink in settings.SINKS]
    for option, kind, setting in named:
        try:
            found = find(kind, option, setting) if isinstance(option, str) else option
        except ImportFailed:
            if nearest(name, NAMES):
                raise _unknown(
                    name, source, list(NAMES), settings
                ) from None  # a misspelt setting is the likelier mistake
            raise
        cls = found if isinstance(found, type) else type(found)
        if issubclass(cls, Extension) and cls.settings_group is not None:
            groups.append(cls.settings_group[0])
    return groups


def _unknown(name: str, source: Source, known: list[str], settings: Settings) -> SettingsError:
    spelled: Callable[[str], str] = str
    asked = name
    if source.is_text:
        spelled, asked = (lambda each: PREFIX + each), PREFIX + name
    elif source == PYPROJECT:
        spelled, asked = str.lower, name.lower()
    near = nearest(name.upper(), known)
    hint = f"did you mean {spelled(near)!r}?" if near else "`gluepy settings` lists them all"
    if not near and source.is_text:
        hint += f"; one of your own has to be in {settings.SETTINGS_MODULE}.py"
    where = source.partition(" ")[0] if source.is_text else source
    return SettingsError(asked, where, "there is no such setting", hint)
