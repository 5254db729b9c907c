"""The proofs have teeth: each bug of `planted.py` is put into a copy of gluepy, and its tests must fail of it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from planted import BUGS

import gluepy

ROOT = Path(__file__).parents[2]
MISTAKES = ("NameError", "ImportError", "AttributeError", "SyntaxError", "fixture '")
FAILED = 1  # pytest's exit code for tests that failed, unlike those for tests that could not be run


def planted(bug: str, folder: Path) -> Path:
    """A folder with a copy of gluepy that has the bug. Fails where the place of the bug is not to be found."""
    file, was, is_now, _ = BUGS[bug]
    package = Path(gluepy.__file__).parent
    copy = shutil.copytree(package, folder / "gluepy", ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / file).read_text()
    assert source.count(was) == 1, f"{file} says {source.count(was)} times: {was}"
    (copy / file).write_text(source.replace(was, is_now))
    compile((copy / file).read_text(), file, "exec")
    return folder


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_has_its_place_and_its_tests(bug: str, tmp_path: Path) -> None:
    planted(bug, tmp_path)
    assert all((ROOT / word).is_file() for word in shlex.split(BUGS[bug].caught_by) if word.startswith("tests/"))


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str, tmp_path: Path) -> None:
    folder = planted(bug, tmp_path)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout", "60"]
    ran = subprocess.run(
        [*command, *shlex.split(BUGS[bug].caught_by)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=800,
    )
    told = f"exit code {ran.returncode}\n{ran.stdout[-4000:]}{ran.stderr[-2000:]}"
    assert ran.returncode == FAILED, told
    assert not any(mistake in ran.stdout for mistake in MISTAKES), told  # it is the bug that fails, not its planting
