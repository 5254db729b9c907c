"""What every sink has to do, as tests: `SinkContract`."""

# The name of each test is its sentence:
# ruff: noqa: D102

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from gluepy.conf.schema import Settings
from gluepy.core.events import Event, TaskOutput, encode
from gluepy.core.policy import Retry
from gluepy.exec.dag import DAG, each, parallel
from gluepy.exec.port import Dataset, Metric, Output, Progress
from gluepy.exec.task import Task
from gluepy.runtime import RunResult, Runtime
from gluepy.sinks.consume import Delivery
from gluepy.sinks.port import Consumer
from gluepy.testing.events import events_of
from gluepy.testing.script import HELD, ScriptedExecutor, Step, failed, skipped, values


class Loads(Task):
    """Fails once, then tells metrics, progress and output."""

    retries = Retry(attempts=2, wait_s=0)

    def run(self) -> None: ...


class Skips(Task):
    """Is skipped."""

    def run(self) -> None: ...


class BehindSkips(Task):
    """Is skipped with it."""

    def run(self) -> None: ...


class Fails(Task):
    """Fails for good."""

    def run(self) -> None: ...


class BehindFails(Task):
    """Is blocked by it."""

    def run(self) -> None: ...


class Part(Task):
    """Comes with a value of `numbers`."""

    number: int

    def run(self) -> None: ...


def numbers() -> Sequence[int]:
    """Asked for `Part`; the script answers."""
    return ()


class SinkContractDAG(DAG):
    """Its first run has all that can happen to a task but cancellation."""

    tasks = (Loads, parallel((Skips, BehindSkips), (Fails, BehindFails), each(Part, number=numbers)))


TELLS = Step(
    emits=(
        Progress(1.0, 2.0),
        Metric("größe ☃", 0.5),
        Metric("nan", None),
        Dataset(written=False, dataset="größe ☃", url="file:///data/raw.parquet", bytes=7, fingerprint="a"),
        Dataset(
            written=True,
            dataset="rows",
            url="file:///data/rows.parquet",
            bytes=8,
            fingerprint="b",
            rows=3,
            columns={"größe ☃": "int64"},
        ),
        Output("stdout", "ü ☃\x1b[0m"),
    )
)


def script(**more: Any) -> ScriptedExecutor:
    """How the tasks go; `more` changes that, by label."""
    told: dict[str, Any] = {
        "loads": [failed("flaky"), TELLS],
        "skips": skipped("nothing new"),
        "fails": failed("größe ☃"),
    }
    return ScriptedExecutor({**told, "each-part": values(number=[1, 2]), **more})


