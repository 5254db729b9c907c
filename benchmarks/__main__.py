"""`python -m benchmarks`: measure everything, print it, and write the report (results/). Takes some minutes.

With names of parts, only those, and nothing is written: `python -m benchmarks loop threads`. gluepy runs with its
default settings: the record is written, two events a task, output captured where the command line does.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from benchmarks import (
    costs,
    events,
    in_process,
    live,
    loops,
    makespan,
    on_celery,
    on_dask,
    profile,
    report,
    scale,
    service,
    sinks,
    startup,
    workflows,
)
from benchmarks.machine import Machine, isolated
from benchmarks.report import Results
from benchmarks.turns import Effort, Row, full, small

ROWS: dict[str, Callable[[Effort], AsyncIterator[Row]]] = {
    "loop": in_process.on_the_loop,
    "threads": in_process.in_threads,
    "processes": in_process.in_processes,
    "fan-out": scale.hundred_thousand,
    "startup": startup.startup,
    "events": events.events,
    "live": live.live,
    "costs": costs.costs,
    "sinks": sinks.sinks,
    "celery": on_celery.on_celery,
    "dask": on_dask.on_dask,
}
PARTS = (*ROWS, "service", "makespan", "scale", "uvloop", "profile")


def measure(parts: Sequence[str], effort: Effort) -> Results:
    """Measure `parts`, and tell of each when it is done."""
    results = Results(machine=Machine.here(), turns=effort.turns)
    for part in parts:
        print(f"measuring: {part}", flush=True)
        match part:
            case "service":
                results.services = service.services(effort)
                results.kept = service.kept(effort)
            case "makespan":
                results.orders = makespan.orders(effort.seeds)
                results.rows.append(makespan.row(results.orders))
                results.real_orders = workflows.real_orders(max(effort.seeds // 3, 1))
            case "scale":
                results.scales = scale.scales(effort)
            case "uvloop":
                results.loops = loops.loops(effort)
            case "profile":
                results.profiles = asyncio.run(profile.profiles(effort))
                results.imports = startup.imports()
            case _:
                results.rows += asyncio.run(_rows(ROWS[part], effort))
    return results


async def _rows(part: Callable[[Effort], AsyncIterator[Row]], effort: Effort) -> list[Row]:
    return [row async for row in part(effort)]


def main() -> None:
    """Parse the options, measure in a temporary folder, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"only these, of {', '.join(PARTS)}", metavar="PART")
    parser.add_argument("--small", action="store_true", help="only see that everything works; writes nothing")
    parser.add_argument("--turns", type=int, default=7, help="at least 5")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
    effort = small if options.small else full(options.turns)
    with tempfile.TemporaryDirectory() as folder, isolated(Path(folder)):
        results = measure(options.parts or PARTS, effort)
    print(report.full_report(results))
    if not options.parts and not options.small:
        report.save(results)
        report.publish()


if __name__ == "__main__":
    main()
