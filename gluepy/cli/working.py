"""`gluepy worker`: run the attempts that drivers put into a queue."""

from __future__ import annotations

import os

from gluepy.cli.invocation import Invocation
from gluepy.conf.plugins import EXECUTORS, find


def work(invocation: Invocation, queue: str | None, concurrency: int | None) -> int:
    """`gluepy worker`"""
    settings = invocation.settings()
    if invocation.module is not None:  # for the processes that run attempts
        os.environ["GLUEPY_SETTINGS_MODULE"] = invocation.module
    executor = find(EXECUTORS, "celery", "gluepy worker")
    from gluepy.exec.executors.celery.worker import run_worker

    modules = ", ".join(settings.INSTALLED_MODULES) or "no modules: set INSTALLED_MODULES"
    project = f"{settings.project} ({modules})" if settings.project is not None else f"no project ({modules})"
    group = settings.group(*executor.settings_group)
    return run_worker(group, queue, concurrency or settings.CONCURRENCY, project)
