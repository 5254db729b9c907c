"""`python -m benchmarks.peers [NAME…]`: install each peer into a virtual environment, measure it, write the report.

A name is a script's: dask, prefect. With names only those are measured, and the other results stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.machine import ROOT, Machine
from benchmarks.peers.catalogue import PEERS, QUIET, Peer
from benchmarks.peers.results import Measured, PeerResult, PeerResults, peer_table

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gluepy-benchmarks"
LIMIT_S = 1_200
NOT_THEIRS = ("VIRTUAL_ENV", "FORCE_COLOR", "PYTHONDONTWRITEBYTECODE")


def environment_of(peer: Peer, venvs: Path) -> Path:
    """The Python of the peer's virtual environment, which is made, and brought up to date, if need be."""
    folder = venvs / peer.script
    python = folder / "bin" / "python"
    wanted = "\n".join(peer.requirements)
    marker = folder / "installed.txt"
    if not marker.exists() or marker.read_text() != wanted:
        print(f"{peer.name}: installing {', '.join(peer.requirements)}", flush=True)
        _quietly([sys.executable, "-m", "venv", str(folder)])
        what = ["-e", str(ROOT)] if peer.script == "gluepy" else peer.requirements
        _quietly([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *what])
        marker.write_text(wanted)
    return python


def measure(peer: Peer, venvs: Path, turns: int) -> PeerResult:
    """Run the peer's script, in an empty home of its own. What goes wrong is part of the result."""
    try:
        python = environment_of(peer, venvs)
        print(f"{peer.name}: measuring", flush=True)
        with tempfile.TemporaryDirectory() as home:
            answer = _run(peer, python, home, min(turns, peer.turns))
        workloads = msgspec.convert(json.loads(answer), dict[str, Measured])
        return PeerResult(name=peer.name, versions=_versions(peer, python), note=peer.note, workloads=workloads)
    except subprocess.CalledProcessError as error:
        told = (error.stderr or "").strip().splitlines()
        return PeerResult(name=peer.name, note=peer.note, missing=told[-1][:200] if told else str(error))
    except subprocess.TimeoutExpired:
        return PeerResult(name=peer.name, note=peer.note, missing=f"took longer than {LIMIT_S // 60} minutes")


def _run(peer: Peer, python: Path, home: str, turns: int) -> str:
    homes = dict.fromkeys(("HOME", "PREFECT_HOME", "AIRFLOW_HOME", "DAGSTER_HOME", "XDG_CONFIG_HOME"), home)
    ours = {"PYTHONPATH": str(ROOT), "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    environment = {name: value for name, value in os.environ.items() if name not in NOT_THEIRS}
    command = [str(python), "-P", "-m", f"benchmarks.peers.with_{peer.script}", "--turns", str(turns)]
    command += ["--tasks", str(peer.tasks), "--variant", peer.variant]
    log = python.parents[1] / "stderr.txt"
    with log.open("w") as stderr:  # some tell a lot
        done = subprocess.run(
            command,
            cwd=home,
            env={**environment, **homes, **ours, **QUIET, **peer.environment},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, stderr=log.read_text(errors="replace"))
    return done.stdout.splitlines()[-1]


def _versions(peer: Peer, python: Path) -> dict[str, str]:
    names = [requirement.partition("==")[0] for requirement in peer.requirements]
    program = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    told = subprocess.run([python, "-c", program, *names], capture_output=True, text=True, check=True).stdout
    return dict(zip(names, told.split(), strict=True))


def _quietly(command: Sequence[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)


def main() -> None:
    """Measure, print, and write the results and the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    names = list(dict.fromkeys(peer.script for peer in PEERS))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these, of {', '.join(names)}")
    parser.add_argument("--venvs", type=Path, default=CACHE, help=f"where the environments are kept ({CACHE})")
    parser.add_argument("--turns", type=int, default=5, help="at most so many; slow peers get fewer")
    parser.add_argument("--print", action="store_true", help="print the table, write nothing")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"{', '.join(sorted(unknown))}: the peers are {', '.join(names)}")
    kept: dict[str, PeerResult] = {}
    if options.names and (before := report.read(report.THEIRS, PeerResults)) is not None:
        kept = {peer.name: peer for peer in before.peers}
    for peer in PEERS:
        if not options.names or peer.script in options.names:
            kept[peer.name] = measure(peer, options.venvs, options.turns)
    found = [kept[peer.name] for peer in PEERS if peer.name in kept]
    results = PeerResults(machine=Machine.here(), peers=found)
    print(peer_table(results))
    if not options.print:
        report.save(results)
        report.publish()


if __name__ == "__main__":
    main()
