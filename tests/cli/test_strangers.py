"""Records and output that strangers wrote: a terminal obeys nothing in them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable

import pytest
from console_calls import Console, Terminal

EVIL = "ev\x1b]0;title\x07il\x9b2J\u202e"
OBEYED = re.compile("\x1b|[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]")
OURS = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[lh]|2K|1A)|\r")  # colours, and what the live display does

FLOW = r"""
from gluepy import DAG, Task

class Speaks(Task):
    def run(self):
        print("\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", end=" ")
        print("\x1b]52;c;AAAA\x07 \x1b[2J end")
        self.metric("m\x1b[2J", 1)

class Fails(Task):
    def run(self):
        raise ValueError("bad \x1b]0;title\x07 \x9b2J \u202e\nsecond \x1b[2J")

class EvilDAG(DAG):
    tasks = (Speaks, Fails)
"""


@pytest.fixture
def evil(gluepy: Console) -> Console:
    """A console with a record, `EVIL`, whose every name and text was written to be obeyed."""
    gluepy.write("flow.py", FLOW)
    done = gluepy("run", "flow.py", "--run-id", "first")
    assert done.returncode == 1
    assert not OBEYED.search(done.stdout + done.stderr)
    first = gluepy.folder / ".gluepy/runs/first"
    record = first.with_name(EVIL)
    shutil.move(first, record)
    lines = []
    for line in (record / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        event["run_id"] = EVIL
        if "code_version" in event:
            event["code_version"] = f"1{EVIL}"
        lines.append(json.dumps(event))
    (record / "events.jsonl").write_text("\n".join(lines) + "\n")
    return gluepy


COMMANDS = [
    ("runs",), ("runs", "--json"), ("show",), ("show", "--json"), ("show", "latest", "fails"), ("events",),
    ("diff", "latest", "latest"), ("watch",), ("cancel", "latest"), ("prune", "--keep", "0", "--dry-run"),
    ("resume", "--dry-run"), ("resume",), ("resume", "--progress", "live"),
]  # fmt: skip


@pytest.mark.slow
def test_nothing_in_a_record_is_obeyed(evil: Console, terminal: Callable[..., Terminal]) -> None:
    for words in COMMANDS:
        done = evil(*words)
        assert "il" in done.stdout + done.stderr, words
        assert not OBEYED.search(done.stdout + done.stderr), words
        if words in (("show",), ("resume", "--progress", "live")):
            shown = terminal(*words)
            shown.wait()
            assert not OBEYED.search(OURS.sub("", shown.text).replace("\n", "")), words


@pytest.mark.slow
def test_logs_keep_their_colours_on_a_terminal_and_are_raw_in_a_pipe(
    evil: Console, terminal: Callable[..., Terminal]
) -> None:
    raw = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \x1b]52;c;AAAA\x07 \x1b[2J end"
    for words in (("logs", "latest", "speaks"), ("logs", "latest", "speaks", "--follow")):
        assert raw in evil(*words).stdout
        for colour, env in (("\x1b[31mred\x1b[0m", {}), ("red", {"NO_COLOR": "1"}), ("red", {"TERM": "dumb"})):
            shown = terminal(*words, **env)
            assert shown.wait() == 0
            assert f"{colour}  link   end" in shown.text
            assert not OBEYED.search(re.sub(r"\x1b\[[0-9;]*m|[\r\n]", "", shown.text))
