"""The settings: their names, defaults and meaning. `conf.sources` gathers their values, `conf.model` validates them.

Nothing here imports pydantic: a value that is already just what its setting wants, as most are, needs no library to say
so. Anything else goes to the model, which coerces it or tells what is wrong.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

from gluepy.conf.project import DEFAULT_MODULE
from gluepy.errors import SettingsError, did_you_mean
from gluepy.extension import Extension
from gluepy.redact import DOUBTFUL, REDACT, masked

if TYPE_CHECKING:
    from pydantic import BaseModel

SourceKind = Literal["default", "option", "environment", ".env", "module", "pyproject"]

Group = TypeVar("Group", bound="BaseModel")


class Source(str):
    """Where the value of a setting came from, in words; `kind` is for code to look at.

    `name` is the option, the variable or the file; in a settings module and in pyproject.toml it says it all.
    """

    kind: SourceKind
    name: str

    def __new__(cls, kind: SourceKind, name: str = "") -> Self:
        """A source of a kind; the default has no name."""
        source = super().__new__(cls, name if kind in ("module", "pyproject") else f"{kind} {name}".rstrip())
        source.kind, source.name = kind, name
        return source

    def __reduce__(self) -> tuple[Any, ...]:
        return Source, (self.kind, self.name)

    @property
    def is_text(self) -> bool:
        """Whether values from there are text, whatever they stand for."""
        return self.kind in ("environment", ".env")


DEFAULT = Source("default")

SHOWN_MASKED = (*REDACT, *DOUBTFUL)


def _cpus(_: Path) -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _context_files(folder: Path) -> list[str]:
    return [name for name in ("configs/context.yaml", "context.yaml") if (folder / name).is_file()][:1]


def _is_text(value: object) -> bool:
    return type(value) is str and value != ""


def is_executor(value: object) -> bool:
    """Whether EXECUTOR_BACKEND may be `value`: a name, a class of executors, or an executor."""
    return _is_text(value) or isinstance(value, Extension) or (isinstance(value, type) and issubclass(value, Extension))


def is_sink(value: object) -> bool:
    """Whether SINKS may have `value`: a name, a class of sinks, or a sink."""
    return _is_text(value) or callable(value)


def _is_local(value: object) -> bool:
    return type(value) is str and value != "" and "://" not in value


def _is_texts(value: object) -> bool:
    return type(value) is list and all(map(_is_text, value))


def _is_one_of(*choices: str) -> Callable[[object], bool]:
    return lambda value: type(value) is str and value in choices


class _Setting(NamedTuple):
    """The default, by the folder that relative places are under; and whether a value needs no model to judge it."""

    default: Callable[[Path], Any]
    is_plain: Callable[[Any], bool]


_SETTINGS = {
    "SETTINGS_MODULE": _Setting(lambda _: DEFAULT_MODULE, _is_text),
    "INSTALLED_MODULES": _Setting(lambda _: [], _is_texts),
    "EXECUTOR_BACKEND": _Setting(lambda _: "gluepy.exec.executors.LocalExecutor", is_executor),
    "CONCURRENCY": _Setting(_cpus, lambda value: type(value) is int and value >= 1),
    "POOL": _Setting(lambda _: "thread", _is_one_of("thread", "process")),
    "LIMITS": _Setting(
        lambda _: {},
        lambda value: (
            type(value) is dict
            and all(type(name) is str and type(amount) is int and amount >= 0 for name, amount in value.items())
        ),
    ),
    "STORAGE_ROOT": _Setting(lambda _: "data", _is_text),
    "RUNS_ROOT": _Setting(lambda _: ".gluepy/runs", _is_local),
    "CONTEXT_FILES": _Setting(_context_files, _is_texts),
    "CONTEXT_MODEL": _Setting(lambda _: None, lambda value: value is None or type(value) is str),
    "EVENT_SYNC": _Setting(lambda _: "batch", _is_one_of("batch", "commit", "none")),
    "LEFTOVER_PROCESSES": _Setting(lambda _: "auto", _is_one_of("auto", "warn", "kill")),
    "CODE_CHECK": _Setting(lambda _: "warn", _is_one_of("warn", "refuse", "ignore")),
    "LOG_FORMAT": _Setting(lambda _: "console", _is_one_of("console", "json")),
    "SINKS": _Setting(lambda _: [], lambda value: type(value) is list and all(map(is_sink, value))),
    "SINK_TIMEOUT_S": _Setting(lambda _: 5.0, lambda value: type(value) is float and 0 <= value < math.inf),
    "DATASET_EVENTS": _Setting(lambda _: True, lambda value: type(value) is bool),
    "REDACT": _Setting(lambda _: list(REDACT), _is_texts),
}
_PLACES = ("STORAGE_ROOT", "RUNS_ROOT")
_BY_PLACE = ("CONCURRENCY", "CONTEXT_FILES")  # their defaults are not the same everywhere
NAMES = tuple(_SETTINGS)
JSON_NAMES = ("INSTALLED_MODULES", "LIMITS", "CONTEXT_FILES", "SINKS", "REDACT")  # as text they are JSON


class Settings:
    """The settings of a project or a run: read-only, each an attribute.

    `conf.sources.load_settings` gathers them from all their sources; the constructor takes exactly what it is given, by
    the settings' names, and the defaults for the rest; `sources` are then the values' sources. Upper-case names of the
    settings module that are not gluepy's are attributes too. Raises `SettingsError` for what is unknown or ill-typed.

    `project` is the project's folder or None; relative places are under it, or else under the folder that was the
    current one (`folder`). `sources` says where each value came from. `own` has the user's own names,
    `groups` what the sources say for settings of executors and sinks.
    """

    project: Path | None
    folder: Path
    sources: Mapping[str, Source]
    own: Mapping[str, Any]
    groups: Mapping[str, Mapping[str, tuple[Any, Source]]]

    SETTINGS_MODULE: str
    INSTALLED_MODULES: list[str]
    EXECUTOR_BACKEND: str | type[Extension] | Extension
    CONCURRENCY: int
    POOL: Literal["thread", "process"]
    LIMITS: dict[str, int]
    STORAGE_ROOT: str
    RUNS_ROOT: str
    CONTEXT_FILES: list[str]
    CONTEXT_MODEL: str | None
    EVENT_SYNC: Literal["batch", "commit", "none"]
    LEFTOVER_PROCESSES: Literal["auto", "warn", "kill"]
    CODE_CHECK: Literal["warn", "refuse", "ignore"]
    LOG_FORMAT: Literal["console", "json"]
    SINKS: list[str | type[Any] | Callable[[Any], object]]
    SINK_TIMEOUT_S: float
    DATASET_EVENTS: bool
    REDACT: list[str]

    def __init__(
        self,
        *,
        project: Path | None = None,
        sources: Mapping[str, Source] = {},
        own: Mapping[str, Any] = {},
        **values: Any,
    ) -> None:
        folder = project or Path.cwd()
        given = _checked(values, sources)
        for what, place in (("the folder", str(folder)), *((name, str(given.get(name, ""))) for name in _PLACES)):
            _check_utf8(what, place, sources.get(what, ""))
        self.__dict__.update(
            {name: given[name] if name in given else setting.default(folder) for name, setting in _SETTINGS.items()},
            project=project,
            folder=folder,
            sources=dict(sources),
            own=dict(own),
            groups={},
            _given=frozenset(given),
        )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings are read-only; settings.replaced({name}=…) makes others")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self.__dict__ == other.__dict__

    def __repr__(self) -> str:
        given = "".join(f", {name}={self.mask(name, getattr(self, name))!r}" for name in NAMES if name in self._given)
        return f"Settings(project={self.project!r}{given})"

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__.get("own", {})
        if name in own:
            return own[name]
        if not name.isupper():
            raise AttributeError(name)
        hint = did_you_mean(name, [*NAMES, *own])
        raise AttributeError(f"there is no setting {name!r}{hint or '; the settings module does not define it either'}")

    def replaced(self, **changes: Any) -> Settings:
        """These settings with `changes`, by the settings' names, or of `groups`, `own`, `sources`. Raises
        `SettingsError`."""
        parts: dict[str, Any] = {name: changes.pop(name) for name in ("groups", "own", "sources") if name in changes}
        other = Settings.__new__(Settings)
        given = _checked(changes, {})
        other.__dict__.update({**self.__dict__, **given, **parts}, _given=self._given | given.keys())
        return other

    def source(self, name: str) -> Source:
        """Where the value of the setting `name` came from."""
        return self.sources.get(name, DEFAULT)

    def snapshot(self) -> Settings:
        """These settings. (Of the proxy `gluepy.conf.settings`: the settings that it stands for now.)"""
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON-able data: `load_settings(project, options)` gives these settings.
        Executors and sinks that are objects, not names, are left out."""
        data: dict[str, Any] = {
            name: getattr(self, name)
            for name in NAMES
            if name in self._given
            and (name in _BY_PLACE or getattr(self, name) != _SETTINGS[name].default(self.folder))
        }
        data |= {name: value for name, value in self.own.items() if self.source(name).kind == "option"}
        for name, fields in self.groups.items():
            given = {field: value for field, (value, source) in fields.items() if source.kind == "option"}
            if given:
                data[name] = given
        if not isinstance(data.get("EXECUTOR_BACKEND", ""), str):
            del data["EXECUTOR_BACKEND"]
        if "SINKS" in data:
            data["SINKS"] = [sink for sink in self.SINKS if isinstance(sink, str)]
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
        try:
            return Path(os.path.normpath(self.folder.absolute() / Path(place).expanduser()))
        except RuntimeError:  # of a user who is not known here
            why = f"there is no home folder {Path(place).parts[0]}"
            raise SettingsError(place, "the settings", why, "write the whole path") from None

    def group(self, name: str, model: type[Group]) -> Group:
        """The settings of an executor or sink of its own: the group `name`, as `model` has its fields.

        A field comes from the variable GLUEPY_<NAME>__<FIELD> or a JSON object in GLUEPY_<NAME>, from a mapping <NAME>
        in the settings module, or from [tool.gluepy.<name>], each field by itself by the usual precedence. A class that
        declares `settings_group = (name, model)` makes its group known when EXECUTOR_BACKEND or SINKS names the class.
        Raises `SettingsError`.
        """
        own = self.own.get(name)
        if own is not None and not isinstance(own, Mapping):
            raise SettingsError(name, self.sources.get(name, ""), f"a mapping is wanted, not {short(own)}")
        from pydantic import ValidationError

        from gluepy.conf.model import structured

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
            if isinstance(value, str) and source.is_text and structured(info.annotation):
                value = decoded(f"{name}.{field}", value, source)
            values[info.validation_alias if isinstance(info.validation_alias, str) else field] = value
        try:
            return model.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            where: str = found.get(place.partition(".")[0].lower(), (None, "not set"))[1]
            setting = f"{name}.{place}" if place else name
            raise SettingsError(setting, where, problem(setting, first, self._patterns)) from None

    @property
    def _patterns(self) -> Sequence[str]:
        return self.REDACT if "REDACT" in self._given else SHOWN_MASKED

    def mask(self, name: str, value: object) -> Any:
        """`value` fit to be shown: JSON-able, what REDACT names masked in it, and so are credentials in URLs."""
        return masked(name, value, self._patterns)

    def masked(self) -> dict[str, tuple[Any, str]]:
        """Every setting, the user's own and those of groups (`GROUP.FIELD`): the value fit to be shown, its source."""
        shown = {name: (self.mask(name, getattr(self, name)), str(self.source(name))) for name in NAMES}
        for name, value in self.own.items():
            if isinstance(value, Mapping):
                value = {field: self._mask_field(name, str(field), each) for field, each in value.items()}
            shown[name] = (self.mask(name, value), str(self.source(name)))
        for name, fields in self.groups.items():
            if {source for _, source in fields.values()} == {self.sources.get(name)}:
                continue  # all of it is the user's own mapping, above
            shown.pop(name, None)
            for field, (value, source) in fields.items():
                full = f"{name}.{field.upper()}"
                shown[full] = (self._mask_field(name, field, value), str(source))
        return shown

    def _mask_field(self, group: str, field: str, value: object) -> Any:
        """A field of a group, which is secret by its own name or with the group's."""
        return self.mask(f"{group}.{field}", self.mask(field, value))


