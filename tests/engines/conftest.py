"""The project of `step_flows`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from step_flows import FLOWS


@pytest.fixture
def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder / "settings.py").write_text(
        'INSTALLED_MODULES = ["flows"]\nLIMITS = {"gpu": 1}\nCONCURRENCY = 4\n', "utf-8"
    )
    (folder / "flows.py").write_text(FLOWS, "utf-8")
    (folder / "context.yaml").write_text("word: hello\n", "utf-8")
    monkeypatch.delitem(sys.modules, "flows", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    return folder
