"""What was measured of the peers, and its table."""

from __future__ import annotations

import statistics

import msgspec

from benchmarks.machine import Machine
from benchmarks.tables import duration, markdown

COLUMNS = {
    "chain": "chain, sync no-ops",
    "fan_out": "1 → n → 1, 4 at a time",
    "layered": "layered, 3 dependencies each",
    "cpu": "8 × 0.5 s of CPU, 2 processes, cold",
    "command": "a one-task command",
}


class Measured(msgspec.Struct, kw_only=True):
    """One workload of one peer: the seconds of each turn, of the floor and of the peer; or why there are none."""

    tasks: int
    floor_s: list[float] = []
    peer_s: list[float] = []
    error: str = ""

    @property
    def each_s(self) -> float:
        """The median time for a task."""
        return statistics.median(self.peer_s) / self.tasks

    @property
    def ratio(self) -> float:
        """The median over the turns of the peer's time to the floor's."""
        return statistics.median(peer / floor for floor, peer in zip(self.floor_s, self.peer_s, strict=True))


class PeerResult(msgspec.Struct, kw_only=True):
    """One peer: what it is, and its workloads. `missing` says why it was not measured."""

    name: str
    versions: dict[str, str] = {}
    note: str = ""
    workloads: dict[str, Measured] = {}
    missing: str = ""


class PeerResults(msgspec.Struct, kw_only=True):
    """All that `python -m benchmarks.peers` measured."""

    machine: Machine
    peers: list[PeerResult] = []

    def told(self) -> str:
        """Where it was measured."""
        return (
            f"`python -m benchmarks.peers` on {self.machine.text()}. Each peer with its defaults, in a virtual "
            "environment of its own; in brackets the ratio to the same floors as above."
        )


def peer_table(results: PeerResults) -> str:
    """Each peer's time a task, and how that compares with the floor in the same environment."""
    rows = []
    for peer in results.peers:
        version = next(iter(peer.versions.values()), "")
        cells = [_cell(peer.workloads.get(key)) for key in COLUMNS]
        note = f"not measured: {peer.missing}" if peer.missing else peer.note
        rows.append((f"{peer.name} {version}".strip(), *cells, note))
    return markdown(("", *COLUMNS.values(), ""), rows)


def _cell(measured: Measured | None) -> str:
    if measured is None:
        return ""
    if measured.error:
        return "fails"
    ratio = f"{measured.ratio:,.0f}" if measured.ratio >= 10 else f"{measured.ratio:.1f}"
    return f"{duration(measured.each_s)} ({ratio})"
