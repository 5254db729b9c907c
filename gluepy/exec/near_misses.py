"""Class attributes that look like gluepy's own and are not: names of its kind that are misspelt, or are another tool's.

An attribute is its author's own business if it is annotated, if it is a method or a property, if a base that is no task
has it, if its value is of another kind, or if the class's own code reads it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType
from typing import Any

from gluepy.errors import nearest

_ORDER = "order"
_TASK = {  # what other tools, and habit, call the attributes of a task
    "retries": "retry retrys retry_count max_retries max_retry num_retries tries max_tries attempts max_attempts "
    "retry_delay retry_delay_s retry_delay_seconds retry_wait retry_wait_s retry_backoff",
    "timeout_s": "timeout time_out timeouts timeout_seconds timeout_secs timeout_sec timeout_ms task_timeout "
    "execution_timeout run_timeout worker_timeout time_limit max_runtime",
    "memory_mb": "memory mem mem_mb memory_gb memory_limit memory_limit_mb max_memory max_memory_mb ram ram_mb",
    "cpus": "cpu num_cpus n_cpus cores num_cores n_cores cpus_per_task",
    "queue": "queue_name queues task_queue",
    "uses": "use resources resource limits limit",
    "pool": "pools pool_name",
    "trigger": "triggers trigger_rule",
    "label": "name task_id task_name",
    "outputs": "output output_files produces",
    "inputs": "input input_files consumes",
    _ORDER: "requires require depends depends_on dependencies upstream upstream_tasks after needs",
}
_DAG = {
    "label": "name dag_id dag_name id",
    "tasks": "task steps nodes jobs",
    "evaluation": "evaluations evaluate evaluators",
}
_RUN = {  # options of a run, and how they are given on the command line
    "concurrency": ("--concurrency", "max_concurrency max_parallel parallelism max_workers max_active_tasks workers"),
    "on_failure": ("--keep-going or --fail-fast", "on_error on_fail fail_fast keep_going"),
    "executor": ("--executor", "executor_backend"),
    "params": ("--param", "parameters default_params"),
}
_NAMES = {name: ours for ours, names in _TASK.items() for name in names.split()}
_DAG_NAMES = {name: ours for ours, names in _DAG.items() for name in names.split()}
_RUN_NAMES = {name: ours for ours, (_, names) in _RUN.items() for name in (ours, *names.split())}


def near_miss_of_task(task: type, root: type) -> tuple[str, str] | None:
    """The problem and the hint if the class, below `root`, has an attribute that looks like one of `Task`'s."""
    for name, value in _own(task, root):
        ours = _ours(name, value, _NAMES, _TASK)
        if ours is not None and not _is_used(name, task):
            hint = f"did you mean {ours}?"
            if ours == _ORDER:
                hint = "the DAG's `tasks` say what a task comes after"
            elif ours == "retries" and ("delay" in name or "wait" in name or "backoff" in name):
                hint = "did you mean retries = Retry(attempts=…, wait_s=…)?"
            return f"{name} = {_short(value)} means nothing to gluepy", f"{hint} ({_own_business(name, value)})"
    return None


def near_miss_of_dag(dag: type, root: type, of_tasks: Iterable[str]) -> tuple[str, str] | None:
    """The same for a DAG, which has none of the attributes `of_tasks` either, and no options of a run."""
    for name, value in _own(dag, root):
        if _is_used(name, dag):
            continue
        if name in of_tasks and name != "label":
            hint = f"write it in the classes of its tasks, or in a base of these ({_own_business(name, value)})"
            return f"{name} = {_short(value)} means nothing in a DAG", hint
        ours = _ours(name, value, _DAG_NAMES, _DAG)
        if ours is not None:
            hint = f"did you mean {ours}? ({_own_business(name, value)})"
            return f"{name} = {_short(value)} means nothing to gluepy", hint
        ours = _ours(name, value, _NAMES, _TASK)
        if ours is not None and ours not in ("label", _ORDER):
            hint = f"did you mean {ours}, in the classes of its tasks? ({_own_business(name, value)})"
            return f"{name} = {_short(value)} means nothing in a DAG", hint
        ours = _RUN_NAMES.get(name)
        if ours is not None and _KINDS[ours](value):
            hint = f"give it to the run: {_RUN[ours][0]}, or run_dag(…, {ours}=…) ({_own_business(name, value)})"
            return f"{name} = {_short(value)} means nothing in a DAG", hint
    return None


def _own_business(name: str, value: Any) -> str:
    return f"if it is your own, annotate it: {name}: ClassVar[{type(value).__name__}]"


def _own(cls: type, root: type) -> Iterator[tuple[str, Any]]:
    """The attributes of the class, its bases' included, that are nobody's but plain values without an annotation."""
    bases = [base for base in cls.__mro__ if base is not root and issubclass(base, root)]
    for base in bases:
        for name, value in vars(base).items():
            if name.startswith("_") or inspect.isroutine(value) or hasattr(value, "__get__"):
                continue
            known = {name for each in cls.__mro__[:-1] for name in inspect.get_annotations(each)}
            if name not in known and not any(name in vars(each) for each in cls.__mro__[:-1] if each not in bases):
                yield name, value


def _ours(name: str, value: Any, names: Mapping[str, str], known: Mapping[str, str]) -> str | None:
    ours = names.get(name)
    if ours is None and any(each[0] == name[0] and abs(len(each) - len(name)) <= 2 for each in known):
        ours = nearest(name, [each for each in known if each != _ORDER], 0.8)
    return ours if ours is not None and _KINDS[ours](value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or type(value).__name__ in ("timedelta", "Retry")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_names(value: Any) -> bool:
    return isinstance(value, (str, tuple, list)) or hasattr(value, "joinpath")


def _is_tasks(value: Any) -> bool:
    return isinstance(value, (str, type, tuple, list, set, dict)) or hasattr(value, "_given")


_KINDS: dict[str, Callable[[Any], bool]] = {
    "retries": _is_number,
    "timeout_s": _is_number,
    "memory_mb": lambda value: _is_number(value) or _is_text(value),
    "cpus": _is_number,
    "queue": _is_text,
    "uses": lambda value: isinstance(value, Mapping),
    "pool": _is_text,
    "trigger": _is_text,
    "label": _is_text,
    "outputs": _is_names,
    "inputs": _is_names,
    "tasks": _is_tasks,
    "evaluation": _is_tasks,
    _ORDER: _is_tasks,
    "concurrency": _is_number,
    "on_failure": lambda value: _is_text(value) or value is True,
    "executor": lambda value: _is_text(value) or isinstance(value, type),
    "params": lambda value: isinstance(value, Mapping),
}


def _is_used(name: str, cls: type) -> bool:
    """Whether code of the class or of its bases reads an attribute of that name."""
    return any(name in _names_in(code) for base in cls.__mro__[:-1] for code in _code_of(base))


def _code_of(cls: type) -> Iterator[CodeType]:
    for value in vars(cls).values():
        for part in (value, *(getattr(value, each, None) for each in ("__func__", "func", "fget", "fset"))):
            code = getattr(inspect.unwrap(part), "__code__", None) if callable(part) else None
            if isinstance(code, CodeType):
                yield code


def _names_in(code: CodeType) -> set[str]:
    inside = (_names_in(each) for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*inside)


def _short(value: Any) -> str:
    text = value.__qualname__ if isinstance(value, type) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
