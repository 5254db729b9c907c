"""Which warnings fail a test: those of gluepy's code and of tests; not those that a new release of a dependency has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

TESTS = """
import gc, threading, warnings
import pytest

def warn(module, category, stacklevel=1):
    exec("import warnings\\nwarnings.warn('told', category, stacklevel)",
         {"__name__": module, "category": category, "stacklevel": stacklevel})

@pytest.mark.parametrize("module", ["gluepy", "gluepy.exec.engine", "test_of_ours", "conftest"])
@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning, ResourceWarning])
def test_ours(module, category):
    warn(module, category)

@pytest.mark.parametrize("module", ["anyio", "trio._core", "gluepy_plugin", "pydantic.main"])
@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning, DeprecationWarning, FutureWarning])
def test_theirs(module, category):
    warn(module, category)

@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_theirs_that_is_attributed_to_the_caller(category):
    warn("gluepy.exec.engine", category)

def test_ours_leak(tmp_path):
    file = open(tmp_path / "file", "w")
    del file
    gc.collect()

def test_ours_never_awaited():
    async def work(): ...
    work()
    gc.collect()

def test_ours_in_a_thread():
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()

def test_ours_misspelt_setting():
    from gluepy.errors import SettingsWarning
    warn("settings", SettingsWarning)
"""


def test_warnings_of_our_code_are_errors_and_those_of_dependencies_are_not(tmp_path: Path) -> None:
    options = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    lines = json.dumps(options["filterwarnings"], indent=4)
    (tmp_path / "pyproject.toml").write_text(f"[tool.pytest.ini_options]\nfilterwarnings = {lines}\n")
    (tmp_path / "test_all.py").write_text(TESTS)
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONWARN"))}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-p", "no:anyio", "-n", "0"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    told = {}
    for line in ran.stdout.splitlines():
        outcome, _, test = line.partition(" ")
        if outcome in ("PASSED", "FAILED", "ERROR"):
            told[test.partition("::")[2].partition(" - ")[0]] = outcome
    assert len(told) == 12 + 16 + 3 + 4, ran.stdout
    assert {test: outcome for test, outcome in told.items() if outcome != "PASSED"}.keys() == {
        test for test in told if test.startswith("test_ours")
    }