def _check_utf8(what: str, place: str, source: str) -> None:
    if not place.isascii() and any("\ud800" <= character <= "\udfff" for character in place):
        why = f"{place!r} is not UTF-8, which everything in a run's record has to be"
        raise SettingsError(what, source, why, "rename it, or take another folder")


def _checked(values: Mapping[str, Any], sources: Mapping[str, Source]) -> dict[str, Any]:
    """`values` as the settings want them, in copies. Raises `SettingsError`."""
    checked: dict[str, Any] = {}
    unchecked: dict[str, Any] = {}
    for name, value in values.items():
        if name in _SETTINGS and _SETTINGS[name].is_plain(value):
            checked[name] = value.copy() if type(value) in (list, dict) else value
        else:
            unchecked[name] = value
    if unchecked:
        from gluepy.conf.model import ValidationError, validated

        try:
            checked |= validated(unchecked)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0])
            place = ".".join(map(str, first["loc"]))
            raise SettingsError(place, sources.get(name, "given"), problem(name, first, SHOWN_MASKED)) from None
    return checked


def decoded(name: str, text: str, source: str) -> Any:
    """What `text` from a source of text stands for. Raises `SettingsError` where it is not JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        hint = 'write it as JSON, such as ["a", "b"] or {"gpu": 1}'
        raise SettingsError(name, source, f"its value is not JSON ({error})", hint) from None


def problem(name: str, error: Any, redact: Sequence[str]) -> str:
    """What an error of pydantic's says, with the value as far as it may be shown."""
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if error["type"] == "missing":
        return message
    return f"{message}; it is {short(masked(name, error['input'], redact))}"


def short(value: object) -> str:
    """`value` as it is shown in an error."""
    return reprlib.repr(value)