class Noted:
    """What a sink was called with: `events`, the `errors` that it raised, and `calls`: enter, event, exit."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.errors: list[BaseException] = []
        self.calls: list[str] = []

    def stored(self) -> list[bytes]:
        """The events as lines of a log, but for output, which is live only."""
        return lines(event for event in self.events if not isinstance(event, TaskOutput))


def lines(events: Iterable[Event]) -> list[bytes]:
    """The events as lines of a log."""
    return [encode(event) for event in events]


def watched(sink: Consumer, noted: Noted, fails_at: int = 0) -> Consumer:
    """`sink`, of the same form, with its calls noted. It raises at the event number `fails_at`."""
    inner: Any = sink
    members: dict[str, Any] = {}

    def note(event: Event) -> None:
        noted.calls.append("event")
        noted.events.append(event)
        if len(noted.events) == fails_at:
            raise ConnectionError("the other end is gone")

    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(inner.__call__):

        async def call(_self: object, event: Event) -> None:
            note(event)
            try:
                await inner(event)
            except Exception as error:
                noted.errors.append(error)
                raise

    else:

        def call(_self: object, event: Event) -> None:  # type: ignore[misc]
            note(event)
            try:
                inner(event)
            except Exception as error:
                noted.errors.append(error)
                raise

    members["__call__"] = call
    if hasattr(inner, "__aenter__"):

        async def aenter(_self: object) -> None:
            noted.calls.append("enter")
            await inner.__aenter__()

        async def aexit(_self: object, *error: Any) -> Any:
            noted.calls.append("exit")
            return await inner.__aexit__(*error)

        members |= {"__aenter__": aenter, "__aexit__": aexit}
    elif hasattr(inner, "__enter__"):

        def enter(_self: object) -> None:
            noted.calls.append("enter")
            inner.__enter__()

        def leave(_self: object, *error: Any) -> Any:
            noted.calls.append("exit")
            return inner.__exit__(*error)

        members |= {"__enter__": enter, "__exit__": leave}
    return cast("Consumer", type("Watched", (), members)())


def outcomes(result: RunResult) -> dict[str, tuple[str, int]]:
    """How the tasks of a run ended, and in how many attempts."""
    return {id: (task.status, task.attempts) for id, task in result.tasks.items()}


class SinkContract:
    """Derive a test class from this, and give it your sink; pytest then checks that it takes whatever a run tells.

        class TestMySink(SinkContract):
            @pytest.fixture
            def sink(self) -> MySink:
                return MySink(url="http://localhost:1234")

    The sink, plain or async, is one that was not entered; each test uses one, in one run. The tests come for asyncio
    and for trio (override `anyio_backend`, to return one name, if a sink knows only one). What the sink makes of the
    events is for tests of your own.
    """

    pytestmark: ClassVar = [pytest.mark.anyio]

    @pytest.fixture
    def sink(self) -> Consumer:
        """The sink under test."""
        raise NotImplementedError("define a fixture `sink` that returns your sink")

    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        """The settings of all runs here."""
        return Settings(STORAGE_ROOT=str(tmp_path / "data"), RUNS_ROOT=str(tmp_path / "runs"), CONCURRENCY=4)

    async def test_takes_the_events_of_a_failed_run_in_which_everything_happens(
        self, sink: Consumer, settings: Settings
    ) -> None:
        noted = Noted()
        result = await run(settings, script(), watched(sink, noted))
        assert noted.errors == []
        assert noted.stored() == lines(events_of(result))
        assert_closed(noted, sink)

    async def test_takes_the_events_of_a_cancelled_run(self, sink: Consumer, settings: Settings) -> None:
        noted = Noted()
        executor = script(fails=HELD)
        async with (
            Runtime(settings, executor=executor) as runtime,
            runtime.stream_dag(SinkContractDAG, sinks=[watched(sink, noted)], check=False) as stream,
        ):
            await executor.wait_for("fails")
            stream.cancel()
            result = await stream.result()
        assert (result.status, noted.errors) == ("cancelled", [])
        assert noted.stored() == lines(events_of(result))
        assert_closed(noted, sink)

    async def test_takes_the_events_of_a_resumed_run(self, sink: Consumer, settings: Settings) -> None:
        noted = Noted()
        first = await run(settings, script())
        known = len(events_of(first))
        async with Runtime(settings, executor=script(fails=Step())) as runtime:
            options: dict[str, Any] = {"force": "skips", "sinks": [watched(sink, noted)]}
            result = await runtime.resume_run(first.run_id, check=False, **options)
        assert (result.status, noted.errors) == ("finished", [])
        assert noted.stored() == lines(events_of(result)[known:])
        assert_closed(noted, sink)

    async def test_a_run_ends_the_same_with_the_sink_and_without_it(self, sink: Consumer, settings: Settings) -> None:
        alone = await run(settings, script())
        assert outcomes(await run(settings, script(), sink)) == outcomes(alone)

    async def test_a_run_ends_the_same_if_the_sink_fails_and_the_sink_is_closed(
        self, sink: Consumer, settings: Settings
    ) -> None:
        noted = Noted()
        alone = await run(settings, script())
        result = await run(settings, script(), watched(sink, noted, fails_at=3))
        assert outcomes(result) == outcomes(alone)
        assert len(noted.events) == 3
        assert_closed(noted, sink)

    async def test_the_record_of_a_run_can_be_replayed(self, sink: Consumer, settings: Settings) -> None:
        noted = Noted()
        events = events_of(await run(settings, script()))
        await Delivery(watched(sink, noted)).replay(events)
        assert noted.events == events
        assert_closed(noted, sink)


async def run(settings: Settings, executor: ScriptedExecutor, *sinks: Any) -> RunResult:
    """Run the DAG."""
    async with Runtime(settings, executor=executor) as runtime:
        options: dict[str, Any] = {"on_failure": "continue", "sinks": sinks, "capture": True}
        return await runtime.run_dag(SinkContractDAG, check=False, **options)


def assert_closed(noted: Noted, sink: Consumer) -> None:
    """Assert that a sink which is a context manager was entered once, first of all, and left once, last of all."""
    if hasattr(sink, "__aenter__") or hasattr(sink, "__enter__"):
        assert noted.calls[0] == "enter", "it got an event before it was entered"
        assert noted.calls[-1] == "exit", "it was not left at the end"
        assert (noted.calls.count("enter"), noted.calls.count("exit")) == (1, 1)
