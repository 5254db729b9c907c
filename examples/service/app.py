"""An HTTP service that runs pipelines: `uvicorn app:app --timeout-graceful-shutdown 5` in this folder.

The time-out lets the service end while clients still read their streams.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import msgspec
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

import gluepy
import gluepy.asgi
from gluepy.errors import UsageError

runtime = gluepy.Runtime(concurrency=4)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Worker processes start and end with the service, and so do the runs in the background."""
    async with runtime:
        yield


app = FastAPI(title="Pipelines", lifespan=lifespan)
app.mount("/pipelines", gluepy.asgi.app(runtime))  # runs in the background, watched, cancelled, resumed; their logs


@app.exception_handler(UsageError)
async def refuse(_: Request, error: UsageError) -> JSONResponse:
    """A parameter that cannot be meant: the client's mistake, with a hint."""
    return JSONResponse({"detail": str(error)}, status_code=422)


@app.post("/pi")
async def pi(points: int) -> dict[str, Any]:
    """Run the pipeline and wait for its result."""
    result = await runtime.run_dag("pi", params={"points": points})
    found: dict[str, Any] = json.loads(await anyio.Path(result.files, "pi.json").read_text())
    return {"run_id": result.run_id, "status": result.status} | found


async def streamed_run(points: int) -> AsyncIterator[gluepy.Run]:
    """A run that lives as long as its request: when the client goes away, leaving the block cancels it."""
    async with runtime.stream_dag("pi", params={"points": points}) as run:
        yield run


@app.post("/pi/stream")
async def stream(run: Annotated[gluepy.Run, Depends(streamed_run)]) -> StreamingResponse:
    """Run the pipeline and stream its events. A client that goes away cancels the run."""

    async def events() -> AsyncIterator[bytes]:
        async for event in run:
            yield b"data: " + msgspec.json.encode(event) + b"\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"X-Run-Id": run.id})
