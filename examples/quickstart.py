"""How much Python is in Python?

`python examples/quickstart.py` prints a chart. `gluepy run examples/quickstart.py:QuickstartDAG` keeps what tasks print
in their log files: `gluepy logs latest chart`.
"""

import sysconfig
from pathlib import Path

from gluepy import DAG, Task, each, run_dag_sync


class Count(Task):
    package: str

    def run(self) -> None:
        folder = Path(sysconfig.get_path("stdlib")) / self.package
        lines = sum(file.read_bytes().count(b"\n") for file in folder.rglob("*.py"))
        self.metric("lines", lines)
        with self.atomic(f"{self.package}.txt") as file:
            file.write_text(str(lines))


class Chart(Task):
    def run(self) -> None:
        lines = {file.stem: int(file.read_text()) for file in self.path.glob("*.txt")}
        for package in sorted(lines, key=lambda package: -lines[package]):
            print(f"{package:>12} {'█' * (lines[package] // 400)} {lines[package]:,}")


class QuickstartDAG(DAG):
    label = "quickstart"
    tasks = (each(Count, package=["asyncio", "email", "html", "json", "tkinter", "unittest", "xml"]), Chart)


if __name__ == "__main__":
    run_dag_sync(QuickstartDAG)
