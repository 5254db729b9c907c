"""`gluepy.testing.task_run`: a task works in a test as it does in a run."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from gluepy import Skip, Task, current_task
from gluepy.conf import default_context, settings
from gluepy.conf.schema import Settings
from gluepy.errors import NoRunContext
from gluepy.testing import task_run


class TrainRegion(Task):
    region: str

    def run(self) -> None:
        with self.atomic(f"model-{self.region}.json") as file:
            file.write_text((self.storage / "raw.txt").read_text())
        self.log.info("trained", region=self.region)
        self.progress(1, 2)
        self.progress(2, 2)
        self.metric("accuracy", 0.5)
        self.metric("accuracy", 0.75)


class Fetch(Task):
    async def run(self) -> None:
        self.metric("depth", self.context.depth)


def test_task_finds_its_run_in_a_block_of_task_run(tmp_path: Path) -> None:
    (tmp_path / "raw.txt").write_text("rows")
    with task_run(tmp_path) as run:
        TrainRegion(region="eu").run()
    assert (run.path / "model-eu.json").read_text() == "rows"
    assert run.metrics == {"accuracy": 0.75}
    assert run.progress == [(1, 2), (2, 2)]
    assert [(line["event"], line["region"], line["log_level"]) for line in run.logs] == [("trained", "eu", "info")]


async def test_async_task_finds_its_run_too(tmp_path: Path) -> None:
    with task_run(tmp_path, context={"depth": 3}) as run:
        await Fetch().run()
    assert run.metrics == {"depth": 3}


def test_context_and_settings_in_the_block_are_the_ones_given(folder: Path) -> None:
    given = {"deep": {"er": 1}}
    with task_run(folder, context=given, settings={"CONCURRENCY": 3}) as run:
        assert default_context.deep.er == 1
        assert settings.CONCURRENCY == 3
        assert str(folder) == settings.STORAGE_ROOT
        assert run.settings.CONCURRENCY == 3
        assert run.context.to_dict() == given
    assert settings.CONCURRENCY != 3


def test_without_a_context_the_one_of_the_project_holds(folder: Path) -> None:
    (folder / "settings.py").write_text("INSTALLED_MODULES = []\nBUCKET = 'b'\n")
    (folder / "context.yaml").write_text("depth: 7\n")
    with task_run(folder) as run:
        assert run.context.depth == 7
        assert settings.BUCKET == "b"


def test_settings_object_is_taken_as_it_is(folder: Path) -> None:
    whole = Settings(CONCURRENCY=7)
    with task_run(folder, settings=whole) as run:
        assert run.settings is whole


def test_code_below_a_task_finds_a_task_that_tells_for_it(tmp_path: Path) -> None:
    with task_run(tmp_path) as run:
        current_task().metric("rows", 2)
        current_task().log.warning("few rows: %d", 2)
    assert run.metrics == {"rows": 2}
    assert run.logs[0]["event"] == "few rows: 2"


def test_task_in_the_block_may_tell_from_threads_of_its_own(tmp_path: Path) -> None:
    with task_run(tmp_path) as run:
        task = Fetch()
        thread = threading.Thread(target=task.metric, args=("rows", 1))
        thread.start()
        thread.join()
    assert run.metrics == {"rows": 1}


def test_skip_comes_out_of_a_direct_call(tmp_path: Path) -> None:
    class Picky(Task):
        def run(self) -> None:
            raise Skip("nothing new")

    with task_run(tmp_path), pytest.raises(Skip, match="nothing new"):
        Picky().run()


def test_outside_the_block_a_task_says_what_to_do(tmp_path: Path) -> None:
    task = Fetch()
    with task_run(tmp_path):
        pass
    with pytest.raises(NoRunContext, match=r"gluepy\.testing\.task_run"):
        task.path  # noqa: B018
    with pytest.raises(NoRunContext, match="current_task"):
        current_task()
