"""What plain text stands for: by the core schema of YAML 1.2.2 (section 10.3.2) in files, by JSON on a command line.

Both agree on what they accept. Text that would silently become something else than it looks like is refused by both:
`01234` would lose its zero, `12345e7` may be the beginning of a hash.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

NULLS = ("", "~", "null", "Null", "NULL")
BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]")
_PLUS = re.compile(r"\+[0-9]+")
_HASH = re.compile(r"(?=.{7})[0-9]+[eE][0-9]+")  # git abbreviates to seven digits


class Ambiguous(ValueError):
    """Text that may not mean what it would become. `problem` says what that is, `instead` how the value is written."""

    def __init__(self, problem: str, instead: str = "") -> None:
        super().__init__(problem, instead)
        self.problem, self.instead = problem, instead


def number(text: str) -> int | float:
    """The number that `text`, an `INT` or a `FLOAT`, is. Raises `Ambiguous`."""
    if INT.fullmatch(text) is None:
        value = math.nan if text[-1] in "fFnN" else float(text)
        if not math.isfinite(value):
            raise Ambiguous(f"{text} is not a number that JSON has", "null")
    else:
        digits = text.lstrip("+-0ox")
        if len(digits) > 20:
            raise Ambiguous(f"{text} is beyond 64 bits")
        value = int(text, 0) if text[1:2] in ("o", "x") else int(text)
        if not -(2**63) <= value < 2**64:
            raise Ambiguous(f"{text} is beyond 64 bits")
    if _LEADING_ZERO.match(text) or _PLUS.fullmatch(text) or _HASH.fullmatch(text):
        written = json.dumps(value)
        raise Ambiguous(f"{text} would be the number {written}", written)
    return value


def plain(text: str) -> Any:
    """What `text` without quotes stands for in YAML. Raises `Ambiguous`."""
    if text in NULLS:
        return None
    if text in BOOLS:
        return BOOLS[text]
    return number(text) if INT.fullmatch(text) or FLOAT.fullmatch(text) else text


def typed(text: str) -> Any:
    """What `text` stands for on a command line: JSON, else text. Raises `Ambiguous` for what YAML would read otherwise,
    and for what only looks like JSON."""
    try:
        return from_json(text)
    except Ambiguous:
        raise
    except ValueError as error:
        broken = str(error)
    bare = text.strip()
    if bare == "None":
        raise Ambiguous("None is Python's, not JSON's", "null")
    if bare[:1] in tuple('[{"'):
        raise Ambiguous(f"it begins like JSON and is none ({broken})")
    if len(bare) > 1 and bare[0] == bare[-1] == "'":
        raise Ambiguous("it is in single quotes, which are not JSON's", bare[1:-1])
    value = plain(bare) if bare else text
    if isinstance(value, str):
        return text
    raise Ambiguous(f"{bare} is not JSON, and would be {json.dumps(value)} in YAML", json.dumps(value))


def from_json(text: str) -> Any:
    """What the JSON `text` says. Raises `Ambiguous` for numbers as above and for a key that is there twice, and
    `ValueError` for what is not JSON."""
    try:
        return json.loads(
            text, object_pairs_hook=_mapping, parse_int=number, parse_float=number, parse_constant=_refused
        )
    except RecursionError:
        raise Ambiguous("it is nested too deeply") from None


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise Ambiguous(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _refused(word: str) -> Any:  # Python would take NaN and Infinity
    raise ValueError(f"JSON has no {word}")
