"""Worker processes: a pool that runs functions in processes which may be killed at any time without harm to others.

The pool knows nothing of tasks. A call names a function (`"module:function"`) and carries bytes; the function gets
them in a worker process, may send messages while it runs, and returns bytes. What the worker and everything below it
print is passed on line by line. A worker that dies takes only its own call with it (`WorkerLost`); cancelling a call
kills its worker with every descendant.

A worker is used again only when its call left it as it was. A call that leaves children behind (dead or alive, also
such as left its process group or session), or threads, or that replaced or closed the standard streams, costs the
worker: it exits, and all of them are gone before the call returns. Whatever else it changed in the process is put back
(`process_state.py`); where that cannot be done the next call finds another worker. What importing modules does to the
process stays, and so do daemon threads of installed libraries; what those print between calls is dropped, during a
later call it counts as that call's.

Linux is what this is made for. On macOS descendants that left the worker's process group survive it; Windows is
refused.
"""

from gluepy.exec.executors.processes.pool import WorkerPool, importing_main
from gluepy.exec.executors.processes.results import (
    EntryFailed,
    Killed,
    OnKilled,
    OnLine,
    OnMessage,
    Reply,
    WorkerCall,
    WorkerLost,
    size,
)

__all__ = [
    "EntryFailed",
    "Killed",
    "OnKilled",
    "OnLine",
    "OnMessage",
    "Reply",
    "WorkerCall",
    "WorkerLost",
    "WorkerPool",
    "importing_main",
    "size",
]
