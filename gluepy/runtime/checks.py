"""What is looked up about a DAG's code before it runs."""

from __future__ import annotations

import sys
from pathlib import Path

from gluepy.conf.schema import Settings
from gluepy.errors import DagError, SettingsError
from gluepy.exec.dag import Compiled
from gluepy.exec.task import Task

_ALWAYS_THERE = ("file", "local", "memory")
_EXTRAS = {  # what opens a URL: the package, and the extra that brings it
    **dict.fromkeys(("s3", "s3a"), ("s3fs", "s3")),
    **dict.fromkeys(("gs", "gcs"), ("gcsfs", "gcs")),
    **dict.fromkeys(("abfs", "abfss", "adl", "az"), ("adlfs", "azure")),
}


def check_processes(compiled: Compiled, pool: str) -> None:
    """Raises `DagError` for a task that is to run in a worker process and cannot be imported there."""
    for spec, target in zip(compiled.graph.specs, compiled.targets, strict=True):
        if (spec.pool or pool) != "process" or not isinstance(target, type) or not issubclass(target, Task):
            continue
        place = f"task {target.__qualname__} ({target.__module__})"
        hint = "move it to a module, or let it run with pool = 'thread'"
        if "<locals>" in target.__qualname__:
            raise DagError(place, "a class defined inside a function cannot go to a worker process", hint)
        file = getattr(sys.modules.get("__main__"), "__file__", None)
        if target.__module__ == "__main__" and (file is None or not Path(file).is_file()):
            why = "a class defined in a notebook, on stdin or by -c cannot go to a worker process"
            raise DagError(place, why, hint)


def check_storage(settings: Settings) -> None:
    """Raises `SettingsError` where STORAGE_ROOT is a URL that nothing installed can open."""
    protocols, scheme, _ = settings.STORAGE_ROOT.partition("://")
    if not scheme:
        return
    source = settings.sources.get("STORAGE_ROOT", "")
    for protocol in protocols.split("::"):
        if protocol in _ALWAYS_THERE:
            continue
        from fsspec import get_filesystem_class  # type: ignore[import-untyped]

        try:
            get_filesystem_class(protocol)
        except ValueError:
            hint = "give a folder, or a URL that fsspec knows, such as s3://bucket/folder"
            raise SettingsError("STORAGE_ROOT", source, f"there is no storage {protocol!r}", hint) from None
        except ImportError as error:
            if protocol in _EXTRAS:
                package, extra = _EXTRAS[protocol]
                why = f"{protocol}:// needs {package}, the extra {extra!r} ({error.__cause__ or error})"
                raise SettingsError("STORAGE_ROOT", source, why, f"pip install {package}") from None
            why = f"what opens {protocol}:// is not installed ({error})"
            raise SettingsError("STORAGE_ROOT", source, why, "install it, or give a folder") from None


def modules_of(compiled: Compiled) -> tuple[str, ...]:
    """The modules of a DAG and its tasks."""
    tasks = {target.__module__ for target in compiled.targets if isinstance(target, type) and issubclass(target, Task)}
    return tuple(sorted({compiled.dag.__module__} | tasks))
