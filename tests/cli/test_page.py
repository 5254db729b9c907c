"""`gluepy show RUN --html FILE`: a run as a page of its own."""

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
            label = "<i>hostile</i>"
            tasks = (each(Says, word=["<script>\\u202e"]),)
        """,
    )
    assert shop("run", "hostile.py").returncode == 1
    assert shop("show", "latest", "--html", "run.html").returncode == 0
    page = Page(shop.folder / "run.html")
    assert not {"script", "b", "i"} & set(page.tags)
    text = "".join(page.texts)
    assert "</svg></title><script>x</script>\\x1b[31m\\u202e" in text
    assert text.count("says[word=<script>\\u202e]") > 2
    assert "\x1b" not in text
    assert "\u202e" not in text


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
