"""`gluepy show RUN --html FILE` and `gluepy report LABEL --html FILE`: a run, and the last runs of a DAG, as a page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from console_calls import Console

HOSTILE = "</svg></title><script>x</script>\x1b[31m\u202e"


class Page(HTMLParser):
    """What a browser would find: the tags, and all text between them."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: dict[str, list[str | None]] = {}
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_page_shows_tasks_failures_metrics_and_asks_for_nothing(shop: Console) -> None:
    assert shop("run", "fail").returncode == 1
    done = shop("show", "latest", "--html", "run.html")
    assert (done.returncode, done.stdout) == (0, "")
    page = Page(shop.folder / "run.html")
    text = "\n".join(page.texts)
    assert "✗ failed" in text
    assert "ValueError: bad [red]price[/red]" in text
    assert 'raise ValueError("bad' in text
    assert {"load", "broken", "report", "after"} <= set(page.texts)
    assert "by broken" in page.texts
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href"} & set(page.attributes)
    assert page.attributes["content"][0] == "default-src 'none'; style-src 'unsafe-inline'"


def test_texts_of_tasks_are_shown_and_never_obeyed(shop: Console) -> None:
    shop.write(
        "hostile.py",
        f"""
        from gluepy import DAG, Task, each
        class Says(Task):
            word: str
            def run(self):
                self.metric("<b>m</b>\\u202e", 1)
                raise ValueError({HOSTILE!r})
        class HostileDAG(DAG):
            label = "<i>hostile</i>\\u202e"
            tasks = (each(Says, word=["<script>\\u202e"]),)
        """,
    )
    assert shop("run", "hostile.py").returncode == 1
    assert shop("show", "latest", "--html", "run.html").returncode == 0
    assert shop("report", "<i>hostile</i>\u202e", "--html", "runs.html").returncode == 0
    for file in ("run.html", "runs.html"):
        page = Page(shop.folder / file)
        assert not {"script", "b", "i"} & set(page.tags)
        assert "\x1b" not in (shop.folder / file).read_text("utf-8")
        assert "\u202e" not in (shop.folder / file).read_text("utf-8")
    text = "".join(Page(shop.folder / "run.html").texts)
    assert "</svg></title><script>x</script>\\x1b[31m\\u202e" in text
    assert text.count("says[word=<script>\\u202e]") > 2


def test_attempt_whose_driver_was_killed_is_shown_as_interrupted(shop: Console) -> None:
    assert shop("run", "train", "--run-id", "r", "-q").returncode == 0
    log = shop.folder / ".gluepy/runs/r/events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    begun = next(at for at, line in enumerate(lines) if '"event":"task.started"' in line)
    log.write_text("".join(lines[: begun + 1]))
    assert shop("show", "r", "--html", "run.html").returncode == 0
    text = "\n".join(Page(shop.folder / "run.html").texts)
    assert "! interrupted" in text
    assert "load, attempt 1, interrupted" in text
    assert "running" not in text


def test_of_very_many_attempts_the_longest_are_drawn(shop: Console) -> None:
    shop.write(
        "many.py",
        """
        from gluepy import DAG, Task, each
        class Nothing(Task):
            n: int
            def run(self): ...
        class ManyDAG(DAG):
            tasks = (each(Nothing, n=list(range(600))),)
        """,
    )
    assert shop("run", "many.py", "-q").returncode == 0
    assert shop("show", "latest", "--html", "run.html").returncode == 0
    page = Page(shop.folder / "run.html")
    assert page.attributes["class"].count("bar") == 500
    assert "100 more are not drawn" in "".join(page.texts)
    assert {f"nothing[n={n}]" for n in range(600)} <= set(page.texts)


def test_report_has_the_last_runs_of_a_dag_the_newest_last(shop: Console) -> None:
    for number in range(3):
        assert shop("run", "train", "--run-id", f"train-{number}", "-q").returncode == 0
    assert shop("run", "fail", "--run-id", "other", "-q").returncode == 1
    done = shop("report", "train", "--html", "train.html", "--limit", "2")
    assert (done.returncode, done.stdout) == (0, "")
    page = Page(shop.folder / "train.html")
    assert page.attributes["class"].count("took") == 2
    titles = [str(title) for title in page.attributes["title"]]
    assert [title.split()[0] for title in titles[:2]] == ["train-1", "train-2"]
    assert titles[2:] == [
        told for told in ("load: 1 finished", "fit: 2 finished", "report: 1 finished") for _ in range(2)
    ]
    assert "fit[region=eu].rmse" in page.texts
    assert "other" not in page.texts
    assert not {"script", "link", "img"} & set(page.tags)


def test_report_shows_the_worst_of_the_tasks_of_a_label(shop: Console) -> None:
    assert shop("run", "fail", "-q").returncode == 1
    assert shop("report", "fail", "--html", "fail.html").returncode == 0
    page = Page(shop.folder / "fail.html")
    titles = page.attributes["title"][1:]
    assert titles == ["load: 1 finished", "broken: 1 failed", "report: 1 finished", "after: 1 blocked"]
    assert [text for text in page.texts if text in "✓✗⊘"] == ["✓", "✗", "✓", "⊘"]
    assert "✗ failed, ⊘ blocked, ✓ finished" in page.texts


def test_report_of_no_run_says_which_there_are(shop: Console) -> None:
    assert shop("run", "train", "-q").returncode == 0
    done = shop("report", "trian", "--html", "x.html")
    assert done.returncode == 2
    assert "no run of 'trian' in" in done.stderr
    assert "did you mean 'train'?" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--html", "none/run.html"], "cannot write none/run.html: No such file or directory; name another file"),
        (["load", "--html", "run.html"], "a page shows a whole run"),
        (["--json", "--html", "run.html"], "a page shows a whole run"),
    ],
)
def test_mistakes_are_one_line(shop: Console, words: list[str], told: str) -> None:
    assert shop("run", "train").returncode == 0
    done = shop("show", "latest", *words)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (shop.folder / "run.html").exists()
