"""A failed attempt, as it is reported."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gluepy.core import events as e
from gluepy.core.events import JSON
from gluepy.errors import TaskError


class Failure(msgspec.Struct, frozen=True):
    """A failed attempt of a task. `reason` is one of `core.events.Reason`; `type`, `message` and `stack` are those of
    the error (`stack` is empty if nothing was raised); `log` is the path of the attempt's log file, or empty."""

    task: str
    attempt: int
    max_attempts: int
    reason: str
    type: str
    message: str
    stack: str
    log: str

    @classmethod
    def from_event(cls, event: e.TaskFailed | e.TaskRetrying, folder: Path) -> Failure:
        """The failure that `event` records, in the run whose record is `folder`."""
        log = str(folder / event.log) if event.log else ""
        tries, stack = (event.attempt, event.max_attempts), event.error_stack or ""
        return cls(event.task, *tries, event.reason, event.error_type, event.error_message, stack, log)

    @classmethod
    def from_error(cls, error: TaskError) -> Failure:
        """The failure that `error` was raised for."""
        tries = (error.attempt, error.max_attempts)
        return cls(error.task, *tries, error.reason, error.type, error.message, error.stack, error.log)

    def to_json(self) -> dict[str, JSON]:
        """All fields."""
        return {name: getattr(self, name) for name in self.__struct_fields__}

    @classmethod
    def columns(cls, failure: Failure | None) -> dict[str, JSON]:
        """The error of a failure, if there is one, as columns of a table."""
        if failure is None:
            return {"error_reason": None, "error_type": None, "error_message": None}
        return {"error_reason": failure.reason, "error_type": failure.type, "error_message": failure.message}

    def to_dict(self) -> dict[str, JSON]:
        """All fields."""
        return self.to_json()

    def error(self) -> dict[str, JSON]:
        """The error alone, as JSON."""
        return {"reason": self.reason, "type": self.type, "message": self.message, "stack": self.stack or None}
