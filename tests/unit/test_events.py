"""Events: one JSON line each, there and back; the names in it; and the JSON Schema that is shipped."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Literal, get_args, get_origin

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gluepy.core import events as e

KINDS = get_args(e.Event)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
VALIDATOR: Any = jsonschema.Draft202012Validator(e.json_schema())


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return VALUES
    if origin is Literal:
        return st.sampled_from(parts)
    if origin is list:
        return st.lists(values_of(parts[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(st.text(), values_of(parts[1]), max_size=3)
    if parts:  # X | None
        return st.one_of(*(values_of(part) for part in parts))
    simple: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(-(2**40), 2**40),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return simple[kind]


def any_of(kind: type[e.Event]) -> st.SearchStrategy[e.Event]:
    fields = msgspec.structs.fields(kind)
    return st.builds(kind, **{field.name: values_of(field.type) for field in fields})


EVENTS = st.one_of(*map(any_of, KINDS))


def filled(kind: Any) -> Any:
    """An event of the kind with something in every field."""
    examples: dict[Any, Any] = {int: 7, float: 1.5, str: "text", bool: True, Any: {"a": 1}}

    def example(kind: Any) -> Any:
        origin, parts = get_origin(kind), get_args(kind)
        if origin is Literal:
            return parts[0]
        if origin is list:
            return [example(parts[0])]
        if origin is dict:
            return {"key": example(parts[1])}
        return example(parts[0]) if parts else examples[kind]

    return kind(**{field.name: example(field.type) for field in msgspec.structs.fields(kind)})


@given(EVENTS)
@settings(max_examples=300, deadline=None)
def test_every_event_is_one_line_there_and_back(event: e.Event) -> None:
    line = e.encode(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert e.decode(line) == event
    assert e.decode(line.decode()) == event


@given(EVENTS)
@settings(max_examples=200, deadline=None)
def test_every_event_fits_the_schema(event: e.Event) -> None:
    VALIDATOR.validate(json.loads(e.encode(event)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_refuses_an_event_without_a_field_it_needs(kind: Any) -> None:
    whole = json.loads(e.encode(filled(kind)))
    VALIDATOR.validate(whole)
    for field in msgspec.structs.fields(kind):
        if field.required:
            torn = {name: value for name, value in whole.items() if name != field.encode_name}
            with pytest.raises(jsonschema.ValidationError):
                VALIDATOR.validate(torn)
            with pytest.raises(msgspec.ValidationError):
                e.decode(json.dumps(torn))


def test_the_schema_that_is_shipped_is_the_one_of_the_types() -> None:
    shipped = (files("gluepy.core") / "events.schema.json").read_text("utf-8")
    generated = json.dumps(e.json_schema(), indent=2) + "\n"
    hint = "import json; from gluepy.core.events import json_schema; print(json.dumps(json_schema(), indent=2))"
    assert shipped == generated, f"write it again: python -c '{hint}' > gluepy/core/events.schema.json"


@pytest.mark.parametrize("kind", KINDS)
def test_no_proper_prefix_of_a_line_is_an_event(kind: Any) -> None:
    line = e.encode(filled(kind))[:-1]
    assert e.decode(line) == filled(kind)
    for cut in range(len(line)):
        with pytest.raises((msgspec.DecodeError, UnicodeError)):
            e.decode(line[:cut])


def test_fields_have_the_names_of_the_contract() -> None:
    names = {kind.__struct_config__.tag: [f.encode_name for f in msgspec.structs.fields(kind)] for kind in KINDS}
    header = ["seq", "session", "timestamp", "level", "run_id", "dag"]
    about = [*header, "task", "attempt"]
    opening = ["schema_version", "gluepy_version", "host", "pid", "graph", "params_digest", "code_version", "options"]
    spans = ["trace_id", "span_id"]
    resumed = ["parent_span_id", "previous_trace_id", "sampled"]
    over = ["duration_s", "counts"]
    where = ["worker", "pid", "host", "cpu_s", "peak_rss_mb"]
    error = ["reason", "error.type", "error.message", "error.stack", *where, "abandoned", "log"]
    at = ["executor", "pool"]
    dataset = ["dataset", "url", "bytes", "fingerprint", "rows", "columns"]
    assert names == {
        "run.started": [*header, *opening, "parent_span_id", "sampled", *spans],
        "run.resumed": [*header, *opening, "changes", "params_changed", *resumed, *spans],
        "run.finished": [*header, *over, "output_dropped", *spans],
        "run.failed": [*header, *over, "failed", "reason", "output_dropped", *spans],
        "run.cancelled": [*header, *over, "output_dropped", *spans],
        "task.started": [*about, "max_attempts", *at, "host", "pid", "queued_s", *spans],
        "task.finished": [*about, *at, "duration_s", *where, "max_attempts", "warning", *spans],
        "task.failed": [*about, "max_attempts", *at, "duration_s", *error, *spans],
        "task.retrying": [*about, "max_attempts", *at, "duration_s", "delay_s", *error, *spans],
        "task.skipped": [*about, "reason", "why", "duration_s", *spans],
        "task.blocked": [*about, "blocked_by", *spans],
        "task.cancelled": [*about, "duration_s", "abandoned", *where, *spans],
        "task.reset": [*about, "cause", *spans],
        "task.expanded": [*about, "values", *spans],
        "task.progress": [*about, "done", "total", *spans],
        "task.metric": [*about, "name", "value", *spans],
        "dataset.read": [*about, *dataset, *spans],
        "dataset.written": [*about, *dataset, *spans],
        "task.output": [*about, "stream", "line", *spans],
    }


def test_a_line_reads_as_the_contract_has_it() -> None:
    event = e.TaskFailed(
        9, 1, "2026-01-01T00:00:00.000001Z", "error", "r1", "train", "fit[region=eu]", 2, 3, "LocalExecutor", "process",
        1.25, "memory", "MemoryError", "too much", peak_rss_mb=7900.0,
    )  # fmt: skip
    assert json.loads(e.encode(event)) == {
        "event": "task.failed", "seq": 9, "session": 1, "timestamp": "2026-01-01T00:00:00.000001Z", "level": "error",
        "run_id": "r1", "dag": "train", "task": "fit[region=eu]", "attempt": 2, "max_attempts": 3,
        "executor": "LocalExecutor", "pool": "process", "duration_s": 1.25, "reason": "memory",
        "error.type": "MemoryError", "error.message": "too much", "peak_rss_mb": 7900.0,
    }  # fmt: skip


def test_fields_of_a_later_version_are_passed_over() -> None:
    event = filled(e.TaskReset)
    later = {**json.loads(e.encode(event)), "colour": "red"}
    assert e.decode(json.dumps(later)) == event


@pytest.mark.parametrize(
    "line", [b"", b"null", b"[]", b"{}", b'{"event":"task.exploded"}', b'{"event":1}', b"\xff\xfe", b'"\xff"', b"12"]
)
def test_anything_else_is_no_event(line: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeError)):
        e.decode(line)


def test_events_cannot_be_changed() -> None:
    event = filled(e.TaskMetric)
    with pytest.raises(AttributeError):
        event.value = 2.0


@given(st.text(alphabet=st.characters()))
def test_recordable_text_stays_and_other_text_becomes_recordable(text: str) -> None:
    told = e.recordable(text)
    told.encode()
    try:
        text.encode()
    except UnicodeEncodeError:
        assert "?" in told
        assert len(told) == len(text)
    else:
        assert told == text
