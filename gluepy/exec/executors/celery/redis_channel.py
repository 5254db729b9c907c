"""The channel over Redis or Valkey: streams, which keep what was sent while somebody is away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import msgspec
import redis.asyncio
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as NoAnswer

from gluepy.exec.executors.celery.channel import RETRY_S, Outages, Unreachable, Word
from gluepy.exec.executors.celery.options import shown

T = TypeVar("T")

_WORDS = "gluepy:words"
_KEPT_WORDS = 10_000
_AT_ONCE = 1000  # entries
_BLOCK_S = 2.0
_ANSWER_S = 10.0  # within which the server answers, if it is there
_KEPT = 60  # as many heartbeats a driver's reports are kept for it
_AWAY = (NoConnection, NoAnswer, OSError)

_encoder = msgspec.json.Encoder()
_words = msgspec.json.Decoder(Word)


def _reports(driver: str) -> str:
    return f"gluepy:reports:{driver}"


def _driver(run: str) -> str:
    return f"gluepy:driver:{run}"


class _End:
    def __init__(self, url: str, heartbeat_s: float) -> None:
        self.outages = Outages()
        self._url, self._heartbeat_s = url, heartbeat_s
        self._client: Any = redis.asyncio.Redis.from_url(
            url, socket_timeout=_ANSWER_S, socket_connect_timeout=_ANSWER_S, socket_keepalive=True, retry=None
        )

    async def __aenter__(self) -> Self:
        try:
            version = (await self._client.info("server")).get("redis_version", "0")
            if int(str(version).partition(".")[0]) < 5:
                raise Unreachable(shown(self._url), f"it is Redis {version}, and 5.0 or later is needed")
        except (RedisError, OSError) as error:
            await self._client.aclose()
            raise Unreachable(shown(self._url), str(error)) from error
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def _surely(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` returns, as soon as the server can be reached."""
        while True:
            try:
                result = await call()
            except (*_AWAY, RedisError) as error:
                if isinstance(error, ResponseError) and not _is_passing(error):
                    raise
                self.outages.begin(error)
                await anyio.sleep(RETRY_S)
            else:
                self.outages.end()
                return result

    async def _entries(self, stream: str, after: str) -> AsyncIterator[list[tuple[bytes, dict[bytes, bytes]]]]:
        while True:
            found = await self._surely(partial(self._client.xread, {stream: after}, _AT_ONCE, int(_BLOCK_S * 1000)))
            for _, entries in found.items() if isinstance(found, dict) else found or ():
                after = entries[-1][0]
                yield entries


def _is_passing(error: ResponseError) -> bool:
    """Whether it is one of a server that starts, or that is being replaced."""
    return str(error).split(" ", 1)[0] in ("LOADING", "READONLY", "MASTERDOWN", "BUSY", "TRYAGAIN")


class RedisDriverEnd(_End):
    """See `DriverEnd`."""

    def __init__(self, url: str, driver: str, heartbeat_s: float) -> None:
        super().__init__(url, heartbeat_s)
        self._driver = driver
        self._runs: set[str] = set()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.move_on_after(2, shield=True):
            try:
                await self._client.delete(_reports(self._driver), *map(_driver, self._runs))
            except (RedisError, OSError):
                pass  # the keys expire
        await super().__aexit__(exc_type, exc, traceback)

    async def reports(self) -> AsyncIterator[Sequence[str]]:
        """See `DriverEnd`."""
        stream = _reports(self._driver)
        async for entries in self._entries(stream, "0"):
            yield [fields[b"r"].decode() for _, fields in entries]
            await self._surely(partial(self._client.xdel, stream, *(key for key, _ in entries)))

    async def say(self, word: Word) -> None:
        """See `DriverEnd`."""
        self._runs.update(word.runs)

        async def say() -> None:
            async with self._client.pipeline(transaction=False) as pipe:
                for run in word.runs:
                    pipe.set(_driver(run), self._driver, px=int(self._heartbeat_s * 1000))
                pipe.xadd(_WORDS, {"w": _encoder.encode(word)}, maxlen=_KEPT_WORDS)
                pipe.expire(_reports(self._driver), int(_KEPT * self._heartbeat_s) + 1)
                await pipe.execute()

        await self._surely(say)


class RedisWorkerEnd(_End):
    """See `WorkerEnd`."""

    async def tell(self, driver: str, reports: Sequence[str]) -> None:
        """See `WorkerEnd`."""

        async def tell() -> None:
            async with self._client.pipeline(transaction=False) as pipe:
                for report in reports:
                    pipe.xadd(_reports(driver), {"r": report})
                pipe.expire(_reports(driver), int(_KEPT * self._heartbeat_s) + 1)
                await pipe.execute()

        await self._surely(tell)

    async def driver_of(self, run: str, driver: str) -> bool | None:
        """See `WorkerEnd`."""
        found = await self._surely(lambda: self._client.get(_driver(run)))
        return None if found is None else found.decode() == driver

    async def words(self) -> AsyncIterator[Word]:
        """See `WorkerEnd`."""
        newest = await self._surely(lambda: self._client.xrevrange(_WORDS, count=1))
        async for entries in self._entries(_WORDS, newest[0][0] if newest else "0"):
            for _, fields in entries:
                yield _words.decode(fields[b"w"])
