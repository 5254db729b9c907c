"""Values given are the values run: every way to declare a task's parameters, and every kind of value."""

from __future__ import annotations

import copy
import datetime as dt
import enum
import pickle
import types
import typing
import uuid
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, NamedTuple, NewType, TypeVar

import pytest
from pydantic import BaseModel, Field, SecretStr, field_validator

from gluepy.errors import DagError
from gluepy.exec import DAG, Task, each
from gluepy.exec.dag import Expander, compile_dag
from gluepy.exec.parameters import parameters_of
from gluepy.exec.values import same

if typing.TYPE_CHECKING:
    from fractions import Fraction

T = TypeVar("T")
Region = NewType("Region", str)


class Mode(str, enum.Enum):  # noqa: UP042  # as many still write it
    FULL = "full"
    QUICK = "quick"


class Level(enum.Enum):
    LOW = 1


class Work(Task):
    def run(self) -> None:
        """Nothing."""


def made(*tasks: Any) -> dict[str, Any]:
    """The tasks that a run of a DAG of `tasks` makes, by id."""
    compiled = compile_dag(type("Sample", (DAG,), {"tasks": tasks}))
    graph = compiled.graph
    found: dict[str, Any] = {}
    for node in graph.tasks():
        target = compiled.targets[graph.spec_of[node]]
        assert isinstance(target, type)
        found[graph.task_id(node)] = parameters_of(target).make(graph.params(node))
    return found


def run_of(*tasks: Any) -> Any:
    """The only task of such a run."""
    (task,) = made(*tasks).values()
    return task


def refusal(*tasks: Any) -> str:
    """What the author is told when such a DAG is compiled."""
    with pytest.raises(DagError) as caught:
        made(*tasks)
    assert caught.value.hint
    return str(caught.value)


# ---- classes with an __init__ of their own


@dataclass
class Plain(Work):
    depth: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Strict(Work):  # type: ignore[misc]
    depth: int
    tags: list[str] = field(default_factory=list)


@dataclass
class Derived(Work):
    percent: InitVar[int] = 50
    rate: float = field(init=False)

    def __post_init__(self, percent: int) -> None:  # type: ignore[override]
        self.rate = percent / 100


@dataclass
class Changed(Work):
    rate: float

    def __post_init__(self) -> None:
        self.rate /= 100


@dataclass
class Named(Work):
    depth: int = 3
    id: str | None = None


class Written(Work):
    def __init__(self, size: int, *, region: str = "eu") -> None:
        self.size, self.region = size * 2, region


