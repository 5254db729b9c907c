"""The quickstart runs both ways."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., str]:
    """Run Python in an empty folder; returns what it printed."""

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=True).stdout

    return run


def test_quickstart_prints_a_chart(python: Callable[..., str], examples: Path) -> None:
    assert "asyncio █████" in python(str(examples / "quickstart.py"))


def test_quickstart_runs_by_the_command_line(python: Callable[..., str], examples: Path) -> None:
    python("-m", "gluepy", "run", f"{examples / 'quickstart.py'}:QuickstartDAG")
    assert "asyncio █████" in python("-m", "gluepy", "logs", "latest", "chart")
