"""Runs as they are reported, from the events that they recorded."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import gluepy
from gluepy import report
from gluepy.conf.schema import Settings
from gluepy.conf.sources import load_settings
from gluepy.core import events as e
from gluepy.core.graph import Leaf, Par, Seq, Spec, Tree
from gluepy.core.policy import Retry
from gluepy.errors import OptionError, UnknownRun
from gluepy.report import RunReport, compare_runs, follow_run, read_run, read_runs
from gluepy.runs.reading import read_record
from gluepy.runs.record import Record

SPECS = (
    Spec(cls="flows:Load", label="load", retry=Retry(attempts=3)),
    Spec(cls="flows:Fit", label="fit", uses={"gpu": 1}, outputs=("model",)),
    Spec(cls="flows:Score", label="score"),
    Spec(cls="flows:Tell", label="tell"),
)
TREE = Tree(SPECS, Seq((Leaf(0), Par((Leaf(1), Leaf(2))), Leaf(3))))
ERROR: dict[str, Any] = {"reason": "exception", "error_type": "ValueError", "error_message": "bad"}
WHERE: dict[str, Any] = {"executor": "local", "pool": "thread"}


class Told:
    """A record, of which the log is written event by event."""

    def __init__(self, root: Path, run_id: str, **options: Any) -> None:
        self.record = Record.create(root, run_id, {"model": {"depth": len(run_id)}, "api_token": f"of {run_id}"})
        self.seq = 0
        self.begin(e.RunStarted, code_version=f"code of {run_id}", options={"concurrency": 2, **options})

    def begin(self, kind: Any, session: int = 1, **facts: Any) -> None:
        opening = {"schema_version": 1, "gluepy_version": "2", "host": "host", "pid": 1, "params_digest": "digest"}
        self(kind, second=0, session=session, graph=TREE.record(), **opening, **facts)

    def __call__(self, kind: Any, second: float = 0, session: int = 1, **facts: Any) -> None:
        self.seq += 1
        at = f"2026-01-01T00:00:{second:09.6f}Z"
        header = {"seq": self.seq, "session": session, "timestamp": at, "level": "info", "dag": "train"}
        event = kind(run_id=self.record.run_id, **header, **facts)
        with self.record.events.open("ab") as log:
            log.write(e.encode(event))

    def starts(self, task: str, second: float, attempt: int = 1, queued_s: float = 0.0) -> None:
        where = {"host": "host", "pid": 7, **WHERE}
        self(e.TaskStarted, second, task=task, attempt=attempt, max_attempts=3, queued_s=queued_s, **where)

    def finishes(self, task: str, second: float, duration_s: float, attempt: int = 1, **facts: Any) -> None:
        self(e.TaskFinished, second, task=task, attempt=attempt, duration_s=duration_s, **WHERE, **facts)


@pytest.fixture
def settings() -> Settings:
    return load_settings(None)


@pytest.fixture
def failed(tmp_path: Path) -> Told:
    """load fails once and finishes; fit fails, score skips itself, tell is blocked."""
    told = Told(tmp_path, "failed", concurrency=3)
    told.starts("load", 0)
    told(e.TaskRetrying, 1, task="load", attempt=1, max_attempts=3, duration_s=1.0, delay_s=1.0, **WHERE, **ERROR)
    told.starts("load", 2, attempt=2)
    told.finishes("load", 4, 2.0, attempt=2, cpu_s=1.5)
    told.starts("fit", 4)
    told.starts("score", 5, queued_s=1.0)
    told(e.TaskMetric, 5, task="fit", attempt=1, name="rmse", value=0.5)
    told(e.TaskSkipped, 6, task="score", attempt=1, reason="skip", why="no news", duration_s=1.0)
    failure = {"error_stack": "Traceback", "log": "logs/fit.1.log", **ERROR, **WHERE}
    told(e.TaskFailed, 9, task="fit", attempt=1, max_attempts=1, duration_s=5.0, **failure)
    told(e.TaskBlocked, 9, task="tell", attempt=0, blocked_by=["fit"])
    told(e.RunFailed, 9, duration_s=9.0, counts={}, failed=["fit"])
    return told


def test_a_run_is_reported_whole(failed: Told) -> None:
    run = read_run(failed.record.path)
    assert (run.run_id, run.dag, run.status, run.sessions, run.duration_s) == ("failed", "train", "failed", 1, 9.0)
    assert run.counts == {"finished": 1, "skipped": 1, "failed": 1, "blocked": 1}
    assert list(run.tasks) == ["load", "fit", "score", "tell"]
    load, fit, score, tell = run.tasks.values()
    assert (load.status, load.attempts, load.max_attempts, load.failure) == ("finished", 2, 3, None)
    assert (fit.status, fit.label, fit.metrics) == ("failed", "fit", {"rmse": 0.5})
    assert (score.reason, score.why, tell.blocked_by) == ("skip", "no news", ["fit"])
    assert run.failures == [fit.failure]
    (failure,) = run.failures
    assert (failure.type, failure.message, failure.stack) == ("ValueError", "bad", "Traceback")
    assert failure.log == str(failed.record.path / "logs/fit.1.log")
    assert run.parameters == {"model.depth": 6, "api_token": "***"}
    assert not run.damage


def test_a_task_is_reported_with_its_declaration_and_its_attempts(failed: Told) -> None:
    failed.record.make_logs()
    failed.record.logs.joinpath("load.2.log").write_text("done")
    run = read_run(failed.record.path)
    load, fit = run.details("load"), run.details("fit")
    assert (load.cls, load.dependencies, load.dependents) == ("flows:Load", [], ["fit", "score"])
    assert (fit.uses, fit.outputs, fit.dependencies) == ({"gpu": 1}, ["model"], ["load"])
    first, second = load.attempts
    assert (first.status, first.failure and first.failure.message, first.log) == ("failed", "bad", None)
    assert (second.status, second.duration_s, second.usage) == (
        "finished",
        2.0,
        {"host": "host", "pid": 7, "cpu_s": 1.5},
    )
    assert second.log == str(failed.record.path / "logs/load.2.log")
    (score,) = run.details("score").attempts
    assert (score.status, score.why) == ("skipped", "no news")
    with pytest.raises(KeyError):
        run.details("nobody")


def test_the_timeline_knows_what_the_run_had_to_wait_for(failed: Told) -> None:
    timeline = read_run(failed.record.path).timeline
    assert [(bar.task, bar.started_s, bar.ended_s) for bar in timeline.bars] == [
        ("load", 0, 1), ("load", 2, 4), ("fit", 4, 9), ("score", 5, 6)
    ]  # fmt: skip
    assert (timeline.critical_path, timeline.length_s, timeline.working_s) == (["load", "fit"], 9, 9)
    assert timeline.waited_for_s == {"": 1.0}
    assert timeline.concurrency == 3  # as it was told, though no more than two ran at a time
    assert timeline.forecasts == {}  # it has not finished


def test_everything_is_json(failed: Told) -> None:
    run = read_run(failed.record.path)
    told = json.loads(json.dumps(run.to_json()))
    load = {"label": "load", "status": "finished", "attempts": 2, "max_attempts": 3, "duration_s": 2.0}
    assert told["tasks"]["load"] == load
    assert (told["sessions"], told["damage"]) == (1, {"bad_lines": 0, "gaps": 0, "doubled": 0})
    assert told["tasks"]["fit"]["error"]["log"] == str(failed.record.path / "logs/fit.1.log")
    assert told["timeline"]["waited_for_s"] == {"a slot": 1.0}
    details = json.loads(json.dumps(run.details("fit").to_json()))
    assert [attempt["error"]["message"] for attempt in details["history"]] == ["bad"]
    assert run.failures[0].to_json()["task"] == "fit"
    assert run.damage.to_json() == {"bad_lines": 0, "gaps": 0, "doubled": 0}


def test_a_run_that_goes_on_lasts_until_now_and_says_what_waits(tmp_path: Path, settings: Settings) -> None:
    told = Told(tmp_path, "live", concurrency=1)
    told.starts("load", 0)
    told.finishes("load", 2, 2.0)
    told.starts("fit", 3)
    with told.record.lock():
        run = RunReport(told.record, read_record(told.record), settings, now=lambda: 1_767_225_610.0)  # 00:00:10
        assert (run.status, run.duration_s) == ("running", 10.0)
        assert (run.tasks["fit"].status, run.tasks["score"].waiting_for) == ("running", "")
        assert run.to_json()["tasks"]["score"]["waiting_for"] == "a slot"
    run = read_run(told.record.path)  # nobody drives it any more
    assert (run.status, run.duration_s) == ("interrupted", 3.0)
    assert run.counts == {"pending": 2, "interrupted": 1, "finished": 1}
    assert (run.tasks["fit"].status, run.tasks["score"].waiting_for) == ("interrupted", None)
    assert [attempt.status for attempt in run.details("fit").attempts] == ["interrupted"]


def test_a_report_shows_the_moment_in_which_it_was_read(tmp_path: Path) -> None:
    told = Told(tmp_path, "live")
    told.starts("load", 0)
    run = read_run(told.record.path)
    told.finishes("load", 2, 2.0)
    assert [type(event) for event in run.events] == [e.RunStarted, e.TaskStarted]
    assert run.tasks["load"].status == "interrupted"


def test_a_run_is_followed_event_by_event_until_it_ends(tmp_path: Path) -> None:
    told = Told(tmp_path, "live")
    run = follow_run("live", tmp_path)
    with told.record.lock():
        assert [event.seq for event in run.poll()] == [1]
        assert (run.poll(), run.over) == ([], False)
        told.starts("load", 0)
        assert [event.seq for event in run.poll()] == [2]
        assert (run.over, run.report().tasks["load"].status) == (False, "running")
        told(e.RunCancelled, 1, duration_s=1.0, counts={})
        assert [event.seq for event in run.poll()] == [3]
        assert run.over  # though its driver has still to let go
        assert (run.poll(), run.over) == ([], True)
        assert run.report().status == "cancelled"


def test_following_ends_when_the_driver_is_gone(tmp_path: Path) -> None:
    told = Told(tmp_path, "live")
    run = follow_run(told.record.path)
    with told.record.lock():
        run.poll()
        assert not run.over
        told.starts("load", 0)
    assert [event.seq for event in run.poll()] == [2]  # what it wrote before is not missed
    assert (run.over, run.report().status) == (True, "interrupted")


def test_two_runs_are_compared(tmp_path: Path, failed: Told) -> None:
    fine = Told(tmp_path, "fine", on_failure="continue")
    fine.starts("load", 0)
    fine.finishes("load", 4, 4.0)
    fine.starts("fit", 4)
    fine(e.TaskMetric, 5, task="fit", attempt=1, name="rmse", value=0.25)
    fine.finishes("fit", 5, 1.0)
    fine(e.RunFinished, 9, duration_s=9.0, counts={})
    found = compare_runs(read_run("failed", tmp_path), read_run("fine", tmp_path))
    assert found.runs == ["failed", "fine"]
    assert found.run == {"status": ("failed", "finished"), "code_version": ("code of failed", "code of fine")}
    assert found.options == {"concurrency": (3, 2), "on_failure": (None, "continue")}
    assert found.context == {"model.depth": (6, 4), "api_token": ("***", "***")}  # they differ; the secrets stay masked
    assert found.tasks["fit"] == ("failed", "finished")
    assert found.durations == {"load": (2.0, 4.0)}  # fit did not finish in both
    assert found.metrics == {"fit rmse": (0.5, 0.25)}
    assert found.to_json()["metrics"] == {"fit rmse": [0.5, 0.25]}


def test_runs_are_listed_newest_first_and_found_by_every_name(tmp_path: Path, failed: Told) -> None:
    assert [run.run_id for run in read_runs(tmp_path)] == ["failed"]
    other = Told(tmp_path, "other")
    assert {run.run_id for run in read_runs(tmp_path, "train")} == {"failed", "other"}
    assert [run.run_id for run in read_runs(tmp_path, status="failed", limit=1)] == ["failed"]
    assert read_runs(tmp_path, "nothing") == []
    (summary,) = read_runs(tmp_path, status="failed")
    assert json.loads(json.dumps(summary.to_json()))["failed"] == ["fit"]
    names: list[str | Path] = ["other", "her", other.record.path, str(other.record.path)]
    assert {read_run(name, tmp_path).run_id for name in names} == {"other"}
    assert read_run("latest:train", tmp_path).dag == "train"
    for unknown in ("nobody", tmp_path / "nobody", "latest:nothing"):
        with pytest.raises(UnknownRun):
            read_run(unknown, tmp_path)


def test_a_damaged_log_is_reported_as_far_as_it_can_be_read(failed: Told) -> None:
    lines = failed.record.events.read_bytes().splitlines(keepends=True)
    failed.record.events.write_bytes(b"".join([*lines[:-1], b"{torn}\n", lines[-1]]))
    run = read_run(failed.record.path)
    assert (run.damage.bad_lines, bool(run.damage), run.status) == (1, True, "failed")
    failed.record.events.write_bytes(b"{torn}\n")
    with pytest.raises(report.UnreadableLog, match=str(failed.record.events)):
        read_run(failed.record.path)


def test_all_names_are_there() -> None:
    assert {name for name in report.__all__ if getattr(report, name) is None} == set()
    assert (gluepy.read_run, gluepy.read_runs) == (read_run, read_runs)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = report.nothing


def test_reports_are_tables_with_the_same_columns_in_each_row(failed: Told, settings: Settings) -> None:
    run = RunReport.from_record(failed.record, settings)
    tables: Any = (run.tasks, run.attempts, run.metrics, run.failures, run.parameters, read_runs(failed.record.root))
    for table in tables:
        rows = table.to_dicts()
        assert len(rows) == len(table)
        assert len({tuple(row) for row in rows}) <= 1
        assert json.loads(json.dumps(rows)) == rows
    assert [row["task"] for row in run.tasks.to_dicts()] == list(run.tasks)
    assert [(row["task"], row["attempt"], row["status"]) for row in run.attempts.to_dicts()] == [
        ("load", 1, "failed"),
        ("load", 2, "finished"),
        ("fit", 1, "failed"),
        ("score", 1, "skipped"),
    ]
    assert [row["error_type"] for row in run.attempts.to_dicts()] == ["ValueError", None, "ValueError", None]
    assert run.metrics.to_dicts()[0]["step"] == 1
    assert repr(run).startswith("<RunReport train failed, ")
    lines = failed.record.events.read_text().splitlines()
    assert run.events.to_dicts() == [json.loads(line) for line in lines]


def test_runs_are_those_since_a_moment_or_for_so_long(failed: Told) -> None:
    root = failed.record.root
    began = datetime(2026, 1, 1, tzinfo=UTC)
    assert [run.run_id for run in read_runs(root, since=began)] == ["failed"]
    assert [run.run_id for run in read_runs(root, since="2026-01-01T01:00:00+01:00")] == ["failed"]
    assert read_runs(root, since=began + timedelta(seconds=1)) == []
    assert len(read_runs(root, since=datetime.now(UTC) - began + timedelta(days=1))) == 1
    with pytest.raises(OptionError, match="is no moment"):
        read_runs(root, since="yesterday")
