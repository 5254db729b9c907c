"""`LuigiExecutor`: the graph is built by Luigi (https://luigi.readthedocs.io), with its own scheduler or a luigid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Self

import anyio
from anyio.abc import Process
from pydantic import BaseModel, Field

from gluepy.core.graph import Graph
from gluepy.errors import ExecutorBroken, MissingExtra
from gluepy.exec.graph_level import Abilities, GraphExecutor, GraphRun

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings

_STOP_S = 20.0  # how long steps may take to stop in order


class LuigiSettings(BaseModel):
    """The group LUIGI: `scheduler_url` of a luigid (none: a scheduler of its own), `workers` (default CONCURRENCY)."""

    scheduler_url: str | None = None
    workers: int | None = Field(None, ge=1)


class LuigiExecutor(GraphExecutor):
    """Hands runs to Luigi, which blocks and forks, and so has a process of its own."""

    settings_group: ClassVar = ("LUIGI", LuigiSettings)
    abilities: ClassVar = Abilities(
        triggers=frozenset(("all_success", "none_failed")),
        dynamic_each=True,
        retries=True,
        limits=True,
        concurrency=True,
        selections=True,
    )

    def __init__(self, workers: int, scheduler_url: str | None = None) -> None:
        self.workers, self.scheduler_url = workers, scheduler_url

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Made from LUIGI and CONCURRENCY. Raises `MissingExtra`."""
        if find_spec("luigi") is None:
            raise MissingExtra("the executor luigi", "luigi")
        group = settings.group(*cls.settings_group)
        return cls(group.workers or settings.CONCURRENCY, group.scheduler_url)

    @classmethod
    def check_graph(cls, graph: Graph) -> None:
        """`check`, before there is an executor."""
        cls(1).check(graph)

    async def run_graph(self, run: GraphRun) -> None:
        """See the base."""
        waits = [spec.retry.wait_s for spec in run.graph.specs if spec.retry.attempts > 1]
        order = {
            "dag": run.options["dag"],
            "run_id": run.info.run_id,
            "tasks": run.tasks,
            "workers": run.concurrency or self.workers,
            "scheduler_url": self.scheduler_url,
            "retry_delay_s": min(waits, default=0.0),
            "limits": run.limits,
        }
        process = await anyio.open_process(
            [sys.executable, "-m", "gluepy.luigi"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=run.info.project,
            start_new_session=True,
        )
        said = ""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_send, process, json.dumps(order).encode())
                assert process.stdout is not None
                async for data in process.stdout:
                    said = (said + data.decode("utf-8", "replace"))[-2000:]
            code = await process.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await _stop(process)
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await process.aclose()
        if code not in (0, 1):
            last = said.strip().rpartition("\n")[2]
            raise ExecutorBroken(self.name, f"Luigi ended with exit code {code}: {last}", "see LUIGI")


async def _send(process: Process, data: bytes) -> None:
    assert process.stdin is not None
    with suppress(anyio.BrokenResourceError):
        await process.stdin.send(data)
        await process.stdin.aclose()


async def _stop(process: Process) -> None:
    """Have steps stop in order, with what their tasks have started; then kill what is left of Luigi."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with anyio.move_on_after(_STOP_S):
        while _is_there(process.pid):
            await anyio.sleep(0.05)
            if process.returncode is None:
                with anyio.move_on_after(0.01):
                    await process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
