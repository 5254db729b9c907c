"""Progress of a run on stderr: plain lines anywhere, or a live display on a terminal.

Both are fed batches of events, at most some ten a second however fast tasks end, and cost the run next to nothing.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from gluepy.cli.text import (
    STYLE_OF,
    amount,
    cells,
    count,
    duration,
    error_line,
    first_line,
    fit,
    fit_middle,
    is_terminal,
    moment,
    padded,
    printable,
    styled,
    tell,
    waited_thing,
    wants_colour,
)
from gluepy.clock import seconds_of
from gluepy.core import events as e
from gluepy.core.graph import Deps, Each, Element, Leaf, Par, Seq, Tree
from gluepy.core.scheduler import GRACE_S
from gluepy.errors import OptionError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from gluepy.cli.remaining import Remaining
    from gluepy.conf.schema import Settings

_NONE: Mapping[str, int] = MappingProxyType({})
MODES = ("auto", "live", "plain", "none")
_WORD = 9  # columns of the word that begins a line: "cancelled"
_METRICS = 4  # metrics shown behind a finished task
_WAITING = 8  # tasks that are named where they wait for a limit
_STAMP = re.compile(  # 2026-01-31T12:30:00.123Z [info     ]; 12:30:00,123 INFO; [2026-01-31 12:30:00] - WARNING -
    r"^[\[(]?(?:\d{4}[-/]\d\d[-/]\d\d[T ])?\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?[\])]?[\s|:-]*"
    r"(?:[\[(]?\s*(?:trace|debug|info|success|warn|warning|error|critical|fatal)\b\s*[\])]?[\s|:-]*)?",
    re.IGNORECASE,
)
_LONGEST_ID = 200  # columns of an id in a line of its own


class View(Protocol):
    """Something that shows a run's events. `notice` is a line to show at once, from a signal handler too."""

    pause_s: float

    def show(self, events: Sequence[e.Event]) -> None:
        """Show `events`."""
        ...

    def say(self, lines: Sequence[str], done: Mapping[str, int] = _NONE, total: int = 0) -> None:
        """Show `lines`, which no event tells, before the first event; `done` are the tasks that have ended already, by
        how, and `total` is the number of tasks, where it is known better than the DAG's text tells."""
        ...

    def notice(self, text: str) -> None:
        """Show `text`. Called by a signal handler, so it may do next to nothing."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


def view_of(mode: str, quiet: bool, debug: bool, settings: Settings | None = None) -> View:
    """The view for `--progress mode`; with `settings` it also tells what is ahead. Raises `OptionError` for an unknown
    mode."""
    if mode not in MODES:
        raise OptionError("--progress", f"{mode!r} is not one of {', '.join(MODES)}{did_you_mean(mode, MODES)}")
    if quiet or mode == "none":
        return Silent(mute=quiet)
    # A debugger and what uncaptured tasks print want the terminal for themselves.
    if mode in ("auto", "live") and is_terminal(sys.stderr) and not debug and os.name == "posix":
        return Live(settings)
    return Plain()


class Silent:
    """Shows nothing of the events. `mute` keeps it from saying anything but notices."""

    pause_s = 0.0

    def __init__(self, *, mute: bool = True) -> None:
        self._mute = mute

    def show(self, events: Sequence[e.Event]) -> None:
        """Show nothing."""

    def say(self, lines: Sequence[str], done: Mapping[str, int] = _NONE, total: int = 0) -> None:  # noqa: ARG002
        """Write `lines`, unless mute."""
        if not self._mute:
            tell(*lines)

    def notice(self, text: str) -> None:
        """Show `text`."""
        _notice(text)

    def close(self) -> None:
        """Nothing to restore."""


class Plain:
    """One line for each event that matters, with its time."""

    pause_s = 0.05

    def __init__(self) -> None:
        self._colour = wants_colour(sys.stderr)
        self._metrics: dict[str, list[str]] = {}
        self._second = self._clock = ""

    def show(self, events: Sequence[e.Event]) -> None:
        """Write what matters of `events`."""
        lines = []
        for event in events:
            match event:
                case e.RunStarted() | e.RunResumed():
                    lines += [f"{self._time(event)}  {line}\n" for line in _headlines(event)]
                case e.TaskStarted():
                    again = f"  attempt {event.attempt} of {event.max_attempts}" if event.attempt > 1 else ""
                    lines.append(self._line(event, "started", f"{_told(event.task)}{again}"))
                case e.TaskMetric():
                    _keep_metric(self._metrics, event)
                case _:
                    ended = ending_of(event, self._metrics)
                    if ended is not None:
                        lines.append(self._line(event, *ended))
        if lines:
            sys.stderr.write("".join(lines))
            sys.stderr.flush()

    def say(self, lines: Sequence[str], done: Mapping[str, int] = _NONE, total: int = 0) -> None:  # noqa: ARG002
        """Write `lines`."""
        tell(*lines)

    def notice(self, text: str) -> None:
        """Show `text`."""
        _notice(text)

    def close(self) -> None:
        """Nothing to restore."""

    def _line(self, event: e.Event, word: str, rest: str) -> str:
        shown = styled(padded(word, _WORD), STYLE_OF[word], self._colour)
        return f"{self._time(event)}  {shown}  {rest}\n"

    def _time(self, event: e.Event) -> str:
        second = event.timestamp[:19]
        if second != self._second:
            self._second = second
            self._clock = moment(event.timestamp)[-8:]
        return self._clock


class _Running:
    """A task that runs, as the live display shows it. Most end before they are ever shown, and should cost little."""

    def __init__(self, event: e.TaskStarted) -> None:
        self.event = event
        self.done = self.total = 0.0
        self.last = ""

    @cached_property
    def name(self) -> str:
        return _told(self.event.task)

    @cached_property
    def begun(self) -> float:
        """By the monotonic clock."""
        return time.monotonic() - _age_s(self.event)


class Live:
    """One live line for each running task and a footer; what has ended scrolls away above them.

    The display is drawn by a thread of its own, so that the time goes on while a task holds the event loop.
    """

    pause_s = 0.1

    def __init__(self, settings: Settings | None = None) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive
        from rich.segment import Segment
        from rich.style import Style

        self._segment = Segment
        styles = {**STYLE_OF, "dim": "dim", "bold": "bold"} if wants_colour(sys.stderr) else {}
        self._styles = defaultdict(Style.null, {name: Style.parse(style) for name, style in styles.items()})
        self._console: Console = Console(stderr=True, markup=False, highlight=False, emoji=False)
        self._words: dict[str, Any] = {}  # laid out, as lines begin with them
        self._running: dict[str, _Running] = {}
        self._metrics: dict[str, list[str]] = {}
        self._sizes: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._total = self._known = 0
        self._begun = time.monotonic()
        self._settings = settings
        self._ahead: Remaining | None = None
        self._notice = ""
        self._live = RichLive(
            self,
            console=self._console,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start()

    def show(self, events: Sequence[e.Event]) -> None:
        """Take `events` in, and write what has ended above the live lines."""
        lines: list[Any] = []
        for event in events:
            match event:
                case e.TaskFinished():
                    lines += self._ended(event)
                case e.TaskStarted():
                    self._running[event.task] = _Running(event)
                case e.TaskProgress():
                    if (running := self._running.get(event.task)) is not None:
                        running.done, running.total = event.done, event.total
                case e.TaskOutput():
                    if (running := self._running.get(event.task)) is not None and event.line.strip():
                        running.last = event.line.rstrip("\r")
                case e.TaskMetric():
                    _keep_metric(self._metrics, event)
                case e.RunStarted() | e.RunResumed():
                    self._open(event)
                    lines += [self._segment(f"{line}\n", self._styles["dim"]) for line in _headlines(event)]
                case e.TaskExpanded():
                    self._total += len(event.values) * self._sizes.get(event.task, 0)
                case _:
                    lines += self._ended(event)
        if lines:
            self._console.print(_Segments(lines), soft_wrap=True, end="")

    def say(self, lines: Sequence[str], done: Mapping[str, int] = _NONE, total: int = 0) -> None:
        """Write `lines` above the live lines, and count what is `done`."""
        self._counts.update(done)
        self._known = total
        if lines:
            self._console.print(
                _Segments([self._segment(f"{printable(line)}\n") for line in lines]), soft_wrap=True, end=""
            )

    def notice(self, text: str) -> None:
        """Have `text` in the footer from now on."""
        self._notice = printable(text)

    def close(self) -> None:
        """Take the live lines away."""
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self._total:
            return
        now = time.monotonic()
        width = options.max_width - 1
        room = max(1, console.size.height - 3)
        running = list(self._running.values())
        shown = running if len(running) <= room else running[: room - 1]
        waiting = self._look_ahead(now)[: max(0, room - len(shown))]
        clocks = {task.event.task: self._clock(task, now) for task in shown}
        clock = max(map(cells, clocks.values()), default=0)
        # A name takes the room there is, but for a third of the line if some task has said something.
        talk = width // 3 if any(task.last or task.done or task.total for task in shown) else 0
        column = min(max((cells(task.name) for task in shown), default=0), max(8, width - _WORD - clock - talk - 4))
        for task in shown:
            yield from self._live_line(task, f"{clocks[task.event.task]:>{clock}}", column, width)
        if len(shown) < len(running):
            yield self._segment(f"{padded('', _WORD)}  … and {len(running) - len(shown):,} more\n", self._styles["dim"])
        for line in waiting:
            yield self._segment(f"{fit(line, width)}\n", self._styles["dim"])
        yield self._segment(fit(self._footer(now), width), self._styles["bold" if self._notice else "dim"])

    def _look_ahead(self, now: float) -> list[str]:
        """What is ready and waits for a limit, a line for each limit."""
        if self._ahead is None:
            return []
        self._ahead.look(now)
        return [
            f"{padded('waiting', _WORD)}  for {waited_thing(limit)}: {', '.join(map(_told, tasks[:_WAITING]))}"
            + (f" and {len(tasks) - _WAITING:,} more" if len(tasks) > _WAITING else "")
            for limit, tasks in sorted(self._ahead.waiting.items())
            if limit
        ]

    def _clock(self, task: _Running, now: float) -> str:
        usual_s = self._ahead.usual_s.get(task.event.task) if self._ahead is not None else None
        return _ticking(now - task.begun) + (f" of {_ticking(usual_s)}" if usual_s is not None else "")

    def _live_line(self, task: _Running, clock: str, column: int, width: int) -> Iterable[Any]:
        yield self._segment(f"{padded('running', _WORD)}  ")
        facts = [padded(fit_middle(task.name, column), column), clock]
        if task.event.attempt > 1:
            facts.append(f"attempt {task.event.attempt} of {task.event.max_attempts}")
        if task.total:
            facts.append(f"{amount(task.done)}/{amount(task.total)}")
        elif task.done:
            facts.append(amount(task.done))
        text = fit("  ".join(facts), width - _WORD - 2)
        yield self._segment(text)
        left = width - _WORD - 4 - cells(text)
        if task.last and left > 8:
            yield self._segment("  " + fit(message_of(task.last), left), self._styles["dim"])
        yield self._segment("\n")

    def _footer(self, now: float) -> str:
        ended = sum(self._counts.values())
        parts = [f"{ended:,} of {count(self._total, 'task')} done"]
        parts += [f"{self._counts[word]:,} {word}" for word in ("failed", "blocked", "skipped") if self._counts[word]]
        parts.append(f"{len(self._running):,} running")
        ahead = self._ahead
        if ahead is not None and (ready := len(ahead.waiting.get("", ()))):
            parts.append(f"{ready:,} waiting for a slot")
        parts.append(_ticking(now - self._begun))
        if ahead is not None and ahead.left_s is not None:
            seconds = max(1, round(ahead.left_s))
            left = f"{seconds} s" if seconds < 100 else duration(seconds)
            parts.append(f"{'at least' if ahead.at_least else 'about'} {left} left")
        return " · ".join(parts) + (f" · {self._notice}" if self._notice else "")

    def _open(self, event: e.RunStarted | e.RunResumed) -> None:
        tree = Tree.from_record(event.graph)
        self._total = self._known or _size(tree.root)
        self._begun = time.monotonic() - _age_s(event)
        if self._settings is not None:
            from gluepy.cli.remaining import MOST, Remaining
            from gluepy.runs.record import Record

            if self._total <= MOST:
                slots = event.options.get("concurrency") or self._settings.CONCURRENCY
                record = Record(self._settings.runs_root, event.run_id)
                self._ahead = Remaining(record, event.dag, slots, self._settings.LIMITS)
        self._sizes = {tree.specs[each.expander].label: _size(each.item) for each in _open_eaches(tree.root)}

    def _ended(self, event: e.Event) -> list[Any]:
        task = getattr(event, "task", None)
        if task is None:
            return []
        self._running.pop(task, None)
        ended = ending_of(event, self._metrics)
        if ended is None:
            self._total -= isinstance(event, e.TaskSkipped)  # not selected
            return []
        word, rest = ended
        if word != "retrying":
            self._counts[word] += 1
        return [self._word(word), self._segment(f"{rest}\n")]

    def _word(self, word: str) -> Any:
        if word not in self._words:
            self._words[word] = self._segment(f"{padded(word, _WORD)}  ", self._styles[word])
        return self._words[word]


class _Segments:
    """Text that is laid out already: cheap to print, ten thousand lines at a time."""

    def __init__(self, segments: list[Any]) -> None:
        self._segments = segments

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        return self._segments


def ending_of(event: e.Event, metrics: dict[str, list[str]]) -> tuple[str, str] | None:
    """The word for how a task (or an attempt of it) ended, and the rest of its line; None for other events."""
    match event:
        case e.TaskFinished():
            measured = f"  {', '.join(metrics.pop(event.task))}" if event.task in metrics else ""
            odd = f"  warning: {first_line(event.warning)}" if event.warning else ""
            return "finished", f"{_told(event.task)}  {duration(event.duration_s)}{measured}{odd}"
        case e.TaskFailed(reason="interrupted"):
            return "interrupted", f"{_told(event.task)}  {first_line(event.error_message)}"
        case e.TaskFailed():
            tries = f"attempt {event.attempt} of {event.max_attempts}: " if event.max_attempts > 1 else ""
            return "failed", f"{_told(event.task)}  {duration(event.duration_s)}  {tries}{_error(event)}"
        case e.TaskRetrying():
            tries = f"attempt {event.attempt} of {event.max_attempts} failed"
            return "retrying", f"{_told(event.task)}  {tries}: {_error(event)}; again {_when(event)}"
        case e.TaskSkipped(reason="unselected"):
            return None
        case e.TaskSkipped():
            why = {"skip": first_line(event.why), "upstream": "what it depends on was skipped"}
            text = why.get(event.reason, "its trigger was not met")
            return "skipped", _told(event.task) + (f"  {text}" if text else "")
        case e.TaskBlocked():
            return "blocked", f"{_told(event.task)}  by {', '.join(map(_told, event.blocked_by))}"
        case e.TaskCancelled():
            left = "  (it could not be stopped)" if event.abandoned else ""
            return "cancelled", f"{_told(event.task)}{left}"
    return None


def message_of(line: str) -> str:
    """What a line of output says, on one line: without the time, the level and the braces of a log line."""
    text = line.strip()
    if text.startswith("{"):
        import msgspec

        try:
            told = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            told = None
        if isinstance(told, dict):
            said = next((told[key] for key in ("event", "message", "msg") if isinstance(told.get(key), str)), None)
            text = text if said is None else said
    return printable(_STAMP.sub("", text) or text).strip()


def _told(task: str) -> str:
    """A task's id, fit for a line: parameters may be of any length."""
    if len(task) <= _LONGEST_ID and task.isascii() and task.isprintable():
        return task
    return fit(printable(task), _LONGEST_ID)


