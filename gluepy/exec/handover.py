"""A run that was handed over to an engine of graph level, as a task-level executor: so it is recorded as any other.

gluepy's own engine goes through the graph, and "runs" each task by waiting for its step: the graph's rules, what is
blocked and skipped, retries, logs, sinks and the end of the run are the same as of a run that gluepy schedules itself.
What the steps tell is read from the storage (`exec/steps.py`); the engine's word counts where they tell nothing more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import anyio
import anyio.to_thread
import msgspec

from gluepy.core import events as e
from gluepy.core.graph import slug_of
from gluepy.errors import ExecutorBroken
from gluepy.exec.executors.capture import AttemptOutput, tell_failure
from gluepy.exec.graph_level import FINAL_WORDS, GraphExecutor, GraphRun, TaskWord
from gluepy.exec.port import Attempt, Begun, Dataset, Emit, Executor, Metric, Outcome, Progress, Queued, Stopped
from gluepy.exec.scope import redactor_of
from gluepy.exec.steps import RunFile, StepFolder, has_ended, rows_in

POLL_S = 0.5
_STOP_S = 60.0  # how long an engine may take to stop its run
_LAST_WORDS_S = 10.0  # how long a step that was stopped may take to tell so


class HandedOver(Executor):
    """Waits for the steps of one run, which `executor` runs. `make_run(tell)` makes what it is handed, `run_file` what
    its steps share; `interrupted` are the tasks of which an earlier session does not know the end."""

    def __init__(
        self,
        executor: GraphExecutor,
        run_file: RunFile,
        make_run: Callable[[Callable[[str, TaskWord, str], None]], GraphRun],
        files: str,
        interrupted: frozenset[str] = frozenset(),
    ) -> None:
        self.name = executor.name
        self._executor, self._run_file, self._files, self._interrupted = executor, run_file, files, interrupted
        self._run = make_run(self._tell)
        self._words: dict[str, tuple[TaskWord, str]] = {}
        self._taken: dict[str, int] = {}  # by slug, the last attempt that was taken for one of this session
        self._marks: dict[tuple[str, int], str] = {}
        self._found: dict[str, list[int]] = defaultdict(list)  # by slug, the attempts in order
        self._news = anyio.Event()
        self._is_over = False  # the engine's run
        self._has_read_all = False  # since then
        self._broken: BaseException | None = None

    async def __aenter__(self) -> Self:
        self._folder = await anyio.to_thread.run_sync(StepFolder, self._files)
        try:
            await anyio.to_thread.run_sync(self._prepare)
        except OSError as error:
            raise ExecutorBroken(self.name, f"cannot write to {self._files}: {error}", "see STORAGE_ROOT") from error
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            self._scope = anyio.CancelScope()
            self._stopped = anyio.Event()
            tasks.start_soon(self._drive)
            tasks.start_soon(self._watch)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None and self._run.tasks and not self._is_over:  # it has nothing more to do, and may say so
            with anyio.move_on_after(_STOP_S):
                await self._stopped.wait()
        if not self._stopped.is_set():
            await self._stop()
        await self._stack.aclose()

    def asks(self, spec: object) -> bool:  # noqa: ARG002  # a step does, so that the engine knows the values too
        """An `each` is asked by a step."""
        return True

    async def run(self, attempt: Attempt, emit: Emit) -> Outcome:
        """Wait for the step that is this attempt, and tell what it tells."""
        emit(Queued())
        redact = redactor_of(attempt)
        output: AttemptOutput | None = None
        if attempt.run.capture:
            record = attempt.run.record
            output = AttemptOutput(Path(record, attempt.log) if record else None, emit, redact)
        follower = _Follower(self, attempt, emit, output)
        try:
            outcome = await follower.outcome()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._stop()
                with anyio.move_on_after(_LAST_WORDS_S):
                    await follower.last_words()
            raise
        finally:
            if output is not None:
                output.close()
        if redact is not None and outcome.status != "finished":
            told = (redact(outcome.error_message), redact(outcome.error_stack))
            outcome = msgspec.structs.replace(outcome, error_message=told[0], error_stack=told[1])
        return outcome

    def _prepare(self) -> None:
        """Say in the storage what the run is about, and which attempts of earlier sessions do not count any more."""
        folder, run_file = self._folder, self._run_file
        if run_file.session == 1:
            folder.create_run(run_file)
            return
        before = folder.read_run()
        discarded = dict(before.discarded) if before is not None else {}
        self._list()
        for task in self._run.tasks:
            slug = slug_of(task)
            last = self._found[slug][-1] if self._found[slug] else 0
            if last and task in self._interrupted:
                events = folder.events(slug, last)
                if not has_ended(events) or isinstance(events[-1], e.TaskFinished | e.TaskSkipped):
                    last -= 1  # it goes on, or has finished since: nobody has told so yet
            discarded[task] = self._taken[slug] = max(last, 0)
        folder.write_run(msgspec.structs.replace(run_file, discarded=discarded))

    async def _drive(self) -> None:
        try:
            with self._scope:
                await self._executor.run_graph(self._run)
        except Exception as error:
            self._broken = error
        finally:
            self._is_over = True
            self._stopped.set()
            self._ring()

    async def _watch(self) -> None:
        while True:
            was_over = self._is_over
            try:
                if await anyio.to_thread.run_sync(self._list):
                    self._ring()
            except OSError as error:
                self._broken = ExecutorBroken(self.name, f"cannot read {self._files}: {error}", "see STORAGE_ROOT")
                self._ring()
            if was_over:
                self._has_read_all = True
                self._ring()
            await anyio.sleep(POLL_S)

    def _list(self) -> bool:
        """Look which attempts there are; returns whether anything has changed."""
        marks, found = {}, defaultdict(list)
        for file in self._folder.files():
            marks[file.slug, file.attempt] = file.mark
            found[file.slug].append(file.attempt)
        for attempts in found.values():
            attempts.sort()
        changed = marks != self._marks
        self._marks, self._found = marks, found
        return changed

    async def _stop(self) -> None:
        """Have the engine stop its run, and wait for that."""
        self._scope.cancel()
        with anyio.move_on_after(_STOP_S, shield=True):
            await self._stopped.wait()
        with suppress(OSError):
            await anyio.to_thread.run_sync(self._list)  # a step may just have begun

    def _tell(self, task: str, word: TaskWord, why: str) -> None:
        if self._words.get(task) != (word, why):
            self._words[task] = word, why
            self._ring()

    def _ring(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    # For followers.

    @property
    def next_news(self) -> anyio.Event:
        """What is set when something may have changed from now on: to be taken before a look, which awaits a thread,
        so that a change during the look is not missed. Raises what the engine's adapter raised."""
        if self._broken is not None:
            raise self._broken
        return self._news

    def next_attempt(self, slug: str) -> int | None:
        """The first attempt of the task after the last one that was taken."""
        after = self._taken.get(slug, 0)
        return next((attempt for attempt in self._found.get(slug, ()) if attempt > after), None)

    def take(self, slug: str, attempt: int) -> None:
        """The attempt is one of this session."""
        self._taken[slug] = attempt

    def mark(self, slug: str, attempt: int) -> str:
        """What changes when the attempt's file does."""
        return self._marks.get((slug, attempt), "")

    def final_word(self, task: str) -> tuple[TaskWord | Literal[""], str] | None:
        """How the task ended, by the engine (empty: it has not told), once nothing more can come of its steps."""
        word = self._words.get(task)
        if self._is_over and self._has_read_all:
            return word if word is not None and word[0] in FINAL_WORDS else ("", "")
        return None

    async def read(self, slug: str, attempt: int) -> list[e.TaskEvent]:
        """The events of an attempt."""
        return await anyio.to_thread.run_sync(self._folder.events, slug, attempt)

    async def read_log(self, slug: str, attempt: int, since: int) -> bytes:
        """What an attempt has printed from the byte `since` on."""
        return await anyio.to_thread.run_sync(self._folder.log, slug, attempt, since)

    def is_followed(self, slug: str, attempt: int) -> bool:
        """Whether a later attempt has begun, so that this one is over."""
        return any(other > attempt for other in self._found.get(slug, ()))


