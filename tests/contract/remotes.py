"""Executors that bring attempts to agents: in this process, and in processes of their own."""

from __future__ import annotations

import signal
import sys
from types import TracebackType
from typing import Self

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from gluepy.errors import ExecutorBroken
from gluepy.exec.executors.remote import Agent, Calls, Fence
from gluepy.exec.port import Attempt, Emit, Executor, Outcome

LONGEST = 1 << 26  # bytes of a report


class AgentExecutor(Executor):
    """Has attempts run by an agent in this process, each delivered `times` times, one after another."""

    def __init__(self, *, own: bool = True, fence: Fence | None = None, times: int = 1) -> None:
        self._own, self._fence, self._times = own, fence, times
        self.reports: list[str] = []
        self.order = ""

    async def __aenter__(self) -> Self:
        self._calls = Calls(self.name)
        self._agent = await Agent("agent", own=self._own, fence=self._fence).__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._agent.__aexit__(exc_type, exc, traceback)

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        async with self._calls.open(attempt, emit) as call:
            self.order = call.text
            for _ in range(self._times):
                await self._agent.run(call.text, self._take)
            return await call.outcome()

    def _take(self, report: str) -> None:
        self.reports.append(report)
        self._calls.take(report)


class PipeExecutor(Executor):
    """Has each attempt run by `python -m gluepy.exec.executors.remote`. `pids` are those of the agents."""

    def __init__(self, *options: str, patience_s: float | None = None) -> None:
        self._options = options
        self._calls = Calls(self.name, patience_s=patience_s)
        self.pids: list[int] = []

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        command = [sys.executable, "-m", "gluepy.exec.executors.remote", *self._options]
        async with (
            self._calls.open(attempt, emit) as call,
            await anyio.open_process(command, stderr=None, start_new_session=True) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            self.pids.append(process.pid)
            lines = BufferedByteReceiveStream(process.stdout)
            try:
                await process.stdin.send(call.text.encode() + b"\n")
                while True:
                    self._calls.take((await lines.receive_until(b"\n", LONGEST)).decode())
                    if call.is_over:
                        return await call.outcome()
            except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
                with anyio.CancelScope(shield=True):
                    code = await process.wait()
                if code != -signal.SIGKILL:
                    raise ExecutorBroken(self.name, f"an agent ended with exit code {code}") from None
                return call.lost("its agent was killed")
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True), anyio.move_on_after(20):
                    await process.stdin.send(b"cancel\n")
                    while not call.is_over:
                        self._calls.take((await lines.receive_until(b"\n", LONGEST)).decode())
                raise
