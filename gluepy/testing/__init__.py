"""The kit for tests of pipelines and executors. It needs pytest for `ExecutorContract` alone.

- `task_run`: one task, without a run.
"""

from gluepy.testing.run import TaskRun, task_run

__all__ = ["TaskRun", "task_run"]
