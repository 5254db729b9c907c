"""Plain Python: text, JSON, YAML, CSV of dicts; dataclasses, msgspec and pydantic; arrays of numpy."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gluepy.data.kinds import DataError, is_model, is_pydantic, item_of, need

_TEXT = ("txt", "md", "html", "svg", "xml", "sql", "log")
SUFFIXES = ("json", "jsonl", "ndjson", "yaml", "yml", "csv", "tsv", *_TEXT)


def write(path: Path, name: str, suffix: str, value: Any, options: Mapping[str, Any]) -> None:
    """Write a plain value."""
    if suffix in _TEXT:
        if not isinstance(value, str):
            raise DataError(name, f"a .{suffix} file has text, not {type(value).__name__}")
        path.write_text(value, encoding="utf-8", **options)
        return
    try:
        if suffix == "json":
            path.write_bytes(msgspec.json.encode(value, enc_hook=_plain, **options))
        elif suffix in ("jsonl", "ndjson"):
            with path.open("wb") as file:
                for item in _rows(name, suffix, value):
                    file.write(msgspec.json.encode(item, enc_hook=_plain, **options) + b"\n")
        elif suffix in ("csv", "tsv"):
            _write_csv(path, name, suffix, value, options)
        else:
            import yaml

            told = msgspec.to_builtins(value, enc_hook=_plain)
            path.write_text(yaml.safe_dump(told, allow_unicode=True, sort_keys=False, **options), encoding="utf-8")
    except (TypeError, msgspec.ValidationError) as error:
        raise DataError(name, f"a .{suffix} file cannot hold it: {error}") from error


def read(path: Path, name: str, suffix: str, kind: Any, options: Mapping[str, Any]) -> Any:
    """Read a plain value, as `kind` or as the format has it."""
    if suffix in _TEXT:
        return path.read_text(encoding="utf-8", **options)
    if suffix in ("csv", "tsv"):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, **{"delimiter": _delimiter(suffix), **options}))
        return _as(name, rows, kind, strict=False)
    try:
        if suffix == "json":
            return _as(name, msgspec.json.decode(path.read_bytes(), **options), kind)
        if suffix in ("jsonl", "ndjson"):
            with path.open("rb") as lines:
                return _as(name, [msgspec.json.decode(line, **options) for line in lines if line.strip()], kind)
    except msgspec.DecodeError as error:
        raise DataError(name, f"it is no JSON: {error}") from error
    import yaml

    return _as(name, yaml.safe_load(path.read_text(encoding="utf-8")), kind)


def write_array(path: Path, name: str, suffix: str, value: Any, options: Mapping[str, Any]) -> None:
    """Write an array (`npy`), or arrays by name (`npz`)."""
    need(name, "numpy")
    import numpy as np

    with path.open("wb") as file:
        if suffix == "npy":
            np.save(file, value, **{"allow_pickle": False, **options})
        elif isinstance(value, Mapping):
            np.savez(file, **{str(key): each for key, each in value.items()}, **options)
        else:
            np.savez(file, value, **options)


def read_array(path: Path, name: str, suffix: str, options: Mapping[str, Any]) -> Any:
    """The array, or a dict of arrays."""
    need(name, "numpy")
    import numpy as np

    loaded = np.load(path, **{"allow_pickle": False, **options})
    if suffix == "npy":
        return loaded
    with loaded:
        return {key: loaded[key] for key in loaded.files}


def _as(name: str, value: Any, kind: Any, *, strict: bool = True) -> Any:
    if kind is None or kind is Any:
        return value
    item = item_of(kind)
    try:
        if is_pydantic(kind):
            return kind.model_validate(value)
        if item is not None and is_pydantic(item):
            return [item.model_validate(each) for each in value]
        if is_model(kind) or item is not None or isinstance(kind, type) or hasattr(kind, "__origin__"):
            return msgspec.convert(value, kind, strict=strict)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise DataError(name, f"it does not fit {getattr(kind, '__name__', kind)}: {error}") from error
    raise DataError(name, f"nothing reads it as {kind!r}")


def _plain(value: Any) -> Any:
    if is_pydantic(type(value)):
        return value.model_dump(mode="json")
    if type(value).__module__.partition(".")[0] == "numpy":
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no plain value")


def _rows(name: str, suffix: str, value: Any) -> Iterable[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise DataError(name, f"a .{suffix} file has rows, not one {type(value).__name__}", "give a list")
    return value


def _write_csv(path: Path, name: str, suffix: str, value: Any, options: Mapping[str, Any]) -> None:
    rows = [msgspec.to_builtins(row, enc_hook=_plain) for row in _rows(name, suffix, value)]
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(name, f"a .{suffix} file has rows with names", "give a list of dicts")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, **{"delimiter": _delimiter(suffix), "lineterminator": "\n", **options})
        writer.writeheader()
        writer.writerows(rows)


def _delimiter(suffix: str) -> str:
    return "\t" if suffix == "tsv" else ","
