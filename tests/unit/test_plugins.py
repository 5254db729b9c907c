"""How executors, sinks and commands of other packages are found, and what is said when one is not."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from gluepy.conf.plugins import EXECUTORS, SINKS, find
from gluepy.conf.schema import Settings
from gluepy.conf.sources import load_settings
from gluepy.core.events import Event
from gluepy.errors import ImportFailed, MissingExtra, OptionError, SettingsError
from gluepy.exec.port import Executor
from gluepy.runtime.options import make_executor, make_sinks
from gluepy.sinks import Sink
from gluepy.sinks.jsonlines import JsonLines


class Prefix(BaseModel):
    text: str = "-"


class Prefixed(Sink):
    settings_group: ClassVar = ("PREFIXED", Prefix)

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    @classmethod
    def from_settings(cls, settings: Settings) -> Prefixed:
        return cls(settings.group(*cls.settings_group).text)

    def __call__(self, event: Event) -> None: ...


class Plain:
    def __call__(self, event: Event) -> None: ...


class Stranger:
    """Like a sink, but not derived from one."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Stranger:
        return cls()

    def __call__(self, event: Event) -> None: ...


class Idle(Executor):
    pass


Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution `theirs` on `sys.path`, with entry points and modules."""
    before = set(sys.modules)

    def install(entry_points: str, metadata: str = "", **modules: str) -> Path:
        info = tmp_path / "theirs-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: theirs\nVersion: 1\n{metadata}")
        (info / "entry_points.txt").write_text(entry_points)
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("theirs"):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EXECUTOR_BACKEND", "SINKS"):
        monkeypatch.delenv(f"GLUEPY_{name}", raising=False)


def path_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def made(options: Any, settings: Settings) -> list[Any]:
    return [delivery.sink for delivery in make_sinks(options, settings)]


@pytest.mark.parametrize("option", [Prefixed, path_of(Prefixed), Prefixed("-")])
def test_sink_is_a_class_its_dotted_path_or_an_instance(option: object) -> None:
    (sink,) = made([option], Settings())
    assert isinstance(sink, Prefixed)
    assert sink.prefix == "-"


@pytest.mark.parametrize("option", [Idle, path_of(Idle), Idle()])
def test_executor_is_a_class_its_dotted_path_or_an_instance(option: object) -> None:
    assert isinstance(make_executor(option, Settings()), Idle)


def test_callable_or_class_that_is_no_sink_of_ours_will_do() -> None:
    first, second = made([print, Plain], Settings())
    assert first is print
    assert isinstance(second, Plain)


def test_settings_name_sinks_and_executors_as_objects_too(install: Install) -> None:
    tmp_path = install("[gluepy.sinks]\nlines = gluepy.sinks.jsonlines:JsonLines\n")
    (tmp_path / "settings.py").write_text(
        "from gluepy.exec.executors import LocalExecutor\n"
        "class Mine(LocalExecutor): pass\n"
        "EXECUTOR_BACKEND = Mine\n"
        "SINKS = [print, 'lines']\n"
    )
    try:
        settings = load_settings(tmp_path)
        assert type(make_executor(settings.EXECUTOR_BACKEND, settings)).__name__ == "Mine"
        first, second = made((), settings)
        assert (first, type(second)) == (print, JsonLines)
        assert settings.options["SINKS"] == ["lines"]
        assert "EXECUTOR_BACKEND" not in settings.options
    finally:
        sys.modules.pop("settings", None)


@pytest.mark.parametrize(("name", "value"), [("EXECUTOR_BACKEND", ""), ("EXECUTOR_BACKEND", 3), ("SINKS", [3])])
def test_setting_that_cannot_be_an_extension_is_refused(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=r"is wanted"):
        Settings(**{name: value})  # type: ignore[arg-type]


def test_short_name_is_an_entry_point_of_its_kind(install: Install) -> None:
    install(
        "[gluepy.executors]\nidle = theirs:Theirs\n[gluepy.sinks]\nprints = theirs:show\n",
        theirs="from gluepy.exec.port import Executor\nclass Theirs(Executor): pass\ndef show(event): pass\n",
    )
    assert type(make_executor("idle", Settings())).__name__ == "Theirs"
    (sink,) = made(["prints"], Settings())
    assert sink.__name__ == "show"


def test_unknown_short_name_tells_the_nearest_and_what_named_it(install: Install) -> None:
    install("[gluepy.sinks]\nmetrics = theirs:Sink\n[gluepy.executors]\ngrid = theirs:Grid\n")
    with pytest.raises(ImportFailed) as caught:
        find(SINKS, "metrix", "SINKS")
    assert "an entry point of 'gluepy.sinks'; did you mean 'metrics'?" in str(caught.value)
    assert str(caught.value).endswith("SINKS names it")
    with pytest.raises(ImportFailed, match=r"known are .*grid"):
        find(EXECUTORS, "zzz", "EXECUTOR_BACKEND")


def test_short_names_of_gluepys_own_lead_to_classes_of_their_kind() -> None:
    table = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    assert set(table[EXECUTORS]) >= {"local"}
    assert set(table[SINKS]) >= {"jsonlines"}
    for group, base in ((EXECUTORS, Executor), (SINKS, Sink)):
        for path in table[group].values():
            assert issubclass(find(group, path, "pyproject.toml"), base)


def test_entry_point_that_does_not_import_says_why(install: Install) -> None:
    install("[gluepy.sinks]\nbroken = theirs:Sink\n", theirs="1 / 0\n")
    with pytest.raises(ImportFailed, match="ZeroDivisionError") as caught:
        find(SINKS, "broken", "SINKS")
    assert "entry point 'broken' names it" in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "metadata"),
    [("fancy = theirs:Sink", "Provides-Extra: fancy\n"), ("fancy = theirs:Sink [fancy]", "")],
    ids=["by its own name", "by the entry point"],
)
def test_missing_package_names_the_extra_that_brings_it(entry: str, metadata: str, install: Install) -> None:
    install(f"[gluepy.sinks]\n{entry}\n", metadata, theirs="import no_such_library.part\n")
    with pytest.raises(MissingExtra) as caught:
        find(SINKS, "fancy", "SINKS")
    assert str(caught.value) == "'fancy' needs the extra 'fancy': pip install 'theirs[fancy]'"


@pytest.mark.parametrize("module", ["theirs_inner", "theirs"], ids=["another package", "its own"])
def test_missing_package_without_an_extra_is_told_as_it_is(module: str, install: Install) -> None:
    metadata = "Provides-Extra: fancy\n" if module == "theirs" else ""
    install("[gluepy.sinks]\nfancy = theirs:Sink\n", metadata, theirs=f"import {module}.nothing\n")
    with pytest.raises(ImportFailed, match="No module named"):
        find(SINKS, "fancy", "SINKS")


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        (3, "3 is not an executor"),
        (Plain, "Plain is not an executor: it does not derive from gluepy.exec.port.Executor"),
        (Prefixed, "Prefixed is not an executor"),
    ],
)
def test_what_is_no_executor_is_refused(option: object, problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        make_executor(option, Settings())


def test_class_with_from_settings_that_is_no_sink_is_refused() -> None:
    with pytest.raises(OptionError, match=r"sinks: Stranger is not a sink: it does not derive from gluepy\.sinks"):
        made([Stranger], Settings())


def test_settings_group_that_is_no_pair_is_refused_where_it_is_declared() -> None:
    with pytest.raises(TypeError, match="settings_group must be"):
        type("Wrong", (Sink,), {"settings_group": "WRONG"})


def test_group_of_a_sink_is_read_from_the_settings_that_are_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLUEPY_PREFIXED__TEXT", "of the environment")
    settings = load_settings(None, {"SINKS": [path_of(Prefixed)]})
    monkeypatch.setenv("GLUEPY_PREFIXED__TEXT", "changed since")
    (sink,) = made((), settings)
    assert isinstance(sink, Prefixed)
    assert sink.prefix == "of the environment"


def test_group_of_an_installed_sink_is_known_by_its_short_name(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("[gluepy.sinks]\nfancy = theirs:Sink\n")
    monkeypatch.setenv("GLUEPY_FANCY__COLOUR", "red")
    assert load_settings(None).groups["FANCY"]["colour"][0] == "red"
