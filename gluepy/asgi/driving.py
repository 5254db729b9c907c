"""Requests that start, cancel and resume runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gluepy.asgi.answers import answer, body, mounted_at
from gluepy.asgi.looking import Looking
from gluepy.asgi.operations import RESUME_OPTIONS, RUN_OPTIONS
from gluepy.errors import NotRunning, OptionError
from gluepy.report import RunReport
from gluepy.runs.record import Record, is_run_id
from gluepy.runtime import Runtime

_LET_GO_S = 5.0


class Driving:
    """Answers requests that change something. The runs are those of the runtime: they outlive the request, and end with
    the runtime at the latest."""

    def __init__(self, runtime: Runtime, looking: Looking) -> None:
        self._runtime, self._looking = runtime, looking

    async def start_run(self, request: Request) -> Response:
        """Start a run of a DAG."""
        options: Any = await body(request, RUN_OPTIONS)
        label = request.path_params["label"]
        await self._looking.in_thread(partial(self._looking.find_dag, label))  # which imports the project's modules
        await self._looking.in_thread(partial(self._check_new, options.get("run_id")))
        self._check_open()
        run = await self._runtime.start_dag(label, **{"capture": True, **options})
        return _started(request, run.id)

    async def resume_run(self, request: Request) -> Response:
        """Resume a run."""
        options: Any = await body(request, RESUME_OPTIONS)
        record = await self._looking.record(request)
        self._check_open()
        await self._let_go(record)
        try:
            run = await self._runtime.start_resume(record.run_id, **{"capture": True, **options})
        except OptionError as error:
            if error.option != "evaluate":
                raise
            raise HTTPException(409, str(error)) from None  # the run is not one that can be
        return _started(request, run.id)

    async def cancel_run(self, request: Request) -> Response:
        """Ask the driver of a run, in whichever process it is, to cancel it."""
        await body(request, {})
        record = await self._looking.record(request)
        running = await self._looking.is_running(record)
        await self._looking.in_thread(partial(self._cancel, record, running))
        return _started(request, record.run_id)

    async def _let_go(self, record: Record) -> None:
        """Wait a little for the driver of a run that has ended, which lets go of it after its last event."""
        with anyio.move_on_after(_LET_GO_S):
            while True:
                held = await self._looking.in_thread(record.is_held)
                if not held or await self._looking.is_running(record):
                    return
                await anyio.sleep(0.02)

    def _cancel(self, record: Record, running: bool) -> None:
        if not running:
            raise NotRunning(record.run_id, RunReport.from_record(record, self._looking.settings).status)
        record.ask_to_stop()

    def _check_new(self, run_id: str | None) -> None:
        if run_id and is_run_id(run_id) and (self._looking.settings.runs_root / run_id / "events.jsonl").exists():
            raise HTTPException(409, f"a run {run_id!r} is recorded already; give another id, or resume it")

    def _check_open(self) -> None:
        if not self._runtime.is_open:
            detail = "no run can be started here: the service has not opened its Runtime (`async with runtime:`)"
            raise HTTPException(503, detail)


def _started(request: Request, run_id: str) -> Response:
    location = f"{mounted_at(request)}/runs/{run_id}"
    return answer({"run_id": run_id}, 202, {"location": location})
