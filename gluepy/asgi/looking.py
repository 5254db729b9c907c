"""Requests that look: DAGs, runs, their events and logs. Files are read in a few threads of their own."""

from __future__ import annotations

import re
import sys
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar
from urllib.parse import urlencode

import anyio
import anyio.to_thread
import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gluepy.asgi import tasklogs
from gluepy.asgi.answers import Stream, answer, mounted_at, queries, refusal
from gluepy.asgi.openapi import openapi
from gluepy.asgi.polling import Pool
from gluepy.asgi.scraping import scrape
from gluepy.asgi.tasklogs import Tail
from gluepy.asgi.watching import Watch
from gluepy.conf.dags import Listed, find_dags, list_dags
from gluepy.conf.parameter_schema import parameter_schema
from gluepy.core.events import JSON
from gluepy.errors import UnknownDag, UnknownTask
from gluepy.exec.dag import DAG, compile_dag
from gluepy.report import RunReport
from gluepy.report.graph import graph_json
from gluepy.runs.index import Index, RunSummary
from gluepy.runs.reading import find_record
from gluepy.runs.record import Record, is_run_id
from gluepy.runtime import Runtime
from gluepy.version import VERSION

_THREADS = 4
_BEAT_S = 15.0  # how often an idle stream shows that it is alive
_STREAM = {"cache-control": "no-store", "x-accel-buffering": "no"}
_LEAP_SECOND = re.compile(r"(:[0-9]{2}):60")
_YEAR_0 = re.compile(r"0000-[0-9]{2}-[0-9]{2}[Tt]")
T = TypeVar("T")


