"""Which library a value, or a wanted type, belongs to, without importing any."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from typing import Any, get_args, get_origin

from gluepy.errors import UsageError

_KINDS = {
    ("polars", "LazyFrame"): "polars",
    ("polars", "DataFrame"): "polars",
    ("pandas", "DataFrame"): "pandas",
    ("pyarrow", "Table"): "pyarrow",
    ("pyarrow", "RecordBatch"): "pyarrow",
    ("duckdb", "DuckDBPyRelation"): "duckdb",
    ("_duckdb", "DuckDBPyRelation"): "duckdb",
    ("numpy", "ndarray"): "numpy",
    ("matplotlib", "Figure"): "matplotlib",
    ("plotly", "BaseFigure"): "plotly",
    ("altair", "TopLevelMixin"): "altair",
    ("PIL", "Image"): "pillow",
}


class DataError(UsageError):
    """A dataset that cannot be read or written: `name`, what is wrong with it, and what to do."""

    def __init__(self, name: str, problem: str, hint: str = "") -> None:
        super().__init__(name, problem, hint)
        self.name, self.problem, self.hint = name, problem, hint

    def __str__(self) -> str:
        return f"{self.name!r}: {self.problem}" + (f"; {self.hint}" if self.hint else "")


def library_of(kind: Any) -> str:
    """The library of a type: its name, or `plain` for everything else."""
    for base in getattr(kind, "__mro__", ()):
        library = _KINDS.get((base.__module__.partition(".")[0], base.__name__))
        if library is not None:
            return library
    return "plain"


def is_lazy(kind: Any) -> bool:
    """Whether a polars type is the lazy one."""
    return any(base.__name__ == "LazyFrame" for base in getattr(kind, "__mro__", ()))


def is_model(kind: Any) -> bool:
    """Whether it is a class of msgspec, a dataclass or a TypedDict, which msgspec converts to."""
    return dataclasses.is_dataclass(kind) or hasattr(kind, "__struct_fields__") or hasattr(kind, "__required_keys__")


def is_pydantic(kind: Any) -> bool:
    """Whether it is a model of pydantic."""
    return hasattr(kind, "model_validate") and hasattr(kind, "model_fields")


def item_of(kind: Any) -> Any:
    """The type of the items of `list[T]`; None for anything else."""
    return get_args(kind)[0] if get_origin(kind) is list and get_args(kind) else None


def table_library(name: str) -> str:
    """What reads a table where nobody says: the first of polars, pandas and pyarrow that is installed. Raises
    `DataError`."""
    for library in ("polars", "pandas", "pyarrow"):
        if find_spec(library) is not None:
            return library
    raise DataError(
        name, "a table is read by polars, pandas or pyarrow, of which none is installed", "pip install polars"
    )


def need(name: str, package: str, distribution: str = "") -> None:
    """Raises `DataError` where a package is not installed."""
    if find_spec(package) is None:
        raise DataError(name, f"it needs {package}", f"pip install {distribution or package}")
