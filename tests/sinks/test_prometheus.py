"""What runs did, as Prometheus has it: scraped from a process, or by way of the node exporter's files."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import gluepy
from gluepy.conf.schema import Settings
from gluepy.sinks import Consumer, prometheus
from gluepy.sinks.prometheus import Metrics, Prometheus, exposition
from gluepy.testing import HELD, SinkContract, Step, events_of
from gluepy.testing.sinks import SinkContractDAG, run, script

DAG = SinkContractDAG.label


@pytest.fixture(autouse=True)
def _own_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "metrics", Metrics())


class TestPrometheus(SinkContract):
    @pytest.fixture
    def sink(self, tmp_path: Path) -> Consumer:
        return Prometheus(tmp_path / "textfiles")


def parsed(text: str) -> dict[tuple[str, ...], float]:
    """The samples by name and values of labels, as prometheus_client reads them."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped() -> dict[tuple[str, ...], float]:
    return parsed(exposition()[0].decode())


async def test_scrape_tells_runs_attempts_and_metrics_by_dag_and_label(settings: Settings) -> None:
    await run(settings, script(), "prometheus")
    result = await run(settings, script(fails=Step()), "prometheus")
    found = scraped()
    assert found["gluepy_runs_total", DAG, "failed"] == 1
    assert found["gluepy_runs_total", DAG, "finished"] == 1
    assert found["gluepy_runs_active", DAG] == 0
    assert found["gluepy_run_duration_seconds_count", DAG] == 2
    assert found["gluepy_attempts_total", DAG, "retrying", "loads"] == 2
    assert found["gluepy_attempts_total", DAG, "finished", "part"] == 4  # two instances, in each run
    assert found["gluepy_attempts_total", DAG, "failed", "fails"] == 1
    assert found["gluepy_metric", DAG, "größe ☃", "loads"] == 0.5
    assert found["gluepy_last_run_success", DAG] == 1
    assert found["gluepy_last_run_tasks", DAG, "finished"] == sum(
        task.status == "finished" for task in result.tasks.values()
    )


async def test_run_that_goes_on_is_active(settings: Settings) -> None:
    executor = script(fails=HELD)
    async with (
        gluepy.Runtime(settings, executor=executor) as runtime,
        runtime.stream_dag(SinkContractDAG, sinks=["prometheus"], check=False) as stream,
    ):
        await executor.wait_for("fails")
        await gluepy.testing.until(lambda: scraped().get(("gluepy_runs_active", DAG)) == 1)
        stream.cancel()
        await stream.result()
    assert scraped()["gluepy_runs_active", DAG] == 0


async def test_runs_at_once_may_have_one_sink(settings: Settings) -> None:
    executor, sink = script(fails=HELD), Prometheus()
    async with (
        gluepy.Runtime(settings, executor=executor) as runtime,
        runtime.stream_dag(SinkContractDAG, sinks=[sink], check=False) as stream,
    ):
        await executor.wait_for("fails")
        await run(settings, script(), sink)
        assert scraped()["gluepy_runs_active", DAG] == 1
        stream.cancel()
        await stream.result()
    assert scraped()["gluepy_runs_active", DAG] == 0


async def test_number_of_labels_is_bounded(settings: Settings) -> None:
    await run(settings, script(), Prometheus(max_labels=2))
    tasks = {key[-1] for key in scraped() if key[0] == "gluepy_attempts_total"}
    assert len(tasks) == 3
    assert "other" in tasks


async def test_open_metrics_are_given_to_who_accepts_them(settings: Settings) -> None:
    body, kind = exposition("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


class Textfile:
    """The file of the DAG, and the folder that it is in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / f"gluepy-{DAG}.prom"

    def text(self) -> str:
        return self._path.read_text()

    def samples(self) -> dict[tuple[str, ...], float]:
        return parsed(self.text())

    def remove(self) -> None:
        self._path.unlink()

    def files(self) -> list[str]:
        return [file.name for file in self.folder.iterdir()]


@pytest.fixture
def textfile(folder: Path) -> Textfile:
    return Textfile(folder / "textfiles")


async def test_textfile_tells_the_last_run_and_the_last_success(settings: Settings, textfile: Textfile) -> None:
    await run(settings, script(fails=Step()), Prometheus(textfile.folder))
    good = textfile.samples()
    assert good["gluepy_last_run_success", DAG] == 1
    assert good["gluepy_last_success_timestamp_seconds", DAG] == good["gluepy_last_run_timestamp_seconds", DAG]
    await run(settings, script(), Prometheus(textfile.folder))
    bad = textfile.samples()
    assert (bad["gluepy_last_run_success", DAG], bad["gluepy_last_run_tasks", DAG, "failed"]) == (0, 1)
    assert bad["gluepy_last_success_timestamp_seconds", DAG] == good["gluepy_last_run_timestamp_seconds", DAG]
    assert bad["gluepy_last_run_timestamp_seconds", DAG] > good["gluepy_last_run_timestamp_seconds", DAG]
    assert textfile.files() == [f"gluepy-{DAG}.prom"]


async def test_older_record_that_is_exported_changes_neither_the_textfile_nor_any_count(
    settings: Settings, textfile: Textfile
) -> None:
    older = await run(settings, script())
    await run(settings, script(fails=Step()), Prometheus(textfile.folder))
    before, counted = textfile.text(), scraped()
    await gluepy.export_run(older.run_id, Prometheus(textfile.folder), settings=settings)
    assert textfile.text() == before
    assert scraped() == counted
    sink = Prometheus(textfile.folder)
    await gluepy.export_run(older.run_id, sink, settings=settings)
    await run(settings, script(), sink)  # what is not sent again counts
    assert scraped()["gluepy_runs_total", DAG, "failed"] == 1
    textfile.remove()
    await gluepy.export_run(older.run_id, Prometheus(textfile.folder), settings=settings)
    assert textfile.samples()["gluepy_last_run_duration_seconds", DAG] == events_of(older)[-1].duration_s  # type: ignore[union-attr]


async def test_textfile_that_cannot_be_written_is_told_and_the_old_one_stays(
    settings: Settings, textfile: Textfile
) -> None:
    await run(settings, script(), Prometheus(textfile.folder))
    before = textfile.text()

    def full(path: str, registry: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prometheus, "write_to_textfile", full)
        result = await run(settings, script(), Prometheus(textfile.folder))
    assert result.status == "failed"
    assert textfile.text() == before
