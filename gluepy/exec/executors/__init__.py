"""Where attempts run. `EXECUTOR_BACKEND` names a class; `LocalExecutor` is the default."""

from gluepy.exec.executors.local import LocalExecutor

__all__ = ["LocalExecutor"]
