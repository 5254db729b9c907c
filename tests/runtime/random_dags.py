"""Random DAGs, written as an author would, whose tasks end as they are told: `RandomDag(seed)`."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import anyio.lowlevel

from gluepy import DAG, Retry, Skip, Task, each, parallel
from gluepy.exec.scope import current_scope
from gluepy.testing import Step, failed, skipped

LIMITS = {"gpu": 1, "disk": 2}
TIMEOUT_S = 50.0


class Told(Task):
    """Ends as `ends` says of its attempt; the last word goes on holding."""

    ends: ClassVar[Sequence[str]] = ("finishes",)

    def end(self) -> None:
        scope = current_scope()
        assert scope is not None
        match self.ends[min(scope.attempt.number, len(self.ends)) - 1]:
            case "skips":
                raise Skip("told to")
            case "finishes":
                pass
            case _:
                raise RuntimeError("told to")


class InThread(Told):
    def run(self) -> None:
        self.end()


class InLoop(Told):
    turns: ClassVar[int] = 1

    async def run(self) -> None:
        for _ in range(self.turns):
            await anyio.lowlevel.checkpoint()
        self.end()


class RandomDag:
    """A DAG (`dag`), the script by which a `ScriptedExecutor` does what its tasks would do (`script`), and `options`
    of its runs. However its tasks are timed, each of them ends in the same way. `in_haste`, nothing in it waits."""

    def __init__(self, seed: int, in_haste: bool = False) -> None:
        self.rng = rng = random.Random(seed)
        self.in_haste = in_haste
        self.script: dict[str, list[Step]] = {}
        self.room = rng.choice((3, 6, 10))
        self.may_fail = rng.random() < 0.5
        self.labels: list[str] = []
        name = f"Random{seed}"
        tasks = self.mapping() if rng.random() < 0.2 else self.sequence(0)
        self.dag = cast(
            "type[DAG]", type(name, (DAG,), {"tasks": tasks, "label": name.lower(), "__module__": __name__})
        )
        setattr(sys.modules[__name__], name, self.dag)  # a resumed run looks for it here
        self.options: dict[str, Any] = {"concurrency": rng.choice((1, 2, 4))}
        # otherwise it depends on what is faster which tasks still start
        self.options["on_failure"] = "continue" if self.may_fail else rng.choice(("drain", "continue", "cancel"))
        if rng.random() < 0.2:
            self.options[rng.choice(("tasks", "from_task", "to_task"))] = rng.choice(self.labels)

    def sequence(self, depth: int, names: tuple[str, ...] = ()) -> Any:
        return tuple(self.element(depth, names) for _ in range(self.rng.randint(1, 3)))

    def element(self, depth: int, names: tuple[str, ...]) -> Any:
        self.room -= 1
        kinds = (
            ("task",) if depth > 2 or self.room < 0 else ("task", "sequence", "parallel", "parallel", "each", "asks")
        )
        match self.rng.choice(kinds):
            case "sequence":
                return self.sequence(depth + 1, names)
            case "parallel":
                return parallel(*(self.element(depth + 1, names) for _ in range(self.rng.randint(2, 3))))
            case "each":
                name = f"p{depth}"
                return each(self.element(depth + 1, (*names, name)), **{name: list(range(self.rng.randint(1, 3)))})
            case "asks" if not names:
                values = list(range(self.rng.randint(0, 2)))

                async def asked() -> list[int]:
                    await anyio.lowlevel.checkpoint()
                    return values

                return each((self.task(("q",)), self.task(("q",))), q=asked)
            case _:
                return self.task(names)

    def mapping(self) -> dict[Any, tuple[Any, ...]]:
        tasks = [self.task(()) for _ in range(self.rng.randint(2, 7))]
        return {
            task: tuple(self.rng.sample(tasks[:number], self.rng.randint(0, min(number, 2))))
            for number, task in enumerate(tasks)
        }

    def task(self, names: tuple[str, ...]) -> type[Task]:
        rng = self.rng
        label = f"t{len(self.labels)}"
        self.labels.append(label)
        attempts = rng.choice((1, 1, 2, 3))
        kinds = ["fails"] * 3 + ([] if self.in_haste else ["is lost", "takes too long"])
        ends = rng.choices(kinds, k=rng.randint(0, attempts - 1))
        if self.may_fail and rng.random() < 0.25:
            ends = [rng.choice(kinds)]
        else:
            ends.append("skips" if rng.random() < 0.1 else "finishes")
        triggers = ["all_success"] * 3 + (["none_failed", "all_done", "one_failed"] if self.may_fail else [])
        members: dict[str, Any] = {
            "__annotations__": dict.fromkeys(names, "int"),
            "ends": ends,
            "retries": Retry(attempts=attempts, wait_s=0.0 if self.in_haste else rng.choice((0.0, 5.0)), jitter=0.0),
            "trigger": rng.choice(triggers) if self.script else "all_success",  # so that something runs
            "uses": {name: 1 for name in LIMITS if rng.random() < 0.2},
            "timeout_s": TIMEOUT_S if "takes too long" in ends else None,
            "turns": rng.randint(0, 3),
        }
        self.script[label] = [self.step(end) for end in ends]
        return cast("type[Task]", type(label, (rng.choice((InThread, InLoop)),), members))

    def step(self, end: str) -> Step:
        lasts_s = self.rng.choice((0.0, 0.0, 1.0, 2.0, 7.0))
        match end:
            case "fails":
                return Step(failed(), lasts_s=lasts_s)
            case "is lost":
                return Step(failed(reason="lost"), lasts_s=lasts_s)
            case "takes too long":
                return Step(lasts_s=2 * TIMEOUT_S)
            case "skips":
                return Step(skipped("told to"), lasts_s=lasts_s)
            case _:
                return Step(lasts_s=lasts_s)
