"""Time-outs, and the one timer of a run.

What becomes of an attempt that takes longer than its `timeout_s`:

1. `Engine._take` begins it, and `Timeouts.begin` notes its deadline.
2. The deadline comes. `Engine._keep_time` marks the attempt's slot as `timed_out` and cancels its call. On the event
   loop the task gets the cancellation; a worker process is killed, and its executor emits `Stopped`; a thread cannot be
   stopped, so its executor emits `Abandoned`, and `Released` once the thread has ended after all.
3. The call ends, and `Endings.interrupted` makes `task.retrying` or `task.failed` of it, with the reason "timeout".
4. A task of the event loop that swallows its cancellation does not end. After `GRACE_S` the run goes on without it
   (`Engine._abandon`); its slot is free again once the call has returned.

An executor may have attempts wait in a queue: between its `Queued` and `Begun` the deadline is suspended.

An attempt that ends by itself, but after its deadline, has timed out too (`overran`): the event loop was blocked, so
nothing could interrupt it. When the run's own `timeout_s` is over, everything is stopped.
"""

from __future__ import annotations

import contextvars
import heapq
import math
from collections.abc import Iterator
from typing import NamedTuple

import anyio

from gluepy.clock import Clock
from gluepy.core import events as e
from gluepy.core import scheduler as s
from gluepy.exec.port import Attempt
from gluepy.loop import Doorbell, Signal

_SPARE = 16


class Deadlines:
    """The deadlines of the attempts that are under way, at most one for each node.

    An attempt that ends leaves its entry in the heap. When the heap has more such entries than others it is built anew,
    so its size is bounded by what is under way, and `add` and `forget` take constant time on average.
    """

    def __init__(self) -> None:
        self._at: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def nodes(self) -> frozenset[int]:
        """The nodes that have a deadline."""
        return frozenset(self._at)

    def add(self, node: int, at: float) -> None:
        """The attempt of `node` must have ended `at` that time."""
        self._at[node] = at
        heapq.heappush(self._heap, (at, node))

    def forget(self, node: int) -> None:
        """The attempt of `node` has ended."""
        if self._at.pop(node, None) is not None and len(self._heap) > 2 * len(self._at) + _SPARE:
            self._heap = [(at, node) for node, at in self._at.items()]
            heapq.heapify(self._heap)

    def next(self) -> float:
        """The earliest deadline; infinity if there is none."""
        heap = self._heap
        while heap and self._at.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def due(self, now: float) -> Iterator[int]:
        """The nodes whose deadline has come, each once."""
        while self.next() <= now:
            _, node = heapq.heappop(self._heap)
            del self._at[node]
            yield node


class Due(NamedTuple):
    """What time has come for: nodes whose attempt has timed out, nodes whose cancelled attempt is waited for no longer,
    and whether the run itself has timed out."""

    attempts: list[int]
    graces: list[int]
    run: bool


class Timeouts:
    """The deadlines of a run and of its attempts, and the timer that waits for them and for the scheduler's wakes.

    All but `wait` is for the holder of the turn. `run_deadline` is a moment by `clock`; where time-outs are `ignored`,
    attempts have none.
    """

    def __init__(self, clock: Clock, doorbell: Doorbell, run_deadline: float = math.inf, ignored: bool = False) -> None:
        self._clock, self._doorbell = clock, doorbell
        self._run_deadline, self._ignored = run_deadline, ignored
        self.attempts = Deadlines()
        self.graces = Deadlines()  # of cancelled attempts on the event loop
        # When the timer goes off, or went off last: an earlier moment has to be set, for a later one it is set anyhow.
        self._at = math.inf
        self._wait: anyio.CancelScope | None = None  # for a moment
        self._signal: Signal | None = None  # while there is none to wait for

    def begin(self, node: int, attempt: Attempt, now: float) -> None:
        """The attempt of `node`, which has a `timeout_s`, begins."""
        timeout_s = attempt.spec.timeout_s
        if timeout_s is not None and not self._ignored:
            self.attempts.add(node, now + timeout_s)
            self.wake_at(now + timeout_s)

    def suspend(self, node: int) -> None:
        """The attempt of `node` waits in a queue of its executor's: it has no deadline until it `begin`s again."""
        self.attempts.forget(node)

    def cancelled(self, node: int, attempt: Attempt, now: float) -> None:
        """The call of the node's attempt is about to be cancelled: on the event loop it has `GRACE_S` to end."""
        if attempt.pool == "loop":
            self.graces.add(node, now + s.GRACE_S)
            self.wake_at(now + s.GRACE_S)

    def ended(self, node: int) -> None:
        """The attempt of `node` has ended."""
        self.attempts.forget(node)
        self.graces.forget(node)

    def overran(self, attempt: Attempt, duration_s: float) -> bool:
        """Whether the attempt, which has ended by itself, took too long."""
        timeout_s = attempt.spec.timeout_s
        return timeout_s is not None and duration_s > timeout_s and not self._ignored

    def due(self, now: float) -> Due:
        """What the time has come for, each once."""
        self._at = now
        out_of_time = now >= self._run_deadline
        if out_of_time:
            self._run_deadline = math.inf
        return Due(list(self.attempts.due(now)), list(self.graces.due(now)), out_of_time)

    def arm(self, next_wake: float) -> float:
        """Set the timer for the next deadline, or for `next_wake` if that is earlier; returns the moment."""
        if self._at > -math.inf:  # else it is to go off at once, since after it went off last
            self._at = min(next_wake, self.attempts.next(), self.graces.next(), self._run_deadline)
        return self._at

    def wake_at(self, at: float) -> None:
        """Have the timer go off by `at`; -inf: as soon as the event loop can."""
        if at < self._at:
            self._at = at
            self._doorbell.ring(self.interrupt)

    async def wait(self, at: float) -> None:
        """Return at `at`, which `arm` has returned, when `wake_at` wants it earlier, or at `interrupt`."""
        try:
            if at == math.inf:
                self._signal = self._doorbell.signal()
                await self._signal.wait()
            else:
                with anyio.CancelScope() as self._wait:
                    await self._clock.sleep_until(at)
        finally:
            self._signal = self._wait = None

    def interrupt(self) -> None:
        """End `wait`. In the event loop only."""
        if self._signal is not None:
            self._signal.set()
        if self._wait is not None:
            self._wait.cancel()


def warn_of_swallowed(run_id: str, event: e.TaskEvent) -> None:
    """Log that a task of the event loop swallows its cancellation; `event` says how its attempt ended."""
    import structlog  # brings rich; most runs never warn

    contextvars.Context().run(
        structlog.get_logger("gluepy.exec").warning,
        "a task was cancelled and goes on: its code swallows the cancellation; the call that runs its DAG cannot return"
        " before it does",
        run_id=run_id,
        task=event.task,
        attempt=event.attempt,
    )
