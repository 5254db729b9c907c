"""Tables, by polars, pandas, pyarrow and duckdb: each with its own reader and writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gluepy.data.kinds import DataError, is_lazy, need

SUFFIXES = ("parquet", "csv", "tsv", "json", "jsonl", "ndjson", "arrow", "feather", "ipc")
LIBRARIES = ("polars", "pandas", "pyarrow", "duckdb")

Options = Mapping[str, Any]


def write(library: str, path: Path, name: str, suffix: str, value: Any, options: Options) -> None:
    """Write a table. With `partition_by`, columns, it becomes a folder of parquet files."""
    if options.get("partition_by") is not None:
        if suffix != "parquet":
            raise DataError(name, f"partition_by is for parquet, not .{suffix}")
        path.mkdir()
    _WRITERS[library](path, name, _format(suffix), value, _with_tabs(suffix, library, options))


def read(library: str, path: Path, name: str, suffix: str, kind: Any, options: Options) -> Any:
    """Read a table as what `kind` is of `library`, or as that has it. A folder is one of parquet files."""
    return _READERS[library](path, name, _format(suffix), kind, _with_tabs(suffix, library, options))


def write_rows(path: Path, name: str, suffix: str, value: Any, options: Options) -> None:
    """Write plain rows, dicts, as a table; by polars."""
    import polars as pl

    if not isinstance(value, (list, tuple, dict)):
        raise DataError(
            name, f"nothing writes a {type(value).__name__} as .{suffix}", "give a table, or a list of dicts"
        )
    write("polars", path, name, suffix, pl.DataFrame(value), options)


def read_rows(path: Path, name: str, suffix: str, kind: Any, options: Options) -> Any:
    """Plain rows, dicts or what `kind`, a list of something, says; by polars."""
    from gluepy.data.plain import _as

    need(name, "polars")
    return _as(name, read("polars", path, name, suffix, None, options).to_dicts(), kind, strict=False)


def _format(suffix: str) -> str:
    return {"tsv": "csv", "ndjson": "jsonl", "feather": "arrow", "ipc": "arrow"}.get(suffix, suffix)


def _with_tabs(suffix: str, library: str, options: Options) -> dict[str, Any]:
    name = {"polars": "separator", "pandas": "sep", "duckdb": "sep"}.get(library, "")
    return {**({name: "\t"} if suffix == "tsv" and name else {}), **options}


def _write_polars(path: Path, _name: str, form: str, value: Any, options: dict[str, Any]) -> None:
    lazy = is_lazy(type(value))
    if form == "json" or (lazy and "partition_by" in options):
        value, lazy = (value.collect() if lazy else value), False
    verb = {"parquet": "parquet", "csv": "csv", "json": "json", "jsonl": "ndjson", "arrow": "ipc"}[form]
    getattr(value, f"{'sink' if lazy else 'write'}_{verb}")(path, **options)


def _read_polars(path: Path, _name: str, form: str, kind: Any, options: dict[str, Any]) -> Any:
    import polars as pl

    verb = {"parquet": "parquet", "csv": "csv", "json": "json", "jsonl": "ndjson", "arrow": "ipc"}[form]
    source: Any = path / "**/*.parquet" if path.is_dir() else path
    if form == "json":
        frame = pl.read_json(source, **options)
        return frame.lazy() if is_lazy(kind) else frame
    return getattr(pl, f"{'scan' if is_lazy(kind) else 'read'}_{verb}")(source, **options)


def _write_pandas(path: Path, name: str, form: str, value: Any, options: dict[str, Any]) -> None:
    if form in ("parquet", "arrow"):
        need(name, "pyarrow")
    match form:
        case "parquet":
            partition_by = options.pop("partition_by", None)
            value.to_parquet(path, **({"partition_cols": partition_by} if partition_by else {}), **options)
        case "csv":
            value.to_csv(path, **{"index": False, **options})
        case "json":
            value.to_json(path, **{"orient": "records", **options})
        case "jsonl":
            value.to_json(path, **{"orient": "records", "lines": True, **options})
        case _:
            value.to_feather(path, **options)


def _read_pandas(path: Path, name: str, form: str, _kind: Any, options: dict[str, Any]) -> Any:
    need(name, "pandas")
    import pandas as pd

    match form:
        case "parquet":
            return pd.read_parquet(path, **options)
        case "csv":
            return pd.read_csv(path, **options)
        case "json":
            return pd.read_json(path, **{"orient": "records", **options})
        case "jsonl":
            return pd.read_json(path, **{"orient": "records", "lines": True, **options})
        case _:
            return pd.read_feather(path, **options)


def _write_pyarrow(path: Path, name: str, form: str, value: Any, options: dict[str, Any]) -> None:
    import pyarrow as pa

    if isinstance(value, pa.RecordBatch):
        value = pa.Table.from_batches([value])
    match form:
        case "parquet":
            import pyarrow.parquet as pq

            partition_by = options.pop("partition_by", None)
            if partition_by:
                columns = [partition_by] if isinstance(partition_by, str) else list(partition_by)
                pq.write_to_dataset(value, path, partition_cols=columns, **options)
            else:
                pq.write_table(value, path, **options)
        case "csv":
            import pyarrow.csv as pc

            pc.write_csv(value, path, **options)
        case "arrow":
            import pyarrow.feather as pf

            pf.write_feather(value, path, **{"compression": "uncompressed", **options})
        case _:
            from gluepy.data import plain

            plain.write(path, name, form, value.to_pylist(), options)


def _read_pyarrow(path: Path, name: str, form: str, _kind: Any, options: dict[str, Any]) -> Any:
    need(name, "pyarrow")
    import pyarrow as pa

    match form:
        case "parquet":
            import pyarrow.parquet as pq

            return pq.read_table(path, **options)
        case "csv":
            import pyarrow.csv as pc

            return pc.read_csv(path, **options)
        case "arrow":
            import pyarrow.feather as pf

            return pf.read_table(path, **options)
        case "jsonl":
            import pyarrow.json as pj

            return pj.read_json(path, **options)
        case _:
            from gluepy.data import plain

            return pa.Table.from_pylist(plain.read(path, name, form, list, options))


def _write_duckdb(path: Path, name: str, form: str, value: Any, options: dict[str, Any]) -> None:
    match form:
        case "parquet":
            partition_by = options.get("partition_by")
            if partition_by:
                columns = [partition_by] if isinstance(partition_by, str) else list(partition_by)
                options = {**options, "partition_by": columns, "overwrite": True}
            value.write_parquet(str(path), **options)
        case "csv":
            value.write_csv(str(path), **options)
        case _:
            _write_pyarrow(path, name, form, value.to_arrow_table(), options)


def _read_duckdb(path: Path, name: str, form: str, _kind: Any, options: dict[str, Any]) -> Any:
    need(name, "duckdb")
    import duckdb

    source = str(path / "**/*.parquet") if path.is_dir() else str(path)
    match form:
        case "parquet":
            return duckdb.read_parquet(source, **{"hive_partitioning": path.is_dir(), **options})
        case "csv":
            return duckdb.read_csv(source, **options)
        case "arrow":
            return duckdb.from_arrow(_read_pyarrow(path, name, form, None, options))
        case _:
            return duckdb.read_json(source, **options)


_WRITERS = {"polars": _write_polars, "pandas": _write_pandas, "pyarrow": _write_pyarrow, "duckdb": _write_duckdb}
_READERS = {"polars": _read_polars, "pandas": _read_pandas, "pyarrow": _read_pyarrow, "duckdb": _read_duckdb}
