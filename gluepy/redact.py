"""What a secret is called, and how it is masked: in values by their names, and inside text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

MASK = "***"

REDACT = (  # the default of the setting: what these name is a secret wherever it appears, so `sort_key` is not here
    "*SECRET*", "*PASSWORD*", "*PASSWD*", "*PASSPHRASE*", "*PASSCODE*", "*PWD", "*TOKEN", "*CREDENTIAL*",
    "*PRIVATE_KEY*", "*API_KEY*", "*APIKEY*", "*ACCESS_KEY*", "*ACCOUNT_KEY*", "*ENCRYPTION_KEY*", "*SIGNING_KEY*",
    "*MASTER_KEY*", "*SHARED_KEY*", "*SSH_KEY*", "AUTH", "*_AUTH", "*AUTHORIZATION*", "*COOKIE*", "*BEARER*", "*DSN*",
    "*CONNECTION_STRING*",
)  # fmt: skip
DOUBTFUL = ("*TOKEN*", "*PRIVATE*", "*KEY", "*KEYS", "*PASS")  # masked too where that costs nothing

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_LOGIN = re.compile(r"(?<=://)([^\s/?#:@'\"]*)(?:(:)[^\s/?#'\"]*)?@")
_ODD_LOGIN = re.compile(r"(?<=://)([^\s/?#:@'\"]+):[^\s@'\"]{0,200}@")  # a password with a / or # in it
_SCHEME = re.compile(r"\b(Bearer|Basic|Digest|Negotiate|ApiKey)(\s+)[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)
_NAME = re.compile(r"""(?<![\w.-])[A-Za-z_](?:[\w.-]|\ (?=[A-Z][a-z])){0,99}(?=["']?\s{0,9}(?:=|:(?!//)))""")
_MARK = re.compile(r"""["']?\s*[=:]\s*""")
_VALUE = re.compile(
    r"""(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    r"""|[^;=\n"']{1,300}(?=;)"""  # of a connection string
    r"""|(?:(?:Bearer|Basic|Digest|Negotiate|ApiKey)\s+)?[^\s"',;&)\]}]+"""
)


def looks_secret(name: str, patterns: Sequence[str] = REDACT) -> bool:
    """Whether `name` is that of a secret: fits one of `patterns`, as it is or with its words apart (`apiKey` is
    API_KEY, and so are `api-key` and `api.key`)."""
    return _looks_secret(name, tuple(patterns))


@lru_cache(4096)
def _looks_secret(name: str, patterns: tuple[str, ...]) -> bool:
    words = re.sub(r"\W+", "_", _CAMEL.sub("_", name)).upper()
    return any(fnmatchcase(each, pattern.upper()) for pattern in patterns for each in (name.upper(), words))


def masked(name: str, value: Any, patterns: Sequence[str] = REDACT) -> Any:
    """`value`, which is called `name`, fit to be shown: JSON-able, with secrets masked in whatever it is made of."""
    if value is not None and not isinstance(value, bool) and looks_secret(name, patterns):
        return MASK
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return masked_text(value, patterns)
        case Mapping():
            return {str(key): masked(str(key), each, patterns) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [masked("", each, patterns) for each in value]
        case _:
            return masked_text(str(value), patterns)


def masked_text(text: str, patterns: Sequence[str] = REDACT) -> str:
    """`text` with its secrets masked: what stands behind the name of one (`Password=…;`, `"token": "…"`), passwords in
    URLs, what follows `Bearer`."""
    if "://" in text:
        text = _LOGIN.sub(_without_login, text)
        text = _ODD_LOGIN.sub(rf"\1:{MASK}@", text)
    if "=" in text or ":" in text:
        text = "".join(_pieces(text, tuple(patterns)))
    return _SCHEME.sub(rf"\1\2{MASK}", text) if " " in text else text


def _without_login(found: re.Match[str]) -> str:
    user, colon = found.groups()
    return f"{user}:{MASK}@" if colon else f"{MASK}@"


def _pieces(text: str, patterns: tuple[str, ...]) -> Iterator[str]:
    """`text`, with a mask in place of what stands behind the name of a secret."""
    told = 0
    for found in _NAME.finditer(text):
        if found.start() < told or not _looks_secret(found[0], patterns):
            continue
        mark = _MARK.match(text, found.end())
        value = _VALUE.match(text, mark.end()) if mark else None
        if mark and value:
            quote = value[0][0] if value["quoted"] else ""
            yield f"{text[told : mark.end()]}{quote}{MASK}{quote}"
            told = value.end()
    yield text[told:]
