"""What is recorded of a dataset: cheap to know, and the same for the same contents."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gluepy.data.kinds import is_lazy, library_of

_COLUMNS = 1000  # more are not recorded
_PART = 1 << 20  # bytes that are read at each end of a file


class Facts(NamedTuple):
    """`bytes` of all files, `rows` and `columns` (their types by name) as far as they are known without reading the
    data, and a `fingerprint`: of the sizes, and of the first and last megabyte of each file."""

    bytes: int
    rows: int | None
    columns: dict[str, str] | None
    fingerprint: str


def facts_of(path: Path, value: Any = None) -> Facts:
    """The facts of the local file or folder `path`, of which `value` was written or read."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    for file in _files(path):
        length = file.stat().st_size
        size += length
        digest.update(f"{file.relative_to(path) if file != path else ''} {length} ".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_PART))
            if length > _PART:
                stream.seek(max(_PART, length - _PART))
                digest.update(stream.read())
    rows, columns = _shape(value, path)
    if columns is not None and len(columns) > _COLUMNS:
        columns = dict(list(columns.items())[:_COLUMNS])
    return Facts(size, rows, columns, digest.hexdigest())


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names)


def _shape(value: Any, path: Path) -> tuple[int | None, dict[str, str] | None]:
    match library_of(type(value)):
        case "polars":
            schema = value.collect_schema()
            columns = {name: str(kind) for name, kind in schema.items()}
            return (_rows_of_parquet(path) if is_lazy(type(value)) else value.height), columns
        case "pandas":
            return len(value), {str(name): str(kind) for name, kind in value.dtypes.items()}
        case "pyarrow":
            return value.num_rows, {field.name: str(field.type) for field in value.schema}
        case "duckdb":
            return _rows_of_parquet(path), {
                name: str(kind) for name, kind in zip(value.columns, value.types, strict=True)
            }
        case "numpy":
            return (int(value.shape[0]) if value.ndim else None), {"": str(value.dtype)}
        case _:
            return _plain_shape(value)


def _plain_shape(value: Any) -> tuple[int | None, dict[str, str] | None]:
    if not isinstance(value, (list, tuple)):
        return None, None
    first = value[0] if value else None
    columns = {str(name): type(each).__name__ for name, each in first.items()} if isinstance(first, Mapping) else None
    return len(value), columns


def _rows_of_parquet(path: Path) -> int | None:
    """By its footers, where polars or pyarrow is there to read them."""
    files = [file for file in _files(path) if file.suffix == ".parquet"]
    if not files:
        return None
    with suppress(ImportError):
        import pyarrow.parquet as pq

        return int(sum(pq.read_metadata(file).num_rows for file in files))
    with suppress(ImportError):
        import polars as pl

        return int(pl.scan_parquet(files).select(pl.len()).collect().item())
    return None
