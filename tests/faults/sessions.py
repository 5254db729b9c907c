"""One session of a run, in this process, on either back end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import anyio

from gluepy import DAG
from gluepy.conf.schema import Settings
from gluepy.errors import GluepyError
from gluepy.runtime import Runtime


class Place(NamedTuple):
    """Where a run is recorded, and where its tasks' files are."""

    runs: Path
    storage: Path
    run_id: str = "run"
    sync: str = "none"

    @property
    def record(self) -> Path:
        return self.runs / self.run_id

    def settings(self) -> Settings:
        return Settings(
            RUNS_ROOT=str(self.runs),
            STORAGE_ROOT=str(self.storage),
            EVENT_SYNC=self.sync,
            CONCURRENCY=3,
            LIMITS={"gpu": 1},
        )


def begin(backend: str, place: Place, dag: type[DAG], **options: Any) -> Any:
    """Run `dag`; how that ended, as JSON: its status and those of its tasks, or the error."""
    return _drive(backend, place, dag, options)


def resume(backend: str, place: Place, **options: Any) -> Any:
    return _drive(backend, place, None, options)


def _drive(backend: str, place: Place, dag: type[DAG] | None, options: dict[str, Any]) -> Any:
    async def session() -> Any:
        async with Runtime(place.settings()) as runtime:
            try:
                if dag is None:
                    result = await runtime.resume_run(place.run_id, check=False, **options)
                else:
                    result = await runtime.run_dag(dag, run_id=place.run_id, check=False, **options)
            except GluepyError as error:
                return {"error": type(error).__name__, "message": str(error)}
            return {"run": result.status, "tasks": {id: task.status for id, task in result.tasks.items()}}

    return anyio.run(session, backend=backend)
