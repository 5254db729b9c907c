"""The executor of the example is tested as it is."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "examples/custom_executor"))
