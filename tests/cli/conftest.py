"""The console, in folders and projects of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from console_calls import FORKS, Console, Terminal, environment


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Leave no process to the tests of other folders: some look for what is left over."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        FORKS.close()


@pytest.fixture
def gluepy(tmp_path: Path) -> Console:
    """The console, in an empty folder."""
    return Console(tmp_path)


@pytest.fixture
def shop(gluepy: Console) -> Console:
    """The console in a project with a few DAGs."""
    gluepy.write("settings.py", "INSTALLED_MODULES = ['flows']\n")
    gluepy.write("flows/__init__.py", "")
    gluepy.write(
        "flows/dags.py",
        '''
        from gluepy import DAG, Retry, Skip, Task, each, parallel

        class Load(Task):
            outputs = ("rows.txt",)
            def run(self):
                print("loading")
                (self.path / "rows.txt").write_text("1")

        class Fit(Task):
            region: str
            def run(self):
                self.metric("rmse", 0.25)

        class Report(Task):
            def run(self):
                self.log.info("reported", rows=1)

        class Broken(Task):
            def run(self):
                print("about to break")
                raise ValueError("bad [red]price[/red]")

        class After(Task):
            def run(self): pass

        class TrainDAG(DAG):
            """Train models.

            More about it.
            """
            label = "train"
            tasks = (Load, each(Fit, region=["eu", "CNTRL/STORE [SUP] 🎉"]), Report)

        class FailDAG(DAG):
            label = "fail"
            tasks = (Load, parallel(Broken, Report), After)
        ''',
    )
    return gluepy


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts `gluepy WORDS` on a terminal, in the test's folder."""
    opened: list[Terminal] = []

    def start(*words: str, rows: int = 24, columns: int = 100, **env: str) -> Terminal:
        command = [sys.executable, "-m", "gluepy", *words]
        clean = environment(**env)
        del clean["COLUMNS"]
        clean.pop("LINES", None)  # readline exports it to the workers of pytest-xdist
        opened.append(Terminal(command, tmp_path, rows, columns, clean))
        return opened[-1]

    yield start
    for each in opened:
        each.close()
