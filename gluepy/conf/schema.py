"""The settings: their names, types and defaults, and where their values come from.

This is the only module that imports pydantic when it is imported, which takes longer than all the rest of a small
command; import it where settings are really needed, as `gluepy.conf.settings` does.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import reprlib
import tomllib
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gluepy.conf.project import DEFAULT_MODULE, import_object, load_settings_module, put_on_path
from gluepy.errors import ImportFailed, SettingsError, SettingsWarning, did_you_mean

PREFIX = "GLUEPY_"
PYPROJECT = "[tool.gluepy] in pyproject.toml"
SHIPPED_GROUPS = ("LOCAL",)  # groups of the executors and sinks in this package, known without importing them
EXECUTORS, SINKS = "gluepy.executors", "gluepy.sinks"  # groups of entry points, for short names

Group = TypeVar("Group", bound=BaseModel)
Found = dict[str, tuple[Any, str]]  # a value and where it came from, by name

_OPTIONS = {"EXECUTOR_BACKEND": "executor"}  # where the option of a run is not the setting's name in lower case
_REDACT = ("*SECRET*", "*PASSWORD*", "*PASSWD*", "*TOKEN*", "*CREDENTIAL*", "*PRIVATE*", "*KEY", "*KEYS", "*DSN*")
_MASK = "***"


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _folder(values: dict[str, Any]) -> Path:
    return values.get("project") or Path.cwd()


def _context_files(values: dict[str, Any]) -> list[str]:
    names = ("configs/context.yaml", "context.yaml")
    return [name for name in names if (_folder(values) / name).is_file()][:1]


def _path_text(value: object) -> object:
    return str(value) if hasattr(value, "parts") else value  # a pathlib or universal-pathlib path


def _local_text(value: object) -> object:
    if "://" in str(value):
        raise ValueError("a run's record is kept in a local folder, not at a URL")
    return _path_text(value)


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not true or false")  # pydantic reports ValueErrors
    return value


_Place = Annotated[str, BeforeValidator(_path_text), Field(min_length=1)]
_LocalPlace = Annotated[str, BeforeValidator(_local_text), Field(min_length=1)]


class Settings(BaseSettings):
    """The settings of a project or a run: read-only, each an attribute.

    `load_settings` gathers them from all their sources; the constructor takes exactly what it is given, and the
    defaults for the rest. Upper-case names of the settings module that are not gluepy's are attributes too.

    `project` is the project's folder or None; relative places are under it, or else under the folder that was the
    current one (`folder`). `sources` says in words where each value came from. `own` has the user's own names.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    project: Path | None = None
    folder: Path = Field(default_factory=_folder, repr=False)
    sources: Mapping[str, str] = Field(default={}, repr=False)
    own: Mapping[str, Any] = Field(default={}, repr=False)
    groups: Mapping[str, Mapping[str, tuple[Any, str]]] = Field(default={}, repr=False)

    SETTINGS_MODULE: Annotated[str, Field(min_length=1)] = DEFAULT_MODULE
    INSTALLED_MODULES: list[str] = []
    EXECUTOR_BACKEND: Annotated[str, Field(min_length=1)] = "gluepy.exec.executors.LocalExecutor"
    CONCURRENCY: Annotated[int, BeforeValidator(_number), Field(ge=1)] = Field(default_factory=_cpus)
    POOL: Literal["thread", "process"] = "thread"
    LIMITS: dict[str, Annotated[int, BeforeValidator(_number), Field(ge=0)]] = {}
    STORAGE_ROOT: _Place = "data"
    RUNS_ROOT: _LocalPlace = ".gluepy/runs"
    CONTEXT_FILES: list[_Place] = Field(default_factory=_context_files)
    CONTEXT_MODEL: str | None = None
    EVENT_SYNC: Literal["batch", "commit", "none"] = "batch"
    LOG_FORMAT: Literal["console", "json"] = "console"
    SINKS: list[str] = []
    REDACT: list[str] = list(_REDACT)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the signature is the library's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The constructor's arguments alone: `load_settings` reads the sources.

        It knows which of them a value came from, and a mapping from one source replaces that of another, where the
        library's own sources would mix them.
        """
        return (init_settings,)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__.get("own", {})
        if name in own:
            return own[name]
        if not name.isupper():
            raise AttributeError(name)
        hint = did_you_mean(name, [*NAMES, *own])
        raise AttributeError(f"there is no setting {name!r}{hint or '; the settings module does not define it either'}")

    def snapshot(self) -> Settings:
        """These settings. (Of the proxy `gluepy.conf.settings`: the settings that it stands for now.)"""
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON-able data: `load_settings(project, options)` gives these settings."""
        data = self.model_dump(mode="json", include=set(NAMES) & self.model_fields_set, exclude_defaults=True)
        for name, fields in self.groups.items():
            given = {field: value for field, (value, source) in fields.items() if source.startswith("option ")}
            if given:
                data[name] = given
        return data

    @property
    def storage_root(self) -> str:
        """STORAGE_ROOT as an absolute path of this machine, or a URL."""
        return self.STORAGE_ROOT if "://" in self.STORAGE_ROOT else str(self._absolute(self.STORAGE_ROOT))

    def run_files(self, run_id: str) -> str:
        """Where the tasks of a run keep their files: an absolute path of this machine, or a URL."""
        root = self.storage_root
        return f"{root if root.endswith('/') else root + '/'}runs/{run_id}"

    @property
    def runs_root(self) -> Path:
        """RUNS_ROOT as an absolute path."""
        return self._absolute(self.RUNS_ROOT)

    @property
    def context_files(self) -> list[Path]:
        """CONTEXT_FILES as absolute paths."""
        return [self._absolute(name) for name in self.CONTEXT_FILES]

    def _absolute(self, place: str) -> Path:
        return Path(os.path.normpath(self.folder.absolute() / Path(place).expanduser()))

    def group(self, name: str, model: type[Group]) -> Group:
        """The settings of an executor or sink of its own: the group `name`, as `model` has its fields.

        A field comes from the variable GLUEPY_<NAME>__<FIELD> or a JSON object in GLUEPY_<NAME>, from a mapping <NAME>
        in the settings module, or from [tool.gluepy.<name>], each field by itself by the usual precedence. A class that
        declares `settings_group = (name, model)` makes its group known when EXECUTOR_BACKEND or SINKS names the class.
        Raises `SettingsError`.
        """
        own = self.own.get(name)
        if own is not None and not isinstance(own, Mapping):
            raise SettingsError(name, self.sources.get(name, ""), f"a mapping is wanted, not {_short(own)}")
        fields = {field.lower(): field for field in model.model_fields}
        values: dict[str, Any] = {}
        found = self.groups.get(name, {})
        for key, (value, source) in found.items():
            field = fields.get(key)
            if field is None:
                if model.model_config.get("extra") in (None, "ignore", "forbid"):
                    hint = did_you_mean(key, fields) or f"; it has {', '.join(fields.values()) or 'none'}"
                    raise SettingsError(f"{name}.{key}", source, f"there is no such field{hint}")
                values[key] = value
                continue
            info = model.model_fields[field]
            if isinstance(value, str) and source.startswith(_TEXT_SOURCES) and _structured(info.annotation):
                value = _decoded(f"{name}.{field}", value, source)
            values[info.validation_alias if isinstance(info.validation_alias, str) else field] = value
        try:
            return model.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            source = found.get(place.partition(".")[0].lower(), (None, "not set"))[1]
            setting = f"{name}.{place}" if place else name
            raise SettingsError(setting, source, _problem(setting, first, self.REDACT)) from None

    def mask(self, name: str, value: object) -> Any:
        """`value` fit to be shown: JSON-able, what REDACT names masked in it, and so are credentials in URLs."""
        return _masked(name, value, self.REDACT)

    def masked(self) -> dict[str, tuple[Any, str]]:
        """Every setting, the user's own and those of groups (`GROUP.FIELD`): the value fit to be shown, its source."""
        shown = {name: (self.mask(name, getattr(self, name)), self.sources.get(name, "default")) for name in NAMES}
        for name, value in self.own.items():
            shown[name] = (self.mask(name, value), self.sources.get(name, ""))
        for name, fields in self.groups.items():
            if {source for _, source in fields.values()} == {self.sources.get(name)}:
                continue  # all of it is the user's own mapping, above
            shown.pop(name, None)
            for field, (value, source) in fields.items():
                full = f"{name}.{field.upper()}"
                hidden = self.mask(name, {field: value})[field]
                shown[full] = (hidden, source)
        return shown


