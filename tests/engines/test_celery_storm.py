"""Workers, brokers and drivers are killed all the time; each effect is there once, and nothing is left."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from brokers import HERE, Broker, RabbitMQ, Redis, Worker, end

BROKERS = {"redis": Redis, "rabbitmq": RabbitMQ}
KILLS = int(os.environ.get("GLUEPY_TEST_QUEUE_KILLS", "50"))
TASKS = 10 * KILLS
BROKER_KILLS, DRIVER_KILLS = 3, 2
HEARTBEAT_S = 20.0  # longer than a broker takes to start
MODULES = '["celery_tasks", "storm"]'


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform == "win32", reason="workers fork")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("which", ["redis", "rabbitmq"])
def test_storm_of_kills_loses_no_effect_and_has_none_twice(which: str, folder: Path, tmp_path: Path) -> None:
    broker = BROKERS[which](tmp_path / "broker")
    broker.start()
    (folder / "settings.py").write_text(
        f"INSTALLED_MODULES = ['celery_tasks', 'storm']\nEXECUTOR_BACKEND = 'celery'\n"
        f"CELERY = {{'broker_url': {broker.url!r}, 'heartbeat_s': {HEARTBEAT_S}, 'queue_timeout_s': 120}}\n"
        f"RUNS_ROOT = 'runs'\nSTORAGE_ROOT = 'data'\n"
    )
    (folder / "storm.py").write_text(
        "from celery_tasks import Effect\nfrom gluepy import DAG, parallel\n"
        "class StormDAG(DAG):\n    label = 'storm'\n"
        f"    tasks = (parallel(*(Effect(number=number) for number in range({TASKS}))),)\n"
    )
    storm = Storm(broker, folder)
    try:
        storm.rage()
    finally:
        storm.end()
        broker.stop()
    storm.check()


class Storm:
    """A run on two workers, and what happens to it."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker, self.folder = broker, folder
        self.random = random.Random(1)
        self.workers: list[Worker] = []
        self.driver = self.drive("run", "storm", "-c", "16", "--quiet")
        self.left: list[psutil.Process] = []

    def drive(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / "driver.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "gluepy", *words],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(HERE)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def rage(self) -> None:
        """Kill, each time that some more has been done; return when the run has ended."""
        blows = ["broker"] * BROKER_KILLS + ["driver"] * DRIVER_KILLS + ["worker"] * KILLS
        self.random.shuffle(blows)
        self.workers = [self.worker(), self.worker()]
        seen, step = 0, TASKS // (len(blows) + 5)
        while self.driver.poll() is None:
            done = len(self.effects())
            if blows and done >= seen + step:
                seen = done
                self.strike(blows.pop())
            time.sleep(0.02)
        assert self.driver.returncode == 0, (self.folder / "driver.log").read_text()[-4000:]
        assert not blows, f"it was over before {blows}"

    def strike(self, whom: str) -> None:
        match whom:
            case "broker":
                self.broker.kill()
                self.broker.start()
            case "driver":
                end(self.driver)
                self.driver = self.drive("resume", "--quiet")
            case _:
                place = self.random.randrange(2)
                worker = self.workers[place]
                process = psutil.Process(worker.process.pid)
                self.left += process.children(recursive=True)
                match self.random.choice(["child", "main", "group"]):
                    case "child":
                        for child in process.children()[:1]:
                            child.kill()
                        return
                    case "main":
                        worker.process.kill()
                    case "group":
                        os.killpg(worker.process.pid, signal.SIGKILL)
                worker.process.wait()
                self.workers[place] = self.worker()

    def worker(self) -> Worker:
        return Worker(self.broker, self.folder, "-c", "2", heartbeat_s=HEARTBEAT_S, modules=MODULES)

    def end(self) -> None:
        end(self.driver)
        for worker in self.workers:
            worker.stop()

    def effects(self) -> list[tuple[int, int]]:
        """(task, attempt) of each, in order."""
        file = self.folder / "data/effects"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(number), int(attempt)) for number, attempt in map(str.split, lines)]

    def check(self) -> None:
        effects = self.effects()
        twice = [effect for effect, count in Counter(effects).items() if count > 1]
        assert not twice, "an attempt ran twice"
        (record,) = (self.folder / "runs").glob("*-*")
        events = [json.loads(line) for line in (record / "events.jsonl").read_text().splitlines()]
        ended = Counter(event["task"] for event in events if event["event"] == "task.finished")
        assert ended == Counter({f"effect[number={number}]": 1 for number in range(TASKS)})
        for event in events:
            if event["event"] == "task.finished":
                number = int(event["task"].partition("=")[2][:-1])
                attempts = [attempt for task, attempt in effects if task == number]
                assert attempts[-1] == event["attempt"] == max(attempts), f"{event['task']} ran again: {attempts}"
        _, alive = psutil.wait_procs(self.left, 60)
        assert not alive, "processes were left"
