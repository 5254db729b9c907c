# ruff: noqa: E501  # modules in one line
"""DAGs as the source of a project tells of them: what importing it would bring, or that it does not tell."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from gluepy.conf.dags import find_dags, list_dags
from gluepy.conf.project import put_on_path
from gluepy.conf.schema import Settings
from gluepy.conf.source import Sources, Unsure
from gluepy.exec.dag import compile_dag

_numbers = itertools.count()
TASKS = "from gluepy import DAG, Task, each, parallel\n\nclass A(Task):\n    def run(self): pass\n\nclass B(Task):\n    n: int\n    def run(self): pass\n\n"

Project = Callable[[dict[str, str]], Settings]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Makes a project with one module, whose name is PKG in the files' names and texts."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def make(files: dict[str, str]) -> Settings:
        package = f"written{next(_numbers)}"
        for name, text in files.items():
            file = tmp_path / name.replace("PKG", package)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(dedent(text).replace("PKG", package))
        put_on_path(tmp_path)
        return Settings(project=tmp_path, INSTALLED_MODULES=[package])

    yield make
    for name in set(sys.modules) - before:
        if name.startswith(("written", "beside", "ourflows", "other")):
            del sys.modules[name]


def written(settings: Settings) -> dict[str, tuple[str, str, int | None]] | None:
    """What the source tells; None where it does not. Nothing of the project is imported."""
    sources = Sources(settings.project)
    (package,) = settings.INSTALLED_MODULES
    try:
        dags = [dag for part in sources.parts(package) for dag in sources.dags(part)]
    except Unsure:
        return None
    finally:
        assert package not in sys.modules
    return {dag.label: (f"{dag.module}:{dag.name}", dag.about, dag.count()) for dag in dags}


def imported(settings: Settings) -> dict[str, tuple[str, str, int | None]]:
    """What importing it brings."""
    return {
        label: (
            f"{dag.__module__}:{dag.__qualname__}",
            (dag.__doc__ or "").strip().partition("\n")[0],
            len(compile_dag(dag).graph.index),
        )
        for label, dag in find_dags(settings).items()
    }


SURE = [
    "class OneDAG(DAG):\n    tasks = (A, each(B, n=[1, 2, 3]))\n",
    'class OneDAG(DAG):\n    """What it does.\n\n    More.\n    """\n    label = "one"\n    tasks = [A, parallel(B(n=1), [B(n=2), "C"])]\nclass C(Task):\n    def run(self): pass\n',
    "class OneDAG(DAG):\n    tasks = {A: (), B(n=1): (A,)}\n",
    "class Base(DAG):\n    label = 'base'\n\nclass OneDAG(Base):\n    tasks = (A,)\n\nclass TwoDAG(OneDAG):\n    label = 'two'\n",
    "STEPS = (A, B(n=9))\nNS = [1, 2]\nclass OneDAG(DAG):\n    tasks = (STEPS, each(B, n=NS))\n",
    "def ns():\n    return [1]\nclass OneDAG(DAG):\n    tasks = (A, each((B,), n=ns))\n",
    "class OneDAG(DAG):\n    tasks = (A, each(B, n=range(3), ))\nAlias = OneDAG\n",
    "import gluepy, gluepy.exec as x\nclass OneDAG(gluepy.DAG):\n    tasks = (A,)\nclass TwoDAG(x.DAG):\n    tasks = (A,)\n",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import nowhere\ntry:\n    import numpy as np\nexcept ImportError:\n    np = None\nclass OneDAG(DAG):\n    tasks = (A,)\n",
    "import logging, os\nlog = logging.getLogger(__name__)\nHOME = os.environ.get('HOME', '')\nclass OneDAG(DAG):\n    tasks = (A,)\nif __name__ == '__main__':\n    raise SystemExit(main())\n",
    "class OneDAG(DAG):\n    tasks = (A,)\n    def helper(self): pass\n    limit: int = 3\nfor n in range(3):\n    pass\n",
    "from msgspec import Struct\nfrom dataclasses import dataclass\n@dataclass\nclass Plain:\n    n: int = 1\nclass Row(Struct):\n    n: int\nclass OneDAG(DAG):\n    tasks = (A,)\n",
    "from enum import Enum\nclass Mode(Enum):\n    FULL = 1\nDEFAULT = Mode.FULL\nMODES = [Mode.FULL, len('x')]\nclass OneDAG(DAG):\n    tasks = (A,)\n",
    "from gluepy.exec import *\nfrom gluepy.exec import DAG as Pipeline\nclass OneDAG(Pipeline):\n    tasks = (A,)\n",
]


@pytest.mark.parametrize("text", SURE)
def test_source_tells_what_importing_it_brings(text: str, project: Project) -> None:
    settings = project({"PKG/__init__.py": "", "PKG/dags.py": TASKS + text})
    told = written(settings)
    assert told is not None
    assert told
    assert told == imported(settings)


UNSURE = [
    "def make(label):\n    class MadeDAG(DAG):\n        tasks = (A,)\n    MadeDAG.label = label\n    return MadeDAG\nOne = make('one')\nTwo = make('two')\n",
    "MadeDAG = type('MadeDAG', (DAG,), {'tasks': (A,)})\n",
    "BASES = (DAG,)\nfrom types import new_class\nMadeDAG = new_class('MadeDAG', BASES, {}, lambda space: space.update(tasks=(A,)))\n",
    "for name in ('x', 'y'):\n    class LoopDAG(DAG):\n        label = name\n        tasks = (A,)\n",
    "import sys\nif sys.platform:\n    class IfDAG(DAG):\n        tasks = (A,)\n",
    "NAME = 'late'\nclass OneDAG(DAG):\n    label = NAME\n    tasks = (A,)\n",
    "class OneDAG(DAG):\n    tasks = (A,)\nOneDAG.label = 'renamed'\n",
    "class OneDAG(DAG):\n    tasks = (A,)\ndel OneDAG\nclass TwoDAG(DAG):\n    tasks = (A,)\n",
    "class Naming(DAG):\n    def __init_subclass__(cls, **more):\n        super().__init_subclass__(**more)\n        cls.label = 'named'\nclass OneDAG(Naming):\n    tasks = (A,)\n",
    "def named(cls):\n    cls.label = 'decorated'\n    return cls\n@named\nclass OneDAG(DAG):\n    tasks = (A,)\n",
    "def dag(run):\n    return type(run.__name__, (DAG,), {'tasks': (A,)})\n@dag\ndef daily(): pass\n",
    "class OneDAG(DAG):\n    tasks = (A,)\nglobals()['TwoDAG'] = OneDAG\n",
    "class Hidden:\n    class OneDAG(DAG):\n        tasks = (A,)\nOut = getattr(Hidden, 'OneDAG')\n",
    "class Hidden:\n    class OneDAG(DAG):\n        tasks = (A,)\nOut = Hidden.OneDAG\n",
    "class OneDAG(DAG):\n    if True:\n        label = 'inside'\n    tasks = (A,)\n",
    "def prices():\n    globals()['OneDAG'] = type('OneDAG', (DAG,), {'tasks': (A,)})\nprices()\n",
    "class OneDAG(DAG):\n    tasks = (A,)\nOneDAG = OneDAG if A else None\n",
    "import copy\nclass OneDAG(DAG):\n    tasks = (A,)\nTwoDAG = copy.copy(OneDAG)\n",
    "DAGS = [type('OneDAG', (DAG,), {'tasks': (A,)})]\nOneDAG = DAGS[0]\n",
    "OneDAG, = (type('OneDAG', (DAG,), {'tasks': (A,)}),)\n",
    "def both():\n    return (type('OneDAG', (DAG,), {'tasks': (A,)}), 1)\nOneDAG, rest = both()\n",
    "class OneDAG(DAG):\n    tasks = (A,)\nDAGS = [OneDAG]\nTwoDAG = DAGS[0]\n",
    "class OneDAG(DAG):\n    tasks = (A,)\nfor number, dag in enumerate((OneDAG,)):\n    dag.label = str(number)\n",
    "class OneDAG(DAG):\n    tasks = (A,)\nfor dag in (OneDAG,):\n    dag.label = 'x'\n",
    "class OneDAG(DAG):\n    tasks = (A,)\n(TwoDAG := OneDAG)\n",
    "class Meta(type):\n    def __call__(cls): pass\nclass OneDAG(DAG, metaclass=Meta):\n    tasks = (A,)\n",
    "KEEP = {'one': DAG}\nclass OneDAG(KEEP['one']):\n    tasks = (A,)\n",
]


@pytest.mark.parametrize("text", UNSURE)
def test_what_source_does_not_tell_is_found_by_importing_it(text: str, project: Project) -> None:
    settings = project({"PKG/__init__.py": "", "PKG/dags.py": TASKS + text})
    assert written(settings) is None
    truth = imported(settings)
    assert {dag.label: f"{dag.module}:{dag.name}" for dag in list_dags(settings)} == {
        label: place for label, (place, _, _) in truth.items()
    }
    assert truth


def test_names_are_followed_through_the_modules_of_the_project(project: Project) -> None:
    settings = project(
        {
            "PKG/__init__.py": "from PKG.dags import OneDAG\n",
            "PKG/other.py": "from PKG import steps\n",
            "PKG/steps.py": TASKS + "NS = [1, 2]\ndef found(): return [1]\nclass Shared(DAG):\n    tasks = (A,)\n",
            "PKG/tasks.py": "from .steps import A, B\nfrom . import steps\n",
            "PKG/dags.py": """
            from gluepy import DAG, each
            from PKG import steps
            from PKG.steps import A, B, NS, found
            class OneDAG(DAG):
                tasks = (A, each(B, n=NS), each((steps.A,), x=found))
            class TwoDAG(steps.Shared):
                label = "two"
            """,
        }
    )
    told = written(settings)
    assert told is not None
    assert {label: count for label, (_, _, count) in told.items()} == {"onedag": 4, "two": 1}


def test_a_module_without_a_package_and_one_beside_the_project_are_read(project: Project, tmp_path: Path) -> None:
    settings = project({"PKG.py": TASKS + "from beside import Shared\nclass OneDAG(Shared):\n    tasks = (A,)\n"})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/beside.py").write_text("import gluepy\nclass Shared(gluepy.DAG): pass\n")
    assert written(settings) is None  # it is nowhere
    sys.path.append(str(tmp_path / "elsewhere"))
    assert list(written(settings) or ()) == ["onedag"]
    assert list(imported(settings)) == ["onedag"]


def test_classes_of_an_installed_package_that_builds_on_gluepy_are_not_guessed(
    project: Project, tmp_path: Path
) -> None:
    folder = tmp_path / "site-packages"
    about = folder / "ourflows-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "ourflows.py").write_text(
        "import gluepy\nclass OurDAG(gluepy.DAG):\n    label = 'ours'\n    tasks = ('X',)\n"
    )
    (folder / "other.py").write_text("class Thing: pass\n")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ourflows\nRequires-Dist: gluepy>=2\n\nText.\n")
    (about / "RECORD").write_text("ourflows.py,,\nourflows-1.0.dist-info/METADATA,,\n")
    sys.path.append(str(folder))
    assert written(project({"PKG.py": TASKS + "from other import Thing\nclass One(DAG): tasks = (A,)\n"})) is not None
    settings = project({"PKG.py": "from ourflows import OurDAG\n"})
    assert written(settings) is None
    assert [dag.label for dag in list_dags(settings)] == ["ours"]


@pytest.mark.parametrize(
    "files",
    [
        {"PKG.py": "import nowhere_at_all\nimport gluepy\nclass One(gluepy.DAG): tasks = ('A',)\n"},
        {"PKG.py": "class (\n"},
        {"PKG.py": TASKS + "class One(DAG): tasks = ()\n"},
        {"PKG.py": TASKS + "class One(DAG):\n    label = '-one'\n    tasks = (A,)\n"},
        {"PKG/__init__.py": "from PKG import dags\n", "PKG/dags.py": "from PKG import late\n"},
        {"PKG/tasks.py": "x = 1\n"},
    ],
)
def test_what_would_not_import_is_never_listed_from_its_source(files: dict[str, str], project: Project) -> None:
    assert written(project(files)) is None


def test_the_modules_of_the_examples_tell_of_all_their_dags() -> None:
    pytest.importorskip("polars", reason="the example imports it: pip install -e '.[examples]'")
    retail = Path(__file__).parents[2] / "examples/retail"
    dags = list_dags(Settings(project=retail, INSTALLED_MODULES=["retail.preprocess", "retail.train"]))
    assert [(dag.label, dag.tasks, dag.dag) for dag in dags] == [("preprocess", 3, None), ("train", 4, None)]
    assert not any(name.partition(".")[0] == "retail" for name in sys.modules)
    assert os.path.isdir(retail)
