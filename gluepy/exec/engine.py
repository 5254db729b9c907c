"""The one loop: append what happens, publish it, decide, start.

The engine alone appends. `task.started` is in the log before an executor sees the attempt, `task.finished` before
anything that waits for it starts. Attempts run in *slots*, a few long-lived tasks; a slot whose attempt has ended takes
the next one without going back to the event loop. Each slot has a shielded cancel scope of its own: whoever cancels the
run cancels only the wait for it, and the engine then stops what runs, writes that down, and lets the cancellation pass.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import assert_never

import anyio
from anyio.abc import TaskGroup

from gluepy.clock import Clock
from gluepy.core import events as e
from gluepy.core import scheduler as s
from gluepy.errors import ExecutorBroken, RunStopped, TaskError
from gluepy.exec import forks
from gluepy.exec.continuation import Continuation
from gluepy.exec.emissions import Emissions
from gluepy.exec.endings import HOST, Endings, rounded, timed_out
from gluepy.exec.journal import Journal
from gluepy.exec.port import FINISHED, Attempt, Outcome, RunInfo
from gluepy.exec.slots import Place, Slot, Turn
from gluepy.exec.timeouts import Timeouts, warn_of_swallowed
from gluepy.loop import Doorbell
from gluepy.runs.log import LogBroken

_NONE: Mapping[str, e.JSON] = {}
_TURN_S = 0.05  # how long a cancellation waits for the turn under way
_YIELD_S = 0.005  # how long attempts that never wait may keep the event loop to themselves


class Engine:
    """Drives one run to its end. All that it needs is handed in; it reads no settings and finds nothing by itself.

    The session is open: `scheduler` decides from its state, `journal` takes what follows. `places` say where the tasks
    of each spec run. `doorbell` reaches the event loop in which `drive` is called. `turn` is the lock that is held for
    every step, by whichever thread takes it; engines that share limits share it. `drive` runs it all, `stop` ends it
    early. Afterwards `errors` has the `TaskError` of each task that failed in this session.
    """

    def __init__(
        self,
        *,
        run: RunInfo,
        scheduler: s.Scheduler,
        journal: Journal,
        places: Sequence[Place],
        clock: Clock,
        doorbell: Doorbell,
        timeout_s: float | None = None,
        ignore_timeouts: bool = False,
        turn: Turn | None = None,
    ) -> None:
        self.run = run
        self.state = scheduler.state
        self.errors: dict[int, TaskError] = {}
        self._turn: Turn = threading.Lock() if turn is None else turn
        self._graph = scheduler.graph
        self._scheduler = scheduler
        self._journal = journal
        self._places = places
        self._endings = Endings(run, journal, scheduler, places, self.errors)
        self._clock, self._doorbell = clock, doorbell
        self._pid = os.getpid()
        self._commits = journal.commits
        self._began = journal.now
        deadline = math.inf if timeout_s is None else self._began + timeout_s
        self._timeouts = Timeouts(clock, doorbell, deadline, ignore_timeouts)
        self._emissions = Emissions(journal, scheduler, self._timeouts, self._turn, doorbell, self._fail)
        scheduler.on_limit_free = self._look_again
        self._tasks: TaskGroup | None = None
        self._yielded_at = 0.0

        # Each running node of the scheduler is in one of these three, as long as the log takes events: attempts that no
        # slot has taken up yet, in the order in which they start; slots with an attempt, by its node; and slots whose
        # attempt's end is stored and not yet acted on (`Slot.stored`), between two turns only where `_commits`.
        self._work: deque[tuple[int, Attempt]] = deque()
        self._busy: dict[int, Slot] = {}
        # Slots that wait for work, the latest last. Neither busy nor stopped.
        self._idle: list[Slot] = []
        # A slot was called and has not looked for work yet. While there is work that nobody is about to take up, it is
        # true: whoever takes an attempt up calls the next slot.
        self._slot_called = False
        # How the run is to end, from `cancel` or `stop` until the next turn tells the scheduler.
        self._stop_next: s.EndRun | None = None
        # `_is_over`: nothing begins any more. Set in a turn, read by any thread. `_has_ended`, for which `drive` waits,
        # is set in the event loop, a little later.
        self._is_over, self._has_ended = False, False
        # Why the run could not go on, with the executor's name if it was an executor. From then on nothing is recorded.
        self._broken: tuple[BaseException, str] | None = None

    async def drive(self) -> None:
        """Run to the end.

        Raises `RunStopped` when the run could not go on, and lets cancellation pass when all is written down.
        """
        try:
            async with anyio.create_task_group() as self._tasks:
                try:
                    await self._journal.durable()
                    await anyio.lowlevel.checkpoint()  # in a scope that is cancelled already nothing starts
                    with self._turn:
                        self._journal.tick()
                        self._advance()
                    await self._keep_time()
                except LogBroken as error:
                    self._fail(error)
                except Exception:
                    raise
                except BaseException:  # cancellation; under trio also Ctrl-C, which comes to whatever task runs
                    self.stop(s.EndRun("cancelled"))
                    with anyio.CancelScope(shield=True):
                        await self._keep_time()
                    raise
                finally:
                    with self._turn:
                        self._interrupt_all()
                    self._wake_all()
                    self._journal.end()  # now: a task that swallows its cancellation may keep the group waiting
        finally:
            with self._turn:
                self._scheduler.close()
        if self._broken is not None:
            raise _run_stopped(self.run.run_id, *self._broken) from self._broken[0]

    def validate(self) -> None:
        """Check what holds between two turns; the caller holds the turn. Raises `AssertionError`."""
        waiting, busy, running = [node for node, _ in self._work], set(self._busy), self._scheduler.running
        assert len({*waiting, *busy}) == len(waiting) + len(busy), f"in two places: {waiting}, {busy}"
        for node, slot in self._busy.items():
            assert slot.node == node and slot.attempt is not None, f"the slot of {node} runs {slot.node}"
            assert slot.stored is None, f"the end of {node} is stored, and it runs"
        for slot in self._idle:
            assert slot.attempt is None and slot.stored is None, f"an idle slot has {slot.node}"
        assert self._timeouts.attempts.nodes <= busy, f"deadlines of {self._timeouts.attempts.nodes}, busy: {busy}"
        assert self._timeouts.graces.nodes <= {node for node, slot in self._busy.items() if slot.stopped}
        if self._broken is not None:
            return
        assert {*waiting, *busy} <= running, f"the scheduler has {running}, not {waiting} and {busy}"
        assert not (self._is_over and running), f"the run is over, and {running} run"
        if not self._commits:
            assert {*waiting, *busy} == running, f"the scheduler has {running}, the engine {waiting} and {busy}"
            assert self._journal.is_flushed, "a turn left events unwritten"
            assert self._journal.seq == self.state.seq, f"stored up to {self._journal.seq}, folded {self.state.seq}"

    def cancel(self) -> None:
        """Begin nothing more, and have the event loop cancel the run. Idempotent; from any thread, also in a signal
        handler (which may have interrupted a turn: that one goes on to its end)."""
        self._refuse_forked_copy()
        # A thread may hold the turn now, past the point where it looks at this, and begin one attempt more. Waiting for
        # the turn lets it end first: no attempt begins after this has returned. The wait is bounded, since a signal
        # handler may have interrupted the very thread that holds the turn.
        self._stop_next = self._stop_next or s.EndRun("cancelled")
        if self._turn.acquire(timeout=_TURN_S):
            self._turn.release()
        self._doorbell.ring(self.stop, s.EndRun("cancelled"))

    def stop(self, end: s.EndRun) -> None:
        """Stop what runs, cancel what waits, and end as `end` says. Idempotent; for a task of the event loop only."""
        self._refuse_forked_copy()
        with self._turn:
            self._stop_next = self._stop_next or end
            if not self._is_over:
                self._journal.tick()
                self._advance()

    # Deciding, and carrying it out.

    def _advance(self, taken: int = 0) -> None:
        """Carry out what the scheduler wants now; `taken` slots are about to look for work themselves."""
        now = self._journal.now
        if self._stop_next is not None:
            self._scheduler.stop(self._stop_next)
            self._stop_next = None
        try:
            while (command := self._scheduler.next(now)) is not None:
                match command:
                    case s.Start():
                        self._start(command)
                    case s.SkipTask():
                        self._put(e.TaskSkipped(*self._about(command.node), command.reason))
                    case s.BlockTask():
                        causes = [self._graph.task_id(cause) for cause in command.causes]
                        self._put(e.TaskBlocked(*self._about(command.node, "warning"), causes))
                    case s.CancelTask():
                        self._put(e.TaskCancelled(*self._about(command.node, "warning")))
                    case s.StopTask():
                        self._stop_task(command.node)
                    case s.EndRun():
                        if self._doorbell.is_here():
                            self._end(command)
                        else:
                            self._doorbell.ring(self._end_in_turn, command)
                    case _:
                        assert_never(command)
            self._journal.flush()
        except LogBroken as error:
            self._abort(error)
            return
        self._timeouts.wake_at(self._scheduler.next_wake())
        if not self._slot_called and len(self._work) > taken:
            self._call_slot()

    def _start(self, start: s.Start) -> None:
        node, number, graph, journal = start.node, start.attempt, self._graph, self._journal
        spec, target, executor, pool, _ = self._places[graph.spec_of[node]]
        task, limit = graph.task_id(node), self._scheduler.max_attempts(node)
        event = e.TaskStarted(
            seq=journal.seq + 1,
            session=journal.session,
            timestamp=journal.timestamp,
            level="info",
            run_id=journal.run_id,
            dag=journal.dag,
            task=task,
            attempt=number,
            max_attempts=limit,
            executor=executor.name,
            pool=pool,
            host=HOST,
            pid=self._pid,
            queued_s=rounded(start.queued_s),
        )
        journal.store(event)
        self.state.begin(event, node)
        params = graph.params(node) if spec.params else _NONE
        self._work.append((node, Attempt(self.run, spec, task, number, limit, params, pool, target)))

    def _stop_task(self, node: int) -> None:
        if (slot := self._busy.get(node)) is not None:
            self._interrupt(slot)
        for work in self._work:
            if work[0] == node:  # it was to start, and no slot has taken it up yet
                self._work.remove(work)
                self._put(e.TaskCancelled(*self._about(node, "warning")))
                break

    def _interrupt(self, slot: Slot) -> None:
        """Stop the slot's attempt: no thread goes on from it any more, and its call is cancelled."""
        if slot.attempt is not None and not slot.stopped:
            self._timeouts.cancelled(slot.node, slot.attempt, self._clock.now())
        slot.stopped = True
        self._doorbell.call(slot.scope.cancel)

    def _refuse_forked_copy(self) -> None:
        """End the process if it is a forked copy of the driver: it must not write, and the turn may be held for ever by
        a thread that it does not have."""
        if os.getpid() != self._pid:
            forks.refuse_to_go_on()

    def _end_in_turn(self, end: s.EndRun) -> None:
        with self._turn:
            self._end(end)

    def _end(self, end: s.EndRun) -> None:
        if self._is_over:
            return
        duration_s = rounded(self._journal.tick() - self._began)
        dropped = self._journal.publish_pending()  # only now is it known
        self._put(self._endings.run_ended(end, duration_s, dropped))
        try:
            self._journal.flush()
        except LogBroken as error:
            self._abort(error)
        else:
            self._is_over = True
            self._finish()

    def _finish(self) -> None:
        """Have `drive` return. In the event loop only."""
        self._has_ended = True
        self._timeouts.interrupt()

    # Slots: where attempts run.

    def _call_slot(self) -> None:
        """Have a slot look for work. One is called at a time, and calls the next while work is left: tasks that never
        wait are all run by the first."""
        self._slot_called = True
        if not self._doorbell.is_here():
            self._doorbell.ring(self._wake_slot)
        elif self._idle:
            self._idle.pop().awake.set()
        else:
            assert self._tasks is not None
            self._tasks.start_soon(self._serve, Slot(self._doorbell.signal(), self._emissions.take, self._continue))

    def _wake_slot(self) -> None:
        # What the doorbell calls is in the event loop, but in no task of it; and only a task can start another.
        if self._idle:
            self._idle.pop().awake.set()
        else:
            self._slot_called = False
            self._look_again()

    async def _serve(self, slot: Slot) -> None:
        self._slot_called = False
        try:
            while not self._is_over:
                slot.stopped = False
                with anyio.CancelScope(shield=True) as slot.scope:
                    await self._work_on(slot)
                self._refuse_forked_copy()
                if slot.lingering is not None:
                    with self._turn:
                        lingering, slot.lingering = slot.lingering, None
                        self._scheduler.release(slot.node, lingering.number)
                    self._look_again()
                if slot.attempt is not None and self._broken is None:
                    with self._turn:
                        events = self._store_interruption(slot, slot.attempt)
                        if not self._commits:
                            self._conclude(slot, events)
                    if self._commits:
                        await self._conclude_durably(slot, events)
        except BaseException as error:
            self._fail(error, slot.place.executor.name if slot.node >= 0 else "")
            if not isinstance(error, Exception):
                raise

    async def _work_on(self, slot: Slot) -> None:
        while True:
            with self._turn:
                if slot.stopped or self._is_over:
                    return
                attempt = self._take(slot) if self._work else None
            if attempt is None:
                self._idle.append(slot)
                slot.awake = self._doorbell.signal()
                await slot.awake.wait()
                self._slot_called = False
                continue
            if attempt.spec.expands and slot.node in self.state.rows:
                outcome = FINISHED  # an earlier session recorded what it found
            else:
                executor, emit = slot.place.executor, slot.handle
                running = executor.run(attempt, emit if executor.continues else emit.__call__)
                if attempt.spec.expands and slot.place.is_here:
                    with self._clock.working():
                        outcome = await running
                else:
                    outcome = await running
                if os.getpid() != self._pid:
                    forks.refuse_to_go_on()
            with self._turn:
                if slot.attempt is None:
                    continue  # its end was stored where it ran
                events = self._store_end(slot, slot.attempt, outcome)
                if not self._commits:
                    self._conclude(slot, events)
            if self._commits:
                await self._conclude_durably(slot, events)
            if self._journal.now - self._yielded_at > _YIELD_S:
                await anyio.lowlevel.checkpoint()
                self._yielded_at = self._clock.now()

    def _continue(self, slot: Slot, attempt: Attempt, outcome: Outcome) -> tuple[Attempt, Continuation] | None:
        """`Continuation.next`, from the thread that has run the attempt or from inside the slot's call."""
        self._refuse_forked_copy()
        with self._turn:
            ended = slot.attempt is attempt and outcome.status == "finished"
            if not ended or slot.stopped or self._is_over or self._commits:
                return None
            self._conclude(slot, self._store_end(slot, attempt, outcome))
            if self._is_over or not self._work:
                return None
            node, following = self._work[0]
            if self._place(node).executor is not slot.place.executor or following.pool != attempt.pool:
                return None
            return self._take(slot), slot.handle

    def _take(self, slot: Slot) -> Attempt:
        """Have the slot take up the attempt that is the next."""
        node, attempt = self._work.popleft()
        if self._work and not self._slot_called:
            self._call_slot()
        slot.begin(node, self._place(node), attempt, self._clock.now())
        self._busy[node] = slot
        if attempt.spec.timeout_s is not None:
            self._timeouts.begin(node, attempt, slot.began)
        return attempt

    def _place(self, node: int) -> Place:
        return self._places[self._graph.spec_of[node]]

    async def _conclude_durably(self, slot: Slot, events: Sequence[e.TaskEvent]) -> None:
        with self._turn:
            self._journal.flush()
        with anyio.CancelScope(shield=True):  # a stop that came too late must not leave the end unheard
            await self._journal.durable()
        with self._turn:
            self._journal.tick()
            self._conclude(slot, events)

    def _conclude(self, slot: Slot, events: Sequence[e.TaskEvent]) -> None:
        """Go on from how the slot's attempt ended, as `events` have stored it."""
        for event in events:
            if isinstance(event, e.TaskFinished):
                self._scheduler.finish(event, slot.node, self._journal.now)
            else:
                self._scheduler.observe(event, self._journal.now)
        slot.stored = None
        if slot.released:
            self._scheduler.release(slot.node, events[-1].attempt)
        if self._endings.mistaken:  # what was asked for cannot be: nothing else runs either
            self._scheduler.stop(s.EndRun("failed"))
        self._advance(taken=1)

    def _store_end(self, slot: Slot, attempt: Attempt, outcome: Outcome) -> Sequence[e.TaskEvent]:
        """The attempt has ended by itself: store how."""
        duration_s = self._ended(slot, attempt)
        if attempt.spec.timeout_s is not None and self._timeouts.overran(attempt, duration_s):
            outcome = timed_out(attempt, outcome)
        events = self._endings.ended(slot, attempt, outcome, duration_s)
        for event in events:
            self._journal.store(event)
        return events

    def _store_interruption(self, slot: Slot, attempt: Attempt) -> Sequence[e.TaskEvent]:
        """The attempt was stopped, at its deadline or because the run is: store that."""
        events = self._endings.interrupted(slot, attempt, self._ended(slot, attempt))
        for event in events:
            self._journal.store(event)
        return events

    def _ended(self, slot: Slot, attempt: Attempt) -> float:
        """The slot's attempt runs no more; returns the seconds that it took."""
        self._emissions.record()  # those that came before it ended
        slot.attempt, slot.stored = None, attempt
        del self._busy[slot.node]
        if attempt.spec.timeout_s is not None or slot.stopped:
            self._timeouts.ended(slot.node)
        return self._journal.tick() - slot.began

    # Time.

    async def _keep_time(self) -> None:
        """Wait for the end of the run, and do what its time comes for meanwhile."""
        while (at := self._next_moment()) is not None:
            await self._timeouts.wait(at)
            self._refuse_forked_copy()
            for slot, events in self._do_what_is_due():
                if self._commits:
                    await self._conclude_durably(slot, events)
                warn_of_swallowed(self.run.run_id, events[-1])

    def _next_moment(self) -> float | None:
        """When time comes for something, unless the run ends before; None once it has ended."""
        with self._turn:
            return None if self._has_ended else self._timeouts.arm(self._scheduler.next_wake())

    def _do_what_is_due(self) -> Sequence[tuple[Slot, Sequence[e.TaskEvent]]]:
        """Stop what has timed out. Returns the slots whose attempt is waited for no longer, and how that was stored."""
        with self._turn:
            if self._has_ended:
                return ()
            due = self._timeouts.due(self._journal.tick())
            for node in due.attempts:
                self._busy[node].timed_out = True
                self._interrupt(self._busy[node])
            if due.run:
                self._scheduler.stop(s.EndRun("failed", "timeout"))
            abandoned = [self._abandon(self._busy[node]) for node in due.graces]
            if not self._commits:
                for slot, events in abandoned:
                    self._conclude(slot, events)
            self._advance()
            return abandoned

    def _abandon(self, slot: Slot) -> tuple[Slot, Sequence[e.TaskEvent]]:
        """Go on without the slot's attempt, which was cancelled and does not end: its task must be swallowing the
        cancellation. Its call goes on, and holds the slot until it returns."""
        attempt = slot.attempt
        assert attempt is not None
        slot.abandoned, slot.lingering = True, attempt
        return slot, self._store_interruption(slot, attempt)

    def _look_again(self) -> None:
        """Decide again, soon: a limit that this run shares with others has come free, or a slot."""
        self._timeouts.wake_at(-math.inf)

    # Writing.

    def _about(self, node: int, level: str = "info") -> tuple[int, int, str, str, str, str, str, int]:
        return (*self._journal.header(level), self._graph.task_id(node), self.state.attempt[node])

    def _put(self, event: e.Event) -> None:
        self._journal.store(event)
        self._scheduler.observe(event, self._journal.now)

    # Ending.

    def _fail(self, error: BaseException, executor: str = "") -> None:
        """The run cannot go on: `error` says why, and `executor` raised it, if one did. Stop what runs, and write down
        how it ended if the log still takes it."""
        self._refuse_forked_copy()
        with self._turn:
            self._abort(error, executor)

    def _abort(self, error: BaseException, executor: str = "") -> None:
        if self._broken is not None:
            return
        if not isinstance(error, LogBroken):
            if self._is_over:
                return
            try:
                self._journal.tick()
                self._scheduler.stop(s.EndRun("failed", "stopped"))
                for node, slot in self._busy.items():
                    if slot.attempt is not None:
                        self._put(e.TaskCancelled(*self._about(node, "warning")))
                self._advance()
            except LogBroken:
                pass
        self._broken = error, executor
        self._journal.close()
        self._is_over = True
        self._interrupt_all()
        self._doorbell.call(self._finish)
        self._doorbell.call(self._wake_all)

    def _interrupt_all(self) -> None:
        for slot in self._busy.values():
            self._interrupt(slot)

    def _wake_all(self) -> None:
        while self._idle:
            self._idle.pop().awake.set()


def _run_stopped(run_id: str, error: BaseException, executor: str) -> RunStopped:
    if isinstance(error, ExecutorBroken):
        return RunStopped(run_id, f"{error.executor}: {error.why}", error.hint)
    if isinstance(error, LogBroken):
        return RunStopped(run_id, f"cannot write {error.path}: {error.why}", error.hint)
    return RunStopped(run_id, f"{executor or 'gluepy'} raised {type(error).__name__}: {error}")
