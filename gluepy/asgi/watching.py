"""The log of a run, read once for all who watch it.

A log is cut into blocks of events. The last one grows, those before it never change, and are read again if somebody who
is far behind asks for one that is no longer in memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict

import anyio
import anyio.to_thread

from gluepy.asgi.polling import Polled
from gluepy.core import events as e
from gluepy.core.events import encode
from gluepy.runs.log import LogReader, UnreadableLog
from gluepy.runs.record import Record

_EVENTS, _BYTES = 1_000, 1 << 20  # of a block
_KEPT = 8  # whole blocks of a run that are in memory
_STRIDE = 16  # blocks that are read in one go


class Block:
    """Events of a log from byte `offset` on: their numbers, and each as a line of JSON."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.seqs: list[int] = []
        self.lines: list[bytes] = []
        self.size = 0

    @property
    def is_full(self) -> bool:
        """Whether the next event begins another block."""
        return len(self.lines) >= _EVENTS or self.size >= _BYTES

    def add(self, event: e.Event) -> None:
        """Take one more in."""
        line = encode(event).rstrip(b"\n")
        self.seqs.append(event.seq)
        self.lines.append(line)
        self.size += len(line)


class Place:
    """How far a watcher has come: the next event is number `index` of block `block`."""

    def __init__(self, block: int, index: int) -> None:
        self.block, self.index = block, index


class Watch(Polled):
    """The log of one run, for any number of watchers in one event loop.

    `over` is True once there is nothing more to come, as far as is known: the session has ended, or nobody drives the
    run. `running` maps the tasks that run to their attempts. `last_seq` is the number of the last event.
    """

    def __init__(self, record: Record, threads: anyio.CapacityLimiter) -> None:
        super().__init__(threads)
        self.record = record
        self.running: dict[str, int] = {}
        self.last_seq = 0
        self._reader = LogReader(record.events)
        self._tail = Block(0)
        self._offsets = [0]  # of each block, the tail's included, where it begins, and the number of its first event
        self._first_seqs = [0]
        self._kept: OrderedDict[int, Block] = OrderedDict()

    def place_after(self, seq: int) -> Place:
        """Where the first event is that has a number above `seq`, or will be."""
        block = max(0, bisect_right(self._first_seqs, seq) - 1)
        return Place(block, -1 - seq)  # found when the block is at hand

    async def take(self, place: Place) -> tuple[list[int], list[bytes]]:
        """The next events and their numbers, none if there are no more yet, and `place` behind them."""
        while True:
            block = await self._block(place.block)
            if place.index < 0:
                seq = -1 - place.index
                place.index = next((i for i, each in enumerate(block.seqs) if each > seq), len(block.seqs))
            first, last = place.index, len(block.lines)
            if first < last:
                place.index = last
                return block.seqs[first:last], block.lines[first:last]
            if place.block + 1 >= len(self._offsets):
                return [], []
            place.block, place.index = place.block + 1, 0

    async def _block(self, number: int) -> Block:
        if number == len(self._offsets) - 1:
            return self._tail
        async with self._lock:
            if number not in self._kept:
                self._keep(number, await anyio.to_thread.run_sync(self._read_again, number, limiter=self._threads))
            self._kept.move_to_end(number)
            return self._kept[number]

    def rest(self) -> None:
        """Forget the blocks that are whole."""
        self._kept.clear()

    def _mark(self) -> object:
        return self.last_seq

    def _read(self) -> None:
        held = self.record.is_held()  # first: of a driver that lets go now, all events are there to be read below
        last: e.Event | None = None
        try:
            for _ in range(_STRIDE):
                if self._tail.is_full:
                    self._begin_block()
                for last in self._reader.events(_EVENTS - len(self._tail.lines)):
                    self._take_in(last)
                    if self._tail.is_full:
                        break
                else:
                    ended = isinstance(last, (e.RunFinished, e.RunFailed, e.RunCancelled))
                    self.is_behind, self.over = False, not held or ended or (self.over and last is None)
                    return
            self.is_behind, self.over = True, False
        except UnreadableLog:
            self.is_behind, self.over = False, True
            if not self.record.is_gone():
                raise

    def _take_in(self, event: e.Event) -> None:
        self._tail.add(event)
        self.last_seq = max(self.last_seq, event.seq)
        match event:
            case e.TaskStarted():
                self.running[event.task] = event.attempt
            case e.RunStarted() | e.RunResumed():
                self.running.clear()
            case e.TaskFinished() | e.TaskFailed() | e.TaskRetrying() | e.TaskCancelled() | e.TaskSkipped():
                self.running.pop(event.task, None)

    def _begin_block(self) -> None:
        self._keep(len(self._offsets) - 1, self._tail)
        self._tail = Block(self._reader.offset)
        self._offsets.append(self._reader.offset)
        self._first_seqs.append(self.last_seq + 1)

    def _read_again(self, number: int) -> Block:
        block = Block(self._offsets[number])
        reader = LogReader(self.record.events, block.offset)
        for event in reader.events():
            block.add(event)
            if reader.offset >= self._offsets[number + 1]:
                break
        return block

    def _keep(self, number: int, block: Block) -> None:
        self._kept[number] = block
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
