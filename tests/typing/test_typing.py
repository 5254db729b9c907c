"""The package is typed for its users: strict mypy takes what they write, and refuses what they should not."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def test_strict_mypy_takes_what_a_user_writes(tmp_path: Path) -> None:
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\nwarn_unused_ignores = true\n")
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), str(HERE / "as_a_user.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_takes_and_refuses_the_same(tmp_path: Path) -> None:
    if subprocess.run([sys.executable, "-m", "pyright", "--version"], capture_output=True, cwd=tmp_path).returncode:
        pytest.skip("pyright is not installed, or cannot fetch the Node.js that it runs on")
    (tmp_path / "as_a_user.py").write_text((HERE / "as_a_user.py").read_text())
    (tmp_path / "pyrightconfig.json").write_text('{"reportUnnecessaryTypeIgnoreComment": "error"}')
    command = [sys.executable, "-m", "pyright", "-p", str(tmp_path), "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_package_says_that_it_is_typed() -> None:
    spec = find_spec("gluepy")
    assert spec is not None
    assert spec.origin is not None
    assert (Path(spec.origin).parent / "py.typed").is_file()