class _Follower:
    """Follows the step of one attempt."""

    def __init__(self, run: HandedOver, attempt: Attempt, emit: Emit, output: AttemptOutput | None) -> None:
        self._run, self._attempt, self._emit, self._output = run, attempt, emit, output
        self._slug = attempt.slug
        self._number: int | None = None  # of the step
        self._mark = ""
        self._seen = 0  # events
        self._read = 0  # bytes of the log
        self._rows: e.JSON = None
        self._end: e.TaskEvent | None = None

    async def outcome(self) -> Outcome:
        run, task = self._run, self._attempt.task
        while True:
            news = run.next_news
            word = run.final_word(task)  # before the last look at the step
            followed = self._number is not None and run.is_followed(self._slug, self._number)
            await self._look()
            if self._end is not None:
                return await self._told(self._end, word)
            if followed:
                return self._lost("its step is gone, and another has begun")
            if word is not None:
                with anyio.move_on_after(_LAST_WORDS_S):
                    await self.last_words()
                return await self._at_last(word)
            await news.wait()

    async def last_words(self) -> None:
        """Wait until the step, if there is one, has told how it was stopped: its engine has only told it to."""
        await self._look()
        if self._number is None:
            return
        while self._end is None:
            await anyio.sleep(POLL_S)
            await self._look()
        end = self._end
        if isinstance(end, e.TaskCancelled):
            self._emit(
                Stopped(worker=end.worker, pid=end.pid, host=end.host, cpu_s=end.cpu_s, peak_rss_mb=end.peak_rss_mb)
            )

    async def _look(self) -> None:
        run = self._run
        if self._number is None:
            self._number = run.next_attempt(self._slug)
            if self._number is None:
                return
            run.take(self._slug, self._number)
        mark = run.mark(self._slug, self._number)
        if mark == self._mark and self._seen:
            return
        self._mark = mark
        try:
            events = await run.read(self._slug, self._number)
        except FileNotFoundError:
            return
        ended = has_ended(events)
        await self._take_log(ended)
        for event in events[self._seen :]:
            self._take(event)
        self._seen = len(events)
        if ended:
            self._end = events[-1]
            self._rows = rows_in(events)

    async def _take_log(self, is_whole: bool) -> None:
        if self._output is None or self._number is None:
            return
        data = await self._run.read_log(self._slug, self._number, self._read)
        if not is_whole:
            data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        for line in data.decode("utf-8", "replace").splitlines():
            self._output.line("log", line)

    def _take(self, event: e.TaskEvent) -> None:
        match event:
            case e.TaskStarted():
                self._emit(Begun())
            case e.TaskMetric():
                self._emit(Metric(event.name, event.value))
            case e.TaskProgress():
                self._emit(Progress(event.done, event.total))
            case e.DatasetRead() | e.DatasetWritten():
                self._emit(
                    Dataset(
                        written=isinstance(event, e.DatasetWritten),
                        dataset=event.dataset,
                        url=event.url,
                        bytes=event.bytes,
                        fingerprint=event.fingerprint,
                        rows=event.rows,
                        columns=event.columns,
                    )
                )
            case _:
                pass

    async def _told(self, end: e.TaskEvent, word: tuple[TaskWord | Literal[""], str] | None) -> Outcome:
        match end:
            case e.TaskFinished():
                outcome = Outcome(status="finished", value=self._rows, warning=end.warning or "", **_where(end))
                if word is not None and word[0] in ("failed", "cancelled"):
                    why = f"{self._run.name} says that it {word[0]}, its step that it finished"
                    return msgspec.structs.replace(outcome, warning=why)
                return outcome
            case e.TaskSkipped():
                return Outcome(status="skipped", error_message=end.why, duration_s=end.duration_s)
            case e.TaskFailed() | e.TaskRetrying():
                return Outcome(
                    status="failed",
                    reason=end.reason,
                    error_type=end.error_type,
                    error_message=end.error_message,
                    error_stack=end.error_stack or "",
                    retryable=isinstance(end, e.TaskRetrying),
                    **_where(end),
                )
            case _:
                return self._lost(f"{self._run.name} stopped it")

    async def _at_last(self, word: tuple[TaskWord | Literal[""], str]) -> Outcome:
        return await (self._without_end(*word) if self._end is None else self._told(self._end, word))

    async def _without_end(self, word: TaskWord | Literal[""], why: str) -> Outcome:
        """The engine's run is over, and no step has told how the task ended."""
        said = f"{self._run.name} says {word!r}" + (f": {why}" if why else "")
        if not word:
            said = f"{self._run.name} has ended its run"
        if word == "success":
            return Outcome(status="finished", warning=f"{said}, and no step has told how it ended")
        if word == "skipped":
            return Outcome(status="skipped", error_message=said)
        return msgspec.structs.replace(self._lost(f"{said}, and no step has told how it ended"), retryable=False)

    def _lost(self, why: str) -> Outcome:
        message = f"the attempt was lost: {why}"
        outcome = Outcome(status="failed", reason="lost", error_type="AttemptLost", error_message=message)
        if self._output is not None:
            tell_failure(self._attempt, outcome, self._output)
        return outcome


def _where(event: e.TaskFinished | e.TaskFailed | e.TaskRetrying) -> Mapping[str, e.JSON]:
    """Where and for how long the attempt ran."""
    return {
        "worker": event.worker,
        "pid": event.pid,
        "host": event.host,
        "cpu_s": event.cpu_s,
        "peak_rss_mb": event.peak_rss_mb,
        "duration_s": event.duration_s,
    }
