"""Tracebacks as users should see them: their own frames, all of them, and nobody else's."""

from __future__ import annotations

import gc
import inspect
import os
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

_OURS = str(Path(__file__).resolve().parent) + os.sep
_IMPORTLIB = (f"importlib{os.sep}__init__.py", "<frozen importlib.")
_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_LENGTH = 100_000  # characters; what is longer loses its middle


def user_stack(error: BaseException) -> str:
    """The traceback of `error` as text: causes, contexts, groups and notes included, without the frames of gluepy and
    of the import system, never with the values of variables."""
    try:
        told = traceback.TracebackException.from_exception(error, compact=True)
        for part in _chain(told, set()):
            part.stack = traceback.StackSummary.from_list(
                [frame for frame in part.stack if not _is_ours(frame.filename)]
            )
        text = "".join(told.format()).rstrip()
    except Exception as broken:  # an exception whose own __str__ or notes raise
        text = f"{type_name(error)}: (its traceback cannot be formatted: {type_name(broken)})"
    if len(text) > _LENGTH:
        half = _LENGTH // 2
        text = f"{text[:half]}\n… ({len(text) - _LENGTH} characters left out) …\n{text[-half:]}"
    return text.encode("utf-8", "replace").decode()


def clear_frames(error: BaseException) -> None:
    """Free what `error` holds besides itself: the local variables of all frames that have ended, in its traceback and
    in those of its causes, contexts and members, and the objects whose attributes were not found. The tracebacks
    stay."""
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        each = errors.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        errors += (each.__cause__, each.__context__)
        if isinstance(each, BaseExceptionGroup):
            errors += each.exceptions
        if isinstance(each, AttributeError):
            each.obj = None
        trace = each.__traceback__
        while trace is not None:
            if _has_ended(trace.tb_frame):
                with suppress(RuntimeError):
                    trace.tb_frame.clear()
            trace = trace.tb_next


def without_our_frames(lines: list[str]) -> list[str]:
    """The lines of what a process wrote before it died, without the frames of gluepy in a crash's traceback."""
    return [line for line in lines if not line.startswith(f'  File "{_OURS}')]


def type_name(error: BaseException) -> str:
    """The name of the exception's class as a traceback shows it."""
    kind = type(error)
    plain = kind.__module__ in ("builtins", "__main__", "__mp_main__")
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"


def _has_ended(frame: FrameType) -> bool:
    """False for a coroutine or generator that may go on: `frame.clear()` would end it (up to Python 3.12). An exception
    that is kept and raised again has frames of everybody who has raised it before."""
    if not frame.f_code.co_flags & _SUSPENDABLE:
        return True
    # Only then the frame itself owns what it refers to; before, its coroutine does.
    return any(each is frame.f_code for each in gc.get_referents(frame))


def _chain(told: traceback.TracebackException, seen: set[int]) -> Iterator[traceback.TracebackException]:
    if id(told) not in seen:
        seen.add(id(told))
        yield told
        for part in (told.__cause__, told.__context__, *(told.exceptions or ())):
            if part is not None:
                yield from _chain(part, seen)


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OURS) or any(mark in filename for mark in _IMPORTLIB)