def _age_s(event: e.Event) -> float:
    """How long ago `event` was: next to nothing, unless the run is another process's."""
    return max(0.0, time.time() - (seconds_of(event.timestamp) or time.time()))


def _ticking(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 99.95 else duration(seconds)


def _error(event: e.TaskFailed | e.TaskRetrying) -> str:
    return error_line(event.error_type, event.error_message, event.reason)


def _when(event: e.TaskRetrying) -> str:
    if not event.abandoned or event.delay_s >= GRACE_S:
        return f"in {duration(event.delay_s)}"
    least = f"after {duration(event.delay_s)} and " if event.delay_s else ""
    what = "it" if event.pool == "loop" else "its thread"
    return f"{least}when {what} has ended, in {GRACE_S:g} s at the latest"


def _keep_metric(metrics: dict[str, list[str]], event: e.TaskMetric) -> None:
    kept = metrics.setdefault(event.task, [])
    if len(kept) < _METRICS:
        kept.append(f"{printable(event.name)} = {amount(event.value)}")


def _headlines(event: e.RunStarted | e.RunResumed) -> Iterable[str]:
    run = f"run {printable(event.run_id)} of {printable(event.dag)}"
    if isinstance(event, e.RunResumed):  # how many tasks there are was said before
        yield f"{run} resumed"
        return
    tree = Tree.from_record(event.graph)
    more = " or more" if any(True for _ in _open_eaches(tree.root)) else ""
    yield f"{run} started: {count(_size(tree.root), 'task')}{more}"
    if any(name in event.options for name in ("tasks", "from_task", "to_task")):
        yield "tasks that are not selected count as done; their files are not in this run's folder, which is new"


def _size(element: Element) -> int:
    """How many tasks an element of a DAG is, without what is asked for at run time."""
    match element:
        case Leaf():
            return 1
        case Each():
            return 1 if element.rows is None else len(element.rows) * _size(element.item)
        case Seq() | Par() | Deps():
            return sum(map(_size, element.items))


def _open_eaches(element: Element) -> Iterable[Any]:
    match element:
        case Each():
            if element.rows is None:
                yield element
            yield from _open_eaches(element.item)
        case Seq() | Par():
            for item in element.items:
                yield from _open_eaches(item)


def _notice(text: str) -> None:
    # Not by sys.stderr: the signal may have come in the middle of a write to it.
    with suppress(OSError):
        os.write(2, f"{printable(text)}\n".encode(errors="replace"))


def show_cursor() -> None:
    """Undo what a live display does to the terminal, when there is no time for `close`."""
    if os.isatty(2):
        os.write(2, b"\x1b[?25h\n")
