"""YAML as contexts use it: the values of YAML 1.2's core schema, text as keys, every mistake with its line and column.

PyYAML parses. Its own rules for what plain text stands for are those of YAML 1.1 (`NO` is false, `12:30` is 750), so
the core schema's take their place: they are few, and in `gluepy.conf.scalars`, where the command line finds them too.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import yaml

from gluepy.conf.scalars import BOOLS, FLOAT, INT, NULLS, Ambiguous, from_json, plain
from gluepy.errors import ContextError

if TYPE_CHECKING:
    from yaml import SafeLoader as _Base
else:
    _Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MERGE = "tag:yaml.org,2002:merge"
_CORE = "tag:gluepy,core"  # of plain text that is not text
_LARGEST = 1_000_000  # values in one file; aliases of aliases could make it endless


class _Loader(_Base):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # none of the base's; PyYAML wants it in the class

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is not yaml.ScalarNode or not implicit[0]:
            tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
            return tag
        if value == "<<":
            return _MERGE
        core = value in NULLS or value in BOOLS or INT.fullmatch(value) or FLOAT.fullmatch(value)
        return _CORE if core else str(self.DEFAULT_SCALAR_TAG)

    def construct_core(self, node: yaml.ScalarNode) -> Any:
        try:
            return plain(node.value)
        except Ambiguous as ambiguous:
            instead = f"write {ambiguous.instead}, or " if ambiguous.instead else ""
            raise _mistake(f"{ambiguous.problem}; {instead}put it in quotes if it is text", node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[object, yaml.Mark] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == _MERGE:
                continue
            mark = key_node.start_mark
            key = key_node.value
            if key_node.tag == _CORE or not isinstance(key, str):
                quoted = f"put it in quotes: '{key}'" if isinstance(key, str) else "keys are text"
                raise _mistake(f"the key {self.construct_object(key_node, deep=True)!r} is not text; {quoted}", mark)
            if key in seen:
                raise _mistake(f"the key {key!r} is there twice, first on line {seen[key].line + 1}", mark)
            seen[key] = mark
        return super().construct_mapping(node, deep=deep)


_Loader.add_constructor(_CORE, _Loader.construct_core)
_Loader.add_constructor(_MERGE, lambda _, node: node.value)  # as a value it is text


def _mistake(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def parse(text: str, source: str) -> Any:
    """The data in `text`, YAML or JSON. Raises `ContextError` with line and column for what is neither, or could be
    meant in two ways."""
    if text.lstrip("\ufeff \t\r\n")[:1] == "{":  # YAML 1.1 parsers read some of JSON's escapes otherwise
        try:
            return from_json(text.lstrip("\ufeff"))
        except Ambiguous as ambiguous:
            instead = f"write {ambiguous.instead}, or put it in quotes" if ambiguous.instead else ""
            raise ContextError(source, ambiguous.problem, instead) from None
        except ValueError:
            pass
    try:
        aliases = False
        for event in yaml.parse(text, _Loader):
            if isinstance(event, yaml.AliasEvent):
                aliases = True
            elif (tag := getattr(event, "tag", None)) is not None:
                instead = "put the text in quotes" if tag == "tag:yaml.org,2002:str" else "leave it out"
                raise _mistake(f"tags are not wanted here ({tag}); {instead}", event.start_mark)
        data = yaml.load(text, _Loader)  # noqa: S506  # a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        problem = error.problem or error.context or "it is not YAML"
        if error.context and problem.startswith("but "):  # the end of a sentence
            problem = f"{error.context}, {problem}"
        raise ContextError(place, problem) from None
    except yaml.YAMLError as error:
        raise ContextError(source, "it is not YAML: " + " ".join(str(error).split())) from None
    except RecursionError:
        raise ContextError(source, "it is nested too deeply") from None
    if aliases and _size(data, {}) > _LARGEST:
        raise ContextError(source, f"with its aliases written out it has more than {_LARGEST:,} values")
    return data


def _size(data: Any, known: dict[int, int]) -> int:
    """The number of values in `data`, with what is shared counted each time."""
    if not isinstance(data, (dict, list)):
        return 1
    if id(data) not in known:
        known[id(data)] = 0  # what contains itself is refused later
        known[id(data)] = 1 + sum(_size(each, known) for each in (data.values() if isinstance(data, dict) else data))
    return known[id(data)]
