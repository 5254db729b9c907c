"""The one loop: append what happens, publish it, decide, start.

The engine alone appends. `task.started` is in the log before an executor sees the attempt, `task.finished` before
anything that waits for it starts. Attempts run in *slots*, a few long-lived tasks; a slot whose attempt has ended takes
the next one without going back to the event loop. Each slot has a shielded cancel scope of its own: whoever cancels the
run cancels only the wait for it, and the engine then stops what runs, writes that down, and lets the cancellation pass.
"""

from __future__ import annotations

import contextvars
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

import anyio
from anyio.abc import TaskGroup

from gluepy.clock import Clock
from gluepy.core import events as e
from gluepy.core import scheduler as s
from gluepy.core.graph import Spec
from gluepy.core.state import RUNNING, State
from gluepy.errors import ExecutorBroken, RunStopped, TaskError
from gluepy.exec import forks
from gluepy.exec.continuation import Continuation
from gluepy.exec.deadlines import Deadlines
from gluepy.exec.endings import HOST, Endings, rounded, timed_out
from gluepy.exec.journal import Journal
from gluepy.exec.port import (
    FINISHED,
    Abandoned,
    Attempt,
    Emission,
    Executor,
    Metric,
    Outcome,
    Output,
    Progress,
    Released,
    RunInfo,
    Stopped,
)
from gluepy.exec.slots import Slot, Turn
from gluepy.loop import Doorbell, signals
from gluepy.runs.log import EventLog, LogBroken
from gluepy.sinks.feed import Feed

_NONE: Mapping[str, e.JSON] = {}
_Told = Progress | Metric | Abandoned | Released | Stopped
_ASK_S = 0.25  # how often it is asked whether somebody wants the run to stop
_TURN_S = 0.05  # how long a cancellation waits for the turn under way
_BREATH_S = 0.005  # how long attempts that never wait may keep the event loop to themselves


