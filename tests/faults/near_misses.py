"""Process tasks that end at about their deadline."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime
from pathlib import Path

from gluepy import Retry, Task
from gluepy.exec.port import Attempt
from gluepy.exec.scope import current_scope

DEADLINE_S = 0.6
TASKS = 8


class NearMiss(Task):
    """Its first attempt ends some milliseconds before or after the deadline, the others at once. Notes who it was."""

    pool = "process"
    timeout_s = DEADLINE_S
    retries = Retry(attempts=5, wait_s=0)
    n: int

    def run(self) -> None:
        scope = current_scope()
        assert scope is not None
        attempt = scope.attempt
        Path(attempt.run.storage, f"{self.n} {attempt.number} {os.getpid()}").touch()  # quicker than self.storage
        if attempt.number == 1:
            miss_s = (self.n - 0.7 * TASKS) * 0.002
            time.sleep(max(0.0, started_at(attempt) + DEADLINE_S + miss_s - time.time()))
        self.metric("attempt", attempt.number)


def started_at(attempt: Attempt) -> float:
    """When the attempt's time began to count, in seconds since 1970, as the run's record has it."""
    for line in (Path(attempt.run.record or "") / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if (event["event"], event.get("task"), event.get("attempt")) == ("task.started", attempt.task, attempt.number):
            return datetime.fromisoformat(event["timestamp"]).timestamp()
    raise LookupError(attempt.task)
