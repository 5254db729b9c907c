"""Authoring and running: `from gluepy.exec import DAG, Task, parallel, each, Retry, Skip`."""

from gluepy.core.policy import Goal, Retry
from gluepy.exec.dag import DAG, each, parallel
from gluepy.exec.task import Skip, Task, current_task

__all__ = ["DAG", "Goal", "Retry", "Skip", "Task", "current_task", "each", "parallel"]
