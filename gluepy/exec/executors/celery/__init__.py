"""Attempts are messages of a Celery queue; `gluepy worker` takes them.

    driver: CeleryExecutor ── Celery: an order ──> gluepy worker ── a prefork process ── Agent ── the attempt
                           <─ channel: reports ──                     │
                           ── channel: words ─────────────────────────┘

Celery brings orders to workers, and nothing else. What comes back takes a channel of its own (`channel.py`), which the
event loop reads: Celery's results have to be polled, and a terminated task has none. The driver's words, "I am here"
and "stop this one", go to all workers by the channel, too.

What holds, on any broker:

- Who is not heard of is gone. An attempt stops when its worker has not heard of the driver for `heartbeat_s`, and is
  lost when the driver has not heard of the worker for half as long again: by then it has stopped, and may be tried
  again.
- An order may come twice: after a connection broke, nobody knows whether the first one arrived. The fence lets one
  pass.
- A broker that comes back may have forgotten orders, so those of attempts that have not begun are sent again.
- A cancelled attempt that has not begun is claimed by the driver itself: whoever gets the order later runs nothing.
"""

from gluepy.exec.executors.celery.executor import CeleryExecutor
from gluepy.exec.executors.celery.options import CelerySettings

__all__ = ["CeleryExecutor", "CelerySettings"]