class Looking:
    """Answers requests that change nothing."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.settings = runtime, runtime.settings
        self.threads = anyio.CapacityLimiter(_THREADS)
        self._watches: Pool[Watch] = Pool()
        self._tails: Pool[Tail] = Pool()
        self._listing = anyio.Lock()  # the index looks at every record, and is written by one at a time

    async def in_thread(self, call: Callable[[], T]) -> T:
        """What `call` returns, called where the event loop does not wait for it."""
        return await anyio.to_thread.run_sync(call, limiter=self.threads)

    async def health(self, _: Request) -> Response:
        """Whether it serves."""
        return answer({"status": "ok", "version": VERSION, "accepts_runs": self.runtime.is_open})

    async def scrape(self, request: Request) -> Response:
        """The metrics of this process."""
        return await scrape(request)

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI document; its server is where the application is mounted."""
        return answer({**openapi(), "servers": [{"url": mounted_at(request) or "/"}]})

    async def list_dags(self, request: Request) -> Response:
        """All DAGs, in brief."""
        queries(request, "list_dags")

        def rows() -> list[dict[str, JSON]]:
            listed = sorted(list_dags(self.settings), key=lambda each: each.label)
            return [_row(each, each.tasks if each.dag is None else None) for each in listed]

        return answer(await self.in_thread(rows))

    async def show_dag(self, request: Request) -> Response:
        """One DAG whole."""
        dag = await self.in_thread(partial(self.find_dag, request.path_params["label"]))

        def shown() -> dict[str, JSON]:
            graph = compile_dag(dag, self.settings.LIMITS).graph
            row = _row(Listed.from_class(dag), len(graph.index))
            return {**row, "graph": graph_json(graph), "parameters": parameter_schema(self.settings)}

        return answer(await self.in_thread(shown))

    def find_dag(self, label: str) -> type[DAG]:
        """The DAG with this label: no file, no class by its path. Raises `UnknownDag`."""
        dags = find_dags(self.settings)
        if label not in dags:
            raise UnknownDag(label, tuple(dags), self.settings.INSTALLED_MODULES)
        return dags[label]

    async def list_runs(self, request: Request) -> Response:
        """A page of runs."""
        asked = queries(request, "list_runs")
        since = None if asked["since"] is None else _timestamp(asked["since"])
        after = None if asked["cursor"] is None else _decoded(asked["cursor"])
        limit: int = asked["limit"]

        def found() -> list[RunSummary]:
            with Index(self.settings.runs_root) as index:
                return index.runs(asked["dag"], asked["status"], limit + 1, since=since, after=after)

        async with self._listing:
            runs = await self.in_thread(found)
        headers = {}
        if len(runs) > limit:
            runs = runs[:limit]
            cursor = _encoded(runs[-1].started_at, runs[-1].run_id)
            query = urlencode({**request.query_params, "cursor": cursor})
            headers["link"] = f'<{mounted_at(request)}/runs?{query}>; rel="next"'
        return answer([run.to_json() for run in runs], headers=headers)

    async def show_run(self, request: Request) -> Response:
        """One run whole."""
        report = await self._report(request, with_timeline=True)
        return answer(await self.in_thread(report.to_json))

    async def show_graph(self, request: Request) -> Response:
        """The graph of a run."""
        report = await self._report(request)
        return answer(await self.in_thread(partial(graph_json, report.state.graph)))

    async def show_task(self, request: Request) -> Response:
        """One task of a run."""
        report = await self._report(request)
        task = request.path_params["task"]
        self._check_task(report, task)
        details = await self.in_thread(partial(report.details, task))
        return answer({"task": task, **details.to_json()})

    async def list_events(self, request: Request) -> Response:
        """The events of a run, as a list or as a stream."""
        asked = queries(request, "list_events")
        streams = "text/event-stream" in request.headers.get("accept", "")
        after: int = asked["after"]
        if streams and "last-event-id" in request.headers:
            after = max(after, _event_id(request.headers["last-event-id"]))
        record = await self.record(request)
        if streams:
            return await self._stream(record, after)
        with self._watch(record) as watch:
            await self._look_until(watch, after + asked["limit"])
            place, lines = watch.place_after(after), list[bytes]()
            while len(lines) < asked["limit"] and (found := (await watch.take(place))[1]):
                lines += found[: asked["limit"] - len(lines)]
            headers = {"cache-control": "no-store"}
            return Response(b"[" + b",".join(lines) + b"]", 200, headers, "application/json")

    async def is_running(self, record: Record) -> bool:
        """Whether a run goes on: somebody drives it, and its last event is no end."""
        with self._watch(record) as watch:
            await self._look_until(watch, sys.maxsize)
            return not watch.over

    async def _look_until(self, watch: Watch, seq: int) -> None:
        """Read as far as the event number `seq`, or as there are any now."""
        await watch.look()
        while watch.is_behind and watch.last_seq < seq:
            await watch.look()

    async def _stream(self, record: Record, after: int) -> Response:
        with self._watch(record) as watch:
            await self._look_until(watch, after + 1)
            if watch.over and watch.last_seq <= after:
                return Response(status_code=204)  # and a browser does not come again
        return Stream(self._events(record, after), 200, _STREAM, "text/event-stream")

    async def _events(self, record: Record, after: int) -> AsyncGenerator[bytes, None]:
        with self._watch(record) as watch:
            yield b"retry: 1000\n\n"
            place = watch.place_after(after)
            while True:
                seqs, lines = await watch.take(place)
                if lines:
                    yield b"".join(b"id: %d\ndata: %s\n\n" % each for each in zip(seqs, lines, strict=True))
                elif watch.over:
                    return
                else:
                    seen = watch.last_seq
                    await watch.news(_BEAT_S)
                    if watch.last_seq == seen and not watch.over:
                        yield b":\n\n"

    async def read_log(self, request: Request) -> Response:
        """The log of an attempt."""
        asked, task = queries(request, "read_log"), request.path_params["task"]
        record = await self.record(request)
        attempts = await self.in_thread(partial(tasklogs.attempts_logged, record, task))
        attempt = asked["attempt"] or (attempts[-1] if attempts else 1)
        if attempt not in attempts:
            self._check_task(await self._report(request), task)  # it has printed nothing, or there is no such task
        if asked["follow"]:
            content = self._followed(record, task, asked["attempt"], attempts, asked["offset"])
            return Stream(content, 200, _STREAM, "text/plain")
        path = tasklogs.log_file(record, task, attempt)
        size = await self.in_thread(lambda: path.stat().st_size if path.is_file() else 0)
        headers = {"cache-control": "no-store", "accept-ranges": "bytes", "x-gluepy-attempt": str(attempt)}
        try:
            asked_for = tasklogs.part(request.headers.get("range"), size)
        except ValueError as error:
            return refusal(416, str(error), {"content-range": f"bytes */{size}"})
        begin, end = asked_for or (0, size)
        headers["content-length"] = str(end - begin)
        if asked_for is not None:
            headers["content-range"] = f"bytes {begin}-{end - 1}/{size}"
        content = tasklogs.pieces(path, begin, end, self.threads)
        return Stream(content, 200 if asked_for is None else 206, headers, "text/plain")

    async def _followed(
        self, record: Record, task: str, attempt: int | None, logged: list[int], offset: int
    ) -> AsyncGenerator[bytes, None]:
        """The log of an attempt as it grows. If it is not said which: of the one that runs, or else of the last of
        those that are `logged`, or else of the first, once it begins."""
        with self._watch(record) as watch:
            await watch.look()
            if attempt is None:
                attempt = watch.running.get(task) or (logged[-1] if logged else 1)
            while not logged and task not in watch.running and not watch.over:
                await watch.news(_BEAT_S)
            path = tasklogs.log_file(record, task, attempt)
            with self._tails.use(path, lambda: Tail(path, self.threads)) as tail:
                async with aclosing(tasklogs.followed(watch, tail, task, attempt, offset)) as pieces:
                    async for piece in pieces:
                        yield piece

    async def record(self, request: Request) -> Record:
        """The record of the run that a request names: by its id, the unique ending of one, or `latest`. Raises
        `UnknownRun`."""
        name = request.path_params["run_id"]

        def found() -> Record:
            record = Record(self.settings.runs_root, name)
            return record if is_run_id(name) and not record.is_gone() else find_record(self.settings.runs_root, name)

        return await self.in_thread(found)

    async def _report(self, request: Request, *, with_timeline: bool = False) -> RunReport:
        record = await self.record(request)
        return await self.in_thread(partial(RunReport.from_record, record, self.settings, with_timeline=with_timeline))

    def _watch(self, record: Record) -> AbstractContextManager[Watch]:
        return self._watches.use(record.run_id, lambda: Watch(record, self.threads))

    def _check_task(self, report: RunReport, task: str) -> None:
        index = report.state.graph.index
        if task not in index:
            raise HTTPException(404, str(UnknownTask(task, report.dag, tuple(index))))


