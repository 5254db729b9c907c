"""Pictures: each library saves its own figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUFFIXES = ("png", "svg", "pdf", "jpg", "jpeg", "webp", "html")
LIBRARIES = ("matplotlib", "plotly", "altair", "pillow")


def write(library: str, path: Path, suffix: str, figure: Any, options: Mapping[str, Any]) -> None:
    """Save `figure` in the format of the suffix."""
    match library:
        case "matplotlib":
            figure.savefig(path, **{"format": suffix, **options})
        case "plotly" if suffix == "html":
            figure.write_html(path, **options)
        case "plotly":
            figure.write_image(path, **{"format": suffix, **options})
        case "altair":
            figure.save(str(path), **{"format": suffix, **options})
        case _:
            figure.save(path, **{"format": "jpeg" if suffix == "jpg" else suffix, **options})