class Engine:
    """Drives one run to its end. All that it needs is handed in; it reads no settings and finds nothing by itself.

    `targets` are what the graph's specs run, `pool` where a `def run` without a pool of its own goes; `stop_asked` says
    whether somebody elsewhere wants the run to be cancelled; a `patient` engine knows no time-outs of tasks. What an
    `each` asks is run by `here`, an executor of this process. `drive` runs it all, `stop` ends it early. Afterwards
    `errors` has the `TaskError` of each task that failed in this session.
    """

    def __init__(
        self,
        *,
        run: RunInfo,
        state: State,
        targets: Sequence[Any],
        executor: Executor,
        here: Executor | None = None,
        log: EventLog,
        feed: Feed,
        clock: Clock,
        pool: str = "thread",
        timeout_s: float | None = None,
        stop_asked: Callable[[], bool] | None = None,
        patient: bool = False,
        turn: Turn | None = None,
    ) -> None:
        self.run = run
        self._turn: Turn = threading.Lock() if turn is None else turn
        self._told: deque[tuple[Slot, Attempt, _Told]] = deque()  # emissions that no turn has taken in yet
        self.state = state
        self.errors: dict[int, TaskError] = {}
        self._graph = state.graph
        self._targets = targets
        self._executor, self._here = executor, here or executor
        self._log = log
        self._feed = feed
        self._clock = clock
        self._pool = pool
        self._timeout_s = timeout_s
        self._stop_asked = stop_asked
        self._listening = anyio.CancelScope()
        self._patient = patient
        self._pid = os.getpid()
        self._journal = Journal(run, state.session + 1, state.seq, log, feed, clock, self._publish)
        self._began = 0.0
        self._kinds: list[tuple[Spec, Any, Executor, str]] = []  # of each spec: what it runs, where, and its pool
        self._work: deque[tuple[int, Executor, Attempt]] = deque()  # attempts of nodes that no slot has taken up yet
        self._idle: list[Slot] = []
        self._busy: dict[int, Slot] = {}
        self._coming = False  # whether a slot was called that has not looked for work yet
        self._deadlines = Deadlines()
        self._patience = Deadlines()  # for loop tasks that were cancelled, to end
        self._alarm_at = math.inf
        self._alarm: anyio.CancelScope | None = None
        self._look_again = False
        self._is_over, self._over = False, anyio.Event()
        self._signal = signals()
        self._doorbell, self._thread = Doorbell(), threading.get_ident()
        self._context = contextvars.copy_context()
        self._broken: BaseException | None = None
        self._tasks: TaskGroup | None = None
        self._breath = 0.0
        self._commits = log.sync == "commit"
        self._scheduler: s.Scheduler
        self._stop_next: s.EndRun | None = None  # how the run is to end, until the next turn tells the scheduler
        self._endings: Endings

    async def drive(
        self,
        opening: Callable[..., e.RunStarted | e.RunResumed],
        resets: Callable[[], Mapping[int, str]],
        decide: Callable[[float, float], s.Scheduler],
    ) -> None:
        """Run to the end. `opening` makes the session's first event of a header; `resets` then says which tasks run
        again, and why; `decide` makes the scheduler, of the time by the monotonic clock and in seconds since 1970.

        Raises `RunStopped` when the run could not go on, and lets cancellation pass when all is written down.
        """
        self._began = self._journal.tick()
        try:
            async with anyio.create_task_group() as self._tasks:
                try:
                    self._open(opening, resets)
                    self._journal.flush()
                    self._kinds = [
                        (spec, target, self._executor_of(spec), spec.pool or self._pool)
                        for spec, target in zip(self._graph.specs, self._targets, strict=True)
                    ]
                    self._scheduler = decide(self._clock.now(), self._clock.wall())
                    self._endings = Endings(self.run, self._journal, self._scheduler, self._targets, self.errors)
                    await self._log.durable()
                    await anyio.lowlevel.checkpoint()  # in a scope that is cancelled already nothing starts
                    self._tasks.start_soon(self._keep_time)
                    if self._stop_asked is not None:
                        self._tasks.start_soon(self._listen, self._stop_asked)
                    with self._turn:
                        self._journal.tick()
                        self._advance()
                    await self._over.wait()
                except LogBroken as error:
                    self._give_up(error)
                except Exception:
                    raise
                except BaseException:  # cancellation; under trio also Ctrl-C, which comes to whatever task runs
                    if hasattr(self, "_scheduler"):
                        self.stop(s.EndRun("cancelled"))
                        with anyio.CancelScope(shield=True):
                            await self._over.wait()
                    raise
                finally:
                    self._close()
                    self._journal.hand_on()
                    self._feed.close()  # now: a task that swallows its cancellation may keep the group waiting
        finally:
            if hasattr(self, "_scheduler"):
                with self._turn:
                    self._scheduler.close()
            self._journal.hand_on()
            self._feed.close()
        if self._broken is not None:
            raise self._stopped(self._broken) from self._broken

    def cancel(self) -> None:
        """Begin nothing more, and have the event loop cancel the run. Idempotent; from any thread, also in a signal
        handler (which may have interrupted a turn: that one goes on to its end)."""
        self._be_the_driver()
        # A thread may hold the turn now, past the point where it looks at this, and begin one attempt more. Waiting for
        # the turn lets it end first: no attempt begins after this has returned. The wait is bounded, since a signal
        # handler may have interrupted the very thread that holds the turn.
        self._stop_next = self._stop_next or s.EndRun("cancelled")
        if self._turn.acquire(timeout=_TURN_S):
            self._turn.release()
        self._soon(self.stop, s.EndRun("cancelled"))

    def stop(self, end: s.EndRun) -> None:
        """Stop what runs, cancel what waits, and end as `end` says. Idempotent; for a task of the event loop only."""
        self._be_the_driver()
        with self._turn:
            self._stop_next = self._stop_next or end
            if hasattr(self, "_scheduler") and not self._is_over:
                self._journal.tick()
                self._advance()

    def _open(
        self, opening: Callable[..., e.RunStarted | e.RunResumed], resets: Callable[[], Mapping[int, str]]
    ) -> None:
        """Write the session's first events down: attempts that have no end were interrupted, and what runs again."""
        event = opening(*self._journal.header("info"))
        self._journal.store(event)
        self.state.apply(event)
        self._graph = self.state.graph
        for node, cause in resets().items():
            if self.state.status[node] == RUNNING:
                self._record_interrupted(node)
            self._apply(e.TaskReset(*self._about(node), cause))

    def _record_interrupted(self, node: int) -> None:
        spec = self._graph.spec(node)
        failed = e.TaskFailed(
            *self._about(node, "error"),
            max_attempts=spec.retry.attempts + self.state.attempts_before_reset.get(node, 0),
            executor=self._executor_of(spec).name,
            pool=spec.pool or self._pool,
            duration_s=0.0,
            reason="interrupted",
            error_type="Interrupted",
            error_message="the driver of the run ended before the attempt did",
        )
        self._apply(failed)

    def _apply(self, event: e.Event) -> None:
        self._journal.store(event)
        self.state.apply(event)

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
                        if threading.get_ident() == self._thread:
                            self._end(command)
                        else:
                            self._soon(self._end_in_turn, command)
                    case _:
                        assert_never(command)
            self._journal.flush()
        except LogBroken as error:
            self._break_off(error)
            return
        if (wake := self._scheduler.next_wake()) < self._alarm_at:
            self._set_alarm(wake)
        if not self._coming and len(self._work) > taken:
            self._call_slot()

    def _start(self, start: s.Start) -> None:
        node, number, graph, journal = start.node, start.attempt, self._graph, self._journal
        spec, target, executor, pool = self._kinds[graph.spec_of[node]]
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
        self._put(event)
        params = graph.params(node) if spec.params else _NONE
        self._work.append((node, executor, Attempt(self.run, spec, task, number, limit, params, pool, target)))

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
        if slot.attempt is not None and slot.attempt.pool == "loop" and not slot.stopped:
            given_up = self._clock.now() + s.GRACE_S
            self._patience.add(slot.node, given_up)
            self._set_alarm(given_up)
        slot.stopped = True
        self._on_loop(slot.scope.cancel)

    def _be_the_driver(self) -> None:
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
        counts = self.state.counts()
        self._journal.hand_on()  # which output is dropped shows only then
        dropped = self._feed.dropped or None
        header = self._journal.header({"finished": "info", "failed": "error", "cancelled": "warning"}[end.status])
        match end.status:
            case "finished":
                self._put(e.RunFinished(*header, duration_s, counts, dropped))
            case "failed":
                failed = [self._graph.task_id(node) for node in self.errors]
                self._put(e.RunFailed(*header, duration_s, counts, failed, end.reason, dropped))
            case "cancelled":
                self._put(e.RunCancelled(*header, duration_s, counts, dropped))
        try:
            self._journal.flush()
        except LogBroken as error:
            self._break_off(error)
        else:
            self._finish()

    # Slots: where attempts run.

    def _call_slot(self) -> None:
        """Have a slot look for work. One is called at a time, and calls the next while work is left: tasks that never
        wait are all run by the first."""
        self._coming = True
        if threading.get_ident() != self._thread:
            self._soon(self._summon)
        elif self._idle:
            self._idle.pop().awake.set()
        else:
            assert self._tasks is not None
            self._tasks.start_soon(self._serve, Slot(self._signal(), self.on_emission, self._continue))

    def _summon(self) -> None:
        # For a thread, in the event loop but in no task: only a task can start another.
        if self._idle:
            self._idle.pop().awake.set()
        else:
            self._coming = False
            self.look_again()

    async def _serve(self, slot: Slot) -> None:
        self._coming = False
        try:
            while not self._is_over:
                slot.stopped = False
                with anyio.CancelScope(shield=True) as slot.scope:
                    await self._work_on(slot)
                self._be_the_driver()
                if slot.lingering is not None:
                    with self._turn:
                        lingering, slot.lingering = slot.lingering, None
                        self._scheduler.release(slot.node, lingering.number)
                    self.look_again()
                if slot.attempt is not None and self._broken is None:
                    with self._turn:
                        events = self._interrupted(slot, slot.attempt)
                        if not self._commits:
                            self._conclude(slot, events)
                    if self._commits:
                        await self._conclude_durably(slot, events)
        except BaseException as error:
            self._give_up(error)
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
                slot.awake = self._signal()
                await slot.awake.wait()
                self._coming = False
                continue
            if attempt.spec.expands and slot.node in self.state.rows:
                outcome = FINISHED  # an earlier session recorded what it found
            else:
                emit = slot.handle
                running = slot.executor.run(attempt, emit if slot.executor.continues else emit.__call__)
                if attempt.spec.expands and slot.executor is self._here:
                    with self._clock.working():
                        outcome = await running
                else:
                    outcome = await running
                if os.getpid() != self._pid:
                    forks.refuse_to_go_on()
            with self._turn:
                if slot.attempt is None:
                    continue  # it has been settled where it ran
                events = self._settle(slot, slot.attempt, outcome)
                if not self._commits:
                    self._conclude(slot, events)
            if self._commits:
                await self._conclude_durably(slot, events)
            if self._journal.now - self._breath > _BREATH_S:
                await anyio.lowlevel.checkpoint()
                self._breath = self._clock.now()

    def _continue(self, slot: Slot, attempt: Attempt, outcome: Outcome) -> tuple[Attempt, Continuation] | None:
        """`Continuation.next`, from the thread that has run the attempt or from inside the slot's call."""
        self._be_the_driver()
        with self._turn:
            ended = slot.attempt is attempt and outcome.status == "finished"
            if not ended or slot.stopped or self._is_over or self._commits:
                return None
            self._conclude(slot, self._settle(slot, attempt, outcome))
            if self._is_over or not self._work:
                return None
            _, executor, following = self._work[0]
            if executor is not slot.executor or following.pool != attempt.pool:
                return None
            return self._take(slot), slot.handle

    def _take(self, slot: Slot) -> Attempt:
        """Have the slot take up the attempt that is the next."""
        node, executor, attempt = self._work.popleft()
        if self._work and not self._coming:
            self._call_slot()
        slot.begin(node, executor, attempt, self._clock.now())
        self._busy[node] = slot
        if attempt.spec.timeout_s is not None and not self._patient:
            deadline = slot.began + attempt.spec.timeout_s
            self._deadlines.add(node, deadline)
            self._set_alarm(deadline)
        return attempt

    async def _conclude_durably(self, slot: Slot, events: Sequence[e.TaskEvent]) -> None:
        with self._turn:
            self._journal.flush()
        with anyio.CancelScope(shield=True):  # a stop that came too late must not leave the end unheard
            await self._log.durable()
        with self._turn:
            self._journal.tick()
            self._conclude(slot, events)

    def _conclude(self, slot: Slot, events: Sequence[e.TaskEvent]) -> None:
        """Go on from how the slot's attempt ended, as `events` have stored it."""
        for event in events:
            self._scheduler.observe(event, self._journal.now)
        slot.ending = None
        if slot.released:
            self._scheduler.release(slot.node, events[-1].attempt)
        if self._endings.mistaken:  # what was asked for cannot be: nothing else runs either
            self._scheduler.stop(s.EndRun("failed"))
        self._advance(taken=1)

    def _executor_of(self, spec: Spec) -> Executor:
        return self._here if spec.expands and not self._executor.asks(spec) else self._executor

    def _settle(self, slot: Slot, attempt: Attempt, outcome: Outcome) -> Sequence[e.TaskEvent]:
        """The attempt has ended by itself: store how."""
        duration_s = self._ended(slot, attempt)
        timeout_s = attempt.spec.timeout_s
        if timeout_s is not None and duration_s > timeout_s and not self._patient:
            outcome = timed_out(attempt, outcome)  # it overran, and nobody could interrupt it
        events = self._endings.ended(slot, attempt, outcome, duration_s)
        for event in events:
            self._journal.store(event)
        return events

    def _interrupted(self, slot: Slot, attempt: Attempt) -> Sequence[e.TaskEvent]:
        """The attempt was stopped, at its deadline or because the run is: store that."""
        events = self._endings.interrupted(slot, attempt, self._ended(slot, attempt))
        for event in events:
            self._journal.store(event)
        return events

    def _ended(self, slot: Slot, attempt: Attempt) -> float:
        """The slot's attempt runs no more; returns the seconds that it took."""
        if self._told:
            self._take_in()  # what it told before it ended
        slot.attempt, slot.ending = None, attempt
        del self._busy[slot.node]
        if attempt.spec.timeout_s is not None:
            self._deadlines.forget(slot.node)
        if slot.stopped:
            self._patience.forget(slot.node)
        return self._journal.tick() - slot.began

    def on_emission(self, slot: Slot, attempt: Attempt, emission: Emission) -> None:
        """What the executor tells while the attempt runs, and, of an abandoned one, when it has really ended.

        May be called from any thread at any moment. A signal handler, a finalizer that the garbage collector runs, or a
        logging handler may call it between any two instructions of a turn that its own thread is taking, or while its
        thread holds a lock that the thread with the turn is waiting for. So this never waits for a turn, and all it
        does to the event loop is ring the doorbell.
        """
        if isinstance(emission, Output):
            if self._feed.live and slot.attempt is attempt:
                self._journal.tell(attempt.task, attempt.number, emission.stream, emission.line)
            return
        if os.getpid() != self._pid:
            raise forks.ForkedCopy(
                f"{type(emission).__name__.lower()} was told", "fork by os.fork or multiprocessing, while the task runs"
            )
        self._told.append((slot, attempt, emission))
        if self._turn.acquire(blocking=False):
            try:
                self._take_in()
            finally:
                self._turn.release()
        else:
            self._soon(self._catch_up)

    def _catch_up(self) -> None:
        with self._turn:
            self._take_in()

    def _take_in(self) -> None:
        """Record what was told, in order. Only in a turn."""
        self._journal.tick()
        while self._told:
            try:
                self._heed(*self._told.popleft())
                if not self._told:
                    self._journal.flush()
            except LogBroken as error:
                self._soon(self._give_up, error)

    def _heed(self, slot: Slot, attempt: Attempt, emission: _Told) -> None:
        if isinstance(emission, Released):
            if attempt is slot.attempt or attempt is slot.ending:
                slot.released = True
            self._scheduler.release(self._graph.index[attempt.task], attempt.number)
            self.look_again()
            return
        if slot.attempt is not attempt or self._broken is not None:
            return  # late: the attempt has ended already
        match emission:
            case Metric():
                header = self._journal.header("info")
                self._apply(e.TaskMetric(*header, attempt.task, attempt.number, emission.name, emission.value))
            case Progress():
                header = self._journal.header("info")
                self._apply(e.TaskProgress(*header, attempt.task, attempt.number, emission.done, emission.total))
            case Abandoned():
                slot.abandoned = True
            case Stopped():
                slot.cost = emission
            case _:
                assert_never(emission)

    # Time.

    async def _keep_time(self) -> None:
        while not self._over.is_set():
            with self._turn:
                self._alarm_at = self._next_alarm()
                self._look_again = False
            with anyio.CancelScope(shield=True) as self._alarm:
                await self._clock.sleep_until(self._alarm_at)
            self._be_the_driver()
            self._alarm = None
            if self._over.is_set():
                return
            with self._turn:
                now = self._journal.tick()
                for node in self._deadlines.due(now):
                    slot = self._busy[node]
                    slot.late = True
                    self._interrupt(slot)
                if self._timeout_s is not None and now >= self._began + self._timeout_s:
                    self._timeout_s = None
                    self._scheduler.stop(s.EndRun("failed", "timeout"))
                given_up = [self._abandon(self._busy[node]) for node in self._patience.due(now)]
                if not self._commits:
                    for slot, events in given_up:
                        self._conclude(slot, events)
                self._advance()
            for slot, events in given_up:
                if self._commits:
                    await self._conclude_durably(slot, events)
                _warn(self.run.run_id, events[-1])

    def _abandon(self, slot: Slot) -> tuple[Slot, Sequence[e.TaskEvent]]:
        """Go on without the slot's attempt, which was cancelled and does not end: its task must be swallowing the
        cancellation. Its call goes on, and holds the slot until it returns."""
        attempt = slot.attempt
        assert attempt is not None
        slot.abandoned, slot.lingering = True, attempt
        return slot, self._interrupted(slot, attempt)

    async def _listen(self, stop_asked: Callable[[], bool]) -> None:
        # Not by the run's clock: whoever asks is outside.
        with self._listening:
            while not stop_asked():  # another process leaves a file
                await anyio.sleep(_ASK_S)
                self._be_the_driver()
            self.stop(s.EndRun("cancelled"))

    def _next_alarm(self) -> float:
        if self._look_again:
            return -math.inf
        at = min(self._scheduler.next_wake(), self._deadlines.next(), self._patience.next())
        if self._timeout_s is not None:
            at = min(at, self._began + self._timeout_s)
        return at

    def _set_alarm(self, at: float) -> None:
        if at < self._alarm_at:
            self._alarm_at = at
            self._soon(self._wake_up)

    def _wake_up(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def look_again(self) -> None:
        """A limit that this run shares with others has come free: decide again, soon."""
        self._look_again = True
        self._set_alarm(-math.inf)

    # Writing.

    def _about(self, node: int, level: str = "info") -> tuple[int, int, str, str, str, str, str, int]:
        return (*self._journal.header(level), self._graph.task_id(node), self.state.attempt[node])

    def _put(self, event: e.Event) -> None:
        self._journal.store(event)
        self._scheduler.observe(event, self._journal.now)

    def _publish(self) -> None:
        # Never at once: the collector may have interrupted a subscriber inside `Event.wait`, after it has looked at the
        # flag and before it is among those who wait; it would not be woken.
        self._soon(self._journal.hand_on)

    # Ending.

    def _give_up(self, error: BaseException) -> None:
        """The run cannot go on: stop what runs. Where the log still takes it, write down how it ended."""
        self._be_the_driver()
        with self._turn:
            self._break_off(error)

    def _break_off(self, error: BaseException) -> None:
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
        self._broken = error
        self._journal.close()
        self._finish()
        self._interrupt_all()
        self._on_loop(self._wake_all)

    def _finish(self) -> None:
        self._is_over = True
        self._on_loop(self._over.set)

    def _on_loop(self, call: Callable[..., object], *args: object) -> None:
        """Call it where the event loop runs: now, if that is here."""
        if threading.get_ident() == self._thread:
            call(*args)
        else:
            self._soon(call, *args)

    def _soon(self, call: Callable[..., object], *args: object) -> None:
        """Have the event loop call it, between two steps of its tasks. From any thread, at any moment."""
        self._doorbell.ring(self._context.run, call, *args)

    def _close(self) -> None:
        with self._turn:
            self._interrupt_all()
        self._wake_all()

    def _interrupt_all(self) -> None:
        for slot in self._busy.values():
            self._interrupt(slot)

    def _wake_all(self) -> None:
        while self._idle:
            self._idle.pop().awake.set()
        if self._alarm is not None:
            self._alarm.cancel()
        self._listening.cancel()

    def _stopped(self, error: BaseException) -> RunStopped:
        if isinstance(error, ExecutorBroken):
            return RunStopped(self.run.run_id, f"{error.executor}: {error.why}", error.hint)
        if isinstance(error, LogBroken):
            return RunStopped(self.run.run_id, f"cannot write {error.path}: {error.why}", error.hint)
        return RunStopped(self.run.run_id, f"{self._executor.name} raised {type(error).__name__}: {error}")


def _warn(run_id: str, event: e.TaskEvent) -> None:
    import structlog  # brings rich; most runs never warn

    contextvars.Context().run(
        structlog.get_logger("gluepy.exec").warning,
        "a task was cancelled and goes on: its code swallows the cancellation; the call that runs its DAG cannot return"
        " before it does",
        run_id=run_id,
        task=event.task,
        attempt=event.attempt,
    )
