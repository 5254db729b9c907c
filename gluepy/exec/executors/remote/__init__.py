"""Attempts on other machines, whatever brings them there: what all executors of engines have in common.

    driver                                            another machine
    Calls ── text ──> (the engine) ── text ──> Agent ── guard ── a process that runs the attempt
          <─ reports ─ (the engine) <─ reports ─

An executor for an engine brings a text there, lines of text back, and a cancellation through; both texts are JSON, and
none is larger than what the task tells. The rest is here.

On the driver, an executor has one `Calls`. For each attempt:

    async with self.calls.open(attempt, emit) as call:
        ...                          # bring `call.text` to a worker, as the message `call.key`
        return await call.outcome()  # when everything has come to `self.calls.take(report)`

On the worker an `Agent` runs it, in a process with a guard of its own, so that nothing of it survives a cancellation,
the driver, or the worker:

    await agent.run(text, tell, lease)    # `tell(report)` is called for each report; the last is returned, too
    lease.cancel()                        # from any thread: the driver wants it stopped
    lease.renew()                         # the driver was heard of; needed where `Calls` asks for it (`patience_s`)

For an engine that calls plain functions in threads, `run_here(text, tell, is_wanted)` does that with the agent of the
process, and `cancel_here(key)` stops it from elsewhere. `python -m gluepy.exec.executors.remote` runs one attempt from
standard input, for whatever starts processes.

What is true of every engine then:

- A worker runs a task only if its module is of the worker's own INSTALLED_MODULES, and compares the code as CODE_CHECK
  says.
- An attempt begins at most once, however often it is delivered: it is claimed at a `Fence`. A delivery that comes too
  late is answered, and runs nothing.
- Settings travel, secrets do not: where the context has some, the worker fills in its own.
- A worker that does not see the driver's local STORAGE_ROOT refuses its first attempt and says so.
- Reports are numbered. The driver takes them in order, waits for one that is late, and knows of those that were lost;
  the last one has all metrics again, so that none is lost.
"""

from gluepy.exec.executors.remote.agent import Agent, Lease, Tell
from gluepy.exec.executors.remote.calls import Call, Calls, check_importable
from gluepy.exec.executors.remote.fence import Fence, StorageFence
from gluepy.exec.executors.remote.here import AgentThread, cancel_here, close_here, run_here
from gluepy.exec.executors.remote.messages import decode_report, encode_order, key_in, stopped_report

__all__ = [
    "Agent",
    "AgentThread",
    "Call",
    "Calls",
    "Fence",
    "Lease",
    "StorageFence",
    "Tell",
    "cancel_here",
    "check_importable",
    "close_here",
    "decode_report",
    "encode_order",
    "key_in",
    "run_here",
    "stopped_report",
]
