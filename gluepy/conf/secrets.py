"""What is secret around a run: what its logs and events must not tell."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from gluepy.redact import secrets_in

if TYPE_CHECKING:
    from gluepy.conf.context import Context
    from gluepy.conf.schema import Settings


class KnownSecrets:
    """What is secret around the runs of one process: among the user's own settings, those of groups, in the environment
    and in contexts; by REDACT, and what CONTEXT_MODEL says."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._environment: dict[object, object] | None = None
        self._found: tuple[str, ...] = ()

    def with_those_of(self, contexts: Iterable[Context]) -> tuple[str, ...]:
        """These secrets, and those in `contexts`."""
        environment = vars(os.environ).get("_data")  # as the system has it: to decode all of it takes longer
        if environment is None or environment != self._environment:
            self._environment = None if environment is None else dict(environment)
            self._found = tuple(_around(self._settings))
        found = [secret for context in contexts for secret in secrets_in("", context, self._settings.REDACT)]
        return (*_no_files(found), *self._found) if found else self._found


def _around(settings: Settings) -> Iterator[str]:
    patterns = settings.REDACT
    environment = {name: value for name, value in os.environ.items() if name not in ("PWD", "OLDPWD")}
    for values in (settings.own, environment):
        yield from _no_files(secrets_in("", values, patterns))
    for group, fields in settings.groups.items():
        for name, (value, _) in fields.items():
            yield from secrets_in(name, value, patterns)
            yield from secrets_in(f"{group}.{name}", value, patterns)


def _no_files(secrets: Iterable[str]) -> Iterator[str]:
    """`secrets` without the names of files, which hold one and are none."""
    return (secret for secret in secrets if not (secret.startswith("/") and os.path.exists(secret)))
