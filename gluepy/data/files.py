"""One dataset in one local file or folder: by its suffixes to the format."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from gluepy.data import figures, plain, tables
from gluepy.data.kinds import DataError, library_of, need, table_library
from gluepy.errors import did_you_mean

GROUP = "gluepy.formats"
_COMPRESSED = ("gz", "bz2", "xz", "zst")
_TRUSTED = ("pickle", "pkl", "joblib")
_KNOWN = (*tables.SUFFIXES, *plain.SUFFIXES, *figures.SUFFIXES, "npy", "npz", *_TRUSTED)


def write_file(path: Path, name: str, value: Any, *, trust: bool = False, options: Mapping[str, Any]) -> None:
    """Write `value` to the local `path`, in the format that the suffixes of `name` say. Raises `DataError` for what the
    format cannot hold, and what the library raises."""
    suffix, compression = suffixes_of(name)
    if not compression:
        _write(path, name, suffix, value, trust, options)
        return
    plain_file = path.with_name(f"{path.name}.plain")
    try:
        _write(plain_file, name, suffix, value, trust, options)
        with plain_file.open("rb") as source, _opener(name, compression)(path, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    finally:
        plain_file.unlink(missing_ok=True)


def read_file(
    path: Path,
    name: str,
    kind: Any = None,
    *,
    trust: bool = False,
    room: Callable[[], Path],
    options: Mapping[str, Any],
) -> Any:
    """What the local `path` has, as `kind`, or as the format has it. `room` gives a folder that lasts as long as the
    value, for what is decompressed. Raises as `write_file` does."""
    suffix, compression = suffixes_of(name)
    if compression:
        file = room() / path.name.removesuffix(f".{compression}")
        with _opener(name, compression)(path, "rb") as source, file.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        path = file
    return _read(path, name, suffix, kind, trust, options)


def suffixes_of(name: str) -> tuple[str, str]:
    """The format and the compression of a name; the latter is empty for none."""
    parts = name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower().split(".")
    compression = parts.pop() if len(parts) > 1 and parts[-1] in _COMPRESSED else ""
    return (parts[-1] if len(parts) > 1 else ""), compression


def _write(path: Path, name: str, suffix: str, value: Any, trust: bool, options: Mapping[str, Any]) -> None:
    library = library_of(type(value))
    own = _own(suffix)
    if own is not None:
        own.write(path, value, **options)
    elif suffix in _TRUSTED:
        _trusted(name, suffix, trust)
        _pickler(name, suffix)[0](value, path, options)
    elif suffix in ("npy", "npz"):
        plain.write_array(path, name, suffix, value, options)
    elif library in tables.LIBRARIES and suffix in tables.SUFFIXES:
        tables.write(library, path, name, suffix, value, options)
    elif suffix in figures.SUFFIXES and library in figures.LIBRARIES:
        figures.write(library, path, suffix, value, options)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        path.write_bytes(value)
    elif suffix in plain.SUFFIXES:
        plain.write(path, name, suffix, value, options)
    elif suffix in tables.SUFFIXES:
        need(name, "polars")
        tables.write_rows(path, name, suffix, value, options)
    else:
        what = f"{type(value).__module__}.{type(value).__qualname__}"
        raise DataError(name, f"nothing writes a {what} as .{suffix}", _hint(suffix))


def _read(path: Path, name: str, suffix: str, kind: Any, trust: bool, options: Mapping[str, Any]) -> Any:
    library = library_of(kind)
    own = _own(suffix)
    if own is not None:
        return own.read(path, kind, **options)
    if suffix in _TRUSTED:
        _trusted(name, suffix, trust)
        return _pickler(name, suffix)[1](path, options)
    if kind is bytes:
        return path.read_bytes()
    if suffix in ("npy", "npz"):
        return plain.read_array(path, name, suffix, options)
    if library in tables.LIBRARIES and suffix in tables.SUFFIXES:
        return tables.read(library, path, name, suffix, kind, options)
    if suffix in plain.SUFFIXES and not (suffix == "csv" and kind is None):
        return plain.read(path, name, suffix, kind, options)
    if suffix in tables.SUFFIXES:
        if kind is None:
            return tables.read(table_library(name), path, name, suffix, None, options)
        return tables.read_rows(path, name, suffix, kind, options)
    if kind in (None, bytes):
        return path.read_bytes()
    raise DataError(name, f"nothing reads .{suffix} as {kind!r}", _hint(suffix))


def _hint(suffix: str) -> str:
    near = did_you_mean(suffix, _KNOWN).removeprefix("; ")
    return near or f"known are .{', .'.join(sorted(_KNOWN))}; others by an entry point of {GROUP}"


def _own(suffix: str) -> Any:
    for entry in entry_points(group=GROUP, name=suffix):
        return entry.load()
    return None


def _opener(name: str, compression: str) -> Callable[[Path, Any], Any]:
    match compression:
        case "gz":
            import gzip

            # without the time, so that the same contents are the same bytes
            return lambda path, mode: gzip.GzipFile(path, mode, mtime=0)
        case "bz2":
            import bz2

            return bz2.open
        case "xz":
            import lzma

            return lzma.open
        case _:
            need(name, "zstandard")
            import zstandard

            opener: Callable[[Path, Any], Any] = zstandard.open
            return opener


def _trusted(name: str, suffix: str, trust: bool) -> None:
    if not trust:
        raise DataError(name, f"whoever writes a .{suffix} file runs code here", "pass trust=True if that is you")


def _pickler(name: str, suffix: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if suffix == "joblib":
        need(name, "joblib")
        import joblib

        return (
            lambda value, path, options: joblib.dump(value, path, **options),
            lambda path, options: joblib.load(path, **options),
        )
    import pickle

    def dump(value: Any, path: Path, options: Mapping[str, Any]) -> None:
        with path.open("wb") as file:
            pickle.dump(value, file, **options)

    def load(path: Path, options: Mapping[str, Any]) -> Any:
        with path.open("rb") as file:
            return pickle.load(file, **options)  # noqa: S301  # `trust` was asked for

    return dump, load
