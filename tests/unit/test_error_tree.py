"""The tree of errors is what errors.py draws."""

from __future__ import annotations

import re

from gluepy import errors


def drawn() -> dict[str, str]:
    """Each error in the drawing, and the one that it stands below."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ((?:[│ ] {3})*)([├└]── )?(\w+)(?: {2,}\S.*)?$", line)
        if found:
            depth = len(found[1]) // 4 + bool(found[2])
            path[depth:] = [found[3]]
            if depth:
                parents[found[3]] = path[depth - 1]
    return parents


def test_the_drawing_of_errors_has_every_class_below_its_base() -> None:
    classes = {
        name: kind.__mro__[1].__name__
        for name, kind in vars(errors).items()
        if isinstance(kind, type)
        and issubclass(kind, BaseException)
        and kind.__module__ == errors.__name__
        and kind is not errors.GluepyError
    }
    assert drawn() == classes
