"""The pydantic-settings model of the settings: it coerces and judges what is not already just what a setting wants.

Imported only then, since pydantic takes longer to import than all the rest of a small command.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gluepy.conf.schema import is_executor, is_sink


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


def _executor(value: object) -> object:
    if not is_executor(value):
        raise ValueError("the name of an executor, its class or an executor is wanted")
    return value


def _sink(value: object) -> object:
    if not is_sink(value):
        raise ValueError("the name of a sink, its class or a callable is wanted")
    return value


_Place = Annotated[str, BeforeValidator(_path_text), Field(min_length=1)]
_LocalPlace = Annotated[str, BeforeValidator(_local_text), Field(min_length=1)]


class SettingsModel(BaseSettings):
    """What each setting may be. The defaults, which are `gluepy.conf.schema.Settings`' own, are never used here."""

    model_config = SettingsConfigDict(extra="forbid", validate_default=False)

    SETTINGS_MODULE: Annotated[str, Field(min_length=1)] = ""
    INSTALLED_MODULES: list[str] = []
    EXECUTOR_BACKEND: Annotated[Any, AfterValidator(_executor)] = ""
    CONCURRENCY: Annotated[int, BeforeValidator(_number), Field(ge=1)] = 1
    POOL: Literal["thread", "process"] = "thread"
    LIMITS: dict[str, Annotated[int, BeforeValidator(_number), Field(ge=0)]] = {}
    STORAGE_ROOT: _Place = ""
    RUNS_ROOT: _LocalPlace = ""
    CONTEXT_FILES: list[_Place] = []
    CONTEXT_MODEL: str | None = None
    EVENT_SYNC: Literal["batch", "commit", "none"] = "batch"
    LEFTOVER_PROCESSES: Literal["auto", "warn", "kill"] = "auto"
    CODE_CHECK: Literal["warn", "refuse", "ignore"] = "warn"
    LOG_FORMAT: Literal["console", "json"] = "console"
    SINKS: list[Annotated[Any, AfterValidator(_sink)]] = []
    SINK_TIMEOUT_S: Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)] = 0.0
    DATASET_EVENTS: bool = True
    REDACT: list[str] = []

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


def validated(values: Mapping[str, object]) -> dict[str, Any]:
    """`values`, by the settings' names, as the settings want them. Raises pydantic's `ValidationError`."""
    model = SettingsModel(**values)  # type: ignore[arg-type]
    return {name: getattr(model, name) for name in values}


def structured(annotation: Any) -> bool:
    """Whether text for a field of this type is JSON."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return structured(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return any(map(structured, typing.get_args(annotation)))
    kind = origin or annotation
    return isinstance(kind, type) and issubclass(kind, (list, tuple, set, frozenset, Mapping, BaseModel))


__all__ = ["SettingsModel", "ValidationError", "structured", "validated"]
