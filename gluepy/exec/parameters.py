"""The parameters of a task: which ones its class takes, of what types, and how their values become JSON and come back.

Most classes annotate attributes, and `Parametrized.__init__` takes them by keyword. A class with an `__init__` of its
own (written, or made by `@dataclass`, attrs or pydantic) takes what that takes. Either way a DAG records the values as
JSON, and each attempt makes its task of them again, so that `run()` sees values of the annotated types.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, get_args, get_origin

from gluepy.core.events import JSON
from gluepy.errors import DagError, did_you_mean
from gluepy.exec.scope import Scope, current_scope
from gluepy.exec.values import Codec, WrongValue, same, short

_MISSING: Final[Any] = object()
_BARE: Final = frozenset(("_scope", "_id", "_given"))  # what every instance has
_MUTABLE = (list, dict, set)
_BUILTIN = (tuple, list, dict, set, frozenset, str, bytes, int, float)
_NAMED = {"str": str, "int": int, "float": float, "bool": bool}  # annotations that need no evaluation


class Unresolved(WrongValue):
    """An annotation that cannot be evaluated."""


@typing.dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(dataclasses.field,))
class Parametrized:
    """Base of `Task`: takes, by keyword, a value for each annotated attribute of its class."""

    if TYPE_CHECKING:  # at run time pydantic would take what is annotated here for fields of a model
        inputs: Any
        outputs: Any
        _scope: Scope | None
        _id: str | None
        _given: Mapping[str, Any]
    _configurable: ClassVar[frozenset[str]] = frozenset()  # attributes that are no parameters though annotated
    _scope = None  # for a class whose own __init__ does not call this one's
    _id = None
    _given = MappingProxyType[str, Any]({})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "<locals>" in cls.__qualname__ and "_resolved" not in cls.__dict__:
            _resolve(cls, sys._getframe(1))

    if not TYPE_CHECKING:  # type checkers make an __init__ of the annotations

        def __new__(cls, *args: Any, **kwargs: Any) -> typing.Self:  # noqa: D102
            new = super().__new__
            self = new(cls) if new is object.__new__ else new(cls, *args, **kwargs)
            if cls.__init__ is not Parametrized.__init__ and parameters_of(cls).has_init:
                if "id" in kwargs and not parameters_of(cls).takes_id:
                    hint = "let it take id: str | None = None (and hand it on by super().__init__(id=id))"
                    raise DagError(cls.__qualname__, "its __init__ does not take an id", hint)
                self.__dict__["_arguments"] = args, kwargs
            return self

        def __init__(self, *values: Any, id: str | None = None, **parameters: Any) -> None:
            takes = parameters_of(type(self))
            if takes.problem is not None and not takes.has_init:
                raise DagError(type(self).__qualname__, *takes.problem)
            if values:
                call = ", ".join(f"{name}={short(value)}" for name, value in zip(takes.declared, values, strict=False))
                hint = f"write {type(self).__qualname__}({call})"
                raise DagError(type(self).__qualname__, "its parameters are given by keyword", hint)
            self.__dict__["_scope"] = current_scope()  # so that its own threads, too, find it; a run sets it anyhow
            self.__dict__["_id"] = id
            takes.fill(self, takes.converted(parameters) if parameters else {})
            self.__dict__["_given"] = parameters

    def __getattr__(self, name: str) -> Any:
        cls = type(self)
        if not name.startswith("_") and name in parameters_of(cls).declared:
            raise AttributeError(f"{cls.__qualname__}.{name}: the parameter was not given a value; it has no default")
        raise AttributeError(f"{cls.__qualname__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._given.items())
        return f"{type(self).__qualname__}({given})"


class TaskParameters:
    """What the class `task` takes: `names`, in the order of their declaration.

    `declared` are its annotated attributes. `has_init`: its __init__ is its own; `takes_id`: an instance can be given
    an id. `problem` says, with the hint, why the class cannot be a task; None if it can.
    """

    def __init__(self, task: type[Parametrized]) -> None:
        self.task = task
        self.problem: tuple[str, str] | None = None
        self.has_init, self.takes_id = _has_init(task), True
        self._annotations: dict[str, tuple[Any, Any]] = {}  # with the class, or the __init__, that has it
        self.declared = tuple(self._declared())
        self.names: tuple[str, ...] = self.declared
        self._signature: inspect.Signature | None = None  # of an __init__ of its own
        self._keywords: str | None = None  # what that calls its **keywords
        self._fields: dict[str, str] = {}  # of a pydantic model: the attribute that an argument becomes
        self._codecs: dict[str, Codec] = {}
        self._checked: list[tuple[str, Codec]] | None = None
        if self.has_init:
            self._look_at_init()
        else:
            self.problem = self._problem()
        builtin = next((base for base in task.__mro__ if base in _BUILTIN), None)
        if builtin is not None:
            what = "NamedTuple" if hasattr(task, "_fields") else builtin.__name__
            hint = "annotate the attributes in the task's class, or let a parameter have it as its type"
            self.problem = f"a task cannot be a {what} as well", hint
        self._is_plain = self._signature is None and task.__new__ is Parametrized.__new__
        self._has_descriptors = any(
            hasattr(inspect.getattr_static(task, name, None), "__set__") for name in self.declared
        )

    # Instances.

    def make(self, recorded: Mapping[str, JSON]) -> Any:
        """A task of recorded values. Raises `WrongValue` for one that does not fit its annotation."""
        task, values = self.task, recorded
        if self._checked is None:
            codecs = [(name, self.codec(name)) for name in self.names]
            self._checked = [(name, codec) for name, codec in codecs if codec.annotation is not Any]
        if self._checked:
            values = dict(recorded)
            for name, codec in self._checked:
                if name in values:
                    values[name] = codec.decode(values[name], f"{task.__qualname__}.{name}")
        if not self._is_plain:
            return task(**values)
        made = object.__new__(task)
        if self.declared:
            self.fill(made, values)
        return made

    def fill(self, task: Any, values: Mapping[str, Any]) -> None:
        """Give a new instance its `values`, and mutable defaults of its own for the rest."""
        inside = task.__dict__
        if self._has_descriptors:
            for name, value in values.items():
                setattr(task, name, value)
        else:
            inside.update(values)
        if len(values) < len(self.declared):
            for name in self.declared:
                if name not in values:
                    default = getattr(self.task, name, None)
                    if type(default) in _MUTABLE or type(default) is dataclasses.Field:
                        default = self._class_default(name)
                        if default is not _MISSING:
                            inside[name] = copy.deepcopy(default)
        inside["_given"] = values

    def converted(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """`values` as the annotated types. Raises `DagError` for an unknown name, and for a value that does not fit;
        one whose annotation cannot be evaluated yet is left as it is."""
        task, typed = self.task, {}
        for name, value in values.items():
            if name not in self.declared:
                raise DagError(task.__qualname__, f"no parameter {name!r}", self.hint_for(name))
            try:
                typed[name] = self.codec(name).convert(value, f"{task.__qualname__}.{name}")
            except Unresolved:
                typed[name] = value
            except WrongValue as error:
                raise DagError(task.__qualname__, error.problem, error.hint) from None
        return typed

    def hint_for(self, name: str) -> str:
        """What to do about a parameter that the class does not take."""
        if name in self.task._configurable:
            return f"it is the same for all of a class: write {name} = … in the class, or in a subclass"
        known = f"its parameters: {', '.join(self.names) or 'none'}"
        return did_you_mean(name, self.names).removeprefix("; ") or known

    # Values.

    def given(self, task: Any) -> dict[str, Any]:
        """The values that the instance `task` was given, without defaults. Raises `WrongValue` for one that could not
        be given again."""
        inside = vars(task)
        if self._signature is None:
            given = dict(task._given)
            for name in self.declared:
                before = given[name] if name in given else self._class_default(name)
                if name in inside and not same(inside[name], before):
                    given[name] = inside[name]  # of its type, or set since; else 3 stays 3 in the id of a float
        elif (bound := self._bound(task)) is None:
            given_to = getattr(task, "model_fields_set", None)
            attributes = [(name, self._fields.get(name, name)) for name in self.names]
            given = {name: getattr(task, each) for name, each in attributes if given_to is None or each in given_to}
        else:
            given = dict(bound)
            given.update(given.pop(self._keywords, {}) if self._keywords else {})
            for name in given.keys() - {*self.names, "id"}:
                problem = f"{self.task.__qualname__} was given {short(given[name])} as {name}"
                raise WrongValue(problem, "a run makes it again with keywords: let one parameter take them as a list")
        return {name: given[name] for name in self.names if name in given}

    def defaults(self) -> Iterator[tuple[str, Any]]:
        """The parameters that have a default, with it."""
        for name in self.names:
            default = self._class_default(name) if self._signature is None else self._init_default(name)
            if default is not _MISSING:
                yield name, default

    def is_bare(self, task: Any) -> bool:
        """Whether the class takes nothing, and the instance `task` has nothing but perhaps an id: as most have."""
        return not self.names and self._signature is None and vars(task).keys() <= _BARE

    def id_of(self, task: Any) -> Any:
        """The id that the instance `task` was given, or None."""
        if task._id is None and self._signature is not None and "id" in self._signature.parameters:
            return (self._bound(task) or {}).get("id")
        return task._id

    def _bound(self, task: Any) -> Mapping[str, Any] | None:
        """The arguments that its own __init__ got, by name; None if they are not known, as of some copies."""
        assert self._signature is not None
        if "_arguments" not in vars(task):
            return None
        args, kwargs = vars(task)["_arguments"]
        try:
            return self._signature.bind(*args, **kwargs).arguments
        except TypeError:
            return None

    def check(self, task: Any, recorded: Mapping[str, JSON]) -> None:
        """Raises `WrongValue` if the instance `task` has anything that one made of `recorded` would not have."""
        cls, name = self.task, self.task.__qualname__
        if self._signature is None:
            kept = {*self.names, *(each for each in vars(task) if _is_kept(cls, each))}
            lost = {each: (value, _MISSING) for each, value in vars(task).items() if each not in kept}
        else:
            try:
                again = self.make(recorded)
                lost = self._differences(task, again)
                if lost:  # what is never the same twice tells nothing
                    changing = self._differences(again, self.make(recorded))
                    lost = {each: both for each, both in lost.items() if each not in changing}
            except WrongValue:
                raise
            except Exception as error:
                problem = f"{name} cannot be made again of its values: {type(error).__name__}: {error}"
                raise WrongValue(problem, f"its __init__ must take {short(dict(recorded))}") from None
        for attribute, (here, there) in lost.items():
            would = "missing" if there is _MISSING else short(there)
            hint = f"annotate it in the class, and give it by keyword: {name}({attribute}=…)"
            if attribute in cls._configurable:
                hint = self.hint_for(attribute)
            elif attribute in self.names:
                hint = f"give {name} a value of the annotated type, from which it makes the same each time"
            raise WrongValue(f"{name}.{attribute} is {short(here)} here, but would be {would} when it runs", hint)

    def _differences(self, task: Any, again: Any) -> dict[str, tuple[Any, Any]]:
        ours, theirs = vars(task), vars(again)
        missing = [each for each in ours if each not in theirs and not _is_kept(self.task, each)]
        differ = {each: (ours[each], _MISSING) for each in missing}
        for name in {*self.names, *self.declared, *self.task._configurable}:
            attribute = self._fields.get(name, name)
            here, there = getattr(task, attribute, _MISSING), getattr(again, attribute, _MISSING)
            if not same(here, there):
                differ[name] = here, there
        return differ

    def codec(self, name: str) -> Codec:
        """How values of the parameter become JSON and come back. Raises `Unresolved`."""
        known = self._codecs.get(name)
        if known is None:
            known = self._codecs[name] = Codec(self._annotation(name))
        return known

    def _annotation(self, name: str) -> Any:
        annotation, owner = self._annotations.get(name, (Any, self.task))
        try:
            return _substituted(_bare(_evaluated(name, annotation, owner)), self.task)
        except Exception as error:  # whatever is in there
            problem = f"the annotation {annotation!r} of {self.task.__qualname__}.{name} cannot be evaluated: {error}"
            hint = "define or import it at the top level of the module, and not only under TYPE_CHECKING"
            raise Unresolved(problem, hint) from None

    def _class_default(self, name: str) -> Any:
        static = inspect.getattr_static(self.task, name, _MISSING)
        if isinstance(static, dataclasses.Field):
            if static.default_factory is not dataclasses.MISSING:
                return static.default_factory()
            return _MISSING if static.default is dataclasses.MISSING else static.default
        if not hasattr(static, "__set__"):
            return static
        try:
            value = static.__get__(None, self.task)  # as dataclasses ask a descriptor
        except AttributeError:
            return _MISSING
        return _MISSING if value is static else value

    def _init_default(self, name: str) -> Any:
        assert self._signature is not None
        parameter = self._signature.parameters.get(name)
        if parameter is None:
            return self._class_default(name)
        default = parameter.default
        if type(default).__name__ in ("_HAS_DEFAULT_FACTORY_CLASS", "_Nothing"):  # of dataclasses, of attrs
            return self._made_default(name)
        return _MISSING if default is inspect.Parameter.empty else default

    def _made_default(self, name: str) -> Any:
        field: Any = getattr(self.task, "__dataclass_fields__", {}).get(name)
        if field is not None:
            return field.default_factory()
        for attribute in getattr(self.task, "__attrs_attrs__", ()):
            if attribute.alias == name and not attribute.default.takes_self:
                return attribute.default.factory()
        return _MISSING

    # The class.

    def _declared(self) -> Iterable[str]:
        names: dict[str, type] = {}
        for base in reversed(self.task.__mro__):
            if base is Parametrized or "_configurable" in vars(base):
                continue
            for name, annotation in inspect.get_annotations(base).items():
                if name in self.task._configurable or _is(annotation, "ClassVar"):
                    names.pop(name, None)
                else:
                    self._annotations[name] = annotation, base
                    if not name.startswith("_"):
                        names[name] = base
        return [name for name, base in names.items() if not self._is_computed(name, base)]

    def _is_computed(self, name: str, base: type) -> bool:
        """Whether a property or a method has the value, so that it cannot be given."""
        owners = [each for each in self.task.__mro__ if name in vars(each)]
        if any("_configurable" in vars(each) for each in owners):
            return False  # it has the name of an attribute of Task, which is refused
        owner = owners[0] if owners else base
        static = vars(owner).get(name)
        if isinstance(static, property):
            return static.fset is None
        if isinstance(static, (functools.cached_property, staticmethod, classmethod)):
            return True
        return inspect.isfunction(static) and owner is not base

    def _problem(self) -> tuple[str, str] | None:
        task = self.task
        if hasattr(task, "__pydantic_fields__"):
            problem = "it has a pydantic model behind Task among its bases, which is never initialized so"
            return problem, f"name the model first, as in class {task.__name__}(Model, Task)"
        initvar = next((name for name in self.declared if _is(self._annotations[name][0], "InitVar")), None)
        if initvar or hasattr(task, "__post_init__"):
            what = f"{initvar} is an InitVar" if initvar else "it has a __post_init__"
            return f"{what}, which means something in a dataclass only", "put @dataclass above the class"
        for name in self.declared:
            kind = type(inspect.getattr_static(task, name, None))
            if kind.__module__ == "pydantic.fields":
                hint = f"write {name}: Annotated[…, Field(…)], and = with the default after it"
                return f"the default of {name} is a Field of pydantic's", hint
            if kind.__module__ == "attr._make":
                return f"the default of {name} is a field of attrs", "put @attrs.define above the class"
        return None

    def _look_at_init(self) -> None:
        task, names = self.task, list[str]()
        model: dict[str, Any] | None = getattr(task, "__pydantic_fields__", None)
        try:
            signature = inspect.signature(task if model is not None else task.__init__)
        except (TypeError, ValueError) as error:
            self.problem = f"what its __init__ takes is not known: {error}", "write one in Python, or none"
            signature = inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)])
        taken = list(signature.parameters.values())[0 if model is not None else 1 :]
        self._signature = signature.replace(parameters=taken)
        self.takes_id = False
        for parameter in taken:
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                self._keywords, self.takes_id = parameter.name, model is None
            elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                problem = f"its __init__ takes {parameter.name} by position only"
                self.problem = problem, "a run makes it again with keywords: remove the /"
            elif parameter.name == "id":
                self.takes_id = True
            elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
                names.append(parameter.name)
                self._annotate(parameter)
        if model is not None:
            self._fields = {field.alias or name: name for name, field in model.items()}
            names = [name for name in names if name in self._fields]
        elif self._keywords:
            names.extend(name for name in self.declared if name not in names)
        self.names = tuple(names)
        self.declared = tuple(name for name in self.declared if name != "id")
        fields: Any = getattr(task, "__dataclass_fields__", None)
        if fields is None and hasattr(task, "__attrs_attrs__"):
            fields = [attribute.name for attribute in task.__attrs_attrs__]
        if fields is not None and not self._keywords:
            for name in self.declared:
                if name not in fields and name not in names:
                    owner = self._annotations[name][1].__qualname__
                    problem = f"{name} is annotated in {owner}, but its __init__, made by a decorator, does not take it"
                    self.problem = problem, f"decorate {owner} in the same way"

    def _annotate(self, parameter: inspect.Parameter) -> None:
        """What an argument is annotated with counts; if with nothing, or with a copy, that of the attribute."""
        annotation = parameter.annotation
        if annotation is not inspect.Parameter.empty:
            declared = self._annotations.get(parameter.name)
            if declared is None or declared[0] != annotation:
                self._annotations[parameter.name] = annotation, inspect.unwrap(self.task.__init__)


def parameters_of(task: type[Parametrized]) -> TaskParameters:
    """What the class takes. It is looked at when this is first asked, since decorators change classes."""
    known: TaskParameters | None = task.__dict__.get("_takes")
    if known is None or known.task is not task:
        known = TaskParameters(task)
        type.__setattr__(task, "_takes", known)
    return known


# ---- Annotations.


def _resolve(cls: type, frame: Any) -> None:
    """Evaluate what a class inside a function is annotated with, while the function's names are there."""
    while frame is not None and frame.f_code.co_name == "__init_subclass__":
        frame = frame.f_back
    resolved = {}
    for name, annotation in inspect.get_annotations(cls).items():
        if isinstance(annotation, str) and annotation not in _NAMED and frame is not None:
            try:
                resolved[name] = _hint(name, annotation, frame.f_globals, frame.f_locals)
            except Exception:  # noqa: S112  # it is told when the annotation is needed
                continue
    if resolved:
        cls._resolved = resolved  # type: ignore[attr-defined]