class Handing(Work):
    depth: int = 3

    def __init__(self, extra: int, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.extra = extra


class Hooked:
    """A mixin that counts what it makes."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        task = super().__new__(cls, *args, **kwargs) if super().__new__ is not object.__new__ else super().__new__(cls)
        task.__dict__["_hooked"] = True
        return task


class Mixed(Hooked, Work):
    depth: int = 3


def test_a_dataclass_runs_with_the_values_it_was_given() -> None:
    assert list(made(Plain(10), Plain(depth=7), Plain)) == ["plain[depth=10]", "plain[depth=7]", "plain[depth=3]"]  # type: ignore[call-arg,arg-type]
    assert [task.depth for task in made(each(Plain, depth=[1, 2])).values()] == [1, 2]


def test_a_frozen_one_with_slots_and_a_default_of_its_own_does_too() -> None:
    task = run_of(Strict(depth=2, tags=["new"]))
    assert (task.depth, task.tags) == (2, ["new"])
    assert list(made(Strict(depth=4))) == ["strict[depth=4,tags=[]]"]


def test_what_post_init_makes_of_the_values_is_made_once() -> None:
    assert run_of(Derived(percent=10)).rate == 0.1  # type: ignore[call-arg]
    assert run_of(Derived).rate == 0.5
    assert run_of(Changed(rate=50)).rate == 0.5


def test_an_init_that_takes_an_id_names_the_task() -> None:
    assert {id: task.depth for id, task in made(Named(depth=4, id="four")).items()} == {"four": 4}
    with pytest.raises(DagError, match="its __init__ does not take an id; let it take id"):
        Plain(depth=4, id="four")


def test_a_written_init_is_called_with_what_it_was_given() -> None:
    assert {id: (task.size, task.region) for id, task in made(Written(10, region="us")).items()} == {
        "written[size=10,region=us]": (20, "us")
    }
    assert [task.size for task in made(each(Written, size=[1, 2])).values()] == [2, 4]
    assert "Written needs a value for its parameter 'size'" in refusal(Written)
    assert "Written.size is 'a'; expected int" in refusal(Written("a"))  # type: ignore[arg-type]


def test_an_init_may_hand_keywords_on() -> None:
    assert {id: (task.extra, task.depth) for id, task in made(Handing(1, depth=9), Handing(2)).items()} == {
        "handing[extra=1,depth=9]": (1, 9),
        "handing[extra=2,depth=3]": (2, 3),
    }
    with pytest.raises(DagError, match=r"Handing\.depth is 'a'; expected int"):
        Handing(1, depth="a")


def test_a_new_of_somebody_elses_is_called() -> None:
    task = run_of(Mixed(depth=9))
    assert (task.depth, task._hooked) == (9, True)


def test_an_init_that_cannot_be_called_again_is_refused() -> None:
    class Star(Work):
        def __init__(self, *names: str) -> None:
            self.names = names

    class Slash(Work):
        def __init__(self, size: int, /) -> None:
            self.size = size

    class Fussy(Work):
        made = 0

        def __init__(self, size: int) -> None:
            Fussy.made += 1
            assert Fussy.made < 2, "only once"

    assert "Star was given ('a',) as names; a run makes it again with keywords" in refusal(Star("a"))
    assert run_of(Star()).names == ()
    assert "its __init__ takes size by position only" in refusal(Slash(3))
    assert "Fussy cannot be made again of its values: AssertionError: only once" in refusal(Fussy(3))


def test_a_decorator_that_passed_a_parameter_by_is_named() -> None:
    class Base(Work):
        region: str

    @dataclass
    class Above(Base):
        depth: int = 3

    @dataclass
    class Below(Work):
        region: str = "eu"

    class Bare(Below):
        depth: int = 3

    assert "region is annotated in" in refusal(Above)
    assert "Base in the same way" in refusal(Above(depth=1))  # type: ignore[call-arg]
    assert "depth is annotated in" in refusal(Bare(region="eu"))


def test_what_only_a_dataclass_has_is_refused_elsewhere() -> None:
    class Post(Work):
        depth: int = 3

        def __post_init__(self) -> None:
            """Never called."""

    class Init(Work):
        percent: InitVar[int] = 3

    assert "it has a __post_init__, which means something in a dataclass only; put @dataclass above" in refusal(Post)
    assert "percent is an InitVar" in refusal(Init)
    with pytest.raises(DagError, match="put @dataclass above the class"):
        Post(depth=4)


def test_fields_of_plain_classes_are_defaults() -> None:
    class Tagged(Work):
        depth: int = field(default=3)
        tags: list[str] = field(default_factory=list)
        more: list[str] = ["x"]  # noqa: RUF012  # nobody else's

    assert list(made(Tagged)) == ['tagged[depth=3,tags=[],more=["x"]]']
    one, other = Tagged(), Tagged()
    one.tags.append("mine")
    one.more.append("mine")
    assert (other.depth, other.tags, other.more) == (3, [], ["x"])
    assert list(made(one)) == ['tagged[depth=3,tags=["mine"],more=["x","mine"]]']  # what it holds is what is run


def test_attrs_classes_run_with_the_values_they_were_given() -> None:
    attrs = pytest.importorskip("attrs")

    @attrs.define
    class Defined(Work):
        depth: int = 3
        tags: list[str] = attrs.field(factory=list)
        _hidden: int = 5

    @attrs.frozen
    class Frozen(Work):
        depth: int = attrs.field(converter=int)

    class Undecorated(Work):
        depth: int = attrs.field(default=3)

    assert list(made(Defined(depth=10, hidden=7), Defined)) == [  # type: ignore[call-arg]
        "defined[depth=10,tags=[],hidden=7]", "defined[depth=3,tags=[],hidden=5]",
    ]  # fmt: skip
    assert run_of(Defined(hidden=8))._hidden == 8  # type: ignore[call-arg]
    assert run_of(Frozen(depth="10")).depth == 10  # type: ignore[arg-type]
    assert "the default of depth is a field of attrs; put @attrs.define above the class" in refusal(Undecorated)


class Model(BaseModel):
    region: str
    depth: int = Field(3, ge=1)
    day: dt.date | None = None


class Fit(Model, Work):
    more: int = 5


def test_pydantic_models_run_with_the_values_they_were_given() -> None:
    task = run_of(Fit(region="eu", day=dt.date(2026, 1, 1)))  # type: ignore[call-arg]
    assert (task.region, task.depth, task.day, task.more) == ("eu", 3, dt.date(2026, 1, 1), 5)
    assert [task.more for task in made(each(Fit(region="eu"), more=[1, 2])).values()] == [1, 2]  # type: ignore[call-arg]
    assert "a value of each for 'depth' is 0; expected int" in refusal(each(Fit, region=["eu"], depth=[0]))


def test_a_pydantic_model_that_would_not_be_the_same_again_is_refused() -> None:
    class Percent(BaseModel, Work):
        rate: float

        @field_validator("rate")
        @classmethod
        def part(cls, value: float) -> float:
            return value / 100

    class Behind(Work, Model):
        """Task before the model."""

    class Aliased(BaseModel, Work):
        region: str = Field(alias="Region")

    class Wrong(Work):
        depth: int = Field(3, ge=1)

    assert "Percent.rate is 0.5 here, but would be 0.005 when it runs" in refusal(Percent(rate=50))
    with pytest.raises(DagError, match=r"name the model first, as in class Behind\(Model, Task\)"):
        Behind(region="eu")  # type: ignore[call-arg]
    assert {id: task.region for id, task in made(Aliased(Region="eu")).items()} == {"aliased[Region=eu]": "eu"}  # type: ignore[call-arg]
    assert "the default of depth is a Field of pydantic's; write depth: Annotated" in refusal(Wrong)


def test_a_named_tuple_cannot_be_a_task() -> None:
    class Point(NamedTuple):
        x: int

    class Task2(Point, Work):
        """Both."""

    with pytest.raises(DagError, match="a task cannot be a NamedTuple as well; annotate the attributes"):
        Task2(x=3)  # type: ignore[call-arg]


# ---- instances that somebody changed


def test_what_is_set_on_an_instance_runs_or_is_refused() -> None:
    task = Train(n=1)
    task.n = 5
    assert list(made(task)) == ["train[n=5]"]
    written = Written(3)
    written.size = 5
    assert "Written.size is 5 here, but would be 6 when it runs" in refusal(written)
    stray: Any = Train(n=1)
    stray.extra = 5
    assert "Train.extra is 5 here, but would be missing when it runs; annotate it in the class" in refusal(stray)
    late: Any = Plain()
    late.timeout_s = 5
    assert "Plain.timeout_s is 5 here, but would be None when it runs; it is the same for all" in refusal(late)
    with pytest.raises(DagError, match=r"no parameter 'timeout_s'; it is the same for all of a class: write timeout_s"):
        Train(timeout_s=5)  # type: ignore[call-arg]


def test_what_an_init_never_makes_the_same_twice_is_nobodys_fault() -> None:
    class Timed(Work):
        token: str

        def __init__(self, size: int) -> None:
            self.token, self._size = uuid.uuid4().hex, size

        @cached_property
        def double(self) -> int:
            return 2 * self._size

    timed = Timed(3)
    assert timed.double == 6
    assert list(made(timed)) == ["timed[size=3]"]


def test_copies_of_tasks_are_tasks() -> None:
    for task in (Train(n=4), Plain(depth=4), Strict(depth=4)):
        assert list(made(copy.copy(task))) == list(made(task))
    assert list(made(pickle.loads(pickle.dumps(Plain(depth=4))))) == ["plain[depth=4]"]


# ---- what is a parameter


class Train(Work):
    n: int


def test_annotated_attributes_of_a_plain_mixin_are_parameters() -> None:
    class Mixin:
        region: str
        depth: int = 3
        kind: ClassVar[str] = "mixin"

    class Both(Mixin, Work):
        """Mixed."""

    assert list(made(Both(region="eu"), Both(region="us", depth=4))) == [  # type: ignore[call-arg]
        "both[region=eu,depth=3]", "both[region=us,depth=4]",
    ]  # fmt: skip


def test_protocols_and_mixins_with_an_init_of_their_own_are_bases_too() -> None:
    class Regional(typing.Protocol):
        region: str
        depth: int = 3

    class Fitted(Regional, Work):
        """Of a region."""

    class Counted:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.count = 0

    class Counts(Counted, Work):
        depth: int = 3

    class Slotted(Work):
        __slots__ = ("depth",)
        depth: int

    for _ in range(2):  # an __init__ of a protocol replaces itself when it is first called
        assert list(made(Fitted(region="eu"), each(Fitted(depth=4), region=["us"]))) == [  # type: ignore[abstract,call-arg]
            "fitted[region=eu,depth=3]", "fitted[region=us,depth=4]",
        ]  # fmt: skip
    assert {id: (task.depth, task.count) for id, task in made(Counts(depth=4), Counts(id="x")).items()} == {
        "counts[depth=4]": (4, 0), "x": (3, 0),
    }  # fmt: skip
    assert [task.depth for task in made(Slotted(depth=4), each(Slotted, depth=[1])).values()] == [4, 1]


def test_what_a_class_works_out_itself_is_no_parameter() -> None:
    class Base(Work):
        region: str

    class By(Base):
        @property  # type: ignore[misc]
        def region(self) -> str:  # type: ignore[override]
            return "eu"

    class Cached(Base):
        @cached_property  # type: ignore[misc]
        def region(self) -> str:  # type: ignore[override]
            return "eu"

    class Fixed(Base):
        region: ClassVar[str] = "eu"  # type: ignore[misc]

    for kind in (By, Cached, Fixed):
        assert parameters_of(kind).names == ()
        assert run_of(kind).region == "eu"


def test_properties_with_setters_and_descriptors_are_given_their_values() -> None:
    class Positive:
        def __set_name__(self, owner: type, name: str) -> None:
            self.name = f"_{name}"

        def __get__(self, task: Any, owner: Any = None) -> int:
            return 1 if task is None else getattr(task, self.name, 1)

        def __set__(self, task: Any, value: int) -> None:
            if value < 0:
                raise ValueError("it must not be negative")
            task.__dict__[self.name] = value

    class Checked(Work):
        depth: int = Positive()  # type: ignore[assignment]
        wide: int

        @property  # type: ignore[no-redef]
        def wide(self) -> int:
            return 2 * self._wide

        @wide.setter
        def wide(self, value: int) -> None:
            self._wide = value

    task = run_of(Checked(depth=4, wide=3))
    assert (task.depth, task.wide) == (4, 6)
    assert list(made(Checked(wide=3))) == ["checked[depth=1,wide=3]"]
    with pytest.raises(ValueError, match="must not be negative"):
        Checked(depth=-1, wide=3)


def test_final_attributes_are_parameters_too() -> None:
    class Done(Work):
        depth: Final[int] = 3
        kind: Final = "x"

    assert list(made(Done(depth=4), Done)) == ["done[depth=4,kind=x]", "done[depth=3,kind=x]"]


def test_generic_classes_know_what_they_are_of() -> None:
    class Of(Work, Generic[T]):
        value: T
        many: list[T] = []  # noqa: RUF012

    class Numbers(Of[int]):
        """Of numbers."""

    assert run_of(Numbers(value=3, many=[4])).many == [4]
    with pytest.raises(DagError, match=r"Numbers\.value is 'a'; expected int"):
        Numbers(value="a")  # type: ignore[arg-type]
    assert run_of(Of[str](value="x")).value == "x"


def test_positions_are_told_to_be_names() -> None:
    with pytest.raises(DagError, match=r"Train: its parameters are given by keyword; write Train\(n=4\)"):
        Train(4)  # type: ignore[arg-type,call-arg]


# ---- values


VALUES: list[tuple[Any, Any, str]] = [
    (int, 3, "3"),
    (str, "3", '"3"'),
    (float, 3, "3"),
    (float, 3.5, "3.5"),
    (bool, True, "true"),
    (list[float], [1, 2.5], "[1,2.5]"),
    (list[str], ("a",), '["a"]'),
    (dict[str, int], {"a": 1}, '{"a":1}'),
    (dict, {"a": [1]}, '{"a":[1]}'),
    (list, [1, "a"], '[1,"a"]'),
    (int | None, None, "null"),
    (int | str, "3", '"3"'),
    (float | int, 3, "3"),
    (Any, {"a": (1,)}, '{"a":[1]}'),
    (object, 1, "1"),
    (Literal["a", "b"], "b", "b"),
    (Region, "eu", "eu"),
    (Mode, Mode.FULL, "full"),
    (Level, Level.LOW, "1"),
    (dt.date, dt.date(2026, 1, 1), "2026-01-01"),
    (dt.datetime, dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC), "2026-01-01T12:00:00Z"),
    (dt.timedelta, dt.timedelta(minutes=5), "PT5M"),
    (uuid.UUID, uuid.UUID(int=3), "00000000-0000-0000-0000-000000000003"),
    (Decimal, Decimal("1.10"), '"1.10"'),
    (Path, Path("a/b"), "a/b"),
    (dt.date | None, dt.date(2026, 1, 1), "2026-01-01"),
    (list[dt.date], [dt.date(2026, 1, 1)], '["2026-01-01"]'),
    (tuple[int, ...], (1, 2), "[1,2]"),
    (Sequence[str], ("a",), '["a"]'),
    (set[int], {1}, "[1]"),
    (bytes, b"x", "x"),
    (Annotated[int, Field(ge=1)], 3, "3"),
    (Plain | None, None, "null"),
    (Model, Model(region="eu", day=dt.date(2026, 1, 1)), '{"region":"eu","depth":3,"day":"2026-01-01"}'),  # type: ignore[call-arg]
]


def task_of(annotation: Any) -> Any:
    return types.new_class("One", (Work,), {}, lambda space: space.update(__annotations__={"value": annotation}))


@pytest.mark.parametrize(("annotation", "given", "told"), VALUES)
def test_a_run_sees_the_value_that_was_given_and_the_id_has_it_as_json(annotation: Any, given: Any, told: str) -> None:
    One = task_of(annotation)
    ((id, task),) = made(One(value=given)).items()
    assert id == f"one[value={told}]"
    assert same(task.value, given)
    assert same(One(value=given).value, given)
    assert list(made(each(One, value=[given]))) == [id]
    assert Expander({"value": lambda: [given]}, codecs={"value": [parameters_of(One).codec("value")]}).rows()


@pytest.mark.parametrize(
    ("annotation", "given", "seen"),
    [
        (float, 3, 3.0),
        (int, "3", 3),
        (Mode, "full", Mode.FULL),
        (dt.date, "2026-01-01", dt.date(2026, 1, 1)),
        (Path, "a/b", Path("a/b")),
        (tuple[int, ...], [1, 2], (1, 2)),
        (list[int], (1, 2), [1, 2]),
        (Model, {"region": "eu"}, Model(region="eu")),  # type: ignore[call-arg]
        (str, Mode.FULL, "full"),
    ],
)
def test_a_value_becomes_the_annotated_type_where_that_is_plain(annotation: Any, given: Any, seen: Any) -> None:
    One = task_of(annotation)
    for task in (run_of(One(value=given)), One(value=given), run_of(each(One, value=[given]))):
        assert (task.value, type(task.value)) == (seen, type(seen))


@pytest.mark.parametrize(
    ("annotation", "given", "told"),
    [
        (int, "a", "One.value is 'a'; expected int (input should be a valid integer"),
        (int, None, "One.value is None; expected int"),
        (int, 3.5, "expected int"),
        (str, 3, "One.value is 3; expected str"),
        (bool, "perhaps", "expected bool"),
        (Literal["a", "b"], "c", "expected Literal['a', 'b'] (input should be 'a' or 'b')"),
        (Mode, "ful", "expected Mode (input should be 'full' or 'quick')"),
        (dt.date, "soon", "expected date"),
        (list[int], [1, "a"], "expected list[int] (at 1: input should be a valid integer"),
        (dict[str, int], {"a": "b"}, "(at a: "),
        (int | None, "a", "expected int | None"),
        (Annotated[int, Field(ge=1)], 0, "expected int (input should be greater than or equal to 1)"),
        (Model, {"depth": 3}, "(at region: field required)"),
        (SecretStr, SecretStr("x"), "which cannot be recorded as JSON and read again as SecretStr"),
        (str | dt.date, dt.date(2026, 1, 1), "'2026-01-01' would be read as '2026-01-01'"),
        (Work, 3, "is annotated with Work, of which pydantic cannot check values"),
        (Any, Level.LOW, "One.value is <Level.LOW: 1> (Level), which is not a JSON value; parameters are JSON values"),
        (float, float("nan"), "which is not a JSON value"),
        (list, [object()], "which is not a JSON value"),
        (dict, {1: 2}, "({'1': 2} would be read as {'1': 2})"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_was_given_and_what_is_expected(
    annotation: Any, given: Any, told: str
) -> None:
    One = task_of(annotation)
    with pytest.raises(DagError) as caught:
        made(One(value=given))
    assert told in str(caught.value)
    told = told.replace("One.value is", "is")
    assert told in refusal(each(One, value=[given]))
    with pytest.raises(ValueError, match="a value for 'value' is"):
        Expander({"value": lambda: [given]}, codecs={"value": [parameters_of(One).codec("value")]}).rows()


def test_defaults_have_the_annotated_type_too() -> None:
    class Careless(Work):
        depth: int = None  # type: ignore[assignment]
        mode: Mode = Mode.FULL

    assert "Careless.depth is None; expected int" in refusal(Careless)
    assert run_of(Careless(depth=3)).mode is Mode.FULL


def test_the_tasks_of_a_chain_must_read_a_value_alike() -> None:
    class Day(Work):
        day: dt.date

    class Moment(Work):
        day: dt.datetime

    class Text(Work):
        day: str

    class Also(Work):
        day: dt.date | None

    assert "a value of each for 'day' is datetime.date(2026, 1, 1); expected str" in refusal(
        each((Day, Text), day=[dt.date(2026, 1, 1)])
    )
    assert {type(task.day) for task in made(each((Day, Also), day=["2026-01-01"])).values()} == {dt.date}
    told = refusal(each((Moment, Text), day=["2026-01-01T00:00:00+00:00"]))
    assert "which is '2026-01-01T00:00:00Z' for one task and '2026-01-01T00:00:00+00:00' for another" in told


def test_an_annotation_is_evaluated_where_it_stands() -> None:
    class Kind(enum.Enum):
        A = "a"

    class Inner(Work):
        class Size(enum.Enum):
            S = "s"

        kind: Kind
        size: Size = Size.S

    assert run_of(Inner(kind=Kind.A)).kind is Kind.A
    assert run_of(Inner(kind=Kind.A)).size is Inner.Size.S


def test_an_annotation_that_only_type_checkers_know_is_named() -> None:
    class Unknown(Work):
        part: Fraction

    told = refusal(Unknown(part=1))  # type: ignore[arg-type]
    assert "the annotation 'Fraction' of" in told
    assert "cannot be evaluated: name 'Fraction' is not defined; define or import it at the top level" in told


def test_numbers_of_numpy_are_numbers() -> None:
    np = pytest.importorskip("numpy")

    class Sized(Work):
        n: int = 1
        x: float = 1.0

    assert list(made(Sized(n=np.int64(5), x=np.float32(0.5)), each(Sized, n=np.arange(7, 9)))) == [
        "sized[n=5,x=0.5]", "sized[n=7,x=1.0]", "sized[n=8,x=1.0]",
    ]  # fmt: skip
