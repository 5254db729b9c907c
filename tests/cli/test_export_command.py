"""`gluepy export`: a run of the past, or of another machine, to any sink."""

from __future__ import annotations

from console_calls import Console


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
