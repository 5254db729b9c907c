"""Every command and program in README and docs works, run from the texts themselves.

A fenced block that begins with a comment such as `# pipeline.py` is a file. An `sh` block is run, in order, in one
folder for each document; one marked `sh fails` must fail. Only the first two commands of the README are left out: they
install, and run these tests.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# ([\w/.-]+\.\w+)\n")


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(document, marks=() if document.stem == "README" else pytest.mark.slow, id=document.stem)
        for document in DOCUMENTS
    ],
)
def test_what_a_document_says_works(document: Path, tmp_path: Path) -> None:
    blocks = BLOCK.findall(document.read_text(encoding="utf-8"))
    commands = 0
    for language, mark, text in blocks:
        named = FILE.match(text)
        if named and language != "sh":
            file = tmp_path / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        if language == "python":
            compile(text, str(document), "exec")
        if language == "sh":
            commands += 1
            if document.name == "README.md" and commands <= 2:
                continue
            run(text, fails="fails" in mark, folder=tmp_path)
    assert commands or document.stem == "glossary"


def test_links_between_documents_lead_somewhere() -> None:
    for document in [*DOCUMENTS, ROOT / "ARCHITECTURE.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def run(text: str, *, fails: bool, folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": ""}
    script = f"set -e\n{text}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert (done.returncode == 1) if fails else (done.returncode == 0), f"{text}\n{done.stdout}\n{done.stderr}"
