"""`gluepy step` and `gluepy collect`: runs whose graph an orchestrator schedules."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import anyio

from gluepy.cli.invocation import Invocation
from gluepy.cli.running import params_in
from gluepy.cli.text import json_text, say, tell
from gluepy.errors import GluepyError
from gluepy.loop import run_loop
from gluepy.runtime.collect import collect_run, uncollected
from gluepy.runtime.step import StepOptions, StepResult, added_rows, run_step

_LOOK_S = 0.5  # between two looks whether the caller is there


def step(
    invocation: Invocation,
    run: str,
    task: str,
    *,
    dag: str | None,
    param: Sequence[str],
    params: str | None,
    executor: str,
    skip_code: int,
    with_parent: bool,
    list_added: bool,
) -> int:
    """`gluepy step`"""
    settings = invocation.settings()
    options = StepOptions(dag, params_in(param, params), executor)
    stopped_by = 0

    def show(stream: str, line: str) -> None:
        print(line, file=sys.stderr if stream == "stderr" else sys.stdout, flush=True)

    async def main() -> StepResult | None:
        result: StepResult | None = None
        failure: GluepyError | None = None
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                nonlocal stopped_by
                with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                    async for number in signals:
                        stopped_by = stopped_by or number
                        tasks.cancel_scope.cancel()

            async def watch_parent() -> None:
                nonlocal stopped_by
                parent = os.getppid()
                while os.getppid() == parent:  # noqa: ASYNC110  # the system tells nobody
                    await anyio.sleep(_LOOK_S)
                stopped_by = stopped_by or signal.SIGTERM
                tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            if with_parent:
                tasks.start_soon(watch_parent)
            try:
                result = await run_step(settings, run, task, options, show)
            except GluepyError as error:  # the task group would wrap it
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return result

    result = run_loop(main)
    if result is None:
        tell(f"{task} was stopped by {signal.Signals(stopped_by).name}")
        return 128 + stopped_by
    number = f", attempt {result.attempt}" if result.has_run else ""
    tell(f"{task}: {result.status}{number}" if result.has_run else f"{task}: {result.told}")
    if list_added and result.status == "finished":
        say(json_text(added_rows(settings, run, task)))
    match result.status:
        case "finished":
            return 0
        case "skipped":
            return skip_code
        case _:
            return 1


def collect(invocation: Invocation, run: str | None) -> int:
    """`gluepy collect`"""
    settings = invocation.settings()
    runs = [run] if run is not None else list(uncollected(settings))
    for each in runs:
        collected = collect_run(settings, each)
        made = "new" if collected.is_new else "again"
        say(f"{collected.run_id}  {collected.dag}  {collected.status}  ({made})")
    if not runs:
        tell(f"no run in {settings.storage_root} that this machine has no record of")
    return 0
