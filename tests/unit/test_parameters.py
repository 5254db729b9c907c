"""RunParameters, recorded and read again: what the model made stays as it was, and no secret is written down."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretBytes, SecretStr

from gluepy.conf.context import Context, SecretText
from gluepy.conf.parameters import RunParameters, load_parameters, resumed_parameters
from gluepy.conf.schema import Settings
from gluepy.errors import ContextError
from gluepy.runs.record import Record
from gluepy.runtime.options import RunOptions, check_options

Begin = Callable[..., RunParameters]
Resume = Callable[..., RunParameters]

MODELS = """
import itertools, os
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from pydantic import *
from pydantic_settings import BaseSettings

NUMBERS = itertools.count(1)

class Kind(Enum):
    TREE = "tree"

class Percent(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rate: float = Field(alias="Rate")
    depth: int = 3
    day: date = date(2026, 1, 31)
    price: Decimal = Decimal("1.50")
    home: Path = Path("/tmp")
    kind: Kind = Kind.TREE
    number: int = Field(default_factory=NUMBERS.__next__)

    @field_validator("rate")
    @classmethod
    def of_hundred(cls, value): return value / 100

    @computed_field
    @property
    def twice(self) -> int: return 2 * self.depth

class Database(BaseModel):
    user: str = "me"
    password: SecretStr

    @computed_field
    @property
    def url(self) -> str: return f"db://{self.user}:{self.password.get_secret_value()}@host"

class Secrets(BaseModel):
    depth: int = 3
    code: SecretStr = Field(validation_alias=AliasChoices("access", AliasPath("codes", 0)))
    database: Database
    more: dict[str, SecretBytes] = {}
    several: list[SecretStr] = []
    pin: Secret[int] = Secret(0)
    stripped: SecretStr = SecretStr("")

    @field_validator("stripped", mode="before")
    @classmethod
    def strip(cls, value): return value.strip("- ")

class FromEnvironment(BaseSettings):
    depth: int = 3
    hush: SecretStr
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "models_of_test.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("models_of_test", None)


@pytest.fixture
def settings(project: Path) -> Callable[..., Settings]:
    def settings(model: str | None, **values: Any) -> Settings:
        path = None if model is None else f"models_of_test.{model}"
        files = ["context.yaml"] if (project / "context.yaml").exists() else []
        return Settings(project=project, CONTEXT_FILES=files, CONTEXT_MODEL=path, **values)

    return settings


@pytest.fixture
def begin(project: Path, settings: Callable[..., Settings]) -> Begin:
    """Makes the parameters of a new run, and records them."""

    def begin(text: str, model: str | None = None, *, changes: Mapping[str, Any] = {}, **params: Any) -> RunParameters:
        (project / "context.yaml").write_text(text)
        made = load_parameters(settings(model, **changes), params)
        Record.create(project / "runs", "run", made.recorded(), made.recorded_inputs())
        return made

    return begin


@pytest.fixture
def resume(project: Path, settings: Callable[..., Settings]) -> Resume:
    """Reads the parameters of that run again, and records them."""

    def resume(model: str | None = None, earlier: Mapping[str, Any] = {}, **params: Any) -> RunParameters:
        record = Record(project / "runs", "run")
        made = resumed_parameters(settings(model), "run", record.context, record.inputs, params, earlier)
        record.write_context(made.recorded(), made.recorded_inputs())
        return made

    return resume


def written(project: Path) -> str:
    return "".join(file.read_text() for file in (project / "runs").rglob("*") if file.is_file())


# ---- as it was


def test_what_the_model_made_is_not_made_again(project: Path, begin: Begin, resume: Resume) -> None:
    made = begin("Rate: 50", "Percent")
    assert made.values["rate"] == 0.5
    (project / "context.yaml").write_text("Rate: 70\nnew: 1")
    (project / "models_of_test.py").write_text("raise RuntimeError('nobody needs it')")
    sys.modules.pop("models_of_test")
    for _ in range(3):
        again = resume("Percent")
        assert again.values == made.values
        assert json.dumps(again.values) == json.dumps(made.values)
        assert not again.changes


def test_a_parameter_changes_what_it_names_and_what_the_model_makes_of_it_and_no_more(
    begin: Begin, resume: Resume
) -> None:
    made = begin("Rate: 50", "Percent")
    again = resume("Percent", depth=9)
    assert again.values == {**made.values, "depth": 9, "twice": 18}
    assert again.changes == {"depth": (3, 9), "twice": (6, 18)}
    assert resume("Percent", Rate=80).values == {**again.values, "rate": 0.8}
    assert resume("Percent").values["rate"] == 0.8


def test_a_changed_parameter_must_fit_the_model(begin: Begin, resume: Resume) -> None:
    begin("Rate: 50", "Percent")
    with pytest.raises(ContextError, match=r"depth: Input should be a valid integer.*\(parameter 'depth'\)"):
        resume("Percent", depth="deep")
    with pytest.raises(ContextError, match="dept: Extra inputs are not permitted; did you mean 'depth'"):
        resume("Percent", dept=4)
    with pytest.raises(ContextError, match="rate: Extra inputs are not permitted; it is given as 'Rate'"):
        resume("Percent", rate=4)


def test_parameters_that_a_lost_session_had_not_recorded_yet_are_taken(begin: Begin, resume: Resume) -> None:
    begin("depth: 3\nmodel: {a: 1}")
    again = resume(None, {"depth": 4, "model.a": 2, "token": "***"}, **{"model.a": 3})
    assert again.values == {"depth": 4, "model": {"a": 3}}
    assert resume(None, {"depth": 4}).changes == {}


def test_a_record_without_inputs_is_read_as_it_is(project: Path, begin: Begin, resume: Resume) -> None:
    begin("Rate: 50", "Percent")
    (project / "runs/run/inputs.json").unlink()
    (project / "runs/run/context.yaml").write_text("rate: 0.5\nday: 2026-01-31\n")
    assert resume("Percent").values == {"rate": 0.5, "day": "2026-01-31"}


# ---- secrets

SECRETS = """
access: hush-1
database: {password: hush-2}
more: {a: hush-3}
several: [hush-4, hush-5]
pin: 6667
stripped: "- hush-7 -"
note: see hush-1
"""


def test_secrets_that_the_model_declares_reach_tasks_and_no_file(project: Path, begin: Begin, resume: Resume) -> None:
    made = begin(SECRETS, "Secrets")
    assert "hush" not in written(project)
    assert "6667" not in written(project)
    for each in (made, resume("Secrets")):
        context = each.context()
        assert context.code == "hush-1"
        assert context.code.get_secret_value() == f"{context.code}" == "hush-1"
        assert context.database.url == "db://me:hush-2@host"
        assert context.more == {"a": "hush-3"}
        assert [type(text) for text in context.several] == [SecretText, SecretText]
        assert (context.pin, context.stripped) == (6667, "hush-7")
        assert "hush" not in repr(context)
        assert type(context.to_dict()["code"]) is str
    assert "hush" not in written(project)


def test_a_secret_in_the_environment_is_read_from_there_again(
    project: Path, begin: Begin, resume: Resume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUSH", "hush-1")
    assert begin("depth: 4", "FromEnvironment").context().hush == "hush-1"
    assert "hush-" not in written(project)
    monkeypatch.setenv("HUSH", "hush-2")
    assert resume("FromEnvironment").values == {"depth": 4, "hush": "hush-2"}
    assert resume("FromEnvironment", depth=5).values == {"depth": 5, "hush": "hush-2"}
    monkeypatch.delenv("HUSH")
    with pytest.raises(ContextError, match="hush"):
        resume("FromEnvironment")


def test_secrets_are_known_by_their_names_and_looks_too(project: Path, begin: Begin, resume: Resume) -> None:
    text = """
api_key: hush-1
auth: {user: hush-2, id: 77}
url: db://me:hush-3@host/x
odbc: Uid=me;Pwd=hush-4;
max_tokens: 5
"""
    made = begin(text)
    assert "hush" not in written(project)
    assert json.loads((project / "runs/run/context.yaml").read_text()) == {
        "api_key": "***",
        "auth": {"user": "***", "id": "***"},
        "url": "db://me:***@host/x",
        "odbc": "***",
        "max_tokens": 5,
    }
    assert resume().values == made.values
    assert isinstance(resume().context().api_key, SecretText)


def test_what_has_a_secret_in_it_is_one(project: Path, begin: Begin, resume: Resume) -> None:
    made = begin(
        "token: hush-1\nurls: ['https://host/hush-1/x', y]\nmail: {header: key hush-1}\npassword: eu\nregion: eu"
    )
    assert "hush" not in written(project)
    assert json.loads((project / "runs/run/context.yaml").read_text()) == {
        "token": "***",
        "urls": ["***", "y"],
        "mail": {"header": "***"},
        "password": "***",
        "region": "eu",  # so short a secret is a part of ordinary text
    }
    assert resume().values == made.values


def test_redact_says_which_names_are_secret(project: Path, begin: Begin) -> None:
    begin("iban: hush\ntoken: plain", changes={"REDACT": ["*iban*"]})
    assert json.loads((project / "runs/run/context.yaml").read_text()) == {"iban": "***", "token": "plain"}


def test_a_secret_that_was_a_parameter_has_to_be_given_again(project: Path, begin: Begin, resume: Resume) -> None:
    begin("token: from-file", None, token="hush", depth=3)
    with pytest.raises(ContextError) as caught:
        resume()
    assert str(caught.value) == (
        "the secret token: secrets are not recorded, and run run needs them again; give it with --param token=…"
    )
    assert resume(token="hush").values == {"token": "hush", "depth": 3}
    assert "hush" not in written(project)


def test_a_secret_that_is_gone_from_its_file_is_asked_for(project: Path, begin: Begin, resume: Resume) -> None:
    begin("database: {password: hush}")
    (project / "context.yaml").write_text("database: {}")
    with pytest.raises(
        ContextError, match=r"database\.password: .* give it where it was, in context\.yaml, or with --param"
    ):
        resume()
    assert resume(**{"database.password": "hush"}).values == {"database": {"password": "hush"}}


def test_changed_secrets_are_told_without_their_values(begin: Begin, resume: Resume) -> None:
    begin("token: hush-1\ndepth: 3")
    again = resume(token="hush-2", depth=4)
    assert again.changes == {"depth": (3, 4)}
    assert again.values["token"] == "hush-2"
    assert again.mask_params({"token": "hush-2", "depth": 4}) == {"token": "***", "depth": 4}


def test_parameters_are_shown_without_their_secrets() -> None:
    settings = Settings()
    params = {"db.password": "hush", "db.user": "me", "model": {"api_key": "hush", "depth": 3}, "token": "hush"}
    shown = load_parameters(settings, params).mask_params(params)
    assert shown == {
        "db.password": "***",
        "db.user": "me",
        "model": {"api_key": "***", "depth": 3},
        "token": "***",
    }


def test_a_secret_of_pydantics_is_a_parameter_that_is_secret(project: Path, begin: Begin, resume: Resume) -> None:
    given = {"phrase": SecretStr("hush-1"), "deep": {"bytes": [SecretBytes(b"hush-2")]}, "plain": 1}
    made = begin("depth: 3", **given)
    assert made.values == {"depth": 3, "phrase": "hush-1", "deep": {"bytes": ["hush-2"]}, "plain": 1}
    assert made.mask_params(given) == {"phrase": "***", "deep": {"bytes": ["***"]}, "plain": 1}
    assert isinstance(made.context().deep.bytes[0], SecretText)
    assert "hush" not in written(project)
    assert resume(**given).values == made.values
    with pytest.raises(
        ContextError, match=r"the secret deep\.bytes\.0, phrase: .*--param deep\.bytes=… --param phrase=…"
    ):
        resume()
    check_options({"params": given}, RunOptions)
    assert Context({"a": SecretStr("hush")}).a.get_secret_value() == "hush"


def test_a_secret_stays_one_wherever_the_context_goes() -> None:
    import pickle

    context = Context({"a": {"token": "hush"}, "xs": ["hush", 1]}, "", [("a", "token"), ("xs", 0)])
    for each in (context, pickle.loads(pickle.dumps(context))):
        assert isinstance(each.a.token, SecretText)
        assert isinstance(each.xs[0], SecretText)
        assert repr(each) == "Context({'a': {'token': '***'}, 'xs': ['***', 1]})"
        assert json.dumps(each.to_dict()) == '{"a": {"token": "hush"}, "xs": ["hush", 1]}'
