"""Finding a project, and importing the user's modules: what is found, and what is said when it is not."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from gluepy.conf.project import (
    SUBMODULES,
    find_project,
    import_modules,
    import_object,
    load_file,
    put_on_path,
    put_standard_library_first,
)
from gluepy.conf.schema import Settings
from gluepy.errors import ImportFailed, SettingsError

Write = Callable[[dict[str, str]], Path]


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GLUEPY_SETTINGS_MODULE", raising=False)
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith(("gluepy", "pydantic")):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes files by their paths and returns the folder they are in."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return write


def modules_of(project: Path, *names: str, parts: Sequence[str] = SUBMODULES) -> list[str]:
    settings = Settings(project=project, INSTALLED_MODULES=list(names))
    return [module.__name__ for module in import_modules(settings, parts)]


def failure(call: Callable[[], object]) -> str:
    with pytest.raises(ImportFailed) as caught:
        call()
    return str(pickle.loads(pickle.dumps(caught.value)))


# ---- which folder is a project


@pytest.mark.parametrize(
    "files",
    [
        {"settings.py": "INSTALLED_MODULES = []"},
        {"settings/__init__.py": "INSTALLED_MODULES = []"},
        {"settings.py": "EXECUTOR_BACKEND = 'gluepy.exec.executors.LocalExecutor'"},
        {"settings.py": "", "run.py": "from gluepy.cli import main"},
        {"pyproject.toml": "[project]\nname = 'x'\n[tool.gluepy]\nconcurrency = 2"},
        {"pyproject.toml": "[tool.gluepy.dask]\naddress = 'x'"},
    ],
)
def test_a_project_is_found_from_below(files: dict[str, str], write: Write) -> None:
    project = write({**files, "deep/er/file.txt": ""})
    assert find_project(project) == project
    assert find_project(project / "deep/er") == project
    assert find_project(project / "deep/er/file.txt") == project


@pytest.mark.parametrize(
    "files",
    [
        {"settings.py": "INSTALLED_APPS = ['django.contrib.admin']\nSECRET_KEY = 'x'"},
        {"settings.py": "", "run.py": "import flask"},
        {"pyproject.toml": "[tool.ruff]\nline-length = 120\n# not [tool.gluepy]"},
        {"settings/notes.txt": "INSTALLED_MODULES"},
        {},
    ],
)
def test_files_of_other_frameworks_do_not_make_a_project(files: dict[str, str], write: Write) -> None:
    assert find_project(write(files)) is None


def test_the_nearest_project_is_found(write: Write) -> None:
    project = write({"settings.py": "INSTALLED_MODULES = []", "in/settings.py": "INSTALLED_MODULES = []", "in/x/y": ""})
    assert find_project(project / "in/x") == project / "in"


def test_the_settings_module_of_the_environment_makes_a_project(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    project = write({"conf/live.py": "", "deep/x": ""})
    assert find_project(project / "deep") is None
    monkeypatch.setenv("GLUEPY_SETTINGS_MODULE", "conf.live")
    assert find_project(project / "deep") == project


def test_finding_a_project_does_not_import_pydantic() -> None:
    code = "import sys, pathlib, gluepy.conf.project as p; p.find_project(pathlib.Path.cwd())"
    code += "; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def first_behind_the_standard_library() -> str:
    folder = os.path.dirname(os.__file__)
    place = max(place for place, entry in enumerate(sys.path) if entry in (folder, f"{folder}/lib-dynload"))
    return sys.path[place + 1]


def test_the_project_goes_ahead_of_what_is_installed_once(tmp_path: Path) -> None:
    put_on_path(tmp_path)
    put_on_path(tmp_path / "other")
    put_on_path(tmp_path)
    assert first_behind_the_standard_library() == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_a_folder_that_is_first_on_the_path_stays_there(tmp_path: Path) -> None:
    sys.path.insert(0, str(tmp_path))
    put_on_path(tmp_path)
    assert sys.path[0] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


@pytest.mark.parametrize("name", ["secrets", "cmd", "this"])
def test_no_module_of_the_project_hides_one_of_the_standard_library(name: str, write: Write) -> None:
    sys.modules.pop(name, None)
    put_on_path(write({f"{name}.py": ""}))
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert os.path.dirname(spec.origin) == os.path.dirname(os.__file__)


def test_the_folder_of_the_script_goes_behind_the_standard_library(tmp_path: Path) -> None:
    path = sys.path[:]
    sys.path.insert(0, str(tmp_path))
    put_standard_library_first()
    assert first_behind_the_standard_library() == str(tmp_path)
    assert [entry for entry in sys.path if entry != str(tmp_path)] == path


@pytest.mark.parametrize("line", ["from secrets import TOKEN", "import secrets; secrets.TOKEN", "import secrets.live"])
def test_a_module_that_has_a_name_of_the_standard_library_is_to_be_renamed(line: str, write: Write) -> None:
    project = write({"secrets.py": "TOKEN = 1", "nightly_job.py": line})
    text = failure(lambda: load_file(project / "nightly_job.py")).splitlines()[0]
    why = f"{project / 'secrets.py'} has the name of a module of the standard library, which comes first"
    assert text.endswith(f"; {why}: rename the file")


@pytest.mark.parametrize("late", ["late_of_project.py", "package_of_project/late.py"])
def test_a_module_that_was_written_after_somebody_looked_for_it_is_found(late: str, write: Write) -> None:
    project = write({"package_of_project/__init__.py": ""})
    name = late.removesuffix(".py").replace("/", ".")
    put_on_path(project)
    assert not is_there(name)
    folder = (project / late).parent
    seen = folder.stat().st_mtime_ns
    write({late: ""})
    os.utime(folder, ns=(seen, seen))  # as within one tick of the file system's clock
    put_on_path(project / "elsewhere")
    put_on_path(project)
    assert is_there(name)


def is_there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


# ---- INSTALLED_MODULES


def test_each_module_and_its_parts_are_imported_in_order(write: Write) -> None:
    project = write(
        {
            "first_of/__init__.py": "",
            "first_of/commands.py": "",
            "first_of/dags.py": "",
            "first_of/tasks.py": "",
            "second_of/dags.py": "",
            "third_of.py": "",
        }
    )
    assert modules_of(project, "first_of", "second_of", "third_of") == [
        "first_of",
        "first_of.tasks",
        "first_of.dags",
        "first_of.commands",
        "second_of",
        "second_of.dags",
        "third_of",
    ]


def test_commands_are_left_out_on_request(write: Write) -> None:
    project = write({"first_of/dags.py": "", "first_of/commands.py": "raise SystemError"})
    assert modules_of(project, "first_of", parts=("tasks", "dags")) == ["first_of", "first_of.dags"]


def test_nested_modules_are_imported(write: Write) -> None:
    project = write({"shop/__init__.py": "", "shop/prices/dags.py": ""})
    assert modules_of(project, "shop.prices") == ["shop.prices", "shop.prices.dags"]


def test_a_missing_module_names_the_nearest(write: Write) -> None:
    project = write({"forecast/dags.py": ""})
    text = failure(lambda: modules_of(project, "forcast"))
    assert text.startswith("cannot import 'forcast': there is no module 'forcast'; did you mean 'forecast'?")
    assert f"INSTALLED_MODULES names it; looked in {project}" in text
    assert "Traceback" not in text


def test_a_missing_nested_module_names_the_nearest(write: Write) -> None:
    project = write({"shop/__init__.py": "", "shop/prices/dags.py": ""})
    assert "no module 'shop.price'; did you mean 'shop.prices'?" in failure(lambda: modules_of(project, "shop.price"))


@pytest.mark.parametrize("name", ["my-module", "", ".x", "a..b", "a b"])
def test_a_name_that_cannot_be_a_modules_is_a_settings_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not the name of a module"):
        modules_of(tmp_path, name)


def test_a_part_that_imports_something_missing_fails_with_the_users_frames(write: Write) -> None:
    project = write(
        {"shop/__init__.py": "", "shop/tasks.py": "from shop import deep", "shop/deep.py": "\nimport polarz"}
    )
    text = failure(lambda: modules_of(project, "shop"))
    assert text.startswith("cannot import 'shop.tasks': ModuleNotFoundError: No module named 'polarz'")
    assert f'File "{project / "shop/tasks.py"}", line 1, in <module>' in text
    assert f'File "{project / "shop/deep.py"}", line 2, in <module>' in text
    assert "importlib" not in text
    assert f"gluepy{os.sep}conf" not in text


def test_causes_are_kept_in_the_users_traceback(write: Write) -> None:
    source = "try:\n    {}['x']\nexcept KeyError as e:\n    raise ValueError('no x') from e"
    text = failure(lambda: modules_of(write({"shop/dags.py": source}), "shop"))
    assert "KeyError: 'x'" in text
    assert "The above exception was the direct cause" in text
    assert text.endswith("ValueError: no x")


def test_a_syntax_error_names_file_and_line(write: Write) -> None:
    project = write({"shop/dags.py": "a = 1\nb = = 2"})
    text = failure(lambda: modules_of(project, "shop"))
    assert f'File "{project / "shop/dags.py"}", line 2' in text


def test_a_module_that_exits_when_imported_does_not_end_the_process(write: Write) -> None:
    text = failure(lambda: modules_of(write({"shop/dags.py": "import sys\nsys.exit(0)"}), "shop"))
    assert "it calls sys.exit() on import" in text
    assert 'dags.py", line 2' in text


@pytest.mark.parametrize(
    "package", [{}, {"one/shop/__init__.py": ""}, {"one/shop/__init__.py": "", "two/shop/__init__.py": ""}]
)
def test_a_module_of_another_project_is_refused(package: dict[str, str], write: Write) -> None:
    folder = write({"one/shop/dags.py": "", "two/shop/dags.py": "", **package})
    modules_of(folder / "one", "shop")
    text = failure(lambda: modules_of(folder / "two", "shop"))
    assert f"not the project's own {folder / 'two/shop'}" in text


def test_an_installed_package_does_not_run_in_place_of_the_projects_folder(write: Write) -> None:
    project = write({"jsonschema_like/__init__.py": "", "mine/jsonschema_like/dags.py": ""})
    put_on_path(project)
    assert "not the project's own" in failure(lambda: modules_of(project / "mine", "jsonschema_like"))


def test_a_module_installed_elsewhere_may_be_named(tmp_path: Path) -> None:
    assert modules_of(tmp_path, "json") == ["json"]


# ---- dotted paths


def test_an_object_is_imported_by_its_dotted_path() -> None:
    assert import_object("collections.OrderedDict").__name__ == "OrderedDict"
    assert import_object("collections:OrderedDict").__name__ == "OrderedDict"
    assert isinstance(import_object("xml.etree"), ModuleType)


def test_an_object_in_a_class_is_imported_by_its_qualified_name() -> None:
    assert import_object("collections:OrderedDict.fromkeys") == OrderedDict.fromkeys
    assert "module 'collections' has no 'OrderedDict.no'" in failure(
        lambda: import_object("collections:OrderedDict.no")
    )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("LocalExecutor", "it is not a dotted path such as 'package.module.Name'"),
        ("a b.c", "it is not a dotted path"),
        ("", "it is not a dotted path"),
        ("collections.OrderedDit", "module 'collections' has no 'OrderedDit'; did you mean 'OrderedDict'?"),
        ("no_such_package.x.Y", "there is no module 'no_such_package'"),
        ("json.nothing.Y", "there is no module 'json.nothing'"),
        ("json:<locals>.Y", "it is not a dotted path"),
    ],
)
def test_a_bad_dotted_path_says_what_is_wrong_and_what_named_it(path: str, expected: str) -> None:
    text = failure(lambda: import_object(path, named_by="EXECUTOR_BACKEND"))
    assert text.startswith(f"cannot import {path!r}: {expected}")
    assert text.endswith("; EXECUTOR_BACKEND names it")


# ---- a file by its path


def test_a_file_is_imported_under_a_name_that_another_process_can_import(write: Write) -> None:
    project = write({"nightly_job.py": "import beside_it\nclass Job: pass", "beside_it.py": ""})
    module = load_file(project / "nightly_job.py")
    assert module.__name__ == module.Job.__module__ == "nightly_job"
    assert first_behind_the_standard_library() == str(project)
    assert load_file(project / "nightly_job.py") is module


def test_a_file_in_a_package_has_its_dotted_name(write: Write) -> None:
    project = write({"shop/__init__.py": "", "shop/dags.py": "from . import tasks", "shop/tasks.py": ""})
    assert load_file(project / "shop/dags.py").__name__ == "shop.dags"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("random.py", "hides the installed module 'random'"),
        ("json.py", "a module 'json' is already imported"),
        ("this.py", "hides the installed module 'this'"),
        ("pytest_timeout.py", "module 'pytest_timeout'"),
        ("my-job.py", "its name is not a valid module name; rename it"),
        ("job.txt", "its name is not a valid module name; rename it"),
    ],
)
def test_a_file_whose_name_cannot_work_is_refused(name: str, expected: str, write: Write) -> None:
    sys.modules.pop("random", None)
    project = write({name: ""})
    assert expected in failure(lambda: load_file(project / name))
    assert str(project) not in sys.path


def test_two_files_of_one_name_are_refused(write: Write) -> None:
    folder = write({"one/nightly_job.py": "", "two/nightly_job.py": ""})
    load_file(folder / "one/nightly_job.py")
    assert "a module 'nightly_job' is already imported from" in failure(
        lambda: load_file(folder / "two/nightly_job.py")
    )


def test_a_missing_file_names_the_nearest(write: Write) -> None:
    project = write({"nightly.py": ""})
    assert "there is no such file; did you mean 'nightly.py'?" in failure(lambda: load_file(project / "nigtly.py"))


def test_a_file_that_fails_shows_the_users_frames(write: Write) -> None:
    project = write({"nightly_job.py": "\n1 / 0"})
    text = failure(lambda: load_file(project / "nightly_job.py"))
    assert "ZeroDivisionError: division by zero" in text
    assert 'nightly_job.py", line 2' in text
    assert "importlib" not in text
