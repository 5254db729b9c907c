"""The context: files, parameters, the model they must fit, and what is said when they do not."""

from __future__ import annotations

import copy
import datetime as dt
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gluepy.conf import default_context
from gluepy.conf.context import Context
from gluepy.conf.parameters import load_context
from gluepy.conf.scalars import Ambiguous, typed
from gluepy.conf.schema import Settings
from gluepy.errors import ContextError, ImportFailed

Load = Callable[..., Context]
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The context of a project with these YAML files (in order) and parameters."""

    def load(*texts: str, fits: str | None = None, **params: Any) -> Context:
        files = []
        for number, text in enumerate(texts, start=1):
            files.append(f"{number}.yaml")
            (tmp_path / files[-1]).write_text(text, "utf-8")
        return load_context(Settings(project=tmp_path, CONTEXT_FILES=files, CONTEXT_MODEL=fits), params)

    return load


def error_of(load: Load, *texts: str, **params: Any) -> str:
    with pytest.raises(ContextError) as caught:
        load(*texts, **params)
    return str(caught.value)


# ---- the mapping


def test_parameters_are_reached_by_attribute_and_by_key() -> None:
    context = Context({"model": {"depth": 3}, "folds": [{"name": "a"}, 2], "items": 5})
    assert context.model.depth == context["model"]["depth"] == 3
    assert context.folds[0].name == "a"
    assert isinstance(context.folds, list)
    assert context["items"] == 5
    assert dict(context.items())["items"] == 5
    assert (len(context), list(context), "model" in context) == (3, ["model", "folds", "items"], True)
    assert context.get("nothing", 7) == 7
    assert {**context.model} == {"depth": 3}


def test_a_context_is_read_only() -> None:
    context = Context({"depth": 3})
    with pytest.raises(AttributeError, match="read-only"):
        context.depth = 4
    with pytest.raises(AttributeError, match="read-only"):
        del context.depth
    with pytest.raises(TypeError):
        context["depth"] = 4
    assert context.depth == 3


def test_a_missing_parameter_names_the_nearest_and_where_to_set_it() -> None:
    context = Context({"model": {"depth": 3}})
    with pytest.raises(AttributeError) as caught:
        _ = context.model.dept
    assert str(caught.value) == (
        "the context has no 'model.dept'; did you mean 'depth'?; "
        "set it in context.yaml, or for one run with --param model.dept=…"
    )
    with pytest.raises(AttributeError, match="it has model"):
        _ = context.zzz
    assert not hasattr(context, "zzz")


def test_a_context_pickles_copies_and_becomes_plain_data() -> None:
    values = {"model": {"depth": 3}, "folds": [{"name": "a"}, [1]]}
    context = Context(values)
    for other in (pickle.loads(pickle.dumps(context)), copy.copy(context), copy.deepcopy(context)):
        assert other == context == values
        assert other.folds[0].name == "a"
    plain = context.to_dict()
    assert json.loads(json.dumps(plain)) == values
    plain["model"]["depth"] = 4
    assert context.model.depth == 3


# ---- files


def test_files_merge_in_order_mapping_by_mapping(load: Load) -> None:
    context = load("model: {depth: 3, loss: l1}\nfolds: [1, 2]\nx: 1", "model: {depth: 4}\nfolds: [9]\nx:")
    assert context == {"model": {"depth": 4, "loss": "l1"}, "folds": [9], "x": None}


@pytest.mark.parametrize("name", ["configs/context.yaml", "context.yaml"])
def test_the_default_file_is_read_when_it_is_there(name: str, tmp_path: Path) -> None:
    assert load_context(Settings(project=tmp_path)) == {}
    (tmp_path / "configs").mkdir()
    (tmp_path / name).write_text("depth: 3")
    assert load_context(Settings(project=tmp_path)).depth == 3


def test_an_empty_file_is_an_empty_context(load: Load) -> None:
    assert load("", "# nothing\n") == {}


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    settings = Settings(project=tmp_path, CONTEXT_FILES=["configs/live.yaml"])
    with pytest.raises(ContextError, match=r"configs/live\.yaml: there is no such file in .*CONTEXT_FILES names it"):
        load_context(settings)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12:30", "12:30"),
        ("190:20:30", "190:20:30"),
        ("2026-01-31", "2026-01-31"),
        ("2026-01-31 10:00:00", "2026-01-31 10:00:00"),
        ("2026-13-45", "2026-13-45"),
        ("NO", "NO"),
        ("yes", "yes"),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("=", "="),
        ("<<", "<<"),
        ("None", "None"),
        ("NaN", "NaN"),
        ("'01234'", "01234"),
        ("1e-3", 0.001),
        ("1e3", 1000.0),
        ("1E+05", 100000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("0", 0),
        ("-7", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("False", False),
        ("TRUE", True),
        ("~", None),
        ("", None),
        ("Null", None),
    ],
)
def test_plain_values_are_what_the_core_schema_of_yaml_1_2_says(text: str, value: object, load: Load) -> None:
    found = load(f"a: {text}\nb: [x, {text or '~'}]")
    assert (found["a"], found["b"]) == (value, ["x", value])
    assert type(found["a"]) is type(value)


@pytest.mark.parametrize("text", ["01234", "-007", "00", "0123.5", "+49123", "12345e7", "1e999", "9" * 30, ".nan"])
def test_what_would_become_something_else_is_refused_in_files_and_parameters_alike(text: str, load: Load) -> None:
    error = error_of(load, f"deep:\n  a: {text}")
    assert error.startswith("1.yaml, line 2, column 6: ")
    assert "put it in quotes if it is text" in error
    for given in (text, f"[{text}]"):
        with pytest.raises(Ambiguous):
            typed(given)
    assert load(f"a: '{text}'").a == typed(f'"{text}"') == text


@pytest.mark.parametrize(
    "text", ["False", "~", ".5", "0x1F", "None", " TRUE", "'x'", "[1, 2", "{a: 1}", '"x', '{"a": 1, "a": 2}']
)
def test_a_parameter_that_is_no_json_and_not_clearly_text_is_refused(text: str) -> None:
    with pytest.raises(Ambiguous):
        typed(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12:30", "12:30"),
        ("NO", "NO"),
        ("2026-01-31", "2026-01-31"),
        ("*.csv", "*.csv"),
        ("it's", "it's"),
        ("", ""),
        ("NaN", "NaN"),
        ("1e-3", 0.001),
        ("false", False),
        ("null", None),
        ("[1, 0.5]", [1, 0.5]),
        ('{"a": "01234"}', {"a": "01234"}),
    ],
)
def test_a_parameter_is_json_or_else_text(text: str, value: object) -> None:
    assert typed(text) == value
    assert type(typed(text)) is type(value)


def test_a_file_of_json_is_read_as_json(load: Load) -> None:
    assert load(json.dumps({"smile": "\U0001f600", "slash": "a/b", "n": [1, 2.5, None]})) == {
        "smile": "\U0001f600",
        "slash": "a/b",
        "n": [1, 2.5, None],
    }
    assert "the key 'a' is there twice" in error_of(load, '{"b": {"a": 1, "a": 2}}')


def test_anchors_and_merge_keys_work(load: Load) -> None:
    context = load("base: &base {depth: 3, loss: l1}\nmine: {<<: *base, depth: 4}")
    assert context.mine == {"depth": 4, "loss": "l1"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b", "1.yaml: it holds a list where a mapping"),
        ("a: 1\n---\nb: 2", "1.yaml, line 2, column 1: expected a single document in the stream, but found another"),
        ("just text", "1.yaml: it holds a str where a mapping"),
        ("a: 1\nb: [1, 2\nc: 3", "1.yaml, line 3, column 2: "),
        ("a: 1\n\tb: 2", "1.yaml, line 2, column 1: "),
        ("a: 1\nb: 2\n'a': 3", "1.yaml, line 3, column 1: the key 'a' is there twice, first on line 1"),
        ("m:\n  a: 1\n  a: 2", "1.yaml, line 3, column 3: the key 'a' is there twice, first on line 2"),
        ("true: 1", "1.yaml, line 1, column 1: the key True is not text; put it in quotes: 'true'"),
        ("1: a", "1.yaml, line 1, column 1: the key 1 is not text"),
        ("? [a, b]\n: 1", "1.yaml, line 1, column 3: the key ['a', 'b'] is not text"),
        ("a: .nan", "1.yaml, line 1, column 4: .nan is not a number that JSON has"),
        ("m: {xs: [1, -.inf]}", "1.yaml, line 1, column 13: -.inf is not a number that JSON has"),
        ("a: !!binary aGk=", "1.yaml, line 1, column 4: tags are not wanted here"),
        ("a: !!str 01234", "(tag:yaml.org,2002:str); put the text in quotes"),
        ("a: !!set {x, y}", "1.yaml, line 1, column 4: tags are not wanted here"),
        ("a: !!python/object/apply:os.getcwd []", "1.yaml, line 1, column 4: tags are not wanted here"),
        ("a: 123456789012345678901234567890", "1.yaml, line 1, column 4: 123456789012345678901234567890 is beyond"),
        ("a: &a [*a]", "1.yaml: at a[0]: it contains itself"),
        ("a: \x07", "1.yaml: it is not YAML"),
        (BOMB, "1.yaml: with its aliases written out it has more than 1,000,000 values"),
    ],
)
def test_a_bad_file_is_an_error_that_names_file_and_place(text: str, expected: str, load: Load) -> None:
    assert expected in error_of(load, text)


def test_a_file_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "context.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(ContextError, match=r"context\.yaml: it is not UTF-8 text \(byte 9\)"):
        load_context(Settings(project=tmp_path))


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "context.yaml").write_bytes(b"\xef\xbb\xbfdepth: 3")
    assert load_context(Settings(project=tmp_path)).depth == 3


def test_a_folder_in_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").mkdir()
    with pytest.raises(ContextError, match=r"x\.yaml: cannot be read"):
        load_context(Settings(project=tmp_path, CONTEXT_FILES=["x.yaml"]))


# ---- parameters


def test_parameters_beat_files_and_reach_into_mappings(load: Load) -> None:
    context = load("model: {depth: 3, loss: l1}", **{"model.depth": 5, "new.a.b": 1, "flat": True})
    assert context == {"model": {"depth": 5, "loss": "l1"}, "new": {"a": {"b": 1}}, "flat": True}


def test_a_name_with_dots_that_a_file_defines_is_that_name(load: Load) -> None:
    assert load("a.b: 1", **{"a.b": 2}) == {"a.b": 2}


def test_a_mapping_as_parameter_merges_like_a_file(load: Load) -> None:
    assert load("model: {depth: 3, loss: l1}", model={"depth": 5}).model == {"depth": 5, "loss": "l1"}


def test_python_values_that_have_a_json_form_take_it(load: Load) -> None:
    assert load(day=dt.date(2026, 1, 31), pair=(1, 2)) == {"day": "2026-01-31", "pair": [1, 2]}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"model.depth": 5}, "parameter 'model.depth': 'model' is not a mapping"),
        ({"a..b": 5}, "parameter 'a..b': a part of its dotted name is empty"),
        ({"a": object()}, "parameter 'a': at a: a object is not a JSON value"),
        ({"a": {"b": {1: 2}}}, "parameter 'a': at a.b: the key 1 is not text"),
        ({"a": float("nan")}, "parameter 'a': at a: nan is not a JSON value"),
        ({"a": "\ud800"}, "parameter 'a': at a: text with half a surrogate pair"),
    ],
)
def test_a_bad_parameter_is_named(params: dict[str, Any], expected: str, load: Load) -> None:
    assert expected in error_of(load, "model: 3", **params)


def test_parameters_are_copied(load: Load) -> None:
    folds = [1]
    context = load(folds=folds)
    folds.append(2)
    assert context.folds == [1]


def test_a_megabyte_of_parameters_works(load: Load) -> None:
    values = {f"group{group}": {f"name{name}": f"value {name}" for name in range(500)} for group in range(90)}
    text = json.dumps(values)
    assert len(text) > 1_000_000
    assert load(text) == values
    assert load(**values) == values


# ---- the model


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "models_of_test.py").write_text(
        """
