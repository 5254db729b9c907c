"""New projects and modules on disk. That they run is tested with the command line."""

from __future__ import annotations

import os
import py_compile
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gluepy.cli.scaffold import install_module, start_module, start_project
from gluepy.conf.parameters import load_context
from gluepy.conf.project import find_project, import_modules
from gluepy.conf.sources import load_settings
from gluepy.errors import OptionError, UsageError


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("GLUEPY_"):
            monkeypatch.delenv(name)
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith(("gluepy", "pydantic")):
            del sys.modules[name]


def test_a_new_project_is_a_project_with_a_dag_and_a_context(tmp_path: Path) -> None:
    project = start_project("shop", tmp_path)
    assert project == tmp_path / "shop"
    assert find_project(project) == project
    settings = load_settings(project)
    modules = {module.__name__: module for module in import_modules(settings)}
    assert modules["sample.dags"].SampleDAG.label == "sample"
    assert load_context(settings).orders.count == 500
    assert os.access(project / "run.py", os.X_OK)
    assert "/.env\n" in (project / ".gitignore").read_text()


def test_every_file_of_a_new_project_is_whole(tmp_path: Path) -> None:
    project = start_project("shop", tmp_path)
    start_module("prices", project)
    files = [file for file in project.rglob("*") if file.is_file()]
    assert len(files) > 10
    for file in files:
        assert "{{" not in file.read_text()
        assert not file.name.endswith("-tpl")
        if file.suffix == ".py":
            py_compile.compile(str(file), cfile=str(tmp_path / "x.pyc"), doraise=True)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    assert (start_project("shop", tmp_path) / "settings.py").exists()


def test_a_folder_that_is_not_empty_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/settings.py").write_text("mine")
    with pytest.raises(OptionError, match="is there already and is not empty; nothing was changed"):
        start_project("shop", tmp_path)
    assert [file.name for file in (tmp_path / "shop").iterdir()] == ["settings.py"]
    assert (tmp_path / "shop/settings.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my-shop", "'my-shop' cannot be the name of a Python module; use letters, digits and _, as in 'my_shop'"),
        ("2nd", "cannot be the name of a Python module"),
        ("", "cannot be the name of a Python module"),
        ("../up", "cannot be the name of a Python module"),
        ("class", "is a word of the Python language"),
        ("json", "is a module of Python's standard library"),
        ("pydantic", "an installed module has the name 'pydantic'"),
        ("_mine", "begins with _"),
    ],
)
def test_a_name_that_cannot_work_is_refused(name: str, expected: str, tmp_path: Path) -> None:
    for start in (start_project, start_module):
        with pytest.raises(OptionError) as caught:
            start(name, tmp_path)
        assert expected in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["settings", "run", "sample", "tests"])
def test_a_module_may_not_take_a_name_of_the_project(name: str, tmp_path: Path) -> None:
    project = start_project("shop", tmp_path)
    before = sorted(project.rglob("*"))
    with pytest.raises(OptionError):
        start_module(name, project)
    assert sorted(project.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot write"):
        start_project("shop", tmp_path)


def test_a_file_in_place_of_the_parent_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*Not a directory"):
        start_project("shop", tmp_path / "file")


def test_a_new_module_is_installed_and_imports(tmp_path: Path) -> None:
    project = start_project("shop", tmp_path)
    assert start_module("price_model", project) == project / "price_model"
    assert install_module("price_model", project)
    settings = load_settings(project)
    assert settings.INSTALLED_MODULES == ["sample", "price_model"]
    modules = {module.__name__: module for module in import_modules(settings)}
    assert modules["price_model.dags"].PriceModelDAG.label == "price_model"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("INSTALLED_MODULES = []\n", 'INSTALLED_MODULES = ["new"]\n'),
        ("INSTALLED_MODULES = ['a']", "INSTALLED_MODULES = ['a', \"new\"]"),
        ("INSTALLED_MODULES = ['é', 'ü']", "INSTALLED_MODULES = ['é', 'ü', \"new\"]"),
        ("INSTALLED_MODULES = ['a',]", "INSTALLED_MODULES = ['a', \"new\",]"),
        ("INSTALLED_MODULES = ('a',)", "INSTALLED_MODULES = ('a', \"new\",)"),
        ("INSTALLED_MODULES = ()", 'INSTALLED_MODULES = ("new",)'),
        ("INSTALLED_MODULES: list[str] = ['a']", "INSTALLED_MODULES: list[str] = ['a', \"new\"]"),
        (
            "# é\nINSTALLED_MODULES = [  # ours\n    'é',  # first\n    'b'  # last\n]  # end\nX = 1\n",
            "# é\nINSTALLED_MODULES = [  # ours\n    'é',  # first\n    'b',  # last\n    \"new\",\n]  # end\nX = 1\n",
        ),
        ("INSTALLED_MODULES = [\r\n    'a',\r\n]\r\n", "INSTALLED_MODULES = [\r\n    'a',\r\n    \"new\",\r\n]\r\n"),
        ("INSTALLED_MODULES = ['new']", "INSTALLED_MODULES = ['new']"),
    ],
)
def test_a_module_is_added_where_the_list_is_plain(before: str, after: str, tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_bytes(before.encode())
    assert install_module("new", tmp_path)
    assert (tmp_path / "settings.py").read_bytes().decode() == after
    assert [file.name for file in tmp_path.iterdir()] == ["settings.py"]


@pytest.mark.parametrize(
    "text",
    [
        "INSTALLED_MODULES = [] + ['a']",
        "INSTALLED_MODULES = ['a']\nINSTALLED_MODULES += ['b']",
        "NAME = 'a'\nINSTALLED_MODULES = [NAME]",
        "if True:\n    INSTALLED_MODULES = []",
        "INSTALLED_MODULES = ['a'",
        "X = 1",
    ],
)
def test_a_list_that_is_not_plain_is_left_to_a_person(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text(text)
    assert not install_module("new", tmp_path)
    assert (tmp_path / "settings.py").read_text() == text


def test_without_a_settings_module_installing_is_left_to_a_person(tmp_path: Path) -> None:
    assert not install_module("new", tmp_path)
