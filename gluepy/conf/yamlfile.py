"""YAML as contexts use it: safe, without duplicate keys, every mistake with its line and column."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import yaml

from gluepy.errors import ContextError

if TYPE_CHECKING:
    from yaml import SafeLoader as _Base
else:
    _Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MERGE = "tag:yaml.org,2002:merge"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(_Base):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[object, yaml.Mark] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            mark = key_node.start_mark
            if not isinstance(key, str):
                written = getattr(key_node, "value", key)
                quoted = f"put it in quotes: '{written}'" if isinstance(written, str) else "keys are text"
                raise _mistake(f"the key {key!r} is not text; {quoted}", mark)
            if key in seen:
                raise _mistake(f"the key {key!r} is there twice, first on line {seen[key].line + 1}", mark)
            seen[key] = mark
        return super().construct_mapping(node, deep=deep)

    def construct_timestamp(self, node: yaml.ScalarNode) -> Any:
        try:
            return self.construct_yaml_timestamp(node)
        except ValueError as error:
            problem = f"{node.value!r} is not a date ({error}); if it is text, put it in quotes"
            raise _mistake(problem, node.start_mark) from None


_Loader.add_constructor(_TIMESTAMP, _Loader.construct_timestamp)


def _mistake(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def parse(text: str, source: str) -> Any:
    """The data in `text`. Raises `ContextError` with line and column for what is not YAML or is ambiguous."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        raise ContextError(place, error.problem or error.context or "it is not YAML") from None
    except yaml.YAMLError as error:
        raise ContextError(source, "it is not YAML: " + " ".join(str(error).split())) from None
    except RecursionError:
        raise ContextError(source, "it is nested too deeply") from None
