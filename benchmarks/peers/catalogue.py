"""The peers: what is installed for each, and how much is asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field

QUIET = {  # nothing of this is to be told to anybody
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DAGSTER_DISABLE_TELEMETRY": "1",
    "SCARF_ANALYTICS": "false",
    "HAMILTON_TELEMETRY_ENABLED": "false",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "false",
}


@dataclass(frozen=True)
class Peer:
    """One line of the table. `requirements` (the first names the peer itself) are pip's; the script `with_<script>`
    runs with them and `variant`, on graphs of some `tasks` tasks."""

    name: str
    script: str
    requirements: tuple[str, ...]
    variant: str = ""
    tasks: int = 1_000
    turns: int = 5
    environment: dict[str, str] = field(default_factory=dict)
    note: str = ""


PEERS = (
    Peer("gluepy", "gluepy", ("gluepy",), note="a runtime for each run; four threads everywhere"),
    Peer("Dask, synchronous", "dask", ("dask==2026.8.0",), "sync", note="`dask.delayed`; results in memory"),
    Peer("Dask, threads", "dask", ("dask==2026.8.0",), "threads", note="`dask.delayed`; results in memory"),
    Peer("joblib", "joblib", ("joblib==1.6.0",), note="knows no dependencies"),
    Peer("Hamilton", "hamilton", ("sf-hamilton==1.90.0",), note="in memory; the fan-out by its `FutureAdapter`"),
    Peer("doit", "doit", ("doit==0.37.0",), note="one thread, four for the fan-out"),
    Peer(
        "Luigi",
        "luigi",
        ("luigi==3.8.1",),
        tasks=100,
        turns=3,
        note="100 tasks, since what one costs grows with their number; one worker, since more are processes",
    ),
    Peer("Kedro", "kedro", ("kedro==1.7.0",), turns=3, note="data sets in memory"),
    Peer("Ray", "ray", ("ray==2.60.0",), note="four worker processes, which are up already but for the CPU workload"),
    Peer(
        "Dagster",
        "dagster",
        ("dagster==1.13.29",),
        tasks=100,
        turns=3,
        note="100 tasks; one after another in one process",
    ),
    Peer(
        "Prefect",
        "prefect",
        ("prefect==3.8.8", "fastapi==0.139.0"),  # with later ones its own server does not start: `min_items`
        tasks=100,
        turns=3,
        note="100 tasks; with the server that it starts itself, which is up already but for the command",
    ),
    Peer(
        "Airflow",
        "airflow",
        ("apache-airflow==3.3.2",),
        tasks=100,
        turns=3,
        environment={"AIRFLOW__CORE__LOAD_EXAMPLES": "false"},
        note="100 tasks; `dag.test()` in one process, without its scheduler",
    ),
)
