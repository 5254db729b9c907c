"""`gluepy export`: a run of the past, or of another machine, to any sink."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from console_calls import Console


@pytest.mark.slow
def test_run_is_sent_to_a_sink_from_its_record_and_from_stdin(shop: Console) -> None:
    assert shop("run", "train").returncode == 0
    lines = shop("events", "latest").stdout
    done = shop("export", "latest", "--sink", "jsonlines", GLUEPY_JSONLINES__PATH="record.jsonl")
    assert done.returncode == 0, done.stderr
    assert f"sent {len(lines.splitlines())} events of run" in done.stderr
    assert (shop.folder / "record.jsonl").read_text().splitlines() == lines.splitlines()
    done = shop("export", "jsonlines", stdin=f"{lines}what is this\n", GLUEPY_JSONLINES__PATH="piped.jsonl")
    assert done.returncode == 0, done.stderr
    assert "1 unreadable line" in done.stderr
    done = shop("export", "--sink", "jsonlines", stdin=lines, GLUEPY_JSONLINES__PATH="named.jsonl")
    assert (shop.folder / "named.jsonl").read_text() == lines, done.stderr
    done = shop("export", "--sink", "jsonlines", GLUEPY_JSONLINES__PATH="latest.jsonl")
    assert (shop.folder / "latest.jsonl").read_text() == lines, done.stderr
    assert (shop.folder / "piped.jsonl").read_text().splitlines() == lines.splitlines()


def test_sink_that_fails_or_is_unknown_is_one_line(shop: Console) -> None:
    shop.write("flows/sinks.py", "def broken(event):\n    raise OSError('no route')\n")
    assert shop("run", "train").returncode == 0
    done = shop("export", "latest", "--sink", "flows.sinks.broken")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "the sink flows.sinks.broken failed before it took an event: OSError: no route" in done.stderr
    done = shop("export", "latest", "--sink", "jsonline")
    assert done.returncode == 2
    assert "did you mean 'jsonlines'?" in done.stderr
    done = shop("export", "latest")
    assert (done.returncode, "no sink is named; write" in done.stderr) == (2, True)
    done = shop("export", "latest", stdin=" ")
    assert done.returncode == 2
    hint = f"no sink is named, and 'latest' is none; write `{Path(sys.executable).name} -m gluepy export latest"
    assert f"{hint} --sink NAME`" in done.stderr


def test_what_tasks_start_finds_the_run_s_span_or_that_of_its_attempt(shop: Console) -> None:
    shop.write(
        "flows/dags.py",
        """
        import os, subprocess, sys
        from gluepy import DAG, Task

        class Starts(Task):
            def run(self):
                show = [sys.executable, "-c", "import os; print(os.environ['TRACEPARENT'])"]
                for env in (os.environ, {**os.environ, "TRACEPARENT": self.traceparent}):
                    print(subprocess.run(show, env=env, capture_output=True, text=True).stdout)

        class StartsInProcess(Starts):
            pool = "process"

        class TraceDAG(DAG):
            label = "trace"
            tasks = (Starts, StartsInProcess)
        """,
    )
    outer = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert (
        shop(
            "run",
            "trace",
            "--sink",
            "otel",
            TRACEPARENT=outer,
            OTEL_TRACES_EXPORTER="none",
            OTEL_METRICS_EXPORTER="none",
            OTEL_LOGS_EXPORTER="none",
        ).returncode
        == 0
    )
    events = [json.loads(line) for line in shop("events", "latest").stdout.splitlines()]
    assert {event["trace_id"] for event in events} == {"0af7651916cd43dd8448eb211c80319c"}
    assert events[0]["parent_span_id"] == "b7ad6b7169203331"
    spans = {event["task"]: event["span_id"] for event in events if event["event"] == "task.started"}
    of_run, of_attempt, *of_process = [
        line.split("-")[2] for line in shop("logs", "latest").stdout.split() if "-" in line
    ]
    assert (of_run, of_attempt) == (events[0]["span_id"], spans["starts"])
    assert set(of_process) == {spans["startsinprocess"]}
