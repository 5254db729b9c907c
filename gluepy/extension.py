"""What executors and sinks have in common: they are made from settings, of which they may have a group of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from pydantic import BaseModel

    from gluepy.conf.schema import Settings


class Extension:
    """Base of `Executor` and `Sink`.

    `settings_group` is the name of a group of settings and the pydantic model of its fields, such as
    `("DASK", DaskSettings)`; `settings.group(*cls.settings_group)` reads it. None: the class has no settings.
    """

    settings_group: ClassVar[tuple[str, type[BaseModel]] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        group: Any = cls.settings_group
        if group is not None and not (isinstance(group, tuple) and len(group) == 2 and isinstance(group[0], str)):
            raise TypeError(f"{cls.__qualname__}.settings_group must be (name, model), got {group!r}")

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Make one as `settings` ask for it; called when a setting or an option names the class. Raises `SettingsError`
        if they cannot be met."""
        return cls()
