"""What is secret around a run: what its logs and events must not tell."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from gluepy.redact import secrets_in

if TYPE_CHECKING:
    from gluepy.conf.context import Context
    from gluepy.conf.schema import Settings


def known_secrets(settings: Settings, contexts: Iterable[Context]) -> Iterator[str]:
    """What is secret in `contexts`, among the user's own settings, those of groups and in the environment: by REDACT,
    and what CONTEXT_MODEL says."""
    patterns = settings.REDACT
    environment = {name: value for name, value in os.environ.items() if name not in ("PWD", "OLDPWD")}
    for values in (*contexts, settings.own, environment):
        for secret in secrets_in("", values, patterns):
            if not (secret.startswith("/") and os.path.exists(secret)):  # a file that holds one is none
                yield secret
    for fields in settings.groups.values():
        for name, (value, _) in fields.items():
            yield from secrets_in(name, value, patterns)
