"""Where attempts run. `EXECUTOR_BACKEND` names an executor; `LocalExecutor` is the default.

For executors of your own that run attempts elsewhere: `run_attempt` is the worker's end, `logged` the driver's.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gluepy.exec.executors.capture import logged
from gluepy.exec.executors.local import LocalExecutor

if TYPE_CHECKING:
    from gluepy.exec.executors.entry import run_attempt

__all__ = ["LocalExecutor", "logged", "run_attempt"]


def __getattr__(name: str) -> Any:
    if name == "run_attempt":  # drivers do without its module
        return import_module("gluepy.exec.executors.entry").run_attempt
    raise AttributeError(f"module 'gluepy.exec.executors' has no attribute {name!r}")
