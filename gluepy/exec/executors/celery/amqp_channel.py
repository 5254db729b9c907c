"""The channel over RabbitMQ: a durable queue for each driver's reports, and an exchange for what drivers say.

The connections are plain ones, made again here when they break: what is told by whom then does not depend on what a
library restores in which order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import aio_pika
import anyio
import msgspec
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity
from yarl import URL

from gluepy.exec.executors.celery.channel import RETRY_S, Outages, Unreachable, Word
from gluepy.exec.executors.celery.options import shown

T = TypeVar("T")

_WORDS = "gluepy.words"
_ANSWER_S = 10.0  # within which the server answers, if it is there
_KEPT = 60  # as many heartbeats a driver's reports are kept for it
_AHEAD = 200  # messages that the server sends before they are acknowledged
_AWAY = (AMQPError, OSError, RuntimeError, TimeoutError)  # RuntimeError: of what is closed already

_encoder = msgspec.json.Encoder()
_words = msgspec.json.Decoder(Word)


def _reports(driver: str) -> str:
    return f"gluepy.reports.{driver}"


class _Connection:
    """A connection that is made when it is needed, and again when it has broken."""

    def __init__(self, url: str, outages: Outages) -> None:
        parts = URL(url)
        scheme = "amqp" if parts.scheme == "pyamqp" else parts.scheme
        self._url = parts.with_scheme(scheme).update_query(heartbeat=str(int(_ANSWER_S)))
        self._outages, self._making = outages, asyncio.Lock()
        self._connection: Any = None
        self._channel: Any = None

    async def close(self) -> None:
        """Close it, whatever state it is in."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with suppress(*_AWAY), anyio.move_on_after(2):
                await connection.close()

    async def channel(self) -> Any:
        """An open channel with publisher confirms."""
        async with self._making:
            if self._channel is None or self._channel.is_closed or self._connection.is_closed:
                await self.close()
                self._connection = await aio_pika.connect(self._url, timeout=_ANSWER_S)
                self._channel = await self._connection.channel()
            return self._channel

    def another_channel(self) -> Any:
        """One that is to be opened, beside that of `channel`."""
        return self._connection.channel()

    async def surely(self, call: Callable[[Any], Awaitable[T]]) -> T:
        """What `call` returns for a channel, as soon as the server can be reached."""
        while True:
            try:
                with anyio.fail_after(_ANSWER_S):
                    result = await call(await self.channel())
            except (*_AWAY, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                    raise  # else it is the future of a connection that broke
                self._outages.begin(error)
                async with self._making:
                    await self.close()
                await anyio.sleep(RETRY_S)
            else:
                self._outages.end()
                return result

    async def messages(self, prepare: Callable[[Any], Awaitable[Any]]) -> AsyncIterator[Any]:
        """The messages of the queue that `prepare` makes of a channel, which is made again after each outage."""
        while True:
            inbox, arriving = anyio.create_memory_object_stream[Any](float("inf"))

            async def consume(channel: Any, inbox: Any = inbox) -> None:
                async def put(arrived: Any) -> None:
                    with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                        inbox.send_nowait(arrived)

                channel.close_callbacks.add(lambda *_: inbox.close())
                await channel.set_qos(prefetch_count=_AHEAD)
                await (await prepare(channel)).consume(put)

            with inbox, arriving:
                await self.surely(consume)
                async for message in arriving:
                    yield message
            self._outages.begin(ConnectionResetError("the connection broke"))


class _End:
    def __init__(self, url: str) -> None:
        self.outages = Outages()
        self._url = url

    async def __aenter__(self) -> Self:
        self._sending = _Connection(self._url, self.outages)
        self._receiving = _Connection(self._url, self.outages)
        try:
            with anyio.fail_after(_ANSWER_S):
                channel = await self._sending.channel()
                await _declare_exchange(channel)
        except _AWAY as error:
            await self._sending.close()
            raise Unreachable(shown(self._url), str(error) or "it does not answer") from error
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self._receiving.close()
            await self._sending.close()


async def _declare_exchange(channel: Any) -> Any:
    return await channel.declare_exchange(_WORDS, aio_pika.ExchangeType.FANOUT, durable=True)


class AmqpDriverEnd(_End):
    """See `DriverEnd`."""

    def __init__(self, url: str, driver: str, heartbeat_s: float) -> None:
        super().__init__(url)
        self._driver, self._heartbeat_s = driver, heartbeat_s

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self._sending.surely(self._queue)  # before a worker looks for it
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.move_on_after(2, shield=True), suppress(*_AWAY):
            await self._receiving.close()
            await (await self._sending.channel()).queue_delete(_reports(self._driver))
        await super().__aexit__(exc_type, exc, traceback)

    async def _queue(self, channel: Any) -> Any:
        expires = int(_KEPT * self._heartbeat_s * 1000)
        return await channel.declare_queue(_reports(self._driver), durable=True, arguments={"x-expires": expires})

    async def reports(self) -> AsyncIterator[Sequence[str]]:
        """See `DriverEnd`."""
        async for message in self._receiving.messages(self._queue):
            yield (message.body.decode(),)
            with suppress(*_AWAY):  # it comes again
                await message.ack()

    async def say(self, word: Word) -> None:
        """See `DriverEnd`."""

        async def say(channel: Any) -> None:
            exchange = await channel.get_exchange(_WORDS, ensure=False)
            await exchange.publish(aio_pika.Message(_encoder.encode(word)), "", mandatory=False)

        await self._sending.surely(say)


class AmqpWorkerEnd(_End):
    """See `WorkerEnd`."""

    async def tell(self, driver: str, reports: Sequence[str]) -> None:
        """See `WorkerEnd`."""

        async def tell(channel: Any) -> None:
            persistent = aio_pika.DeliveryMode.PERSISTENT
            messages = [aio_pika.Message(report.encode(), delivery_mode=persistent) for report in reports]
            publish = channel.default_exchange.publish
            await asyncio.gather(*(publish(message, _reports(driver), mandatory=False) for message in messages))

        await self._sending.surely(tell)

    async def driver_of(self, run: str, driver: str) -> bool | None:  # noqa: ARG002
        """See `WorkerEnd`: a driver is there that reads its reports."""

        async def look(channel: Any) -> bool | None:  # noqa: ARG001
            async with self._sending.another_channel() as own:  # what is not there closes the channel
                try:
                    queue = await own.declare_queue(_reports(driver), passive=True)
                except ChannelNotFoundEntity:
                    return None
                return True if queue.declaration_result.consumer_count else None

        return await self._sending.surely(look)

    async def words(self) -> AsyncIterator[Word]:
        """See `WorkerEnd`."""

        async def queue(channel: Any) -> Any:
            exchange = await _declare_exchange(channel)
            own = await channel.declare_queue(exclusive=True)
            await own.bind(exchange)
            return own

        async for message in self._receiving.messages(queue):
            yield _words.decode(message.body)
            with suppress(*_AWAY):
                await message.ack()
