"""Those who watch a run see it as it happens, cost one reader of its log together, and can go away at any time."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from clients import Connection
from served import ChatterDAG, WaitDAG
from test_driving import let_go

import gluepy.asgi
from gluepy.asgi import looking
from gluepy.asgi.polling import POLL_S
from gluepy.asgi.watching import Watch
from gluepy.runtime import Runtime
from gluepy.testing import until

_opened: list[str] = []
_counting = False


def _on_open(event: str, args: tuple[Any, ...]) -> None:
    if _counting and event == "open":
        _opened.append(os.fspath(args[0]) if isinstance(args[0], (str, Path)) else "")


sys.addaudithook(_on_open)  # for good, as these are


@contextmanager
def reads_of_logs() -> Iterator[list[str]]:
    """Which logs are opened meanwhile."""
    global _counting
    _opened.clear()
    _counting = True
    found: list[str] = []
    try:
        yield found
    finally:
        _counting = False
        found += [name for name in _opened if name.endswith("events.jsonl")]


def events_in(text: str) -> list[tuple[int, str]]:
    """The ids and names of the server-sent events in `text`."""
    found = []
    for part in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in part.splitlines() if ": " in line)
        if "data" in fields:
            found.append((int(fields["id"]), json.loads(fields["data"])["event"]))
    return found


def stored(path: Path) -> list[tuple[int, str]]:
    """The numbers and names of the events of a run."""
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    return [(event["seq"], event["event"]) for event in events]


async def test_all_see_every_event_as_it_happens_and_the_end(runtime: Runtime, folder: Path) -> None:
    application = gluepy.asgi.app(runtime)
    run = await runtime.start_dag(WaitDAG)
    watchers = [Connection(application, f"/runs/{run.id}/events", accept="text/event-stream") for _ in range(50)]
    async with anyio.create_task_group() as tasks:
        for watcher in watchers:
            tasks.start_soon(watcher.drive)
        for watcher in watchers:
            await watcher.until(lambda text: "task.started" in text)
            assert not watcher.ended
        let_go(folder)
    for watcher in watchers:
        assert events_in(watcher.text) == stored(run.path)


@pytest.mark.slow
async def test_many_who_watch_read_the_log_no_more_often_than_one(runtime: Runtime, folder: Path) -> None:
    application = gluepy.asgi.app(runtime)
    for number in (1, 300):
        (folder / "data" / "go").unlink(missing_ok=True)
        run = await runtime.start_dag(WaitDAG)
        path, began = f"/runs/{run.id}/events", time.monotonic()
        watchers = [Connection(application, path, accept="text/event-stream") for _ in range(number)]
        with reads_of_logs() as logs:
            async with anyio.create_task_group() as tasks:
                for watcher in watchers:
                    tasks.start_soon(watcher.drive)
                for watcher in watchers:
                    await watcher.until(lambda text: "task.started" in text)
                await anyio.sleep(5 * POLL_S)
                let_go(folder)
        assert all(events_in(watcher.text) == stored(run.path) for watcher in watchers)
        looks = (time.monotonic() - began) / POLL_S + 5
        assert len(logs) < 10 * looks, f"{len(logs)} times for {number} watchers"


async def test_who_leads_may_go_away(runtime: Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_BEAT_S", 3600.0)  # else who waits takes over when it shows that it is alive
    application = gluepy.asgi.app(runtime)
    run = await runtime.start_dag(WaitDAG)
    watchers = [Connection(application, f"/runs/{run.id}/events", accept="text/event-stream") for _ in range(3)]
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for watcher in watchers:
                tasks.start_soon(watcher.drive)
                await watcher.until(lambda text: "task.started" in text)
            for watcher in watchers[:2]:
                watcher.leave()
                await until(lambda watcher=watcher: watcher.ended)  # type: ignore[misc]
            let_go(folder)
    assert events_in(watchers[2].text) == stored(run.path)


async def test_nothing_goes_on_when_all_have_gone_away(runtime: Runtime, folder: Path) -> None:
    application = gluepy.asgi.app(runtime)
    run = await runtime.start_dag(WaitDAG)
    watchers = [
        Connection(application, f"/runs/{run.id}/events", accept="text/event-stream"),
        Connection(application, f"/runs/{run.id}/logs/waits?follow=true"),
        Connection(application, f"/runs/{run.id}/logs/load?follow=true"),
    ]
    async with anyio.create_task_group() as tasks:
        for watcher in watchers:
            tasks.start_soon(watcher.drive)
        await watchers[0].until(lambda text: "task.started" in text)
        await until(lambda: watchers[2].status == 200)
        for watcher in watchers:
            watcher.leave()
    with reads_of_logs() as logs:
        await anyio.sleep(3 * POLL_S)
    assert logs == []
    assert not run.ended
    let_go(folder)
    assert (await run.result()).status == "finished"


async def test_who_does_not_read_holds_up_nobody_and_gets_it_all_in_the_end(runtime: Runtime) -> None:
    application = gluepy.asgi.app(runtime)
    run = await runtime.start_dag(ChatterDAG)
    path = f"/runs/{run.id}/events"
    slow, fast = (Connection(application, path, accept="text/event-stream") for _ in range(2))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(slow.drive)
        await slow.until(lambda text: "run.started" in text)
        slow.reads = anyio.Event()
        tasks.start_soon(fast.drive)
        await until(lambda: fast.ended)
        assert not slow.ended
        kept = [len(watch._kept) for watch in gc.get_objects() if isinstance(watch, Watch) and watch.users]
        assert kept == [8]
        slow.reads.set()
    assert events_in(slow.text) == events_in(fast.text) == stored(run.path)
    late = Connection(application, path, accept="text/event-stream", last_event_id="15000")
    await late.drive()
    assert events_in(late.text) == stored(run.path)[15_000:]
    part = Connection(application, f"{path}?after=4500&limit=2000")
    await part.drive()
    assert [event["seq"] for event in json.loads(part.text)] == list(range(4_501, 6_501))


async def test_log_is_followed_until_its_attempt_ends(runtime: Runtime, folder: Path) -> None:
    application = gluepy.asgi.app(runtime)
    run = await runtime.start_dag(WaitDAG, capture=True)
    followers = [Connection(application, f"/runs/{run.id}/logs/waits?follow=true") for _ in range(5)]
    early = Connection(application, f"/runs/{run.id}/logs/load?follow=true")  # it begins when the other has ended
    async with anyio.create_task_group() as tasks:
        for follower in (*followers, early):
            tasks.start_soon(follower.drive)
        for follower in followers:
            await follower.until(lambda text: text == "waiting\n")
        let_go(folder)
    assert {follower.text for follower in followers} == {"waiting\ngone\n"}
    assert early.text == "loading <b>rows</b>\nloaded\n"


async def test_stream_of_a_run_without_a_driver_ends(runtime: Runtime, folder: Path) -> None:
    run = await runtime.start_dag(WaitDAG)
    await until(lambda: "task.started" in (run.path / "events.jsonl").read_text())
    lost = run.path.with_name("lost")  # as if its driver had been killed there
    shutil.copytree(run.path, lost)
    let_go(folder)
    watcher = Connection(gluepy.asgi.app(runtime), "/runs/lost/events", accept="text/event-stream")
    with anyio.fail_after(60):
        await watcher.drive()
    assert [name for _, name in events_in(watcher.text)] == ["run.started", "task.started"]
    await run.result()


async def test_run_that_is_deleted_ends_its_streams(runtime: Runtime, folder: Path) -> None:
    application = gluepy.asgi.app(runtime)
    run = await runtime.start_dag(WaitDAG)
    watcher = Connection(application, f"/runs/{run.id}/events", accept="text/event-stream")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.drive)
        await watcher.until(lambda text: "task.started" in text)
        run.path.rename(folder / "elsewhere")
    let_go(folder)
    await run.result()
    again = Connection(application, f"/runs/{run.id}/events")
    await again.drive()
    assert again.status == 404


async def test_what_is_made_for_those_who_watch_goes_with_them(runtime: Runtime, folder: Path) -> None:
    let_go(folder)
    application = gluepy.asgi.app(runtime)
    for _ in range(40):
        run = await runtime.run_dag(WaitDAG)
        connection = Connection(application, f"/runs/{run.run_id}/events")
        await connection.drive()
    gc.collect()
    watches = [each for each in gc.get_objects() if isinstance(each, Watch)]
    assert len(watches) <= 33
    assert not any(watch._kept for watch in watches)


@pytest.mark.parametrize("after", ["-1", "x", "1.5", str(2**60)])
async def test_number_after_which_events_are_asked_for_is_checked(runtime: Runtime, after: str) -> None:
    run = await runtime.run_dag(ChatterDAG) if after == "x" else None
    connection = Connection(gluepy.asgi.app(runtime), f"/runs/{run.run_id if run else 'none'}/events?after={after}")
    await connection.drive()
    assert connection.status == 422
