"""What an executor with `continues = True` gets as `emit`: a `Continuation`, which also hands out the next attempt.

A thread that has ended an attempt could report to the event loop and wait for another; that hop costs three times what
the rest of a task does. Instead it takes the engine's next turn itself and goes on with what follows:

    while True:
        if not emit.begin():
            return outcome  # cancelled before it began; nobody asks how it ended
        outcome = ...  # carry `attempt` out
        if (step := emit.next(outcome)) is None:
            return outcome  # to the engine, as any executor does
        attempt, emit = step

and the task that waits for the thread calls `emit.abandon()`, of any attempt of this call, when it is cancelled.

How thread T, which goes on from attempt A to attempt B, and event loop L, which stops the run, meet:

1. T calls A's `next(outcome)` and takes the lock of turns. If L had the lock first, the call is marked as stopped: T
   gets None, and A ends as any cancelled attempt whose work is over. Otherwise L waits.
2. T, holding the lock, records A's end, decides, and makes B the call's current attempt, with a claim that is free.
   Then it lets the lock go. From here on a cancellation means B.
3. L takes the lock, marks the call as stopped and cancels it, so that the waiting task calls `abandon`: it looks up the
   current attempt and tries its claim.
4. T calls B's `begin()`, which tries the same claim. One of the two gets it. If L does, B never begins, and T returns.
   If T does, B is under way: `abandon` tells the engine that it goes on without anybody waiting for it (`Abandoned`),
   and `Released` follows when T is through with it.

B becomes current under the lock, in step 2, and not when T gets to it. Otherwise a cancellation between the two would
find A's claim, which was taken long ago, and report A as abandoned, while T begins B in a run that has ended.
"""

from __future__ import annotations

from gluepy.exec.port import Abandoned, Attempt, Emission, Emit, Outcome


class Continuation:
    """The `emit` of one attempt, with the claim to it and with what follows it."""

    __slots__ = ("_claim",)

    def __init__(self) -> None:
        self._claim = [True]  # taken by popping, which is atomic: of two threads one gets an IndexError

    def __call__(self, emission: Emission) -> None:
        """Report to the engine. From any thread, at any moment."""
        raise NotImplementedError

    def begin(self) -> bool:
        """Claim the attempt, to carry it out. False if its call was cancelled before: it must not begin."""
        try:
            return self._claim.pop()
        except IndexError:
            return False

    def next(self, outcome: Outcome, /) -> tuple[Attempt, Continuation] | None:
        """The attempt has ended as `outcome`. Returns the attempt that is to run next in the same place, with its
        `emit`; `outcome` is recorded then. None: return `outcome` from `run`."""
        raise NotImplementedError

    def abandon(self) -> Continuation | None:
        """The call was cancelled: give up the attempt that it has come to. None if that had not begun; it never will.
        Otherwise the engine is told that it goes on; to be called with `Released` when it has ended."""
        if self.begin():
            return None
        self(Abandoned())
        return self


class _Last(Continuation):
    """Nothing follows: the executor is wrapped in another one, which wants to see each outcome."""

    __slots__ = ("_emit",)

    def __init__(self, emit: Emit) -> None:
        super().__init__()
        self._emit = emit

    def __call__(self, emission: Emission) -> None:
        self._emit(emission)

    def next(self, _outcome: Outcome, /) -> None:
        return None


def continuation(emit: Emit) -> Continuation:
    """`emit` as a continuation, also if it is a plain function."""
    return emit if isinstance(emit, Continuation) else _Last(emit)
