"""The pipeline `primes`: count the primes of four ranges, side by side, each in a process of its own."""

import json

from gluepy import DAG, Task, each

STEP = 5_000


class Count(Task):
    """Count the primes from `first` to `first + STEP`."""

    first: int

    def run(self) -> None:
        primes = 0
        for done in range(0, STEP, 1000):
            self.progress(done, STEP)
            numbers = range(max(2, self.first + done), self.first + done + 1000)
            primes += sum(all(number % factor for factor in range(2, int(number**0.5) + 1)) for number in numbers)
        self.metric("primes", primes)
        with self.atomic(f"{self.first}.json") as file:
            file.write_text(json.dumps(primes))


class Add(Task):
    """Add them up."""

    outputs = ("primes.json",)

    def run(self) -> None:
        total = sum(json.loads(file.read_text()) for file in self.path.glob("[0-9]*.json"))
        print(f"{total} primes below {4 * STEP}")
        with self.atomic("primes.json") as file:
            file.write_text(json.dumps(total))


class PrimesDAG(DAG):
    label = "primes"
    tasks = (each(Count, first=[0, STEP, 2 * STEP, 3 * STEP]), Add)
