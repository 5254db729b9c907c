"""The table of what engines of graph level can do is the one by which DAGs are refused."""

from __future__ import annotations

import re
from pathlib import Path

from gluepy.exec.executors.airflow import AirflowExecutor
from gluepy.exec.executors.luigi import LuigiExecutor
from gluepy.exec.graph_level import ability_table

DOCUMENT = Path(__file__).parents[2] / "docs/orchestrators.md"


def test_table_says_what_engines_can_do() -> None:
    table = ability_table({"Airflow": AirflowExecutor, "Luigi": LuigiExecutor})
    found = re.search(r"<!-- abilities -->\n(.*?)<!-- end -->", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert found is not None
    assert found[1].strip() == table.strip(), f"write:\n{table}"
