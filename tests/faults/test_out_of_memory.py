"""The kernel's out-of-memory killer is named only with evidence: a count that went up in this control group."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from workers import WORKERS, call

from gluepy.exec.executors.cgroup import LATELY_S, MEMBERSHIP, ROOT, OomKills, files
from gluepy.exec.executors.processes import WorkerLost, WorkerPool

pytestmark = WORKERS

VERSION_1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"
VERSION_2 = "low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n"
HYBRID = "5:devices:/\n4:cpu,memory:/user/job\n1:name=systemd:/user\n0::/user/unified\n"


def kills(tmp_path: Path, membership: str, tree: dict[str, str]) -> int:
    """What is counted in a tree of control groups."""
    for name, text in tree.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "membership").write_text(membership)
    count = OomKills(tmp_path / "cgroup", tmp_path / "membership")
    assert count.count() == 0
    count.open()
    try:
        return count.count()
    finally:
        count.close()


@pytest.mark.parametrize(
    ("membership", "file", "text"),
    [
        pytest.param("0::/user/job\n", "user/job/memory.events", VERSION_2, id="version-2"),
        pytest.param("0::/user/job\n", "user/job/memory.events.local", VERSION_2, id="version-2-local"),
        pytest.param(HYBRID, "memory/user/job/memory.oom_control", VERSION_1, id="version-1"),
        pytest.param("0::/\n", "memory.events", VERSION_2, id="version-2-in-a-container"),
        pytest.param("4:memory:/docker/3f\n", "memory/memory.oom_control", VERSION_1, id="version-1-in-a-container"),
        pytest.param("0::/a:b c\n", "a:b c/memory.events", VERSION_2, id="strange-name"),
    ],
)
def test_the_count_is_found_wherever_the_kernel_has_it(tmp_path: Path, membership: str, file: str, text: str) -> None:
    assert kills(tmp_path, membership, {file: text}) == 3


def test_the_count_of_the_own_group_comes_before_that_of_others(tmp_path: Path) -> None:
    own = "memory/user/job/memory.oom_control"
    others = ("memory/memory.oom_control", "user/unified/memory.events", "memory.events", "memory/user/memory.events")
    tree = {own: VERSION_1, **dict.fromkeys(others, "oom_kill 7\n")}
    assert kills(tmp_path, HYBRID, tree) == 3
    assert kills(tmp_path, "".join(reversed(HYBRID.splitlines(keepends=True))), tree) == 3
    local, below = "job/memory.events.local", "job/memory.events"
    assert kills(tmp_path, "0::/job\n", {local: VERSION_2, below: "oom_kill 7\n"}) == 3


@pytest.mark.parametrize("text", ["", "oom_kill", "oom_kill many\n", "under_oom 0\n", "\x00\xff"])
def test_what_cannot_be_read_is_no_evidence(tmp_path: Path, text: str) -> None:
    assert kills(tmp_path, "0::/job\n", {"job/memory.events": text}) == 0
    assert kills(tmp_path, "0::/nowhere\n", {}) == 0
    assert kills(tmp_path, "no group at all\n", {}) == 0


def test_a_machine_without_control_groups_has_no_evidence(tmp_path: Path) -> None:
    count = OomKills(tmp_path / "none", tmp_path / "nothing")
    count.open()
    assert count.count() == 0
    count.close()


def test_this_machines_kernel_counts_as_expected() -> None:
    found = [file for file in files(ROOT, MEMBERSHIP) if file.is_file()]
    if not found:
        pytest.skip("no memory control group here")
    assert "oom_kill " in found[0].read_text()


def test_the_count_is_not_looked_at_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert kills(tmp_path, "0::/job\n", {"job/memory.events": "oom_kill 3\n"}) == 3
    count = OomKills(tmp_path / "cgroup", tmp_path / "membership")
    count.open()
    try:
        assert count.lately() == 3
        (tmp_path / "cgroup/job/memory.events").write_text("oom_kill 4\n")
        assert count.lately() == 3
        now += 2 * LATELY_S
        assert count.lately() == 4
        (tmp_path / "cgroup/job/memory.events").write_text("oom_kill 5\n")
        assert (count.count(), count.lately()) == (5, 5)
    finally:
        count.close()


async def test_the_out_of_memory_killer_is_named_only_with_evidence(tmp_path: Path) -> None:
    events = tmp_path / "job/memory.events"
    events.parent.mkdir()
    events.write_text(VERSION_2)
    (tmp_path / "membership").write_text("0::/job\n")
    strikes = f"open({str(events)!r}, 'w').write('oom 4\\noom_kill %d\\n')\n"
    dies = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    async with WorkerPool(oom_kills=OomKills(tmp_path, tmp_path / "membership")) as pool:
        with pytest.raises(WorkerLost, match=r"killed by SIGKILL, peak RSS \d+ MB; look for who") as caught:
            await call(pool, dies)
        assert not caught.value.oom
        said = r"killed by SIGKILL, peak RSS \d+ MB \(cgroup reports an OOM kill\); run fewer"
        with pytest.raises(WorkerLost, match=said) as caught:
            await call(pool, strikes % 4 + dies)
        assert caught.value.oom
        with pytest.raises(WorkerLost) as caught:
            await call(pool, strikes % 5 + "import os\nos._exit(1)")
        assert not caught.value.oom
        with pytest.raises(WorkerLost) as caught:
            await call(pool, strikes % 6 + "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)")
        assert not caught.value.oom
        with pytest.raises(WorkerLost) as caught:
            await call(pool, dies)
        assert not caught.value.oom
