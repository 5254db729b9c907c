"""Results as JSON files, the report with its tables, and the part of the README between its markers."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from benchmarks import profile
from benchmarks.loops import Loop
from benchmarks.machine import ROOT, Machine
from benchmarks.makespan import Order
from benchmarks.peers.results import PeerResults, peer_table
from benchmarks.profile import Profile
from benchmarks.scale import Scale
from benchmarks.service import Kept, Service
from benchmarks.tables import duration, markdown
from benchmarks.turns import Row
from benchmarks.workflows import ORDERS, RealOrder

FOLDER = ROOT / "benchmarks" / "results"
T = TypeVar("T")
IN_SHORT = {
    "chain of 1,000 async no-ops": "on the event loop",
    "chain of 1,000 sync no-ops in threads": "in a thread",
    "1,000 no-op calls on 2 processes, warm": "in a warm worker process",
}
OURS, THEIRS = FOLDER / "gluepy.json", FOLDER / "peers.json"
README = ROOT / "README.md"
HOW = """\
What a task costs that does nothing, with the default settings (the record written, two events a task), against the
least that does the same without a log, results or retries: graphlib with asyncio.TaskGroup or concurrent.futures, a
bare Python process, one `os.write`. Floor and gluepy run turn by turn; a ratio is the median over the turns. The aims
are for a good and an excellent ratio: ✓ and ✓✓ say which is met, — that neither is."""

SERVICE = """\
Runs of one DAG of no-ops in one open `Runtime`, the record of each written, beside graphlib and asyncio.TaskGroup with
the same tasks; so many are under way at any time. `p50` and `p99` are from the call to the result; descriptors and
threads are the most that the process has beyond its own."""
REAL = """\
Ten families that [wfcommons](https://wfcommons.org) makes from traces, durations learned in two runs, with 20 % noise.
The best of many orders knows the durations. The last column is a bound that also sees what has to come before and
after tasks, so no order is below it. Where that is far above 1, as in Bwa and Soykb, max(critical path, work / slots)
cannot be reached, and gluepy is near the best; where gluepy is above it, as in Montage on 16 slots, a better order
exists."""
WHERE = {"loop": "on the loop", "threads": "in threads", "processes": "in processes"}


class Results(msgspec.Struct, kw_only=True):
    """All that `python -m benchmarks` measured."""

    machine: Machine
    turns: int
    rows: list[Row] = []
    services: list[Service] = []
    kept: Kept | None = None
    orders: list[Order] = []
    real_orders: list[RealOrder] = []
    scales: list[Scale] = []
    loops: list[Loop] = []
    profiles: list[Profile] = []
    imports: dict[str, float] = {}


def save(results: Results | PeerResults) -> None:
    """Keep them for `publish`."""
    FOLDER.mkdir(exist_ok=True)
    file = OURS if isinstance(results, Results) else THEIRS
    file.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def publish() -> None:
    """Write the report and the plots anew, of whatever has been measured, and the README's paragraph on speed."""
    parts = ["# Benchmarks"]
    results, peers = read(OURS, Results), read(THEIRS, PeerResults)
    if results is not None:
        parts += ["## `python -m benchmarks`", HOW, full_report(results)]
    if peers is not None:
        plot = picture("peers", "Time a task, by peer and workload")
        parts += ["## `python -m benchmarks.peers`", peers.told(), plot, peer_table(peers)]
    (FOLDER / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if results is not None:
        text = README.read_text(encoding="utf-8")
        README.write_text(between(text, "gluepy", in_short(results)), encoding="utf-8")
    _draw(results, peers)


def read(file: Path, type: type[T]) -> T | None:
    """What `save` kept; None where there is nothing, or something of another version."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=type)
    except (OSError, msgspec.ValidationError) as error:
        print(f"{file.name}: {error}; measure again")
        return None


def between(text: str, name: str, new: str) -> str:
    """`text` with `new` between the markers of `name`, which must be there."""
    begin, end = f"<!-- benchmarks: {name} -->", f"<!-- end of benchmarks: {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{README} has no {begin} … {end}")
    return pattern.sub(lambda _: f"{begin}\n\n{new}\n\n{end}", text)


def told(results: Results) -> str:
    """What was measured, where and how."""
    return f"`python -m benchmarks` on {results.machine.text()}; medians of {results.turns} turns."


def in_short(results: Results) -> str:
    """The README's picture and sentence."""
    each = {row.workload: duration(row.gluepy_each_s) for row in _main(results.rows)}
    costs = ", ".join(f"{each[workload]} {where}" for workload, where in IN_SHORT.items() if workload in each)
    sentence = f"A task that does nothing costs, with its record written, {costs}: {told(results)}"
    return picture("ratios", _alternative(results.rows), "benchmarks/results/") + "\n\n" + sentence


def full_report(results: Results) -> str:
    """Everything, as Markdown."""
    parts = [told(results)]
    if results.rows:
        parts += ["### Against floors", picture("ratios", _alternative(results.rows)), *_rows(results.rows)]
    if results.services:
        parts += ["### Short runs in a service", SERVICE, service_table(results.services)]
    if results.kept is not None:
        grown = f"After a tenth of {results.kept.runs:,} runs of one task, the others let the process grow by"
        parts.append(f"{grown} {results.kept.mib:.1f} MiB.")
    if results.scales:
        parts += ["### Many tasks", scale_table(results.scales)]
    if results.orders:
        parts += ["### Order of starting: makespan over max(critical path, work / slots)", order_table(results.orders)]
    if results.real_orders:
        parts += ["### The same on graphs of real workflows", REAL, real_order_table(results.real_orders)]
    elif results.orders:
        parts.append("Graphs of real workflows were not measured: wfcommons is not installed here.")
    if results.loops:
        parts += ["### asyncio and uvloop", loop_table(results.loops)]
    elif results.rows and results.scales:
        parts += ["### asyncio and uvloop", "not measured: uvloop is not installed here"]
    if results.profiles:
        parts += ["### Where the time goes, µs a task", profile.table(results.profiles)]
    if results.imports:
        parts += ["### What a one-task `gluepy run` imports", import_table(results.imports)]
    return "\n\n".join(parts)


def verdict(row: Row) -> str:
    """Which aim the row meets: "excellent", "good", "missed", or nothing where there is none."""
    if row.aim is None:
        return ""
    good, excellent = row.aim
    return "excellent" if row.ratio <= excellent else "good" if row.ratio <= good else "missed"


def service_table(services: Sequence[Service]) -> str:
    """What a run costs where many follow each other."""
    cells = [
        (
            f"{each.tasks} {WHERE[each.where]}",
            f"{each.at_once:,}",
            duration(each.floor_s),
            duration(each.run_s),
            f"{each.run_s / each.floor_s:.1f}",
            f"{duration(each.unrecorded_s)} ({each.unrecorded_s / each.floor_s:.1f})",
            f"{1 / each.run_s:,.0f}",
            duration(each.p50_s),
            duration(each.p99_s),
            duration(each.cpu_s),
            f"{each.descriptors:,}",
            f"{each.threads:,}",
        )
        for each in services
    ]
    head = (
        "tasks",
        "runs at once",
        "floor, a run",
        "gluepy, a run",
        "ratio",
        "`record=False` (ratio)",
        "runs a second",
    )
    return markdown((*head, "p50", "p99", "CPU, a run", "descriptors", "threads"), cells)


def scale_table(scales: Sequence[Scale]) -> str:
    """Time and memory by size."""
    cells = []
    for scale in scales:
        extra = scale.run_mib - scale.graph_mib
        cells.append(
            (
                f"{scale.tasks:,}",
                duration(scale.run_s),
                duration(scale.run_s / scale.tasks),
                duration(scale.cpu_s / scale.tasks),
                f"{scale.graph_mib:.0f} MiB",
                f"{extra:.0f} MiB",
                f"{extra * 2**20 / scale.tasks:.0f} bytes",
            )
        )
    head = ("tasks", "run", "a task", "CPU, a task", "memory, graph alone", "run, on top", "a task")
    return markdown(head, cells)


def order_table(orders: Sequence[Order]) -> str:
    """How far from the bound each order is, by family and number of slots, in the mean."""
    cells = [(each.family, str(each.slots), *map(_three, (each.fifo, each.unknown, each.learned))) for each in orders]
    columns = zip(*((each.fifo, each.unknown, each.learned) for each in orders), strict=True)
    cells.append(("all", "", *map(_three, map(statistics.fmean, columns))))
    return markdown(("family", "slots", "first in, first out", "gluepy, first run", "gluepy, learned"), cells)


def real_order_table(orders: Sequence[RealOrder]) -> str:
    """How far from the bounds gluepy is, by family and number of slots, in the mean."""
    cells = [
        (each.family, f"{each.tasks}", str(each.slots), *map(_three, (each.fifo, each.learned, each.best, each.bound)))
        for each in orders
    ]
    columns = zip(*((each.fifo, each.learned, each.best, each.bound) for each in orders), strict=True)
    cells.append(("all", "", "", *map(_three, map(statistics.fmean, columns))))
    head = ("family", "tasks", "slots", "first in, first out", "gluepy, learned", f"best of {ORDERS + 2} orders")
    return markdown((*head, "no order is below"), cells)


def loop_table(loops: Sequence[Loop]) -> str:
    """What uvloop gains."""
    cells = []
    for loop in loops:
        each = [statistics.median(taken) / loop.tasks for taken in (loop.asyncio_s, loop.uvloop_s)]
        cells.append((loop.workload, *map(duration, each), f"{loop.gain:.2f}"))
    return markdown(("workload", "asyncio, a task", "uvloop, a task", "times as fast"), cells)


def import_table(imports: dict[str, float]) -> str:
    """What takes a millisecond or more to import."""
    worth = [(package, f"{taken * 1e3:.1f} ms") for package, taken in imports.items() if taken >= 1e-3]
    total = f"{sum(imports.values()) * 1e3:.1f} ms"
    return markdown(("package", "time (by `-X importtime`, which adds to it)"), [*worth, ("all", total)])


def picture(name: str, alternative: str, where: str = "") -> str:
    """An image in a Markdown file, for light and dark pages."""
    return (
        f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{where}{name}-dark.svg">\n'
        f'<img alt="{alternative}" src="{where}{name}-light.svg">\n</picture>'
    )


def _alternative(rows: Sequence[Row]) -> str:
    return f"gluepy's time over the floor's, for {sum(1 for _ in _main(rows))} workloads"


def _main(rows: Iterable[Row]) -> Iterable[Row]:
    return (row for row in rows if not row.detail)


def _rows(rows: Sequence[Row]) -> list[str]:
    spread = [(*_cells(row), _spread(row)) for row in rows]
    return [markdown(("workload", "floor", "floor takes", "gluepy", "ratio", "aim", "ratios of the turns"), spread)]


def _cells(row: Row) -> tuple[str, ...]:
    each = (duration(row.floor_each_s), duration(row.gluepy_each_s))
    times, ratio = (("1", f"{row.ratio:.3f}"), f"{row.ratio:.3f}") if row.mean else (each, f"{row.ratio:.2f}")
    aim = ""
    if row.aim is not None:
        mark = {"excellent": "✓✓", "good": "✓", "missed": "—"}[verdict(row)]
        aim = f"{row.aim[0]:g} / {row.aim[1]:g} {mark}"
    note = f" ({row.note})" if row.note else ""
    return row.workload + note, row.floor, *times, ratio, aim


def _three(value: float) -> str:
    return f"{value:.3f}"


def _spread(row: Row) -> str:
    ratios = sorted(ours / floor for floor, ours in zip(row.floor_s, row.gluepy_s, strict=True))
    return f"{ratios[0]:.2f} … {ratios[-1]:.2f}"


def _draw(results: Results | None, peers: PeerResults | None) -> None:
    try:
        from benchmarks import plots
    except ImportError as error:
        print(f"no plots: {error} (matplotlib is in the extra `examples`)")
        return
    if results is not None:
        plots.ratios(results.rows, FOLDER)
    if peers is not None:
        plots.peers(peers, FOLDER)
