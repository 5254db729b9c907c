"""The quickstart runs both ways."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", [[], ["-m", "gluepy", "run"]], ids=["python", "gluepy"])
def test_quickstart_counts_lines(command: list[str], examples: Path, tmp_path: Path) -> None:
    target = str(examples / "quickstart.py") + (":QuickstartDAG" if command else "")
    done = subprocess.run([sys.executable, *command, target], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "asyncio █████" in done.stdout + done.stderr
