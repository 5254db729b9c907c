"""The read side: runs of the past, and those that are running, as typed data with a JSON form.

    from gluepy.report import follow_run, read_run, read_runs

Whatever shows runs (the command line, a page, a notebook) renders what stands here. Each report has `to_json()`,
which gives plain dicts and lists; that of `RunReport` is what `gluepy show --json` prints.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gluepy.core.timeline import Bar
    from gluepy.report.comparison import Judgement, RunComparison, check_run, compare_many
    from gluepy.report.difference import RunDifference, compare_runs
    from gluepy.report.failures import Failure
    from gluepy.report.run import Damage, RunFollower, RunReport, follow_run, read_run, read_runs
    from gluepy.report.tasks import AttemptReport, MetricReport, TaskDetails, TaskReport
    from gluepy.report.timeline import RunTimeline
    from gluepy.runs.index import RunSummary
    from gluepy.runs.log import UnreadableLog

_HOME = {
    "gluepy.core.timeline": ("Bar",),
    "gluepy.report.comparison": ("Judgement", "RunComparison", "check_run", "compare_many"),
    "gluepy.report.datasets": ("DatasetReport",),
    "gluepy.report.difference": ("RunDifference", "compare_runs"),
    "gluepy.report.failures": ("Failure",),
    "gluepy.report.run": ("Damage", "RunFollower", "RunReport", "follow_run", "read_run", "read_runs"),
    "gluepy.report.tasks": ("AttemptReport", "MetricReport", "TaskDetails", "TaskReport"),
    "gluepy.report.timeline": ("RunTimeline",),
    "gluepy.runs.index": ("RunSummary",),
    "gluepy.runs.log": ("UnreadableLog",),
}

__all__ = [
    "AttemptReport",
    "Bar",
    "Damage",
    "DatasetReport",
    "Failure",
    "Judgement",
    "MetricReport",
    "RunComparison",
    "RunDifference",
    "RunFollower",
    "RunReport",
    "RunSummary",
    "RunTimeline",
    "TaskDetails",
    "TaskReport",
    "UnreadableLog",
    "check_run",
    "compare_many",
    "compare_runs",
    "follow_run",
    "read_run",
    "read_runs",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():  # a run that ends well imports only what it shows
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'gluepy.report' has no attribute {name!r}")
