"""The fixtures that pytest finds by itself, as another project's tests use them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PIPELINE = """
from gluepy import DAG, Retry, Task

class Load(Task):
    retries = Retry(attempts=3, wait_s=60)

    def run(self):
        self.metric("limit", self.context.limit)
        (self.path / "rows.txt").write_text("rows")

class Train(Task):
    async def run(self):
        assert (self.path / "rows.txt").exists()

class TrainDAG(DAG):
    tasks = (Load, Train)
"""
TESTS = """
from pathlib import Path

import pytest

from gluepy import Retry
from gluepy.testing import RUNS, Step, assert_events, events_of, failed

def test_a_dag_runs_and_its_files_are_the_test_s_own(gluepy_run, tmp_path):
    from pipeline import TrainDAG
    result = gluepy_run(TrainDAG, params={"limit": 3})
    assert Path(result.files).is_relative_to(tmp_path) and result.path.is_relative_to(tmp_path)
    assert (Path(result.files) / "rows.txt").read_text() == "rows"

def test_a_script_that_names_what_is_not_there_is_refused(gluepy_run):
    from pipeline import TrainDAG
    with pytest.raises(Exception, match="the DAG has no task 'laod'; did you mean 'load'"):
        gluepy_run(TrainDAG, script={"laod": failed()}, params={"limit": 3})

def test_attempts_fail_as_the_script_says_and_the_others_do_their_work(gluepy_run, monkeypatch):
    from pipeline import Load, TrainDAG
    monkeypatch.setattr(Load, "retries", Retry(attempts=2, wait_s=0))
    script = {"load": [failed(), RUNS], "train": Step(failed(reason="lost"), runs=True)}
    result = gluepy_run(TrainDAG, script=script, check=False, params={"limit": 3})
    assert_events(events_of(result), "task.retrying load", "task.finished load #2", "task.failed train")
    assert (Path(result.files) / "rows.txt").exists()

def test_hours_pass_in_no_time_without_any_work(gluepy_run):
    from pipeline import TrainDAG
    result = gluepy_run(TrainDAG, script={"load": [failed(), Step(lasts_s=3600)]}, work=False)
    assert result.duration_s > 3600
    assert not (Path(result.files) / "rows.txt").exists()

def test_a_failed_run_is_raised(gluepy_run):
    from gluepy import RunError
    from pipeline import TrainDAG
    with pytest.raises(RunError):
        gluepy_run(TrainDAG, script={"load": failed(retryable=False)}, work=False)

class TestTask:
    @pytest.fixture
    def gluepy_context(self):
        return {"limit": 42}

    def test_a_task_runs_where_it_is_told_what_it_told(self, gluepy_task):
        from pipeline import Load
        Load().run()
        assert gluepy_task.metrics == {"limit": 42}
        assert (gluepy_task.path / "rows.txt").exists()

async def test_an_async_test_opens_a_runtime_with_the_settings(gluepy_settings):
    from gluepy import Runtime
    from pipeline import TrainDAG
    async with Runtime(gluepy_settings) as runtime:
        assert (await runtime.run_dag(TrainDAG, params={"limit": 1})).status == "finished"
"""


def pytest_in(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GLUEPY_", "PYTEST_"))}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_fixtures_do_what_they_say_in_another_project(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    (tmp_path / "test_pipeline.py").write_text(TESTS)
    told = pytest_in(tmp_path, "-o", "anyio_mode=auto")
    assert re.search(r"^\d+ passed in", told, re.MULTILINE), told


@pytest.mark.slow
def test_pytest_start_imports_only_the_plugin_itself(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text(
        textwrap.dedent("""
            import sys

            def test_modules():
                ours = {name for name in sys.modules if name.partition(".")[0] == "gluepy"}
                assert ours == {"gluepy", "gluepy.testing", "gluepy.testing.plugin"}
        """)
    )
    assert "1 passed" in pytest_in(tmp_path)