def _evaluated(name: str, annotation: Any, owner: Any) -> Any:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation
    if isinstance(annotation, str) and annotation in _NAMED:
        return _NAMED[annotation]
    if not isinstance(owner, type):
        return _hint(name, annotation, owner.__globals__, {})
    resolved = vars(owner).get("_resolved", {})
    if name in resolved:
        return resolved[name]
    module = sys.modules.get(owner.__module__)
    return _hint(name, annotation, dict(vars(owner)), vars(module) if module else {})


def _hint(name: str, annotation: Any, outer: dict[str, Any], inner: Mapping[str, Any]) -> Any:
    holder = type("holder", (), {"__annotations__": {name: annotation}})
    return typing.get_type_hints(holder, outer, dict(inner), include_extras=True)[name]


def _bare(annotation: Any) -> Any:
    """`annotation` without what says nothing about the value."""
    if isinstance(annotation, dataclasses.InitVar):
        return _bare(annotation.type)
    if annotation is Final:
        return Any
    return _bare(get_args(annotation)[0]) if get_origin(annotation) is Final else annotation


def _substituted(annotation: Any, task: type) -> Any:
    """`annotation` with what `task` gives for the type variables of its generic bases."""
    open = getattr(annotation, "__parameters__", ())
    if not isinstance(annotation, TypeVar) and not (isinstance(open, tuple) and open and get_origin(annotation)):
        return annotation
    given: dict[Any, Any] = {}
    for base in task.__mro__:
        for alias in vars(base).get("__orig_bases__", ()):
            variables = getattr(get_origin(alias), "__parameters__", ())
            for variable, argument in zip(variables, get_args(alias), strict=False):
                given.setdefault(variable, given.get(argument, argument) if isinstance(argument, TypeVar) else argument)

    def value(variable: Any) -> Any:
        found = given.get(variable, variable)
        return (getattr(found, "__bound__", None) or Any) if isinstance(found, TypeVar) else found

    return value(annotation) if isinstance(annotation, TypeVar) else annotation[tuple(map(value, open))]


def _is(annotation: Any, what: str) -> bool:
    """Whether an annotation, evaluated or not, is a ClassVar or an InitVar."""
    if isinstance(annotation, str):
        return annotation.strip("'\" ").partition("[")[0].rpartition(".")[2].strip() == what
    if what == "InitVar":
        return annotation is dataclasses.InitVar or isinstance(annotation, dataclasses.InitVar)
    return annotation is ClassVar or get_origin(annotation) is ClassVar


def _has_init(task: type) -> bool:
    """Whether the class has an __init__ of its own. That of a protocol only looks for the next one."""
    owner = next(base for base in task.__mro__ if "__init__" in vars(base))
    while owner is not Parametrized and getattr(owner, "_is_protocol", False):
        bases = task.__mro__[task.__mro__.index(owner) + 1 :]
        owner = next(base for base in bases if "__init__" in vars(base))
    return owner is not Parametrized


def _is_kept(task: type, name: str) -> bool:
    """Whether it is nobody's matter that an instance has the attribute."""
    return name.startswith("_") or isinstance(inspect.getattr_static(task, name, None), functools.cached_property)
