"""What can be asked. Routes are made from it, requests are checked against it, and the OpenAPI document tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gluepy.core.events import JSON
from gluepy.runs.record import RUN_ID

STATUSES = ("finished", "failed", "cancelled", "running", "interrupted", "unreadable")
_POSITION: dict[str, JSON] = {"type": "integer", "minimum": 0, "maximum": 2**53}

REFUSALS = {
    400: "The request cannot be read.",
    403: "It comes from elsewhere, or is not allowed.",
    404: "There is none of this name.",
    409: "The run is not in a state for that.",
    413: "The body is too long.",
    415: "The body is not JSON.",
    416: "There are no such bytes.",
    422: "It cannot be meant.",
    500: "What it needs cannot be read.",
    503: "Runs cannot be started here, or could not go on.",
}


class Query(NamedTuple):
    """A parameter of a query, with its JSON Schema."""

    name: str
    schema: Mapping[str, JSON]
    about: str


class Operation(NamedTuple):
    """Something that can be asked. `answer` is the name of the schema of its JSON; `refusals` are the statuses of
    refusals besides 403, which any request may get; `options` has the
    JSON Schemas of what its body may say."""

    name: str
    path: str
    about: str
    answer: str
    refusals: tuple[int, ...] = ()
    queries: tuple[Query, ...] = ()
    method: str = "GET"
    options: Mapping[str, JSON] = {}


_OF_RUN = (404, 500)
_CHANGES = (409, 413, 415, 422, 503)
_TEXT: dict[str, JSON] = {"type": ["string", "null"], "maxLength": 1000}
_NAMES: dict[str, JSON] = {"type": ["array", "null"], "items": {"type": "string"}}
_OPTIONS: dict[str, JSON] = {
    "params": {
        "type": ["object", "null"],
        "propertyNames": {"pattern": r"^[^.]+(\.[^.]+)*$"},
        "description": "Values over those of the context, by dotted names.",
    },
    "concurrency": {"type": ["integer", "null"], "minimum": 1, "maximum": 10_000},
    "pool": {"enum": ["thread", "process", None]},
    "on_failure": {"enum": ["drain", "continue", "cancel", None]},
    "skip_evaluation": {"type": "boolean", "description": "Whether to leave out the DAG's evaluation."},
    "timeout_s": {"type": ["number", "null"], "exclusiveMinimum": 0},
    "capture": {"type": "boolean", "description": "Whether what tasks print goes to their logs.", "default": True},
}
RUN_OPTIONS: dict[str, JSON] = {
    **_OPTIONS,
    "tasks": _NAMES,
    "from_task": _TEXT,
    "to_task": _TEXT,
    "run_id": {"type": ["string", "null"], "pattern": RUN_ID.pattern},
}
RESUME_OPTIONS: dict[str, JSON] = {**_OPTIONS, "evaluate": {"type": "boolean"}, "force": _NAMES, "from_task": _TEXT}

OPERATIONS = (
    Operation("list_dags", "/dags", "The DAGs of the project.", "Dags", (422, 500)),
    Operation("show_dag", "/dags/{label}", "A DAG, its graph and the parameters of its runs.", "Dag", (404, 422, 500)),
    Operation(
        "list_runs",
        "/runs",
        "The newest runs, newest first. A header `Link` with `rel=next` leads to the next page, if there is one.",
        "Runs",
        (404, 422),
        (
            Query("dag", {"type": "string", "maxLength": 1000}, "Only runs of the DAG with this label."),
            Query("status", {"type": "string", "enum": list(STATUSES)}, "Only runs with this status."),
            Query(
                "since",
                {"type": "string", "format": "date-time", "maxLength": 50},
                "Only runs since then.",
            ),
            Query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "At most so many runs."),
            Query(
                "cursor",
                {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": 1000},
                "Where to go on: the link to the next page has it.",
            ),
        ),
    ),
    Operation("show_run", "/runs/{run_id}", "A run, as `gluepy show --json` prints it.", "Run", _OF_RUN),
    Operation("show_graph", "/runs/{run_id}/graph", "The graph of a run.", "Graph", _OF_RUN),
    Operation("show_task", "/runs/{run_id}/tasks/{task}", "A task of a run, with its attempts.", "Task", _OF_RUN),
    Operation(
        "list_events",
        "/runs/{run_id}/events",
        "The events of a run, from its log. With `Accept: text/event-stream` they come as server-sent events, as they "
        "happen, until the run has ended; `id` is the number of the event. A client that comes again with "
        "`Last-Event-ID` gets those after that one, and 204 if there is nothing more to come.",
        "Events",
        (*_OF_RUN, 422),
        (
            Query("after", {**_POSITION, "default": 0}, "Only events with a number (`seq`) above this one."),
            Query(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 1_000},
                "At most so many.",
            ),
        ),
    ),
    Operation(
        "read_log",
        "/runs/{run_id}/logs/{task}",
        "What an attempt of a task has printed. One `Range` of bytes may be asked for.",
        "",
        (*_OF_RUN, 416, 422),
        (
            Query(
                "attempt", {"type": "integer", "minimum": 1, "maximum": 10**6}, "Which attempt; the last by default."
            ),
            Query("follow", {"type": "boolean", "default": False}, "Go on until the attempt has ended."),
            Query("offset", {**_POSITION, "default": 0}, "With `follow`: from this byte on."),
        ),
    ),
    Operation(
        "start_run",
        "/dags/{label}/runs",
        "Start a run of a DAG. It goes on when the answer is there, which tells its id.",
        "Started",
        (404, *_CHANGES),
        method="POST",
        options=RUN_OPTIONS,
    ),
    Operation(
        "resume_run",
        "/runs/{run_id}/resume",
        "Resume a run that failed, was cancelled or lost its driver.",
        "Started",
        (404, 500, *_CHANGES),
        method="POST",
        options=RESUME_OPTIONS,
    ),
    Operation(
        "cancel_run",
        "/runs/{run_id}/cancel",
        "Have whoever drives a run stop it, soon.",
        "Started",
        (404, 409, 413, 415, 422, 500),
        method="POST",
    ),
    Operation("scrape", "/metrics", "The metrics of this process, for Prometheus.", "", (404,)),
    Operation("health", "/health", "Whether it serves, and whether runs can be started.", "Health"),
    Operation("openapi", "/openapi.json", "This document.", "Document"),
)

QUERIES = {operation.name: operation.queries for operation in OPERATIONS}