def _row(dag: Listed, tasks: int | None) -> dict[str, JSON]:
    return {"dag": dag.label, "class": f"{dag.module}:{dag.name}", "about": dag.about, "tasks": tasks}


def _event_id(text: str) -> int:
    """The number of an event; 0, from the beginning, for what is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 17 else 0


def _timestamp(text: str) -> str:
    """A moment as the log writes it; one without a zone is UTC. Raises `HTTPException`."""
    try:
        moment = datetime.fromisoformat(_LEAP_SECOND.sub(r"\1:59", text.upper()))
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:  # before the first day that Python knows, or after the last
        return "" if text < "5" else "A"  # as text before all moments, or after
    except ValueError:
        if _YEAR_0.match(text):
            return ""
        detail = f"query: since is {text!r}, not a moment such as 2026-01-31T08:00:00Z"
        raise HTTPException(422, detail) from None
    return f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}"


def _encoded(started_at: str, run_id: str) -> str:
    return urlsafe_b64encode(msgspec.json.encode((started_at, run_id))).decode().rstrip("=")


def _decoded(cursor: str) -> tuple[str, str]:
    try:
        text = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.json.decode(text, type=tuple[str, str])
    except (ValueError, msgspec.DecodeError):
        raise HTTPException(404, "there is no page with this cursor") from None
