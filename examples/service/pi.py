"""The pipeline `pi`: throw points at a square and count those in the circle, in eight worker processes side by side."""

import json
import random

from gluepy.exec import DAG, Task, each


class Throw(Task):
    """Throw the context's number of `points`, and count the hits."""

    seed: int

    def run(self) -> None:
        throw = random.Random(self.seed).random
        points, step = self.context.points, max(1, self.context.points // 20)
        hits = 0
        for first in range(0, points, step):
            self.progress(first, points)
            hits += sum(throw() ** 2 + throw() ** 2 < 1 for _ in range(first, min(first + step, points)))
        with self.atomic(f"hits/{self.seed}.json") as file:
            file.write_text(json.dumps({"points": points, "hits": hits}))


class Estimate(Task):
    """Pi from all hits, as a metric and a file."""

    outputs = ("pi.json",)

    def run(self) -> None:
        parts = [json.loads(file.read_text()) for file in self.path.glob("hits/*.json")]
        pi = 4 * sum(part["hits"] for part in parts) / sum(part["points"] for part in parts)
        self.metric("pi", pi)
        with self.atomic("pi.json") as file:
            file.write_text(json.dumps({"pi": pi}))


class PiDAG(DAG):
    label = "pi"
    tasks = (each(Throw, seed=list(range(8))), Estimate)