from datetime import date
from pydantic import BaseModel, ConfigDict, model_validator
class Model(BaseModel):
    depth: int = 3
    loss: str
class Params(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: Model
    day: date = date(2026, 1, 31)
    folds: list[int] = []
class Broken(BaseModel):
    @model_validator(mode="after")
    def check(self):
        raise KeyError("oops")
NotAModel = 3
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("models_of_test", None)


@pytest.mark.usefixtures("models")
def test_the_context_is_the_models_dump_with_defaults(load: Load) -> None:
    context = load("model: {loss: l1, depth: '4'}", fits="models_of_test.Params")
    assert context == {"model": {"depth": 4, "loss": "l1"}, "day": "2026-01-31", "folds": []}


@pytest.mark.usefixtures("models")
def test_what_does_not_fit_the_model_is_listed_with_its_source(tmp_path: Path) -> None:
    (tmp_path / "1.yaml").write_text("model: {depth: deep}\nfold: []")
    (tmp_path / "2.yaml").write_text("folds: [1, x]")
    settings = Settings(project=tmp_path, CONTEXT_FILES=["1.yaml", "2.yaml"], CONTEXT_MODEL="models_of_test.Params")
    with pytest.raises(ContextError) as caught:
        load_context(settings, {"day": "soon"})
    lines = str(caught.value).splitlines()
    assert "does not fit models_of_test.Params" in lines[0]
    assert lines[1:] == [
        "  model.depth: Input should be a valid integer, unable to parse string as an integer (1.yaml)",
        "  model.loss: Field required (1.yaml)",
        "  day: Input should be a valid date or datetime, input is too short (parameter 'day')",
        "  folds.1: Input should be a valid integer, unable to parse string as an integer (2.yaml)",
        "  fold: Extra inputs are not permitted; did you mean 'folds'? (1.yaml)",
    ]


@pytest.mark.usefixtures("models")
def test_many_misfits_stay_on_one_screen(load: Load) -> None:
    with pytest.raises(ContextError) as caught:
        load(f"model: {{loss: a}}\nfolds: [{', '.join('x' * 100)}]", fits="models_of_test.Params")
    assert len(str(caught.value).splitlines()) < 20
    assert "… and 85 more" in str(caught.value)


@pytest.mark.usefixtures("models")
def test_a_model_that_is_none_is_an_error(load: Load) -> None:
    with pytest.raises(ContextError, match="not a pydantic model"):
        load(fits="models_of_test.NotAModel")
    with pytest.raises(ImportFailed, match=r"no 'Param'; did you mean 'Params'.*CONTEXT_MODEL names it"):
        load(fits="models_of_test.Param")


@pytest.mark.usefixtures("models")
def test_a_validator_that_fails_shows_the_users_frames(load: Load) -> None:
    with pytest.raises(ContextError, match="failed with KeyError") as caught:
        load(fits="models_of_test.Broken")
    assert "models_of_test.py" in str(caught.value)
    assert "conf/context.py" not in str(caught.value)


# ---- the proxy


def test_the_proxy_reads_the_project_around_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.gluepy]\n")
    (tmp_path / "context.yaml").write_text("depth: 3")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert default_context.depth == default_context["depth"] == 3
    assert default_context.to_dict() == {"depth": 3}
    (tmp_path / "context.yaml").write_text("depth: 44")
    assert default_context.depth == 44
    assert pickle.loads(pickle.dumps(default_context)) == {"depth": 44}
    with pytest.raises(AttributeError, match="did you mean 'depth'"):
        _ = default_context.dept
