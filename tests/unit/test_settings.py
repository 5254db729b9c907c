"""Where settings come from, which of them wins, and what is said when one is wrong."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, ValidationError

from gluepy.conf import default_context, settings
from gluepy.conf.model import SettingsModel, validated
from gluepy.conf.schema import NAMES, Settings
from gluepy.conf.sources import load_settings
from gluepy.errors import ImportFailed, SettingsError
from gluepy.exec.port import Executor
from gluepy.exec.scope import enter_scope, leave_scope

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variables of gluepy, and no module of one test's project in the next."""
    for name in list(os.environ):
        if name.startswith("GLUEPY_"):
            monkeypatch.delenv(name)
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith(("gluepy", "pydantic", "dotenv", "yaml")):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes files of a project, by their paths, and returns its folder."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            stem, _, suffix = name.rpartition("_")
            file = tmp_path / {"dot_env": ".env"}.get(name, f"{stem}.{suffix}")
            file.write_text(text)
        return tmp_path

    return write


def error_of(project: Path | None, **options: object) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(project, options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- sources and their precedence


def test_without_any_source_the_documented_defaults_hold(tmp_path: Path) -> None:
    found = load_settings(tmp_path)
    assert found.INSTALLED_MODULES == []
    assert found.EXECUTOR_BACKEND == "gluepy.exec.executors.LocalExecutor"
    assert len(os.sched_getaffinity(0)) == found.CONCURRENCY
    assert (found.POOL, found.EVENT_SYNC, found.LOG_FORMAT) == ("thread", "batch", "console")
    assert found.storage_root == str(tmp_path / "data")
    assert found.runs_root == tmp_path / ".gluepy/runs"
    assert (found.LIMITS, found.SINKS, found.CONTEXT_FILES, found.CONTEXT_MODEL) == ({}, [], [], None)
    assert set(found.sources) == set(NAMES)
    assert set(found.sources.values()) == {"default"}
    assert found.options == {}


SOURCES = ("option concurrency", "environment GLUEPY_CONCURRENCY", ".env GLUEPY_CONCURRENCY", "settings.py")


@pytest.mark.parametrize("present", range(6))
def test_each_source_beats_those_after_it(present: int, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [*SOURCES, "[tool.gluepy] in pyproject.toml", "default"]
    options = {}
    project = write()
    if present <= 0:
        options["CONCURRENCY"] = 10
    if present <= 1:
        monkeypatch.setenv("GLUEPY_CONCURRENCY", "11")
    if present <= 2:
        write(dot_env="GLUEPY_CONCURRENCY=12")
    if present <= 3:
        write(settings_py="CONCURRENCY = 13")
    if present <= 4:
        write(pyproject_toml="[tool.gluepy]\nconcurrency = 14")
    found = load_settings(project, options)
    assert found.sources["CONCURRENCY"] == expected[present]
    assert (10 + present if present < 5 else len(os.sched_getaffinity(0))) == found.CONCURRENCY


def test_a_mapping_of_one_source_replaces_that_of_another(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUEPY_LIMITS", '{"gpu": 1}')
    found = load_settings(write(settings_py="LIMITS = {'database': 2}"))
    assert found.LIMITS == {"gpu": 1}


def test_an_option_of_none_counts_as_not_given(write: Write) -> None:
    assert load_settings(write(settings_py="CONCURRENCY = 3"), {"CONCURRENCY": None}).CONCURRENCY == 3


def test_an_empty_variable_counts_as_not_set(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUEPY_CONCURRENCY", "")
    assert load_settings(write(settings_py="CONCURRENCY = 3")).CONCURRENCY == 3


def test_pyproject_keys_may_be_of_either_case_and_have_hyphens(write: Write) -> None:
    table = "[tool.gluepy]\nPOOL = 'process'\nlog-format = 'json'\nevent_sync = 'none'\nlimits = {gpu = 1}"
    found = load_settings(write(pyproject_toml=table))
    assert (found.POOL, found.LOG_FORMAT, found.EVENT_SYNC, found.LIMITS) == ("process", "json", "none", {"gpu": 1})


def test_other_lines_of_the_env_file_are_left_alone(write: Write) -> None:
    found = load_settings(write(dot_env="# mine\nexport GLUEPY_POOL='process'\nAWS_REGION=eu\n"))
    assert found.POOL == "process"
    assert "AWS_REGION" not in os.environ


def test_the_settings_module_may_be_named_by_the_environment(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUEPY_SETTINGS_MODULE", "staging")
    found = load_settings(write(settings_py="CONCURRENCY = 3", staging_py="CONCURRENCY = 4"))
    assert (found.CONCURRENCY, found.sources["CONCURRENCY"]) == (4, "staging.py")


def test_the_settings_module_may_lie_in_a_package(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    project = write()
    (project / "conf_of_mine").mkdir()
    (project / "conf_of_mine/base.py").write_text("POOL = 'process'")
    (project / "conf_of_mine/live.py").write_text("from conf_of_mine.base import *\nCONCURRENCY = 4")
    monkeypatch.setenv("GLUEPY_SETTINGS_MODULE", "conf_of_mine.live")
    found = load_settings(project)
    assert (found.CONCURRENCY, found.POOL, found.sources["POOL"]) == (4, "process", "conf_of_mine/live.py")


def test_two_projects_do_not_share_a_settings_module(tmp_path: Path) -> None:
    for number in (1, 2, 1):
        project = tmp_path / str(number)
        project.mkdir(exist_ok=True)
        (project / "settings.py").write_text(f"CONCURRENCY = {number}")
        assert number == load_settings(project).CONCURRENCY


def test_an_edited_settings_module_is_read_again(write: Write) -> None:
    assert load_settings(write(settings_py="CONCURRENCY = 3")).CONCURRENCY == 3
    assert load_settings(write(settings_py="CONCURRENCY = 44")).CONCURRENCY == 44


def test_two_edits_within_a_second_are_told_apart(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for number in (3, 4):
        project = write(settings_py=f"CONCURRENCY = {number}")
        os.utime(project / "settings.py", ns=(1_800_000_000_000_000_000 + number,) * 2)
        assert number == load_settings(project).CONCURRENCY


def test_an_unchanged_settings_module_is_run_once(write: Write) -> None:
    project = write(
        settings_py="from pathlib import Path\nwith Path(__file__).with_name('log').open('a') as f: f.write('x')"
    )
    load_settings(project)
    load_settings(project)
    assert (project / "log").read_text() == "x"


# ---- the user's own names


def test_other_names_of_the_module_are_the_users_own(write: Write) -> None:
    found = load_settings(write(settings_py="MY_THING = {'a': 1}\nlower = 2\n_HIDDEN = 3\nimport os as OS"))
    assert found.MY_THING == {"a": 1}
    assert set(found.own) == {"MY_THING"}
    assert found.sources["MY_THING"] == "settings.py"


def test_a_near_miss_of_a_setting_in_the_module_warns(write: Write) -> None:
    project = write(settings_py="CONCURENCY = 3\nGLUEPY_POOL = 'process'")
    with pytest.warns(UserWarning) as caught:
        found = load_settings(project)
    texts = [str(warning.message) for warning in caught]
    assert "settings.py defines CONCURENCY" in texts[0]
    assert "did you mean CONCURRENCY?" in texts[0]
    assert "did you mean POOL?" in texts[1]
    assert found.CONCURENCY == 3
    assert [(warning.filename, warning.lineno) for warning in caught] == [(f"{project}/settings.py", n) for n in (1, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_settings(project, warn=False)


def test_names_that_are_not_near_do_not_warn(write: Write) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_settings(write(settings_py="DATABASE_URL = 'x'\nBASE_DIR = 'y'\nDEBUG = True\nSTORAGE = 's3'"))


def test_a_name_that_nobody_defines_is_an_attribute_error_with_a_hint(write: Write) -> None:
    found = load_settings(write(settings_py="MY_THING = 1"))
    with pytest.raises(AttributeError, match="no setting 'MY_THIN'; did you mean 'MY_THING'"):
        _ = found.MY_THIN


# ---- mistakes


def test_an_unknown_variable_names_the_nearest_setting(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUEPY_CONCURENCY", "3")
    assert error_of(write()) == (
        "GLUEPY_CONCURENCY (environment): there is no such setting; did you mean 'GLUEPY_CONCURRENCY'?"
    )


def test_an_unknown_variable_in_the_env_file_is_an_error(write: Write) -> None:
    assert error_of(write(dot_env="GLUEPY_POOOL=thread")) == (
        "GLUEPY_POOOL (.env): there is no such setting; did you mean 'GLUEPY_POOL'?"
    )


def test_an_unknown_key_in_pyproject_names_the_nearest(write: Write) -> None:
    text = error_of(write(pyproject_toml="[tool.gluepy]\nconcurency = 3"))
    assert text == "concurency ([tool.gluepy] in pyproject.toml): there is no such setting; did you mean 'concurrency'?"


def test_an_unknown_option_is_an_error(write: Write) -> None:
    assert "CONCURENCY (option concurency): there is no such setting" in error_of(write(), CONCURENCY=3)


def test_the_variable_that_names_the_settings_module_is_known(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUEPY_SETTINGS_MODULE", "settings")
    assert load_settings(write(settings_py="CONCURRENCY = 3")).CONCURRENCY == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"settings_py": "CONCURRENCY = 'four'"}, "CONCURRENCY (settings.py): input should be a valid integer"),
        ({"settings_py": "CONCURRENCY = 0"}, "CONCURRENCY (settings.py): input should be greater than or equal to 1"),
        ({"settings_py": "CONCURRENCY = True"}, "CONCURRENCY (settings.py): a number is wanted"),
        ({"settings_py": "INSTALLED_MODULES = 'a'"}, "INSTALLED_MODULES (settings.py): input should be a valid list"),
        ({"settings_py": "LIMITS = {'gpu': 'x'}"}, "LIMITS.gpu (settings.py): input should be a valid integer"),
        ({"settings_py": "STORAGE_ROOT = ''"}, "STORAGE_ROOT (settings.py): "),
        (
            {"settings_py": "RUNS_ROOT = 's3://bucket/runs'"},
            "RUNS_ROOT (settings.py): a run's record is kept in a local",
        ),
        (
            {"dot_env": "GLUEPY_POOL=fibre"},
            "POOL (.env GLUEPY_POOL): input should be 'thread' or 'process'; it is 'fibre'",
        ),
        ({"dot_env": "GLUEPY_LIMITS=gpu"}, "LIMITS (.env GLUEPY_LIMITS): its value is not JSON"),
        ({"dot_env": "GLUEPY_SINKS={}"}, "SINKS (.env GLUEPY_SINKS): input should be a valid list"),
        ({"dot_env": "what is this"}, "line 1 is not NAME=value"),
        (
            {"pyproject_toml": "[tool.gluepy]\npool = 1"},
            "POOL ([tool.gluepy] in pyproject.toml): input should be 'thread'",
        ),
        ({"pyproject_toml": "[tool.gluepy]\npool = "}, "it is not TOML"),
        ({"pyproject_toml": "[tool]\ngluepy = 1"}, "expected a table, got 1"),
        (
            {"pyproject_toml": "[tool.gluepy]\npool='thread'\nPOOL='thread'"},
            "POOL ([tool.gluepy] in pyproject.toml): it is there twice",
        ),
    ],
)
def test_a_bad_value_is_one_line_that_names_setting_and_source(
    files: dict[str, str], expected: str, write: Write
) -> None:
    assert expected in error_of(write(**files))


def test_a_variable_that_is_not_json_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUEPY_INSTALLED_MODULES", "a,b")
    assert "INSTALLED_MODULES (environment GLUEPY_INSTALLED_MODULES): its value is not JSON" in error_of(write())


def test_an_error_does_not_show_a_password(write: Write) -> None:
    assert "secret" not in error_of(write(settings_py="RUNS_ROOT = 'redis://user:secret@host/0'"))


def test_a_settings_module_that_fails_shows_the_users_frames_only(write: Write) -> None:
    project = write(settings_py="import deeper_down", deeper_down_py="def f():\n    return 1 / 0\nf()")
    with pytest.raises(ImportFailed) as caught:
        load_settings(project)
    text = str(caught.value)
    assert "ZeroDivisionError" in text
    assert f'File "{project / "settings.py"}", line 1' in text
    assert f'File "{project / "deeper_down.py"}", line 2, in f' in text
    assert "importlib" not in text
    assert f"{os.sep}gluepy{os.sep}conf" not in text


def test_a_settings_module_with_bad_syntax_names_file_and_line(write: Write) -> None:
    with pytest.raises(ImportFailed, match=r'settings\.py", line 2') as caught:
        load_settings(write(settings_py="A = 1\nB = = 2"))
    assert "SyntaxError" in str(caught.value)


def test_a_failed_settings_module_is_not_left_half_imported(write: Write) -> None:
    with pytest.raises(ImportFailed):
        load_settings(write(settings_py="CONCURRENCY = 3\n1 / 0"))
    assert load_settings(write(settings_py="CONCURRENCY = 4")).CONCURRENCY == 4


def test_a_settings_module_that_is_named_and_missing_is_an_error(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUEPY_SETTINGS_MODULE", "stagging")
    with pytest.raises(ImportFailed) as caught:
        load_settings(write(staging_py=""))
    assert "no module 'stagging'; did you mean 'staging'" in str(caught.value)
    assert "environment GLUEPY_SETTINGS_MODULE names it" in str(caught.value)


def test_a_settings_module_that_reads_the_settings_is_told_so(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(
        write(settings_py="# gluepy\nfrom gluepy.conf import settings\nCONCURRENCY = settings.CONCURRENCY")
    )
    with pytest.raises(ImportFailed, match="reads gluepy's settings while it is being imported"):
        _ = settings.CONCURRENCY


# ---- places


def test_relative_places_are_under_the_project(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir("/")
    found = load_settings(write(settings_py="STORAGE_ROOT = '../store'\nRUNS_ROOT = 'r'\nCONTEXT_FILES = ['c.yaml']"))
    assert found.storage_root == str(tmp_path.parent / "store")
    assert found.runs_root == tmp_path / "r"
    assert found.context_files == [tmp_path / "c.yaml"]


def test_without_a_project_places_stay_where_the_settings_were_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = load_settings(None)
    monkeypatch.chdir("/")
    assert found.storage_root == str(tmp_path / "data")


def test_a_url_stays_as_it_is(write: Write) -> None:
    assert load_settings(write(settings_py="STORAGE_ROOT = 's3://bucket/x'")).storage_root == "s3://bucket/x"


def test_places_may_be_paths(write: Write, tmp_path: Path) -> None:
    text = "from pathlib import Path\nSTORAGE_ROOT = Path('a')\nRUNS_ROOT = Path('b')\nCONTEXT_FILES = [Path('c')]"
    found = load_settings(write(settings_py=text))
    assert found.storage_root == str(tmp_path / "a")
    assert found.runs_root == tmp_path / "b"
    assert found.options == {"STORAGE_ROOT": "a", "RUNS_ROOT": "b", "CONTEXT_FILES": ["c"]}


def test_a_tilde_is_the_home_folder(write: Write) -> None:
    assert load_settings(write(settings_py="STORAGE_ROOT = '~/x'")).storage_root == str(Path.home() / "x")


# ---- another process


def test_options_are_json_and_give_the_same_settings_again(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    project = write(dot_env="GLUEPY_POOL=process", settings_py="LIMITS = {'gpu': 2}\nMINE = 1")
    monkeypatch.setenv("GLUEPY_CONCURRENCY", "7")
    first = load_settings(project, {"SINKS": ["a.B"], "LOCAL": {"grace_s": 3}})
    monkeypatch.delenv("GLUEPY_CONCURRENCY")
    again = load_settings(project, json.loads(json.dumps(first.options)))
    assert {name: getattr(again, name) for name in NAMES} == {name: getattr(first, name) for name in NAMES}
    assert again.groups == first.groups
    assert again.MINE == 1


def test_settings_are_read_only_and_pickle(write: Write) -> None:
    found = load_settings(write(settings_py="MINE = 1"))
    with pytest.raises(AttributeError, match="read-only"):
        found.CONCURRENCY = 3
    copy = pickle.loads(pickle.dumps(found))
    assert copy == found
    assert copy.MINE == 1


ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2.0, "", "a", "s3://b", "thread", "console", "batch", Path("a"), ("a",)),
    *([], ["a"], [""], [1], {}, {"gpu": 1}, {"gpu": -1}, {"gpu": True}, {1: 1}, {"gpu": 1.0}),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_value_that_is_not_given_to_the_model_is_what_the_model_makes_of_it(name: str, value: Any) -> None:
    try:
        expected = validated({name: value})[name]
    except ValidationError:
        with pytest.raises(SettingsError):
            Settings(**{name: value})
    else:
        found = getattr(Settings(**{name: value}), name)
        assert found == expected
        assert type(found) is type(expected)
        assert found is not value or not isinstance(value, (list, dict))


def test_the_model_knows_the_same_settings() -> None:
    assert set(SettingsModel.model_fields) == set(NAMES)


def test_plain_settings_are_loaded_without_pydantic(write: Write) -> None:
    text = "INSTALLED_MODULES = ['a']\nLIMITS = {'gpu': 1}\nCONCURRENCY = 2\nEXECUTOR_BACKEND = 'b.C'\nMINE = 3"
    script = (
        "import sys, pathlib; from gluepy.conf.sources import load_settings\n"
        "found = load_settings(pathlib.Path(sys.argv[1])); assert (found.LIMITS, found.MINE) == ({'gpu': 1}, 3)\n"
        "print(sorted(name for name in sys.modules if name.startswith('pydantic')))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, write(settings_py=text)], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


def test_the_constructor_reads_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUEPY_CONCURRENCY", "77")
    assert Settings(POOL="process").CONCURRENCY != 77


# ---- masks


def test_secrets_are_masked_wherever_they_are(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUEPY_LOCAL__PASSWORD", "hush-1")
    project = write(
        settings_py="""
API_KEY = "hush-2"
DATABASES = {"main": {"password": "hush-3", "port": 5432}, "urls": ["redis://user:hush-4@host:6379/0"]}
BROKER = "amqp://hush-5@host//"
ENDPOINT = "https://host/path?token=hush-6&page=2"
STORAGE_ROOT = "s3://user:hush-7@bucket/x"
AUTH = "hush-8"
PASSPHRASE = "hush-9"
HEADERS = {"Authorization": "Bearer hush-10", "Accept": "text/csv"}
DATABASE = "Server=db;User Id=me;Password=hush-11;Timeout=30"
KEY, MY_TOKENS = "hush-12", ["hush-13"]
"""
    )
    shown = load_settings(project).masked()
    assert "hush" not in repr(shown)
    assert shown["API_KEY"] == ("***", "settings.py")
    assert shown["DATABASES"][0] == {
        "main": {"password": "***", "port": 5432},
        "urls": ["redis://user:***@host:6379/0"],
    }
    assert shown["ENDPOINT"][0] == "https://host/path?token=***&page=2"
    assert shown["STORAGE_ROOT"][0] == "s3://user:***@bucket/x"
    assert shown["LOCAL.PASSWORD"] == ("***", "environment GLUEPY_LOCAL__PASSWORD")
    assert shown["POOL"] == ("thread", "default")
    assert shown["HEADERS"][0] == {"Authorization": "***", "Accept": "text/csv"}
    assert shown["DATABASE"][0] == "Server=db;User Id=me;Password=***;Timeout=30"


def test_redact_says_what_is_masked(write: Write) -> None:
    shown = load_settings(write(settings_py="REDACT = ['*iban*']\nMY_IBAN = 'x'\nMY_TOKEN = 'y'")).masked()
    assert (shown["MY_IBAN"][0], shown["MY_TOKEN"][0]) == ("***", "y")


def test_what_is_shown_is_json(write: Write) -> None:
    shown = load_settings(write(settings_py="from pathlib import Path\nA = Path('x')\nB = {1, 2}\nC = object")).masked()
    assert json.loads(json.dumps(shown))["A"] == ["x", "settings.py"]


# ---- groups of executors and sinks


class DaskSettings(BaseModel):
    address: str = ""
    workers: int = 1
    tags: list[str] = []


class DaskExecutor(Executor):
    settings_group: ClassVar = ("DASK", DaskSettings)


@pytest.fixture
def dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "engine_of_mine", SimpleNamespace(DaskExecutor=DaskExecutor))
    monkeypatch.setenv("GLUEPY_EXECUTOR_BACKEND", "engine_of_mine.DaskExecutor")


@pytest.mark.usefixtures("dask")
def test_a_group_takes_each_field_from_its_best_source(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUEPY_DASK__WORKERS", "8")
    monkeypatch.setenv("GLUEPY_DASK", '{"workers": 7}')
    project = write(
        dot_env='GLUEPY_DASK__TAGS=["a"]',
        settings_py="DASK = {'ADDRESS': 'module', 'tags': ['b']}",
        pyproject_toml="[tool.gluepy.dask]\naddress = 'table'\nworkers = 3",
    )
    found = load_settings(project)
    assert found.group("DASK", DaskSettings) == DaskSettings(address="module", workers=8, tags=["a"])
    assert found.masked()["DASK.WORKERS"] == ("8", "environment GLUEPY_DASK__WORKERS")


@pytest.mark.usefixtures("dask")
def test_only_text_of_variables_is_json_in_a_group(write: Write) -> None:
    found = load_settings(write(settings_py="DASK = {'tags': ['a', 'b']}"))
    assert found.group("DASK", DaskSettings).tags == ["a", "b"]
    found = load_settings(write(settings_py="DASK = {'tags': '[]'}"))
    with pytest.raises(SettingsError, match=r"DASK\.tags \(settings\.py\): input should be a valid list; it is '\[\]'"):
        found.group("DASK", DaskSettings)


@pytest.mark.usefixtures("dask")
@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        (
            "GLUEPY_DASK__WORKERS",
            "many",
            "DASK.workers (environment GLUEPY_DASK__WORKERS): input should be a valid integer",
        ),
        (
            "GLUEPY_DASK__WORKER",
            "1",
            "DASK.worker (environment GLUEPY_DASK__WORKER): there is no such field; did you mean 'workers'",
        ),
        ("GLUEPY_DASK__TAGS", "a", "DASK.tags (environment GLUEPY_DASK__TAGS): its value is not JSON"),
    ],
)
def test_a_bad_field_of_a_group_names_its_source(
    variable: str, value: str, expected: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    found = load_settings(write())
    with pytest.raises(SettingsError) as caught:
        found.group("DASK", DaskSettings)
    assert expected in str(caught.value)


def test_a_group_that_nobody_declares_is_unknown(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "engine_of_mine", SimpleNamespace(Plain=object))
    monkeypatch.setenv("GLUEPY_EXECUTOR_BACKEND", "engine_of_mine.Plain")
    monkeypatch.setenv("GLUEPY_FLOCK__WORKERS", "8")
    assert "GLUEPY_FLOCK__WORKERS (environment): there is no such setting" in error_of(write())


def test_a_group_must_be_a_mapping(write: Write) -> None:
    class Local(BaseModel):
        pass

    with pytest.raises(SettingsError, match=r"LOCAL \(settings\.py\): a mapping is wanted, not True"):
        load_settings(write(settings_py="LOCAL = True")).group("LOCAL", Local)


# ---- the proxy


def test_importing_the_proxy_does_not_import_pydantic() -> None:
    code = "import sys; from gluepy.conf import settings, default_context; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_proxy_follows_the_current_folder_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "settings.py").write_text(
            f"INSTALLED_MODULES = []\nCONCURRENCY = {number}\nMINE = {number}"
        )
    monkeypatch.chdir(tmp_path / "1")
    assert (settings.CONCURRENCY, settings.MINE) == (1, 1)
    monkeypatch.chdir(tmp_path / "2")
    assert (settings.CONCURRENCY, settings.MINE) == (2, 2)
    monkeypatch.setenv("GLUEPY_CONCURRENCY", "3")
    assert (settings.CONCURRENCY, settings.MINE) == (3, 2)
    (tmp_path / "2/.env").write_text("GLUEPY_POOL=process")
    assert settings.POOL == "process"


def test_the_proxy_follows_the_current_folder_without_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert settings.storage_root == str(tmp_path / name / "data")


def test_the_proxy_gives_what_it_stands_for(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(settings_py="INSTALLED_MODULES = []\nCONCURRENCY = 3"))
    taken = settings.snapshot()
    monkeypatch.chdir("/")
    assert isinstance(taken, Settings)
    assert taken.CONCURRENCY == 3


def test_inside_a_run_the_proxies_are_the_runs_own(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from gluepy.conf.context import Context

    monkeypatch.chdir(write(settings_py="INSTALLED_MODULES = []\nCONCURRENCY = 3"))
    scope = SimpleNamespace(settings=Settings(CONCURRENCY=9), context=Context({"depth": 1}))
    token = enter_scope(scope)  # type: ignore[arg-type]
    try:
        assert settings.CONCURRENCY == 9
        assert default_context.depth == 1
    finally:
        leave_scope(token)
    assert settings.CONCURRENCY == 3


# ---- the user's own names, from everywhere


OWN = """
from __future__ import annotations
from datetime import date
from enum import Enum
from pathlib import Path

class Mode(Enum):
    FAST = "fast"

class Odd: pass

API_URL = "http://here"
RETRIES = 3
SHARE = 0.5
DEBUG = False
HOSTS = ["a"]
PAIR = (1, 2)
HOME = Path("/x")
DAY = date(2026, 1, 1)
MODE = Mode.FAST
MINE = {"depth": 1, "deep": {"er": 2}}
NOTHING = None
TOP: int | None = None
DATABASE: str
ODD = Odd()
"""


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("API_URL", "5", "5"),
        ("RETRIES", "7", 7),
        ("SHARE", "1", 1.0),
        ("DEBUG", "true", True),
        ("DEBUG", "off", False),
        ("HOSTS", '["b", "c"]', ["b", "c"]),
        ("PAIR", "[3, 4]", (3, 4)),
        ("HOME", "/y", Path("/y")),
        ("DAY", "2027-02-03", date(2027, 2, 3)),
        ("MINE", '{"depth": 5}', {"depth": 5}),
        ("MINE__DEPTH", "5", {"depth": 5, "deep": {"er": 2}}),
        ("MINE__NEW", "5", {"depth": 1, "deep": {"er": 2}, "new": "5"}),
        ("NOTHING", "5", "5"),
        ("TOP", "5", 5),
        ("DATABASE", "db", "db"),
    ],
)
@pytest.mark.parametrize("source", ["environment", ".env"])
def test_ones_own_names_are_set_by_variables_too(
    source: str, variable: str, text: str, expected: object, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = write(settings_py=OWN)
    if source == ".env":
        write(dot_env=f"GLUEPY_{variable}='{text}'")
    else:
        monkeypatch.setenv(f"GLUEPY_{variable}", text)
    found = load_settings(project)
    name = variable.partition("__")[0]
    assert getattr(found, name) == expected
    assert type(getattr(found, name)) is type(expected)
    assert found.sources[name] == f"{source} GLUEPY_{variable}"
    assert (7 if name == "RETRIES" else 3) == found.RETRIES


def test_ones_own_names_are_set_by_options_before_all(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    project = write(settings_py=OWN, dot_env="GLUEPY_RETRIES=5")
    assert load_settings(project).RETRIES == 5
    monkeypatch.setenv("GLUEPY_RETRIES", "6")
    assert load_settings(project).RETRIES == 6
    found = load_settings(project, {"RETRIES": 7})
    assert (found.RETRIES, found.sources["RETRIES"], found.options["RETRIES"]) == (7, "option retries", 7)
    assert load_settings(project, found.options).RETRIES == 7  # as a worker process does


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("RETRIES", "many", "RETRIES (environment GLUEPY_RETRIES): input should be a valid integer"),
        ("DEBUG", "maybe", "DEBUG (environment GLUEPY_DEBUG): input should be a valid boolean"),
        ("HOSTS", "a,b", "HOSTS (environment GLUEPY_HOSTS): its value is not JSON"),
        ("TOP", "many", "TOP (environment GLUEPY_TOP): input should be a valid integer"),
        ("ODD", "x", "ODD (environment GLUEPY_ODD): text cannot be of type Odd; annotate it"),
        ("API_ULR", "x", "GLUEPY_API_ULR (environment): there is no such setting; did you mean 'GLUEPY_API_URL'?"),
        ("RETRIES__X", "1", "GLUEPY_RETRIES__X (environment): there is no such setting"),
        ("ZZZ", "x", "`gluepy settings` lists them all; one of your own has to be in settings.py"),
    ],
)
def test_text_that_ones_own_name_cannot_be_is_one_line(
    variable: str, text: str, expected: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"GLUEPY_{variable}", text)
    assert expected in error_of(write(settings_py=OWN))


def test_ones_own_name_in_pyproject_is_told_to_be_in_vain(write: Write) -> None:
    project = write(settings_py=OWN, pyproject_toml="[tool.gluepy]\nretries = 5")
    assert error_of(project) == (
        "retries ([tool.gluepy] in pyproject.toml): settings.py defines it, and goes over this; keep it there"
    )


def test_the_variables_of_a_kubernetes_service_called_gluepy_are_none_of_ours(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = "tcp://10.0.0.1:80"
    for prefix in ("GLUEPY", "GLUEPY_WEB_UI"):
        for name, text in {
            "SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_HTTP": "80", "PORT": at, "PORT_80_TCP": at,
            "PORT_80_TCP_PROTO": "tcp", "PORT_80_TCP_PORT": "80", "PORT_80_TCP_ADDR": "10.0.0.1", "PORT_53_UDP": at,
        }.items():  # fmt: skip
            monkeypatch.setenv(f"{prefix}_{name}", text)
    found = load_settings(write(settings_py="PORT = 8080"))
    assert found.PORT == 8080
    monkeypatch.setenv("GLUEPY_PORT", "9090")
    assert load_settings(write()).PORT == 9090
    assert "GLUEPY_POTR (environment): there is no such setting" in _error_with("GLUEPY_POTR", write(), monkeypatch)


def _error_with(variable: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(variable, "1")
    return error_of(project)
