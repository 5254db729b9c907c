"""What a secret is called, and how it is masked: in values by their names, and inside text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Self

MASK = "***"

REDACT = (  # the default of the setting: what these name is a secret wherever it appears, so `sort_key` is not here
    "*SECRET*", "*PASSWORD*", "*PASSWD*", "*PASSPHRASE*", "*PASSCODE*", "*PWD", "*TOKEN", "*CREDENTIAL*",
    "*PRIVATE_KEY*", "*API_KEY*", "*APIKEY*", "*ACCESS_KEY*", "*ACCOUNT_KEY*", "*ENCRYPTION_KEY*", "*SIGNING_KEY*",
    "*MASTER_KEY*", "*SHARED_KEY*", "*SSH_KEY*", "AUTH", "*_AUTH", "*AUTHORIZATION*", "*COOKIE*", "*BEARER*", "*DSN*",
    "*CONNECTION_STRING*", "*WEBHOOK_URL*",
)  # fmt: skip
DOUBTFUL = ("*TOKEN*", "*PRIVATE*", "*KEY", "*KEYS", "*PASS")  # masked too where that costs nothing

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_LOGIN = re.compile(r"(?<=://)([^\s/?#:@'\"]*)(?:(:)[^\s/?#'\"]*)?@")
_ODD_LOGIN = re.compile(r"(?<=://)([^\s/?#:@'\"]+):[^\s@'\"]{0,200}@")  # a password with a / or # in it
_SCHEME = re.compile(r"\b(Bearer|Basic|Digest|Negotiate|ApiKey)(\s+)[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)
_NAME = re.compile(r"""(?<![\w.-])[A-Za-z_](?:[\w.-]|\ (?=[A-Z][a-z])){0,99}(?=["']?\s{0,9}(?:=|:(?!//)))""")
_ERROR = re.compile(
    r"[a-z](?:Error|Exception|Warning|Denied|Expired|Fail\w+|Invalid|Mismatch|Missing|NotFound|Required)$"
)
_MARK = re.compile(r"""["']?\s*[=:]\s*""")
_VALUE = re.compile(
    r"""(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    r"""|[^;=\n"']{1,300}(?=;)"""  # of a connection string
    r"""|(?:(?:Bearer|Basic|Digest|Negotiate|ApiKey)\s+)?[^\s"',;&)\]}]+"""
)


_SHORTEST = 5  # characters of a value that is masked wherever it appears; shorter ones are parts of ordinary words
_SHORTEST_NUMBER = 6  # digits
_PLAIN = frozenset(("false", "basic", "bearer", "default", "disabled", "enabled", "none", "optional", "required"))
_JOINTS = str.maketrans("", "", "_-. ")
_SCHEMES = ("BEARER", "BASIC", "DIGEST", "NEGOTIATE", "APIKEY")


def looks_secret(name: str, patterns: Sequence[str] = REDACT) -> bool:
    """Whether `name` is that of a secret: fits one of `patterns`, as it is or with its words apart (`apiKey` is
    API_KEY, and so are `api-key` and `api.key`)."""
    return _looks_secret(name, tuple(patterns))


@lru_cache(4096)
def _looks_secret(name: str, patterns: tuple[str, ...]) -> bool:
    words = re.sub(r"\W+", "_", _CAMEL.sub("_", name)).upper()
    upper = name.upper()
    return any(is_meant(upper) or is_meant(words) for is_meant in _tests(patterns))


@lru_cache(64)
def _tests(patterns: tuple[str, ...]) -> tuple[Callable[[str], bool], ...]:
    """What tells whether a name fits; plain ones need no regular expression, of which making one takes its time."""
    return tuple(_test(pattern.upper()) for pattern in patterns)


def _test(pattern: str) -> Callable[[str], bool]:
    core = pattern.strip("*")
    if not core or any(mark in core for mark in "*?["):
        return lambda name: fnmatchcase(name, pattern)
    if pattern == core:
        return lambda name: name == core
    if pattern == f"*{core}":
        return lambda name: name.endswith(core)
    if pattern == f"{core}*":
        return lambda name: name.startswith(core)
    return lambda name: core in name


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
        if mark and mark[0][0] == ":" and _ERROR.search(found[0]):
            continue  # the last line of a traceback
        value = _VALUE.match(text, mark.end()) if mark else None
        if mark and value:
            quote = value[0][0] if value["quoted"] else ""
            yield f"{text[told : mark.end()]}{quote}{MASK}{quote}"
            told = value.end()
    yield text[told:]


def secrets_in(name: str, value: Any, patterns: Sequence[str]) -> Iterator[str]:
    """The secrets in `value`, which is called `name`: what has the name of one, and pydantic's `SecretStr`."""
    known = looks_secret(name, patterns)
    reveal = getattr(value, "get_secret_value", None)
    if reveal is not None:
        value, known = reveal(), True
    match value:
        case bool() | float() | None:
            return
        case str() | int():
            if known:
                yield str(value)
        case bytes():
            if known:
                yield value.decode("utf-8", "replace")
        case Mapping():
            for key, each in value.items():
                yield from secrets_in(name if known else str(key), each, patterns)
        case list() | tuple() | set() | frozenset():
            for each in value:
                yield from secrets_in(name if known else "", each, patterns)


class Redactor:
    """Masks in text what `masked_text` does, and `secrets` wherever they appear: as they are, as they look in a repr,
    in JSON and in a URL, and line by line. Values that are so short or so plain that they are parts of ordinary text
    are left alone."""

    def __init__(self, patterns: Sequence[str], secrets: Iterable[str]) -> None:
        self._patterns, self._secrets = tuple(patterns), tuple(secrets)
        looks: dict[str, None] = {}
        numbers = []
        if self._secrets:
            from urllib.parse import quote  # brings a library, as most runs know no secrets
        for secret in self._secrets:
            if secret.lstrip("-").isdecimal():
                if len(secret) >= _SHORTEST_NUMBER:
                    numbers.append(secret)
                continue
            for part in (secret, *secret.splitlines()):
                part = part.strip()
                if len(part) >= _SHORTEST and part.lower() not in _PLAIN:
                    looks |= dict.fromkeys(
                        (part, repr(part)[1:-1], json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1])
                    )
                    looks |= dict.fromkeys((quote(part), quote(part, safe="")))
        self._looks = sorted(looks, key=len, reverse=True)
        self._numbers = [(text, re.compile(rf"(?<![\w.]){re.escape(text)}(?!\w)")) for text in numbers]
        self._words = _words_of(self._patterns)

    def plus(self, secrets: Iterable[str]) -> Self:
        """One that masks these too."""
        return type(self)(self._patterns, (*self._secrets, *secrets))

    def __call__(self, text: str) -> str:
        """`text`, masked."""
        for look in self._looks:
            if look in text:
                text = text.replace(look, MASK)
        for number, whole in self._numbers:
            if number in text:
                text = whole.sub(MASK, text)
        return masked_text(text, self._patterns) if self._may_name_one(text) else text

    def lines(self, lines: list[str]) -> list[str]:
        """`lines`, each masked; most often there is nothing to mask in all of them, which is soon seen."""
        text = "\n".join(lines)
        known = any(look in text for look in self._looks) or any(number in text for number, _ in self._numbers)
        return [*map(self, lines)] if known or self._may_name_one(text) else lines

    def _may_name_one(self, text: str) -> bool:
        """Whether `masked_text`, which takes much longer, may find something."""
        if not self._patterns:
            return False
        if "://" in text:
            return True
        if "=" in text or ":" in text or " " in text:
            flat = text.upper().translate(_JOINTS)
            for word in self._words:  # `any` takes twice as long
                if word in flat:
                    return True
        return False


@lru_cache(64)
def _words_of(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """What upper-case text without joints holds at least one of, if `masked_text` finds anything in it but a URL."""
    words = {max(re.split(r"[*?\[\]]", pattern.upper()), key=len).translate(_JOINTS) for pattern in patterns}
    words.update(_SCHEMES)
    return tuple(word for word in words if not any(other in word for other in words if other != word))