NAMES = tuple(name for name in Settings.model_fields if name.isupper())
_TEXT_SOURCES = ("environment ", ".env")


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
        raise SettingsError("SETTINGS_MODULE", source, f"the name of a module is wanted, not {_short(module)}")
    from_module, own = _module(module, project, source, warn)
    layers.insert(3, from_module)

    found: Found = {}
    for layer in layers:
        for name in NAMES:
            if name in layer:
                found.setdefault(name, layer[name])
    settings = _validated(project, found)
    groups = _groups(settings, layers, own)
    sources = {name: source for name, (_, source) in (own | found).items()}
    return settings.model_copy(
        update={
            "sources": dict.fromkeys(NAMES, "default") | sources,
            "own": {name: value for name, (value, _) in own.items()},
            "groups": groups,
        }
    )


def _validated(project: Path | None, found: Found) -> Settings:
    values: dict[str, Any] = {name: value for name, (value, _) in found.items()}
    try:
        return Settings(project=project, **values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        place = ".".join(map(str, first["loc"]))
        raise SettingsError(place, found[name][1], _problem(name, first, _REDACT)) from None


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
        if name in NAMES and _structured(Settings.model_fields[name].annotation):
            value = _decoded(name, text, source)
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
        table = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError("pyproject.toml", str(file), f"cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError("pyproject.toml", str(file), f"it is not TOML: {error}") from None
    tools = table.get("tool")
    keys = tools.get("gluepy", {}) if isinstance(tools, dict) else {}
    if not isinstance(keys, dict):
        raise SettingsError("[tool.gluepy]", str(file), f"a table is wanted, not {_short(keys)}")
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
        near = [bare] if bare in NAMES else difflib.get_close_matches(bare, NAMES, n=1, cutoff=0.85)
        if near and each != "SETTINGS_MODULE":
            text = f"{source} defines {each}, which is not a setting of gluepy; did you mean {near[0]}?"
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
            if isinstance(value, str) and source.startswith(_TEXT_SOURCES):
                value = _decoded(name, value, source)
            if not isinstance(value, Mapping):
                raise SettingsError(name, source, f"a mapping is wanted, not {_short(value)}")
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
            if difflib.get_close_matches(name, NAMES):
                raise _unknown(name, source, list(NAMES)) from None  # a misspelt setting is the likelier mistake
            raise
        if declared is not None:
            groups.append(declared[0])
    return groups


def _unknown(name: str, source: str, known: list[str]) -> SettingsError:
    spelled: Callable[[str], str] = str
    asked = name
    if source.startswith(_TEXT_SOURCES):
        spelled, asked = (lambda each: PREFIX + each), PREFIX + name
    elif source == PYPROJECT:
        spelled, asked = str.lower, name.lower()
    near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.6)
    hint = f"did you mean {spelled(near[0])!r}?" if near else "`gluepy settings` lists them all"
    where = source.partition(" ")[0] if source.startswith(_TEXT_SOURCES) else source
    return SettingsError(asked, where, "there is no such setting", hint)


def _structured(annotation: Any) -> bool:
    """Whether text for a field of this type is JSON."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _structured(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return any(map(_structured, typing.get_args(annotation)))
    kind = origin or annotation
    return isinstance(kind, type) and issubclass(kind, (list, tuple, set, frozenset, Mapping, BaseModel))


def _decoded(name: str, text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        mend = 'write it as JSON, such as ["a", "b"] or {"gpu": 1}'
        raise SettingsError(name, source, f"its value is not JSON ({error})", mend) from None


def _problem(name: str, error: Any, redact: typing.Sequence[str]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if error["type"] == "missing":
        return message
    return f"{message}; it is {_short(_masked(name, error['input'], redact))}"


def _short(value: object) -> str:
    return reprlib.repr(value)


def _masked(name: str, value: Any, redact: typing.Sequence[str]) -> Any:
    if value is not None and not isinstance(value, bool) and _hidden(name, redact):
        return _MASK
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return _without_credentials(value, redact)
        case Mapping():
            return {str(key): _masked(str(key), each, redact) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_masked("", each, redact) for each in value]
        case _:
            return _without_credentials(str(value), redact)


def _hidden(name: str, redact: typing.Sequence[str]) -> bool:
    return any(fnmatchcase(name.upper(), pattern.upper()) for pattern in redact)


def _without_credentials(text: str, redact: typing.Sequence[str]) -> str:
    if "://" not in text:
        return text
    try:
        url = urlsplit(text)
    except ValueError:
        return text
    login, at, host = url.netloc.rpartition("@")
    if at:
        user, colon, _ = login.partition(":")
        login = f"{user}:{_MASK}" if colon else _MASK
    query = "&".join(_hidden_pairs(url.query, redact))
    return urlunsplit(url._replace(netloc=f"{login}{at}{host}", query=query))


def _hidden_pairs(query: str, redact: typing.Sequence[str]) -> Iterator[str]:
    for pair in query.split("&"):
        key, equals, _ = pair.partition("=")
        yield f"{key}={_MASK}" if equals and _hidden(key, redact) else pair
