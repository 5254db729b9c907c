"""An HTTP service that runs pipelines: `uvicorn app:app --timeout-graceful-shutdown 5` in this folder.

The time-out lets the service end while clients still read their streams.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

import gluepy
from gluepy.errors import UsageError


class Order(BaseModel):
    """What a client wants to be run: a DAG's label, and values that differ from the context's."""

    dag: str
    params: dict[str, Any] = {}


class Feed:
    """The events of one run, for any number of readers; who comes late reads from the beginning."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.ended = False
        self.news = asyncio.Event()

    def add(self, *events: Any, ended: bool = False) -> None:
        """Show the readers what came, or that nothing more will."""
        self.events += events
        self.ended = ended
        self.news.set()
        self.news = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Any]:
        read = 0
        while read < len(self.events) or not self.ended:
            if read == len(self.events):
                await self.news.wait()
            else:
                yield self.events[read]
                read += 1


class Service:
    """The workers that all requests share, and the runs that go on in the background."""

    def __init__(self, runtime: gluepy.Runtime, background: TaskGroup) -> None:
        self.runtime, self.background = runtime, background
        self.feeds: dict[str, Feed] = {}

    async def start(self, order: Order) -> str:
        """Start a run that outlives the request; returns its id."""
        run_id: str = await self.background.start(self._drive, order)
        return run_id

    async def _drive(self, order: Order, *, task_status: TaskStatus[str]) -> None:
        async with self.runtime.stream_dag(order.dag, params=order.params) as run:
            feed = self.feeds[run.id] = Feed()
            task_status.started(run.id)
            try:
                async for event in run:
                    feed.add(event)
            finally:
                feed.add(ended=True)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Worker processes start and end with the service, and so do the runs in the background."""
    async with gluepy.Runtime(concurrency=4) as runtime, anyio.create_task_group() as background:
        app.state.service = Service(runtime, background)
        yield
        background.cancel_scope.cancel()


def service_of(request: Request) -> Service:
    """The service, for an endpoint."""
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(service_of)]


async def streamed_run(order: Order, service: Serving) -> AsyncIterator[Any]:
    """A run that lives as long as its request: when the client goes away, leaving the block cancels it."""
    async with service.runtime.stream_dag(order.dag, params=order.params) as run:
        yield run


async def sse(events: Any) -> AsyncIterator[bytes]:
    """`events` as server-sent events."""
    async for event in events:
        yield b"data: " + msgspec.json.encode(event) + b"\n\n"


app = FastAPI(title="Pipelines", lifespan=lifespan)


@app.exception_handler(UsageError)
async def refuse(_: Request, error: UsageError) -> JSONResponse:
    """An unknown DAG or an option that cannot be meant: the client's mistake, with a hint."""
    return JSONResponse({"detail": str(error)}, status_code=422)


@app.post("/pi")
async def pi(points: int, service: Serving) -> dict[str, Any]:
    """Run the pipeline and wait for its result."""
    result = await service.runtime.run_dag("pi", params={"points": points})
    found: dict[str, Any] = json.loads(await anyio.Path(result.files, "pi.json").read_text())
    return {"run_id": result.run_id, "status": result.status} | found


@app.post("/runs", status_code=202)
async def start(order: Order, service: Serving) -> dict[str, str]:
    """Start a run in the background."""
    return {"run_id": await service.start(order)}


@app.get("/runs/{run_id}/events")
async def events(run_id: str, service: Serving) -> StreamingResponse:
    """The events of a run from its first one, as they come. A client that goes away leaves the run alone."""
    if run_id not in service.feeds:
        raise HTTPException(404, f"no run {run_id!r} was started here")
    return StreamingResponse(sse(service.feeds[run_id]), media_type="text/event-stream")


@app.post("/stream")
async def stream(run: Annotated[Any, Depends(streamed_run)]) -> StreamingResponse:
    """Run a pipeline and stream its events. A client that goes away cancels the run."""
    return StreamingResponse(sse(run), media_type="text/event-stream", headers={"X-Run-Id": run.id})
